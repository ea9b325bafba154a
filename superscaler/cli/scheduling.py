"""``superscaler schedule``: a pipeline of stated costs, scheduled with a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superscaler.cli.console import Progress, print_json, refuse_place, refuse_suffix, writing


def schedule(
    stages: Annotated[int, typer.Option(help="How many stages the model is cut into.")],
    microbatches: Annotated[int, typer.Option(help="How many micro-batches a step has.")],
    forward: Annotated[int, typer.Option(help="Cost of a forward, in ticks.")] = 10,
    backward: Annotated[int, typer.Option(help="Cost of an input gradient.")] = 10,
    weight: Annotated[int, typer.Option(help="Cost of a weight gradient.")] = 10,
    comm: Annotated[int, typer.Option(help="Delay between stages on different devices.")] = 0,
    max_activations: Annotated[int | None, typer.Option(help="Activations that a device can hold.")] = None,
    devices: Annotated[
        int | None, typer.Option(help="By default one per stage; half as many with --placement v.")
    ] = None,
    placement: Annotated[str, typer.Option(help="linear, v or interleaved.")] = "linear",
    order: Annotated[str, typer.Option(help="solve, or the name of a schedule.")] = "solve",
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which the best known one is taken.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same schedule.")] = 0,
    costs: Annotated[
        Path | None, typer.Option(help="JSON lists: forward, backward, weight per stage; speed per device.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write the timetable as a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Schedule a pipeline: the device × time grid, and how far from the best possible it is at most."""
    from superscaler.scheduler import playground
    from superscaler.scheduler.pipeline import PipelineProblem
    from superscaler.viz import pipeline_view

    refuse_suffix("--png", png, ".png")
    refuse_place(png, costs)
    said = playground.read_costs(costs) if costs is not None else {}
    problem = PipelineProblem(
        stages,
        microbatches,
        said.get("forward", forward),
        said.get("backward", backward),
        said.get("weight", weight),
        comm,
        max_activations,
        devices,
        placement,
        said.get("speed", ()),
    )
    with Progress() as progress:
        progress(f"scheduling {stages} stages × {microbatches} micro-batches")
        table = playground.schedule(problem, order=order, time_limit=time_limit, seed=seed)
        if png is not None:
            progress(f"drawing {png}")
            with writing(png):
                pipeline_view.png(
                    table, png, title=f"{order}: {stages} stages, {microbatches} micro-batches, {placement}"
                )
    if as_json:
        print_json(playground.to_json(table))
        return
    print(pipeline_view.text(table, width=160))
    if png is not None:
        print(f"wrote {png}")
