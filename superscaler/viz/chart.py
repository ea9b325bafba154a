"""What all timeline pictures show: rows of bars over time. Each format (PNG, HTML) draws a :class:`Chart`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One task. Times in microseconds. ``label`` stands in it where there is room; ``detail`` is shown on request."""

    row: int
    start: float
    end: float
    kind: str
    label: str
    detail: str
    critical: bool = False


@dataclass(frozen=True)
class Row:
    """One lane. ``group``: the worker it belongs to; rows of a group are adjacent. ``height``: relative."""

    group: str
    lane: str
    height: float


@dataclass(frozen=True)
class Curve:
    """A quantity that steps from one value to the next: ``points`` are (microseconds, value)."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """A timeline. ``length`` in microseconds, or in a ``unit`` of its own; ``curves``: memory over time, in bytes."""

    title: str
    subtitle: str
    rows: tuple[Row, ...]
    bars: tuple[Bar, ...]
    length: float
    curves: tuple[Curve, ...] = ()
    unit: str = ""

    @property
    def kinds(self) -> list[str]:
        """The kinds of task that occur, in the order of the legend."""
        found = {bar.kind for bar in self.bars}
        return [kind for kind in COLOURS if kind in found] + sorted(found - set(COLOURS))


# Kinds of task, in the order of the legend; hues stay apart for the colour-blind (after Okabe and Ito).
COLOURS: dict[str, str] = {
    "prologue": "#b8b8b8",
    "per_step": "#9a9a9a",
    "forward": "#3b82c4",
    "recompute": "#9cc9ee",
    "backward": "#1b9e77",
    "weight": "#8fd3b6",
    "reduce": "#d9a520",
    "optimizer": "#e07b39",
    "collective": "#b0559a",
    "send": "#7a6fc0",
    "recv": "#b7b0e3",
    "transfer": "#8c6d46",
}
OTHER = "#555555"
CRITICAL = "#c0143c"
DARK_ON = frozenset({"recompute", "weight", "recv", "prologue", "per_step"})
"""The kinds whose colours are light: what stands on them is dark."""
SHADES = ("#3b82c4", "#e07b39", "#1b9e77", "#b0559a", "#d9a520", "#7a6fc0", "#8c6d46", "#555555")
"""The colours of curves."""


def colour(kind: str) -> str:
    """The colour of a kind of task."""
    return COLOURS.get(kind, OTHER)


def legend_name(kind: str, beside: Iterable[str] = ()) -> str:
    """A kind of task in words; a backward is the input gradient alone where weight gradients are tasks of their own."""
    if kind == "backward" and "weight" in beside:
        return "input gradient"
    return {"per_step": "per step", "weight": "weight gradient"}.get(kind, kind)


def spell(microseconds: float) -> str:
    """A time with a fitting unit: ``12 µs``, ``3.4 ms``, ``1.2 s``."""
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if abs(microseconds) >= scale:
            return f"{microseconds / scale:.3g} {unit}"
    return f"{microseconds:.3g} µs"


def unit_of(chart: Chart) -> tuple[str, float]:
    """The unit in which the chart's axis is best marked, and how many microseconds it is."""
    length = chart.length
    if chart.unit:
        return chart.unit, 1.0
    if length >= 2e6:
        return "s", 1e6
    return ("ms", 1e3) if length >= 2e3 else ("µs", 1.0)


def lanes_of(lanes: Iterable[str]) -> list[str]:
    """Lanes in the order in which they are drawn."""
    found = set(lanes)
    known = [lane for lane in ("compute", "comm", "transfer") if lane in found]
    return known + sorted(found - set(known))
