"""Regions that cannot be judged by layouts alone: slices between meshes, and the pieces of routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from superscaler.ir.check import limits
from superscaler.ir.check.fault import fault
from superscaler.ir.check.moves import Reason, finer
from superscaler.ir.check.sizes import digit_of
from superscaler.ir.layout import Layout, Shard, Space
from superscaler.ir.region import Region


class Regions:
    """Computes regions within a budget of work, so that no file can make the check run for ever."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.work = 0

    def spend(self, amount: int) -> None:
        """Count ``amount`` of work; raises when it is too much to be proven."""
        self.work += amount
        if self.work > limits.INTERVALS_SEEN:
            raise fault(
                "too large", "the regions of this plan are too many to be proven",
                right="fewer pieces per route, or splits of dims rather than of their digits",
            )  # fmt: skip

    def at(self, shape: tuple[int, ...], layout: Layout, coords: Mapping[str, int]) -> Region:
        """The region at coordinates; axes of the layout that ``coords`` lacks (time) are taken whole."""
        known = Layout(layout.mesh, tuple(s for s in layout.states if s[0] in coords))
        digits = {(s.dim, s.extent, s.inner) for _, s in known.states if isinstance(s, Shard)}
        self.spend(1 + len(shape) + sum(shape[dim] // (extent * inner) for dim, extent, inner in digits))
        return self.space.region(shape, known, coords)

    def of(self, shape: tuple[int, ...], layout: Layout, worker: int, times: Mapping[str, int]) -> Region:
        """The region that a worker holds."""
        return self.at(shape, layout, {**self.space.mesh(layout.mesh).coords(worker), **times})


def timed(space: Space, *layouts: Layout) -> tuple[str, ...]:
    """The time axes that layouts are split over."""
    names = (name for layout in layouts for name, _ in layout.states if space.axis(name).kind == "time")
    return tuple(dict.fromkeys(names))


def sharing(layout: Layout, axis: str) -> dict[str, Shard]:
    """The other axes that shard the same digit as ``axis``."""
    state = layout.state(axis)
    if not isinstance(state, Shard):
        return {}
    return {
        name: other
        for name, other in layout.states
        if name != axis and isinstance(other, Shard) and digit_of(other) == digit_of(state)
    }


def steady(space: Space, source: Layout, destination: Layout) -> tuple[str, ...] | None:
    """The space axes on which two devices must agree so that what holds for whole time holds at every time index.

    Holds if each time axis splits both alike and is the innermost one on its digit; None if it is not so.
    """
    agree: list[str] = []
    for axis in timed(space, source, destination):
        if source.state(axis) != destination.state(axis):
            return None
        ours, theirs = sharing(source, axis), sharing(destination, axis)
        if ours != theirs or any(space.rank(name) > space.rank(axis) for name in ours):
            return None
        agree += [name for name in ours if space.axis(name).kind == "space"]
    return tuple(dict.fromkeys(agree))


def instants(space: Space, axes: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """All indices along time axes."""
    for index in product(*(range(space.axis(name).ways) for name in axes)):
        yield dict(zip(axes, index, strict=True))


def contained(
    regions: Regions, shape: tuple[int, ...], coarse: Layout, fine: Layout, workers: tuple[int, ...]
) -> Reason | None:
    """Why the part as ``fine`` is not inside the part as ``coarse`` on one of ``workers``."""
    if coarse.mesh == fine.mesh:
        return finer(regions.space, coarse, fine)
    ours, theirs = ({axis: layout.state(axis) for axis in layout.partial} for layout in (coarse, fine))
    if ours != theirs or any(regions.space.axis(axis).kind == "space" for axis in ours):
        return "mixed partials", "a device's term of a value means nothing on another mesh"
    axes = timed(regions.space, coarse, fine)
    for worker in workers:
        for times in instants(regions.space, axes):
            have = regions.of(shape, coarse, worker, times)
            want = regions.of(shape, fine, worker, times)
            if not want.within(have):
                return "wrong region", f"worker {worker} has {have} and would take {want} out of it"
    return None
