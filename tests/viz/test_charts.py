"""Timelines as pictures: which rows and bars there are, and that every format holds them."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from superscaler.scheduler.simulate import simulate
from superscaler.scheduler.timeline import Level, RoleTimeline, Span, Timeline
from superscaler.viz.chart import Bar, Chart, Row, colour, legend_name, spell
from superscaler.viz.html import page, write_html
from superscaler.viz.perfetto import events
from superscaler.viz.plan_timeline import chart
from superscaler.viz.png import label_size, write_png
from superscaler.viz.text_timeline import text_timeline
from tests.golden import assert_golden


def role(*workers: int) -> RoleTimeline:
    spans = (
        Span(0, "forward0", "forward", "compute", 0, 0, 0, 400, True),
        Span(1, "send0:x>mesh1", "send", "comm", 0, 0, 400, 500, True),
        Span(2, "forward0", "forward", "compute", 0, 1, 400, 800),
        Span(3, "optimizer0", "optimizer", "compute", 0, -1, 1800, 2000, True),
        Span(4, "reduce0", "reduce", "compute", 0, -1, 2000, 2000),
    )
    memory = (Level(0, 1 << 20), Level(400, 3 << 20), Level(1800, 2 << 20))
    return RoleTimeline(workers, spans, {"compute": 1000, "comm": 100}, 0.5, 1 << 20, 2 << 20, 4 << 20, memory)


def timeline(*roles: RoleTimeline) -> Timeline:
    return Timeline("train", 2000, 0.5, roles, ((0, 0), (0, 1), (0, 3)))


def test_one_row_per_worker_and_lane() -> None:
    drawn = chart(timeline(role(0, 2), role(1)))
    assert [(row.group, row.lane) for row in drawn.rows] == [
        ("worker 0", "compute"), ("worker 0", "comm"), ("worker 1", "compute"), ("worker 1", "comm"),
        ("worker 2", "compute"), ("worker 2", "comm"),
    ]  # fmt: skip
    assert [bar.label for bar in drawn.bars if bar.row == 0] == ["0", "1", ""]
    assert len(drawn.bars) == 3 * 4  # what takes no time is not drawn


def test_workers_of_a_role_share_rows_where_there_are_many() -> None:
    drawn = chart(timeline(role(*range(20)), role(*range(20, 40))))
    assert [row.group for row in drawn.rows] == ["workers 0-19"] * 2 + ["workers 20-39"] * 2


def test_measured_rows_stand_below_the_predicted_ones() -> None:
    beside = Timeline("train", 2500, 0.6, (role(0),), ())
    drawn = chart(timeline(role(0)), beside=beside)
    assert [row.lane for row in drawn.rows] == ["compute", "comm", "measured", "measured comm"]
    assert drawn.length == 2500
    assert "measured 2.5 ms" in drawn.subtitle


def test_the_legend_names_what_is_drawn() -> None:
    assert chart(timeline(role(0))).kinds == ["forward", "optimizer", "send"]
    assert legend_name("backward", ["backward"]) == "backward"
    assert legend_name("backward", ["backward", "weight"]) == "input gradient"
    assert len({colour(kind) for kind in ("forward", "backward", "weight", "send", "something new")}) == 5


@pytest.mark.parametrize(("time", "text"), [(0, "0 µs"), (999, "999 µs"), (1234, "1.23 ms"), (4.2e6, "4.2 s")])
def test_times_have_a_fitting_unit(time: float, text: str) -> None:
    assert spell(time) == text


def test_text() -> None:
    assert_golden(text_timeline(timeline(role(0, 1), role(2))) + "\n", "timeline.txt")


def test_a_png_is_as_high_as_it_has_rows(tmp_path: Path) -> None:
    sizes: list[tuple[int, int]] = []
    for count in (1, 8):
        write_png(chart(timeline(*(role(i) for i in range(count))), title="a title"), tmp_path / "t.png")
        data = (tmp_path / "t.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        sizes.append(struct.unpack(">II", data[16:24]))
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


def test_numbers_shrink_to_the_room_that_there_is() -> None:
    assert label_size("7", 20) == label_size("12", 20)
    assert label_size("7", 8) > label_size("12", 8) > 0
    assert label_size("1024", 8) == label_size("", 8) == 0


def test_an_empty_chart_is_drawn_too(tmp_path: Path) -> None:
    write_png(Chart("nothing", "", (), (), 0.0), tmp_path / "t.png")
    assert "<canvas" in page(Chart("nothing", "", (), (), 0.0))


def data_of(html: str) -> dict[str, object]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found.group(1))


def test_the_page_needs_nothing_else_and_holds_every_bar(tmp_path: Path) -> None:
    drawn = chart(timeline(role(0), role(1)), title="a plan")
    write_html(drawn, tmp_path / "t.html")
    html = (tmp_path / "t.html").read_text()
    assert not re.search(r"(src|href)\s*=|https?://|@import|fetch\(", html)
    data = data_of(html)
    assert data["title"] == "a plan"
    assert len(data["bars"]) == len(drawn.bars)  # type: ignore[arg-type]


def test_a_name_from_a_plan_file_cannot_end_the_page() -> None:
    """Plans may come from strangers: what they are called is data."""
    evil = "</script><script>alert(1)</script><!--"
    html = page(Chart(evil, evil, (Row(evil, "compute", 1.0),), (Bar(0, 0, 1, evil, evil, evil),), 1.0))
    assert html.count("<script") == 2
    assert data_of(html)["title"] == evil


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_draws_zooms_and_tells_what_is_pointed_at(tmp_path: Path) -> None:
    write_html(chart(timeline(role(0), role(1)), title="a plan"), tmp_path / "t.html")
    opener = Path(__file__).parent / "open_page.js"
    found = subprocess.run(["node", opener, tmp_path / "t.html"], capture_output=True, text=True, check=True)
    seen = json.loads(found.stdout)
    assert seen["title"] == "a plan"
    assert seen["tip"] == "worker 0 — forward0, micro-batch 0: 0 µs to 400 µs (400 µs)"
    assert seen["drawn"]["fillRect"] > 8


def test_a_trace_has_a_process_per_worker_and_a_thread_per_lane() -> None:
    found = events(timeline(role(0, 2), role(1)))
    tasks = [event for event in found if event["ph"] == "X"]
    assert {(event["pid"], event["tid"]) for event in tasks} == {(w, lane) for w in (0, 1, 2) for lane in (0, 1)}
    assert {event["dur"] for event in tasks} == {100, 200, 400}
    assert sum(event["ph"] == "C" for event in found) == 3 * 3
    json.dumps(found)
    many = events(timeline(role(*range(20)), role(*range(20, 40))))
    assert {event["pid"] for event in many} == {0, 20}


def test_a_simulated_plan_is_drawn() -> None:
    from tests.ir.plans_by_hand_more import pipelined

    drawn = chart(simulate(pipelined(2), durations=lambda role, item: 5))
    assert {bar.kind for bar in drawn.bars} >= {"forward", "backward", "send", "recv", "optimizer"}
    assert len(drawn.curves) == 2
