"""Hazards: which posted communications an item must wait for, found once from the order.

An item waits for a communication whose result it reads, whose source it overwrites, or whose arena bytes it reuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Bytes = tuple[int, int]  # first byte in the arena, and one past the last


@dataclass(frozen=True)
class Access:
    """The registers that an item reads and writes (locals left out)."""

    reads: frozenset[int]
    writes: frozenset[int]


@dataclass
class _Pending:
    item: int
    access: Access
    spans: list[Bytes] = field(default_factory=list)


def waits(accesses: Sequence[Access], posted: Sequence[bool], spans: Mapping[int, Bytes]) -> list[tuple[int, ...]]:
    """Per item, and once more for the end of the run: the numbers of the posted items to wait for before it.

    ``posted``: whether an item goes on in the background. ``spans``: register -> its bytes in the arena.
    """
    pending: list[_Pending] = []
    found: list[tuple[int, ...]] = []
    for number, access in enumerate(accesses):
        due = [p for p in pending if _conflict(p, access, spans)]
        found.append(tuple(p.item for p in due))
        pending = [p for p in pending if p not in due]
        if posted[number]:
            touched = access.reads | access.writes
            pending.append(_Pending(number, access, [spans[r] for r in touched if r in spans]))
    found.append(tuple(p.item for p in pending))
    return found


def receiving_early(
    accesses: Sequence[Access],
    receives: Sequence[bool],
    communicates: Sequence[bool],
    spans: Mapping[int, Bytes],
    *,
    ordered: bool,
) -> list[int]:
    """The items in the order in which to begin them: a receive is posted before the items that stand in front of it,
    so that what arrives finds its place ready, as far as none of them touches that place.

    ``communicates``: items that communicate, in the background or not.
    ``ordered``: communications must keep their order among themselves. A receive that makes its own place, outside of
    the arena, keeps it in any case, so that memory is taken when the plan says.
    """
    order: list[int] = []
    for number, access in enumerate(accesses):
        place = len(order)
        if receives[number] and not access.reads:
            pending = _Pending(number, access, [spans[r] for r in access.writes if r in spans])
            stays = ordered or any(r not in spans for r in access.writes)
            while place and not (stays and communicates[order[place - 1]]):
                if _touches(pending, accesses[order[place - 1]], spans):
                    break
                place -= 1
        order.insert(place, number)
    return order


def _touches(pending: _Pending, access: Access, spans: Mapping[int, Bytes]) -> bool:
    everything = access.reads | access.writes
    return _conflict(pending, Access(frozenset(), everything), spans) or bool(pending.access.writes & everything)


def _conflict(pending: _Pending, access: Access, spans: Mapping[int, Bytes]) -> bool:
    before = pending.access
    if before.writes & (access.reads | access.writes) or before.reads & access.writes:
        return True
    written = [spans[r] for r in access.writes if r in spans]
    return any(a < stop and start < b for a, b in written for start, stop in pending.spans)
