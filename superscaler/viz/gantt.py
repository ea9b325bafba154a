"""A Gantt chart as PNG: rows of bars, coloured by kind. matplotlib is loaded only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Bar = tuple[float, float, str, str]
"""start, end, text, kind"""
Row = tuple[str, Sequence[Bar]]
"""label, bars"""

COLOURS: Mapping[str, str] = {
    "forward": "#4c78a8",
    "backward": "#f58518",
    "weight": "#54a24b",
    "recompute": "#b279a2",
    "optimizer": "#eeca3b",
    "reduce": "#e45756",
    "send": "#9d9da1",
    "transfer": "#72b7b2",
}
_OTHER = "#bab0ac"
_TEXT_INCHES = 0.085


def draw(
    rows: Sequence[Row],
    path: Path | str,
    *,
    title: str = "",
    unit: str = "",
    critical: Sequence[tuple[int, int]] = (),
    colours: Mapping[str, str] = COLOURS,
) -> None:
    """Write ``rows``, the first on top, to ``path``; ``unit`` names the time axis.

    ``critical`` lists (row, bar) indices that get a heavy outline. Text is left out of bars too narrow for it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    end = max((bar[1] for _, bars in rows for bar in bars), default=1.0)
    width, height = 16.0, max(2.0, 0.32 * len(rows) + 1.2)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    marked = set(critical)
    for y, (_, bars) in enumerate(rows):
        _bars(axes, y, bars, [number for number in range(len(bars)) if (y, number) in marked], colours)
        for start, stop, text, _ in bars:
            if text and (stop - start) / end * width > _TEXT_INCHES * len(text):
                axes.text((start + stop) / 2, y, text, ha="center", va="center", fontsize=6, color="white")
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, end)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=9, loc="left")
    _legend(axes, rows, colours)
    figure.savefig(str(path), dpi=110, format="png")


def _bars(axes: Any, y: int, bars: Sequence[Bar], marked: Sequence[int], colours: Mapping[str, str]) -> None:
    spans = [(start, stop - start) for start, stop, _, _ in bars]
    axes.broken_barh(
        spans,
        (y - 0.4, 0.8),
        facecolors=[colours.get(kind, _OTHER) for _, _, _, kind in bars],
        edgecolor="white",
        linewidth=0.3,
    )
    if marked:
        outlined = [spans[number] for number in marked]
        axes.broken_barh(outlined, (y - 0.4, 0.8), facecolors="none", edgecolor="black", linewidth=1.2)


def _legend(axes: Any, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    kinds = dict.fromkeys(kind for _, bars in rows for _, _, _, kind in bars)
    handles = [Patch(color=colours.get(kind, _OTHER), label=kind) for kind in kinds]
    if handles:
        axes.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=8, fontsize=7, frameon=False
        )
