"""Routes: the pieces that a worker receives tile its part, and each is part of what its sender holds."""

from __future__ import annotations

from superscaler.ir.check.bodies import Meeting
from superscaler.ir.check.fault import Fault, FaultKind, fault, workers_text
from superscaler.ir.check.regions import Regions, instants, steady, timed
from superscaler.ir.check.scope import Scope
from superscaler.ir.layout import Mesh
from superscaler.ir.program import Piece, Route
from superscaler.ir.region import Region, Span, tiles


def check_route(scope: Scope, route: Route, meeting: Meeting, regions: Regions) -> None:
    """Raises a :class:`Fault` unless the pieces of a route give each worker of a role its part, at all times.

    At a time index (a micro-batch) what is meant of a piece is what the receiver's part of that index has of it.
    """
    _Judge(scope, route, meeting, regions).judge()


class _Judge:
    def __init__(self, scope: Scope, route: Route, meeting: Meeting, regions: Regions) -> None:
        self.scope = scope
        self.route = route
        self.meeting = meeting
        self.regions = regions
        self.shape = scope.graph.tensor[route.tensor].shape
        self.source: Mesh = scope.space.mesh(route.source.mesh)
        self.destination: Mesh = scope.space.mesh(route.destination.mesh)
        self.senders = frozenset(self.source.devices)
        self.partial = tuple(axis for axis in route.source.partial if axis in self.source.axes)
        self.times = timed(scope.space, route.source, route.destination)
        self.agree = steady(scope.space, route.source, route.destination)

    def judge(self) -> None:
        self._partials()
        mine = set(self.meeting.role.workers)
        brought: dict[int, list[tuple[int, Region]]] = {worker: [] for worker in mine}
        for piece in self.route.pieces:
            if piece.destination in mine:
                brought[piece.destination].append((piece.source, self._region(piece)))
        for worker, pieces in brought.items():
            self._sources(worker, pieces)
            self._covered(worker, pieces)

    def wrong(self, kind: FaultKind, what: str, *why: str, right: str | None = None) -> Fault:
        step = self.meeting.step
        place = self.meeting.role.place(self.meeting.block, None, step)
        return fault(kind, f"tensor {self.route.tensor!r}: {what}", place, *why, right=right)

    def _partials(self) -> None:
        source, destination = self.route.source, self.route.destination
        ours = {axis: source.state(axis) for axis in source.partial}
        theirs = {axis: destination.state(axis) for axis in destination.partial}
        if ours != theirs:
            kind: FaultKind = "partial read as complete" if len(ours) > len(theirs) else "complete read as partial"
            raise self.wrong(kind, f"sent as {source}, received as {destination}")

    def _region(self, piece: Piece) -> Region:
        spans = [Span((start, stop) for start, stop in span) for span in piece.region]
        self.regions.spend(1 + sum(len(span) for span in spans))
        whole = len(spans) == len(self.shape) and all(
            Span.of(span) == span and (not span or (span[0][0] >= 0 and span[-1][1] <= size))
            for span, size in zip(spans, self.shape, strict=True)
        )
        if not whole:
            raise self.wrong("wrong piece", f"{list(piece.region)[:4]} is no region of shape {list(self.shape)}")
        return Region(spans)

    def _sources(self, worker: int, pieces: list[tuple[int, Region]]) -> None:
        """Senders hold the source layout; terms of partial sums go to the worker at the same coordinate."""
        for source, _ in pieces:
            if source not in self.senders:
                raise self.wrong(
                    "wrong rank", f"worker {worker} gets a piece from worker {source}, which does not hold it",
                    right=f"a worker of mesh {self.source.name!r}: {workers_text(self.source.devices)}",
                )  # fmt: skip
            if source == worker and self.meeting.src is None:
                raise self.wrong("wrong piece", f"worker {worker} takes a piece from a value of its own, not named")
            for axis in self.partial:
                if self.source.coords(source)[axis] != self.destination.coords(worker)[axis]:
                    raise self.wrong("mixed partials", f"worker {worker} gets the term of another part, along {axis!r}")

    def _covered(self, worker: int, pieces: list[tuple[int, Region]]) -> None:
        agree = self.agree
        if self.times and agree is not None and all(self._agrees(worker, s, agree) for s, _ in pieces):
            self._tiled(worker, pieces, {})
            return
        for times in instants(self.scope.space, self.times):
            self._tiled(worker, pieces, times)

    def _agrees(self, worker: int, source: int, axes: tuple[str, ...]) -> bool:
        ours, theirs = self.source.coords(source), self.destination.coords(worker)
        return all(ours.get(axis, -1) == theirs.get(axis, -1) for axis in axes)

    def _tiled(self, worker: int, pieces: list[tuple[int, Region]], times: dict[str, int]) -> None:
        want = self.regions.of(self.shape, self.route.destination, worker, times)
        when = "".join(f" at {axis} = {index}" for axis, index in times.items())
        found: list[Region] = []
        for source, piece in pieces:
            part = piece & want
            held = self.regions.of(self.shape, self.route.source, source, times)
            if not part.within(held):
                raise self.wrong(
                    "wrong piece",
                    f"worker {source} is to send {part}{when} to worker {worker}",
                    right=f"of its own {held}",
                )
            if (piece & held if times else piece) != part:
                raise self.wrong(
                    "wrong piece", f"worker {worker} is to get {piece & held}{when}", right=f"of its own part {want}"
                )
            found.append(part)
        self.regions.spend(len(found) ** 2 if len(found) < 4096 else 1 << 30)
        if not self._exactly(found, want):
            raise self.wrong(
                "wrong piece", f"the pieces for worker {worker}{when} do not give its part once", f"pieces: "
                f"{', '.join(str(p) for p in found[:8]) or 'none'}", right=f"pieces that tile {want}",
            )  # fmt: skip

    def _exactly(self, found: list[Region], want: Region) -> bool:
        if not self.shape:  # a scalar: one piece
            return len(found) == 1
        return tiles([part for part in found if part.volume], want)
