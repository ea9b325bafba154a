"""What a Plan consists of: entries over one layout of state, on one cluster."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from superscaler.errors import UsageError
from superscaler.ir.argument import shown
from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph
from superscaler.ir.layout import Layout, Space
from superscaler.ir.program import Definition, Grouping, Program, Route

MASTER = ".master"
"""What the name of a parameter's float32 copy ends in."""
REASONS = {"script": "s", "wish": "w", "follows": "f", "cost": "c", "": "-"}
"""Why an op is split as it is, in one letter."""


class Certificate(msgspec.Struct, frozen=True):
    """How good a schedule is known to be. Times in microseconds; ``gap`` = (makespan - bound) / makespan."""

    status: str
    makespan: int
    bound: int
    gap: float
    baseline: int
    baseline_name: str
    binding: str
    seed: int
    seconds: float


class Entry(msgspec.Struct, frozen=True):
    """One thing the plan can do (``train``, ``eval``): its source Graph, its Programs and their certificate.

    ``microaxis``: the time axis of micro-batches, or "" if the batch is run whole. ``reasons``: axis -> a letter of
    :data:`REASONS` for each op of the Graph: why it is split so.
    """

    graph: Graph
    definitions: tuple[Definition, ...]
    programs: tuple[Program, ...]
    groupings: tuple[Grouping, ...]
    routes: tuple[Route, ...]
    certificate: Certificate
    microaxis: str = ""
    microbatches: int = 1
    reasons: dict[str, str] = {}


class StateTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor that lives across steps: its layout, and how it starts where no weights are given.

    ``init``: "parameter" or "buffer" (copied from the module) or a number (filled). ``memory``: where it lies; what
    lies in the host's is fetched before it is read, and its new content brought back, by tasks on the transfer lane.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    layout: Layout
    init: str | float = "parameter"
    memory: Literal["device", "host"] = "device"


class Contents(msgspec.Struct, frozen=True, dict=True):
    """The fields of a Plan, checked or not.

    ``model``: what the plan was compiled from (name, parameters' fingerprint). ``settings``: how it was compiled.
    ``assumptions``: discovered rules that every proof of this plan rests on.
    """

    entries: dict[str, Entry]
    space: Space
    state: tuple[StateTensor, ...]
    cluster: Cluster
    workers: int
    model: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    assumptions: tuple[str, ...] = ()
    version: int = 1


def refuse_no_plan(plan: object) -> None:
    """Raise :class:`UsageError` for what is no plan."""
    if not isinstance(plan, Contents):
        raise UsageError(f"{shown(plan)} is no plan", hint="superscaler.compile(...), or Plan.load(FILE)")
