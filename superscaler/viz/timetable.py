"""A pipeline's timetable as a chart: one row per device and lane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from superscaler.viz.chart import Bar, Chart, Row, lanes_of
from superscaler.viz.grid import Cell

Slot = Mapping[str, int | str]


def chart(slots: Iterable[Slot], *, title: str, subtitle: str) -> Chart:
    """The chart of slots as ``superscaler schedule --json`` lists them; their ticks stand for microseconds."""
    found = list(slots)
    devices = sorted({int(slot["device"]) for slot in found})
    rows: list[Row] = []
    place: dict[tuple[int, str], int] = {}
    for device in devices:
        for lane in lanes_of(str(s["lane"]) for s in found if s["device"] == device):
            place[device, lane] = len(rows)
            rows.append(Row(f"device {device}", lane, 1.0 if lane == "compute" else 0.45))
    bars = tuple(_bar(place[int(slot["device"]), str(slot["lane"])], slot) for slot in found)
    length = max((bar.end for bar in bars), default=0.0)
    return Chart(title, subtitle, tuple(rows), bars, length, unit="ticks")


def cells(slots: Iterable[Slot]) -> list[Cell]:
    """The compute tasks for the text grid, by device."""
    computed = [slot for slot in slots if slot["lane"] == "compute"]
    return [
        Cell(f"device {s['device']}", str(s["kind"]), s["microbatch"], int(s["start"]), int(s["end"]))
        for s in sorted(computed, key=lambda s: (s["device"], s["start"]))
    ]


def _bar(row: int, slot: Slot) -> Bar:
    start, end = float(slot["start"]), float(slot["end"])
    detail = f"{slot['kind']} of stage {slot['stage']}, micro-batch {slot['microbatch']}: {start:g} to {end:g}"
    return Bar(row, start, end, str(slot["kind"]), str(slot["microbatch"]), detail)
