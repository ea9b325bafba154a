"""A chart as a PNG picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superscaler.ir.writing import write_at_once
from superscaler.viz.chart import CRITICAL, DARK_ON, SHADES, Bar, Chart, colour, legend_name, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 13.0  # inches
LEFT, RIGHT = 0.115, 0.985  # of the lanes, in widths of the picture
LETTERS, SMALLEST = 7.5, 4.0  # points
GAP = 0.35  # between workers, in heights of a compute row
INK = "#2b2b2b"
IDLE = "#f3f3f1"
MOST_CURVES = 8


def write_png(chart: Chart, path: str | Path) -> None:
    """Draw ``chart`` into the file ``path``. Raises :class:`OSError` if that cannot be written."""
    picture = BytesIO()
    _figure(chart).savefig(picture, dpi=150, format="png")
    write_at_once(Path(path), picture.getvalue())


def _figure(chart: Chart) -> Figure:
    from matplotlib.figure import Figure  # the object interface: no window system, no state of pyplot's

    tops, depth = _places(chart)
    lanes = min(24.0, max(1.2, 0.36 * depth))
    curves = chart.curves[:MOST_CURVES]
    below = 1.25 if curves else 0.0
    height = 0.95 + lanes + below + 0.95
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    grid: Any = figure.add_gridspec(
        2 if curves else 1, 1, height_ratios=[lanes, below] if curves else [lanes], hspace=0.28 * 2 / (lanes + below),
        left=LEFT, right=RIGHT, top=1 - 0.72 / height, bottom=0.98 / height,
    )  # fmt: skip
    axes: Axes = figure.add_subplot(grid[0])
    unit, scale = unit_of(chart)
    _lanes(axes, chart, tops, depth, scale)
    last = axes
    if curves:
        last = figure.add_subplot(grid[1], sharex=axes)
        _memory(last, chart, scale)
        axes.tick_params(labelbottom=False)
    last.set_xlabel(unit, color=INK, fontsize=9)
    figure.text(LEFT, 1 - 0.3 / height, chart.title, fontsize=13, fontweight="bold", color=INK)
    figure.text(LEFT, 1 - 0.55 / height, chart.subtitle, fontsize=9.5, color="#666666")
    _legend(figure, chart, height)
    return figure


def _places(chart: Chart) -> tuple[list[float], float]:
    """The upper edge of every row, downwards, and where the last one ends."""
    tops: list[float] = []
    y = 0.0
    for i, row in enumerate(chart.rows):
        y += GAP if i and row.group != chart.rows[i - 1].group else 0.06 if i else 0.0
        tops.append(y)
        y += row.height
    return tops, y


def _lanes(axes: Axes, chart: Chart, tops: list[float], depth: float, scale: float) -> None:
    length = chart.length / scale
    for top, row in zip(tops, chart.rows, strict=True):
        axes.broken_barh([(0, length)], (top, row.height), facecolor=IDLE, linewidth=0)
    for kind in chart.kinds:
        _bars(axes, chart, tops, scale, kind, critical=False)
    for kind in chart.kinds:
        _bars(axes, chart, tops, scale, kind, critical=True)
    for bar in chart.bars:
        _label(axes, bar, tops[bar.row], chart.rows[bar.row].height, scale, length)
    axes.set_xlim(0, length or 1)
    axes.set_ylim(depth, -0.1)
    axes.set_yticks([t + r.height / 2 for t, r in zip(tops, chart.rows, strict=True)])
    axes.set_yticklabels(_row_labels(chart))
    for text, row in zip(axes.get_yticklabels(), chart.rows, strict=True):
        text.set_fontsize(9 if row.lane == "compute" else 7)
        text.set_color(INK if row.lane == "compute" else "#888888")
    axes.tick_params(length=0, axis="y")
    axes.tick_params(colors="#666666", axis="x", labelsize=8, length=3)
    axes.spines[:].set_visible(False)


def _row_labels(chart: Chart) -> list[str]:
    return [row.group if row.lane == "compute" else row.lane.removeprefix("measured ") for row in chart.rows]


def _bars(axes: Axes, chart: Chart, tops: list[float], scale: float, kind: str, *, critical: bool) -> None:
    by_row: dict[tuple[int, bool], list[tuple[float, float]]] = {}
    for bar in chart.bars:
        if bar.kind == kind and bar.critical == critical:
            # A short task, or one of the lower lanes, would be nothing but its edge.
            edged = chart.rows[bar.row].height >= 1 and bar.end - bar.start > 0.006 * chart.length
            by_row.setdefault((bar.row, edged), []).append((bar.start / scale, (bar.end - bar.start) / scale))
    for (row, edged), spans in by_row.items():
        edge, width = (CRITICAL, 0.9) if critical and edged else ("white" if edged else colour(kind), 0.35)
        where = (tops[row] + 0.02, chart.rows[row].height - 0.04)
        axes.broken_barh(spans, where, facecolor=colour(kind), edgecolor=edge, linewidth=width)


def _label(axes: Axes, bar: Bar, top: float, height: float, scale: float, length: float) -> None:
    share = (bar.end - bar.start) / scale / length
    size = label_size(bar.label, share * WIDTH * (RIGHT - LEFT) * 72)
    if height < 1 or not size:
        return
    middle = (bar.start + bar.end) / 2 / scale
    ink = INK if bar.kind in DARK_ON else "white"
    axes.text(middle, top + height / 2, bar.label, ha="center", va="center", fontsize=size, color=ink)


def label_size(label: str, width: float) -> float:
    """The size of letters at which ``label`` fits into so many points; 0 if it could not be read."""
    fitting = min(LETTERS, (width - 1.0) / (0.6 * len(label))) if label else 0.0
    return fitting if fitting >= SMALLEST else 0.0


def _memory(axes: Axes, chart: Chart, scale: float) -> None:
    """Bytes held over time, per role."""
    most = max((value for curve in chart.curves for _, value in curve.points), default=0.0)
    name, size = next(
        (n, s) for n, s in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)) if most >= s or n == "KiB"
    )
    for curve, shade in zip(chart.curves, SHADES, strict=False):
        x = [time / scale for time, _ in curve.points]
        y = [value / size for _, value in curve.points]
        axes.step(x, y, where="post", color=shade, linewidth=1.3, label=curve.name)
    axes.set_ylim(0, most / size * 1.12 or 1)
    axes.set_ylabel(f"memory held\n({name})", fontsize=8, color=INK)
    axes.tick_params(colors="#666666", labelsize=8, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color("#cccccc")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.96), fontsize=7.5, frameon=False, ncols=8)


def _legend(figure: Figure, chart: Chart, height: float) -> None:
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(facecolor=colour(kind), label=legend_name(kind, chart.kinds)) for kind in chart.kinds]
    if any(bar.critical for bar in chart.bars):
        handles.append(Patch(facecolor="white", edgecolor=CRITICAL, label="on the critical path"))
    handles.append(Patch(facecolor=IDLE, edgecolor="#dddddd", label="idle"))
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.108, 0.08 / height), ncols=6, frameon=False, fontsize=8,
        handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip
