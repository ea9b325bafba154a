"""The text grid, and the charts of pipelines."""

from pathlib import Path

from superscaler.scheduler.pipeline import PipelineProblem
from superscaler.scheduler.playground import schedule
from superscaler.viz import pipeline_view
from superscaler.viz.grid import Cell, grid


def test_a_grid_shows_letter_number_and_idle_time() -> None:
    cells = [Cell("a", "forward", 0, 0, 3), Cell("a", "backward", 0, 5, 8), Cell("bb", "weight", 12, 4, 12)]
    assert grid(cells, width=15).splitlines() == [
        "a  F0-··B0-····",
        "bb ····W12-----",
        "   0         12",
    ]


def test_a_pipeline_is_drawn_with_its_certificate(tmp_path: Path) -> None:
    table = schedule(PipelineProblem(2, 3, comm=2, max_activations=2))
    text = pipeline_view.text(table, width=60)
    assert text.splitlines()[0].startswith("device 0 F0")
    assert "optimal" in text
    pipeline_view.png(table, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_per_device_and_lane() -> None:
    drawn = pipeline_view.chart(schedule(PipelineProblem(2, 3, comm=2)))
    assert [(row.group, row.lane) for row in drawn.rows] == [
        ("device 0", "compute"), ("device 0", "comm"), ("device 1", "compute"), ("device 1", "comm"),
    ]  # fmt: skip
    assert drawn.unit == "ticks"
    assert drawn.length == max(bar.end for bar in drawn.bars)


def test_a_grid_of_nothing_is_empty() -> None:
    assert grid([]) == ""
