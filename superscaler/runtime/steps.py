"""Steps as lines of code: what each step of a Program does on one worker. Calls and sums: see ``calls``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.program import (
    Accumulate,
    Call,
    Collect,
    Collective,
    Commit,
    Mask,
    Offload,
    Recv,
    Send,
    Slice,
    Step,
)
from superscaler.runtime import transfer
from superscaler.runtime.blocks import Code
from superscaler.runtime.calls import write_accumulate, write_call
from superscaler.runtime.packing import Packing, packing
from superscaler.runtime.storage import at_of, reads
from superscaler.runtime.writer import Context, Writer


def emit(context: Context, number: int) -> Code:
    """The code of one block."""
    w = Writer(context, number)
    for i, step in enumerate(w.block.steps):
        at = at_of(step)
        w.out.settle({w.var(v, at) for v in reads(step)})
        _write(w, i, step)
    return w.out.code()


def _write(w: Writer, i: int, step: Step) -> None:
    match step:
        case Call():
            write_call(w, i, step)
        case Accumulate():
            write_accumulate(w, i, step)
        case Slice():
            _slice(w, step)
        case Mask():
            _mask(w, step)
        case Collect():
            _collect(w, i, step)
        case Commit() if w.block.lane == "transfer":
            w.out.transfer("", f"{_copying(w)}({w.var(step.src, ())}, {w.var(step.state, ())})", placed=True)
        case Commit():
            if w.alias.get(step.src) != step.state:
                w.out.line(f"{w.var(step.state, ())}.copy_({w.var(step.src, ())})")
        case Offload():
            _offload(w, step)
        case Send():
            w.out.transfer("", f"{_bound(w, transfer.send, step)}({w.var(step.src, step.at)})", placed=True)
        case Recv():
            _recv(w, step)
        case Collective():
            _collective(w, step)


# --- movement on this worker -----------------------------------------------------------------------------------------


def _slice(w: Writer, step: Slice) -> None:
    place = w.place(step.dst)

    def make(j: int) -> Callable[..., Any]:
        times = w.times(step.at, j)
        pack = packing(w.binding.local(step.src, times), w.binding.local(step.dst, times))
        return pack.take if place == "local" else pack.copy if place == "arena" else _owning(pack)

    part, src = w.out.entry(make), w.var(step.src, step.at)
    if place == "arena":
        w.out.line(f"{part}({src}, {w.var(step.dst, step.at)})")
    else:
        w.out.line(f"{w.var(step.dst, step.at)} = {part}({src})")


def _owning(pack: Packing) -> Callable[[Tensor], Tensor]:
    def take(buffer: Tensor) -> Tensor:
        part = pack.take(buffer)
        return part.clone(memory_format=torch.contiguous_format) if part._is_view() or part is buffer else part

    return take


def _mask(w: Writer, step: Mask) -> None:
    coords = w.binding.space.mesh(w.binding.program.values[step.dst].layout.mesh).coords(w.binding.worker)
    kept = all(coords[axis] == 0 for axis in step.axes)
    src, dst = w.var(step.src, step.at), w.var(step.dst, step.at)
    if w.place(step.dst) == "arena":
        w.out.line(f"{dst}.copy_({src})" if kept else f"{dst}.zero_()")
    elif w.place(step.dst) == "local" and kept:
        w.out.line(f"{dst} = {src}")
    else:
        w.out.line(f"{dst} = {src}.clone()" if kept else f"{dst} = {src}.new_zeros({src}.shape)")


def _collect(w: Writer, i: int, step: Collect) -> None:
    def make(j: int) -> Callable[[Any, Tensor], Tensor]:
        times = w.times(step.at, j)
        whole = w.binding.local(step.into, times)
        pack = packing(whole, w.binding.local(step.src, times))
        return _collecting(pack, whole.shape if w.begins(i, j) and w.place(step.into) != "arena" else None)

    into = w.var(step.into, step.at)
    old = "None" if w.place(step.into) == "local" and into not in w.begun else into
    w.begun.add(into)
    w.out.line(f"{into} = {w.out.entry(make)}({old}, {w.var(step.src, step.at)})")


def _collecting(pack: Packing, shape: tuple[int, ...] | None) -> Callable[[Any, Tensor], Tensor]:
    def put(into: Any, src: Tensor) -> Tensor:
        whole = src.new_empty(shape) if shape is not None else into
        pack.put(whole, src)
        return whole

    return put


def _offload(w: Writer, step: Offload) -> None:
    src, dst = w.var(step.src, ()), w.var(step.dst, ())
    into = dst if w.place(step.dst) == "arena" else f"{w.out.entry(lambda j: _beside(w, step))}({src})"
    w.out.transfer(dst, f"{_copying(w)}({src}, {into})", placed=w.place(step.dst) == "arena")


def _copying(w: Writer) -> str:
    copies = w.context.copies
    return w.out.entry(lambda j: copies.copy)


def _beside(w: Writer, step: Offload) -> Callable[[Tensor], Tensor]:
    """A place for a tensor in the other memory; in the host's it is pinned, so that a GPU copies without waiting."""
    device = w.context.device if step.to == "device" else torch.device("cpu")
    pinned = step.to == "host" and w.context.device.type == "cuda"
    return lambda src: torch.empty(src.shape, dtype=src.dtype, device=device, pin_memory=pinned)


# --- communication ---------------------------------------------------------------------------------------------------


def _bound(w: Writer, make: Callable[..., transfer.Transfer], step: Send | Recv | Collective) -> str:
    """The table's entry for a transfer at each micro-batch."""
    return w.out.entry(lambda j: make(w.binding, w.context.comm, step, w.times(step.at, j), (step.comm, j)))


def _recv(w: Writer, step: Recv) -> None:
    local = w.var(step.local, step.at) if step.local >= 0 else "None"
    device = w.out.entry(lambda j: w.context.device)
    dst, out = w.var(step.dst, step.at), w.storage(step.dst, step.at)
    w.out.transfer(dst, f"{_bound(w, transfer.recv, step)}({local}, {out}, {device})", placed=out == dst)


def _collective(w: Writer, step: Collective) -> None:
    dst, out = w.var(step.dst, step.at), w.storage(step.dst, step.at)
    expression = f"{_bound(w, transfer.collective, step)}({w.var(step.src, step.at)}, {out})"
    w.out.transfer(dst, expression, placed=out == dst, rounds=transfer.rounds(w.binding, step))
