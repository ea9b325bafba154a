"""Packing: the elements of a region as a contiguous tensor, and back.

A local buffer holds its region packed. A part of it is, per dim, one interval (a narrow), a regular comb (a strided
view) or a few odd intervals (rectangle by rectangle).
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from superscaler.ir.region import Interval, Region, Span

Comb = tuple[int, int, int, int]  # first index, length of a tooth, period, number of teeth


def _comb(span: Span) -> Comb | None:
    """The span as equally long, equally spaced teeth, if it is that."""
    first, stop = span[0]
    length = stop - first
    period = span[1][0] - first if len(span) > 1 else length
    regular = all(b - a == length and a == first + i * period for i, (a, b) in enumerate(span))
    return (first, length, period, len(span)) if regular else None


class Packing:
    """Which elements of a buffer of shape ``whole`` are meant: ``part``, in the buffer's own coordinates."""

    __slots__ = ("combs", "expanded", "full", "plain", "shape", "slices")

    def __init__(self, whole: tuple[int, ...], part: Region) -> None:
        self.shape = part.shape
        self.full = part.shape == whole
        combs = [] if part.empty else [_comb(span) for span in part]
        self.combs: list[Comb] | None = [c for c in combs if c is not None] if None not in combs else None
        self.plain = part.empty or (self.combs is not None and all(teeth == 1 for *_, teeth in self.combs))
        self.expanded: list[int] = []
        for _, length, _, teeth in self.combs or []:
            self.expanded += [length] if teeth == 1 else [teeth, length]
        self.slices = [] if self.combs is not None else _rectangles(part)

    def view(self, buffer: Tensor) -> Tensor:
        """The part as a view of ``buffer``, combs as two dims each; only where there are no odd intervals."""
        assert self.combs is not None
        dim = 0
        for first, length, period, teeth in self.combs:
            if teeth == 1:
                buffer = buffer.narrow(dim, first, length) if buffer.shape[dim] != length else buffer
                dim += 1
            else:
                spread = buffer.narrow(dim, first, (teeth - 1) * period + length).unfold(dim, length, period)
                buffer = spread.movedim(-1, dim + 1)
                dim += 2
        return buffer

    def take(self, buffer: Tensor) -> Tensor:
        """The part with its packed shape: a view where it is one, else a copy."""
        if self.full:
            return buffer
        if 0 in self.shape:
            return buffer.new_empty(self.shape)
        if self.combs is None:
            out = buffer.new_empty(self.shape)
            for mine, packed in self.slices:
                out[packed] = buffer[mine]
            return out
        view = self.view(buffer)
        return view if self.plain else view.reshape(self.shape)

    def copy(self, buffer: Tensor, out: Tensor) -> None:
        """Write the part into ``out``, which has its packed shape."""
        if 0 in self.shape:
            return
        if self.combs is None:
            for mine, packed in self.slices:
                out[packed] = buffer[mine]
        elif self.plain:
            out.copy_(self.view(buffer))
        else:
            out.view(self.expanded).copy_(self.view(buffer))

    def put(self, buffer: Tensor, packed: Tensor) -> None:
        """Write a packed tensor into the part of ``buffer``."""
        if 0 in self.shape:
            return
        if self.combs is None:
            for mine, theirs in self.slices:
                buffer[mine] = packed[theirs]
        elif self.plain:
            self.view(buffer).copy_(packed)
        else:
            self.view(buffer).copy_(packed.reshape(self.expanded))


Slices = tuple[slice, ...]


def _rectangles(part: Region) -> list[tuple[Slices, Slices]]:
    """Per rectangle of the part: where it lies in the buffer and where in the packed tensor."""
    per_dim: list[list[tuple[Interval, Interval]]] = []
    for span in part:
        offset, pairs = 0, []
        for start, stop in span:
            pairs.append(((start, stop), (offset, offset + stop - start)))
            offset += stop - start
        per_dim.append(pairs)
    return [(tuple(slice(*a) for a, _ in box), tuple(slice(*b) for _, b in box)) for box in product(*per_dim)]


def packing(whole: Region, part: Region) -> Packing:
    """How to take ``part`` (global indices) out of a buffer that holds ``whole`` packed."""
    return Packing(whole.shape, part.relative_to(whole))


def assemble(shape: tuple[int, ...], parts: list[tuple[Region, Tensor]]) -> Tensor:
    """The full tensor of ``shape`` from packed parts; parts of equal regions are replicas, the first one counts."""
    full = Region.full(shape)
    out: Tensor | None = None
    seen: set[Region] = set()
    for region, part in parts:
        if region in seen:
            continue
        seen.add(region)
        if region == full:
            return part.clone()
        if out is None:
            out = torch.empty(shape, dtype=part.dtype)
        packing(full, region).put(out, part)
    assert out is not None
    return out
