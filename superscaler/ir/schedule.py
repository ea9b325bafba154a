"""A Schedule: when each Task runs, with the certificate of how good that is known to be."""

from __future__ import annotations

import msgspec

from superscaler.ir.plan import Certificate


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """One Task's time: the block (its index among the lowered blocks), its micro-batch, start and end in µs."""

    block: int
    microbatch: int
    start: int
    end: int


class Schedule(msgspec.Struct, frozen=True):
    """The slots of all blocks on all meshes, sorted by start."""

    slots: tuple[Slot, ...]
    certificate: Certificate
