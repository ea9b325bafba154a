"""``superscaler check``, ``simulate`` and ``show``: what a plan file says, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from superscaler.cli import costs
from superscaler.cli.console import Progress, print_json, print_table, refuse_place, refuse_suffix, writing

if TYPE_CHECKING:
    from superscaler.ir.plan import Plan
    from superscaler.scheduler.timeline import Timeline

File = Annotated[Path, typer.Argument(metavar="FILE", help="A plan file, as compile-plan writes it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def check(
    file: File,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse rules found by discovery.")] = False,
) -> None:
    """Prove a plan: values, no deadlock, memory, schedule. Exit code 1 if it is wrong, and what is wrong."""
    from superscaler.ir import plan_file
    from superscaler.ir.check import check as prove
    from superscaler.ir.plan import Plan

    with Progress() as progress:
        progress(f"checking {file}")
        report = prove(plan_file.load(file, Plan), strict=strict)
    print(report)


def simulate(
    file: File,
    profile: Annotated[str, typer.Option(help=costs.HELP)] = "auto",
    as_json: Json = False,
) -> None:
    """Predict a step: its time, idle time and memory per worker, and what it all waits for."""
    plan = _load(file)
    used = costs.costs_of(profile, plan.cluster, plan.workers)
    timelines = _timelines(plan, used)
    if as_json:
        figures = {t.entry: _figures(plan, t) for t in timelines}
        print_json({"file": str(file), "costs": used.figures(plan), "entries": figures})
        return
    for timeline in timelines:
        _print_timeline(timeline)
    print(used.text(plan))


def explain(
    file: File,
    subject: Annotated[
        str | None, typer.Argument(metavar="[PARAMETER|OP|MODULE|WORKER]", help="A name in the plan, or a number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where a tensor lives, who computes, sends and receives it, and why; without a name: what can be asked."""
    from superscaler.ir.explain import explain as explained

    found = explained(_load(file), subject)
    if as_json:
        sections = {section.name: list(section.lines) for section in found.sections}
        print_json({"file": str(file), "subject": subject, "title": found.title, "sections": sections})
    else:
        print(found)


def show(
    file: File,
    html: Annotated[Path | None, typer.Option(help="Write the timeline as one HTML page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the timeline as a picture.")] = None,
    perfetto: Annotated[
        Path | None, typer.Option(help="Write the timeline (with --trace: the measured one) for ui.perfetto.dev.")
    ] = None,
    entry: Annotated[str | None, typer.Option(help="The entry to draw; train by default.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Draw what `run --trace` measured below what was predicted.")
    ] = None,
) -> None:
    """Say what a plan consists of, or draw its timeline: one row per worker and lane."""
    from superscaler.scheduler.measured import measured, read_trace
    from superscaler.scheduler.simulate import simulate as predict

    refuse_suffix("--png", png, ".png")
    refuse_suffix("--html", html, ".html")
    for path in (html, png, perfetto):
        refuse_place(path, file)
    plan = _load(file)
    ran = measured(plan, read_trace(trace)) if trace is not None else None
    timeline = predict(plan, entry if ran is None else ran.entry)
    with Progress() as progress:
        for path, draw in ((html, _draw_html), (png, _draw_png), (perfetto, _draw_perfetto)):
            if path is not None:
                progress(f"drawing {path}")
                with writing(path):
                    draw(plan, timeline, ran, path)
    written = [str(path) for path in (html, png, perfetto) if path is not None]
    if written:
        print("\n".join(f"wrote {path}" for path in written))
        return
    from superscaler.viz.text_timeline import text_timeline

    print(plan)
    print()
    print(text_timeline(timeline))


def _load(file: Path) -> Plan:
    from superscaler.ir.plan import Plan

    with Progress() as progress:
        progress(f"reading and checking {file}")
        return Plan.load(file)


def _timelines(plan: Plan, used: costs.Costs) -> list[Timeline]:
    from superscaler.scheduler.simulate import simulate as predict

    return [predict(plan, name, profile=used.profile) for name in plan.entries]


def _figures(plan: Plan, timeline: Timeline) -> dict[str, Any]:
    certificate = plan.entries[timeline.entry].certificate
    path = [(role, timeline.roles[role].spans[item]) for role, item in timeline.critical]
    return {
        "seconds": timeline.seconds,
        "bound_seconds": certificate.bound / 1e6,
        "planned_seconds": certificate.makespan / 1e6,
        "gap": certificate.gap,
        "status": certificate.status,
        "bubble": timeline.bubble,
        "peak_bytes": timeline.peak,
        "roles": [
            {
                "workers": role.workers,
                "busy_seconds": {lane: busy / 1e6 for lane, busy in role.busy.items()},
                "bubble": role.bubble,
                "state_bytes": role.state,
                "arena_bytes": role.arena,
                "peak_bytes": role.peak,
            }
            for role in timeline.roles
        ],
        "critical_path": [
            {
                "role": role,
                "task": span.name,
                "microbatch": span.microbatch if span.microbatch >= 0 else None,
                "start": span.start / 1e6,
                "end": span.end / 1e6,
            }
            for role, span in path
        ],
    }


def _print_timeline(timeline: Timeline) -> None:
    from superscaler.ir.check.fault import workers_text
    from superscaler.ir.summary import bytes_text
    from superscaler.viz.chart import spell

    title = f"{timeline.entry}: {spell(timeline.makespan)} a step, bubble {timeline.bubble:.1%}"
    lanes = list(dict.fromkeys(lane for role in timeline.roles for lane in role.busy))
    columns = ["workers", *(f"{lane} busy" for lane in lanes), "bubble", "state", "arena", "peak"]
    rows = [
        [
            workers_text(role.workers),
            *(spell(role.busy.get(lane, 0)) for lane in lanes),
            f"{role.bubble:.1%}",
            bytes_text(role.state),
            bytes_text(role.arena),
            bytes_text(role.peak),
        ]
        for role in timeline.roles
    ]
    print_table(columns, rows, title=title)
    print("critical path: " + _path_text(timeline) + "\n")


def _path_text(timeline: Timeline) -> str:
    """The tasks that decide the step time, by kind and share."""
    from superscaler.viz.chart import legend_name

    spans = [timeline.roles[role].spans[item] for role, item in timeline.critical]
    share: dict[str, int] = {}
    for span in spans:
        if span.kind != "recv":  # a receive is its send seen from the other end
            share[span.kind] = share.get(span.kind, 0) + span.end - span.start
    total = max(1, timeline.makespan)
    parts = sorted(share.items(), key=lambda part: -part[1])
    return ", ".join(f"{legend_name(kind, share)} {time / total:.1%}" for kind, time in parts if time) or "empty"


def _title(plan: Plan) -> str:
    made = plan.settings.get("plan")
    return f"{plan.model.get('name', 'a model')}: {made}" if made else str(plan.model.get("name", "a model"))


def _draw_html(plan: Plan, timeline: Timeline, ran: Timeline | None, path: Path) -> None:
    from superscaler.viz.html import write_html
    from superscaler.viz.plan_timeline import chart

    write_html(chart(timeline, title=_title(plan), beside=ran), path)


def _draw_png(plan: Plan, timeline: Timeline, ran: Timeline | None, path: Path) -> None:
    from superscaler.viz.plan_timeline import chart
    from superscaler.viz.png import write_png

    write_png(chart(timeline, title=_title(plan), beside=ran), path)


def _draw_perfetto(plan: Plan, timeline: Timeline, ran: Timeline | None, path: Path) -> None:
    from superscaler.viz.perfetto import write_perfetto

    write_perfetto(ran or timeline, path)
