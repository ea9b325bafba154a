"""Transfers: the communication steps of a Program, bound to one worker.

Each is a callable that posts its communication and yields handles to be waited for; its result is the received value.
Regions decide what goes where, so uneven parts and combs need no case of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import prod

import torch
from torch import Tensor

from superscaler.errors import RunError
from superscaler.ir.layout import Partial, PartialKind
from superscaler.ir.program import Collective, Piece, Recv, Send
from superscaler.ir.region import Region, Span
from superscaler.runtime.binding import Binding
from superscaler.runtime.comm import Comm, Group, Handle, Key
from superscaler.runtime.packing import Packing, packing

Transfer = Callable[..., Generator[Handle, None, Tensor]]


def send(binding: Binding, comm: Comm, step: Send, times: dict[str, int], key: Key) -> Transfer:
    """``(src)``: send to every destination what the route takes from this worker."""
    mine = binding.local(step.src, times)
    parcels: dict[int, list[Packing]] = {}
    for piece in binding.entry.routes[step.route].pieces:
        if piece.source == binding.worker != piece.destination:
            part = _region(piece) & mine
            if not part.empty:
                parcels.setdefault(piece.destination, []).append(packing(mine, part))

    def run(src: Tensor) -> Generator[Handle, None, None]:
        posted = [comm.send(_parcel(src, packs), peer, key) for peer, packs in parcels.items()]
        yield from (handle for handle in posted if handle is not None)

    return run  # pyright: ignore[reportReturnType]


def recv(binding: Binding, comm: Comm, step: Recv, times: dict[str, int], key: Key) -> Transfer:
    """``(local, out)``: assemble the value from what arrives, and from ``local`` what this worker has itself."""
    mine = binding.local(step.dst, times)
    dtype = binding.dtype(step.dst)
    parcels: dict[int, list[Packing]] = {}
    kept: list[tuple[Packing, Packing]] = []
    volume = 0
    for piece in binding.entry.routes[step.route].pieces:
        part = _region(piece) & mine
        if piece.destination != binding.worker or part.empty:
            continue
        volume += part.volume
        if piece.source != binding.worker:
            parcels.setdefault(piece.source, []).append(packing(mine, part))
        else:
            kept.append((packing(binding.local(step.local, times), part), packing(mine, part)))
    if volume != mine.volume:
        raise RunError(
            f"worker {binding.worker}: route {step.route} does not bring all of {binding.tensor(step.dst).name}",
            f"it brings {volume} of {mine.volume} elements, at {times}",
        )
    whole = len(parcels) == 1 and not kept and len(next(iter(parcels.values()))) == 1

    def run(local: Tensor | None, out: Tensor | None, device: torch.device) -> Generator[Handle, None, Tensor]:
        value = torch.empty(mine.shape, dtype=dtype, device=device) if out is None else out
        if whole:
            yield comm.recv(value.view(-1), next(iter(parcels)), key)
            return value
        boxes = {p: value.new_empty(sum(prod(k.shape) for k in packs)) for p, packs in parcels.items()}
        handles = [comm.recv(box, peer, key) for peer, box in boxes.items()]
        for source, target in kept:
            assert local is not None
            target.put(value, source.take(local))
        for handle, (peer, packs) in zip(handles, parcels.items(), strict=True):
            yield handle
            _unpack(boxes[peer], packs, value)
        return value

    return run


def _region(piece: Piece) -> Region:
    return Region(Span(span) for span in piece.region)


def _parcel(src: Tensor, packs: list[Packing]) -> Tensor:
    """What goes to one peer, flat and contiguous."""
    if len(packs) == 1:
        return packs[0].take(src).reshape(-1)
    return torch.cat([pack.take(src).reshape(-1) for pack in packs])


def _unpack(box: Tensor, packs: list[Packing], value: Tensor) -> None:
    for part, pack in zip(box.split([prod(p.shape) for p in packs]), packs, strict=True):
        pack.put(value, part.view(pack.shape))


def collective(binding: Binding, comm: Comm, step: Collective, times: dict[str, int], key: Key) -> Transfer:
    """``(src, out)``: the collective over this worker's group."""
    groups = binding.entry.groupings[step.grouping].groups
    group = next((g for g in groups if binding.worker in g), None)
    if group is None:
        raise RunError(f"worker {binding.worker} takes part in communication {step.comm} but is in none of its groups")
    kind = _kind(binding, step)
    if len(group) == 1:
        return _alone
    if step.kind == "all_reduce":
        return _all_reduce(comm, kind, group, key)
    source = {w: binding.local(step.src, times, w) for w in group}
    target = {w: binding.local(step.dst, times, w) for w in group}
    if step.kind == "reduce_scatter":
        return _reduce_scatter(comm, kind, group, key, source[binding.worker], target, binding.worker)
    if step.kind == "all_gather":
        return _all_gather(comm, group, key, source, target[binding.worker])
    return _all_to_all(comm, group, key, source, target, binding.worker)


def _kind(binding: Binding, step: Collective) -> PartialKind:
    states = dict(binding.program.values[step.src].layout.states)
    kinds: set[PartialKind] = {s.kind for a in step.axes if isinstance(s := states.get(a), Partial)}
    return kinds.pop() if len(kinds) == 1 else "sum"


def rounds(binding: Binding, step: Collective) -> int:
    """How many communications, one after the other, a collective takes."""
    return 2 if _kind(binding, step) == "logsumexp" else 1


def _result(value: Tensor, out: Tensor | None) -> Tensor:
    return value if out is None else out.copy_(value)


def _alone(src: Tensor, out: Tensor | None) -> Generator[Handle, None, Tensor]:
    yield from ()
    return src.clone() if out is None else out.copy_(src)


def _all_reduce(comm: Comm, kind: PartialKind, group: Group, key: Key) -> Transfer:
    def plain(src: Tensor, out: Tensor | None) -> Generator[Handle, None, Tensor]:
        value = src.clone(memory_format=torch.contiguous_format) if out is None else out.copy_(src)
        yield comm.all_reduce(value, kind, group, key)
        return value

    def logsumexp(src: Tensor, out: Tensor | None) -> Generator[Handle, None, Tensor]:
        top = src.clone(memory_format=torch.contiguous_format)
        yield comm.all_reduce(top, "max", group, key)
        # Where every part is -inf there is nothing to scale by.
        shift = torch.where(top.isfinite(), top, torch.zeros_like(top))
        total = (src - shift).exp_()
        yield comm.all_reduce(total, "sum", group, (key[0], -1 - key[1]))
        return _result(total.log_().add_(shift), out)

    return logsumexp if kind == "logsumexp" else plain


def _reduce_scatter(
    comm: Comm, kind: PartialKind, group: Group, key: Key, mine: Region, target: dict[int, Region], worker: int
) -> Transfer:
    packs = [packing(mine, target[w]) for w in group]
    share = target[worker]
    width = max(target[w].volume for w in group)  # rows of one length: shorter parts are padded

    def run(src: Tensor, out: Tensor | None) -> Generator[Handle, None, Tensor]:
        rows = src.new_zeros(len(group), width)
        for row, pack in zip(rows, packs, strict=True):
            row[: prod(pack.shape)].view(pack.shape).copy_(pack.take(src))
        got = src.new_empty(width)
        yield comm.reduce_scatter(got, rows, kind, group, key)
        return _result(got[: share.volume].view(share.shape), out)

    def by_all_reduce(src: Tensor, out: Tensor | None) -> Generator[Handle, None, Tensor]:
        whole = yield from everything(src, None)
        return _result(packing(mine, share).take(whole).contiguous(), out)

    everything = _all_reduce(comm, kind, group, key)
    return by_all_reduce if kind == "logsumexp" else run


def _all_gather(comm: Comm, group: Group, key: Key, source: dict[int, Region], mine: Region) -> Transfer:
    packs = [packing(mine, source[w]) for w in group]
    width = max(source[w].volume for w in group)

    def run(src: Tensor, out: Tensor | None) -> Generator[Handle, None, Tensor]:
        row = src.new_zeros(width) if src.numel() < width else src.contiguous().view(-1)
        if src.numel() < width:
            row[: src.numel()].view(src.shape).copy_(src)
        rows = src.new_empty(len(group), width)
        yield comm.all_gather(rows, row, group, key)
        value = src.new_empty(mine.shape) if out is None else out
        for got, pack in zip(rows, packs, strict=True):
            pack.put(value, got[: prod(pack.shape)].view(pack.shape))
        return value

    return run


def _all_to_all(
    comm: Comm, group: Group, key: Key, source: dict[int, Region], target: dict[int, Region], worker: int
) -> Transfer:
    give = [packing(source[worker], source[worker] & target[w]) for w in group]
    take = [packing(target[worker], source[w] & target[worker]) for w in group]
    given, taken = [prod(p.shape) for p in give], [prod(p.shape) for p in take]
    mine = target[worker]

    def run(src: Tensor, out: Tensor | None) -> Generator[Handle, None, Tensor]:
        flat = torch.cat([pack.take(src).reshape(-1) for pack in give])
        got = src.new_empty(sum(taken))
        yield comm.all_to_all(got, flat, taken, given, group, key)
        value = src.new_empty(mine.shape) if out is None else out
        _unpack(got, take, value)
        return value

    return run
