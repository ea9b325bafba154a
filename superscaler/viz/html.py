"""A chart as one HTML file that needs nothing else: no network, no server."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from superscaler.ir.writing import write_at_once
from superscaler.viz.chart import CRITICAL, DARK_ON, SHADES, Chart, colour, legend_name

MARK = "/*DATA*/"


def write_html(chart: Chart, path: str | Path) -> None:
    """Write ``chart`` into the file ``path``: zoom, move, point at tasks. Raises :class:`OSError`."""
    write_at_once(Path(path), page(chart).encode())


def page(chart: Chart) -> str:
    """The HTML of a chart."""
    template = resources.files("superscaler.viz").joinpath("timeline.html").read_text(encoding="utf-8")
    return template.replace(MARK, _data(chart))


def _data(chart: Chart) -> str:
    data = {
        "title": chart.title or "Timeline",
        "subtitle": chart.subtitle,
        "length": chart.length,
        "rows": [{"group": row.group, "lane": row.lane, "height": row.height} for row in chart.rows],
        "bars": [[b.row, b.start, b.end, b.kind, b.label, b.detail, b.critical] for b in chart.bars],
        "curves": [{"name": curve.name, "points": curve.points} for curve in chart.curves],
        "kinds": [[kind, legend_name(kind, chart.kinds)] for kind in chart.kinds],
        "colours": {kind: colour(kind) for kind in chart.kinds},
        "dark": sorted(DARK_ON),
        "shades": SHADES,
        "critical": CRITICAL,
    }
    # Names come from plan files: nothing in them may end the element that holds the data.
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
