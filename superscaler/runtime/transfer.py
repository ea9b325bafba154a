"""Transfers: the communication steps of a Program, bound to one worker.

Each is a callable that posts its communication, and returns it under way: handles to be waited for, with the received
value as their result.
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
from superscaler.runtime.post import Post, UnderWay, posting

Transfer = Callable[..., UnderWay]
Run = Generator[Handle, None, Tensor]
Collecting = Callable[[Tensor, Tensor | None], Run]  # (src, out)


def send(binding: Binding, comm: Comm, step: Send, times: dict[str, int], key: Key) -> Transfer:
    """``(src)``: send to every destination what the route takes from this worker."""
    mine = binding.local(step.src, times)
    parcels: dict[int, list[Packing]] = {}
    for piece in binding.entry.routes[step.route].pieces:
        if piece.source == binding.worker != piece.destination:
            part = _region(piece) & mine
            if not part.empty:
                parcels.setdefault(piece.destination, []).append(packing(mine, part))

    receiver = next(iter(parcels), -1)

    def whole(src: Tensor) -> UnderWay:
        handle = comm.send(src, receiver, key)
        return () if handle is None else (handle,)

    def parted(src: Tensor) -> UnderWay:
        posted = [comm.send(_parcel(src, packs), peer, key) for peer, packs in parcels.items()]
        return [handle for handle in posted if handle is not None]

    return whole if len(parcels) == 1 and [pack.full for pack in parcels[receiver]] == [True] else parted


def recv(binding: Binding, comm: Comm, step: Recv, times: dict[str, int], key: Key) -> Transfer:
    """``(local, out, device)``: assemble the value from what arrives, and from ``local`` what is here already."""
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

    def whole(local: Tensor | None, out: Tensor | None, device: torch.device) -> UnderWay:
        return Post(made(device)) if out is None else (comm.recv(out, sender, key),)

    def made(device: torch.device) -> Run:
        value = torch.empty(mine.shape, dtype=dtype, device=device)
        yield comm.recv(value, sender, key)
        return value

    def assembled(local: Tensor | None, out: Tensor | None, device: torch.device) -> Run:
        value = torch.empty(mine.shape, dtype=dtype, device=device) if out is None else out
        boxes = {p: value.new_empty(sum(prod(k.shape) for k in packs)) for p, packs in parcels.items()}
        handles = [comm.recv(box, peer, key) for peer, box in boxes.items()]
        for source, target in kept:
            assert local is not None
            target.put(value, source.take(local))
        for handle, (peer, packs) in zip(handles, parcels.items(), strict=True):
            yield handle
            _unpack(boxes[peer], packs, value)
        return value

    sender = next(iter(parcels), -1)
    comes_as_it_is = len(parcels) == 1 and not kept and len(parcels[sender]) == 1
    return whole if comes_as_it_is else posting(assembled)


def _region(piece: Piece) -> Region:
    return Region(Span(span) for span in piece.region)


def _parcel(src: Tensor, packs: list[Packing]) -> Tensor:
    """What goes to one peer, in row-major order."""
    if len(packs) == 1:
        return packs[0].take(src)
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
        return posting(_alone)
    if step.kind == "all_reduce":
        return posting(_all_reduce(comm, kind, group, key))
    source = {w: binding.local(step.src, times, w) for w in group}
    target = {w: binding.local(step.dst, times, w) for w in group}
    if step.kind == "reduce_scatter":
        return posting(_reduce_scatter(comm, kind, group, key, source[binding.worker], target, binding.worker))
    if step.kind == "all_gather":
        return posting(_all_gather(comm, group, key, source, target[binding.worker]))
    return posting(_all_to_all(comm, group, key, source, target, binding.worker))


def _kind(binding: Binding, step: Collective) -> PartialKind:
    states = dict(binding.program.values[step.src].layout.states)
    kinds: set[PartialKind] = {s.kind for a in step.axes if isinstance(s := states.get(a), Partial)}
    return kinds.pop() if len(kinds) == 1 else "sum"


def rounds(binding: Binding, step: Collective) -> int:
    """How many communications, one after the other, a collective takes."""
    return 2 if _kind(binding, step) == "logsumexp" else 1


def _result(value: Tensor, out: Tensor | None) -> Tensor:
    return value if out is None else out.copy_(value)


def _alone(src: Tensor, out: Tensor | None) -> Run:
    yield from ()
    return src.clone() if out is None else out.copy_(src)


def _all_reduce(comm: Comm, kind: PartialKind, group: Group, key: Key) -> Collecting:
    def plain(src: Tensor, out: Tensor | None) -> Run:
        value = src.clone(memory_format=torch.contiguous_format) if out is None else out.copy_(src)
        yield comm.all_reduce(value, kind, group, key)
        return value

    def logsumexp(src: Tensor, out: Tensor | None) -> Run:
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
) -> Collecting:
    packs = [packing(mine, target[w]) for w in group]
    share = target[worker]
    width = max(target[w].volume for w in group)  # rows of one length: shorter parts are padded

    def run(src: Tensor, out: Tensor | None) -> Run:
        rows = src.new_zeros(len(group), width)
        for row, pack in zip(rows, packs, strict=True):
            row[: prod(pack.shape)].view(pack.shape).copy_(pack.take(src))
        got = src.new_empty(width)
        yield comm.reduce_scatter(got, rows, kind, group, key)
        return _result(got[: share.volume].view(share.shape), out)

    def by_all_reduce(src: Tensor, out: Tensor | None) -> Run:
        whole = yield from everything(src, None)
        return _result(packing(mine, share).take(whole).contiguous(), out)

    everything = _all_reduce(comm, kind, group, key)
    return by_all_reduce if kind == "logsumexp" else run


def _all_gather(comm: Comm, group: Group, key: Key, source: dict[int, Region], mine: Region) -> Collecting:
    packs = [packing(mine, source[w]) for w in group]
    width = max(source[w].volume for w in group)

    def run(src: Tensor, out: Tensor | None) -> Run:
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
) -> Collecting:
    give = [packing(source[worker], source[worker] & target[w]) for w in group]
    take = [packing(target[worker], source[w] & target[worker]) for w in group]
    given, taken = [prod(p.shape) for p in give], [prod(p.shape) for p in take]
    mine = target[worker]

    def run(src: Tensor, out: Tensor | None) -> Run:
        flat = torch.cat([pack.take(src).reshape(-1) for pack in give])
        got = src.new_empty(sum(taken))
        yield comm.all_to_all(got, flat, taken, given, group, key)
        value = src.new_empty(mine.shape) if out is None else out
        _unpack(got, take, value)
        return value

    return run
