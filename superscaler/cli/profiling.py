"""``superscaler profile``: measure what a plan needs to be timed, here, and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from superscaler.cli.console import Progress, clean_stdout, print_json
from superscaler.cli.subject import BATCH, Request, settings_of
from superscaler.errors import UsageError

if TYPE_CHECKING:
    from superscaler.ir.plan import Plan
    from superscaler.scheduler.profile import Profile


def profile(
    subject: Annotated[
        str, typer.Argument(metavar="FILE|MODEL", help="A plan file, or a model as compile-plan takes it.")
    ],
    preset: Annotated[str | None, typer.Option(help="The model's size by name; the smallest by default.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the preset.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="Of a model: the plan, as for compile-plan; auto by default.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Workers; by default what the plan names.")] = None,
    batch: Annotated[int, typer.Option(help="The global batch.")] = BATCH,
    seq: Annotated[int | None, typer.Option(help="The sequence length; the model's own by default.")] = None,
    repeats: Annotated[int, typer.Option(help="How often a task runs, a quarter of it if that takes over 6 s.")] = 20,
    links: Annotated[
        bool, typer.Option(help="Start processes to measure communication, and cores that are shared.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The profile's file; by default the user's cache, by machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure ops, tasks and links on this machine; compile-plan, simulate and run use what was measured.

    Each distinct op and task is measured once, at the shapes that one worker has.
    """  # fmt: skip
    if repeats < 1:
        raise UsageError(f"--repeats is {repeats}", hint="1 or more")
    with Progress() as progress, clean_stdout(as_json):
        made = _plan(subject, Request(subject, preset, settings_of(setting or []), batch, seq), plan, devices, progress)
        from superscaler import api
        from superscaler.scheduler.profile import profile_path

        before = api.simulate(made).seconds
        found = api.profile(made, path=output, repeats=repeats, links=links, progress=progress)
        path = output if output is not None else profile_path(found.machine)
        after = api.simulate(made, profile=found).seconds
    if as_json:
        print_json(_figures(made, found, path, before, after))
    else:
        _print(made, found, path, before, after)


def _plan(subject: str, request: Request, plan: str | None, devices: int | None, progress: Progress) -> Plan:
    """The plan of a file, or of a model compiled for this machine."""
    if Path(subject).is_file() and not subject.startswith("hf:"):
        if plan is not None or devices is not None or request.preset is not None or request.settings:
            raise UsageError(
                f"{subject} is a plan: --preset, --set, --plan and --devices are for models", hint="the plan file alone"
            )
        from superscaler.ir.plan import Plan

        progress(f"reading and checking {subject}")
        return Plan.load(subject)
    if subject.endswith(".json") and not subject.startswith("hf:"):
        raise UsageError(f"there is no {subject}", hint="a plan file, or a model: gpt, hf:DIR, package.module:factory")
    from superscaler.cli import choices
    from superscaler.cli.subject import without_memory

    script = choices.script_of(plan or "auto", None, progress)
    cluster = choices.cluster_of("local", devices, None, plan or "auto")
    progress(f"building {subject}")
    built = without_memory(request)
    from superscaler import api
    from superscaler.transforms.optimize import AdamW

    return api.compile(
        built.model, built.args, built.kwargs, cluster=cluster, plan=script, optimizer=AdamW(), progress=progress
    )


def _figures(plan: Plan, found: Profile, path: Path, before: float, after: float) -> dict[str, Any]:
    import msgspec

    from superscaler.cli.costs import Costs

    return {
        "file": str(path),
        "machine": msgspec.to_builtins(found.machine),
        "ops": len(found.ops),
        "tasks": len(found.blocks),
        "moves": len(found.moves),
        "link": msgspec.to_builtins(found.link),
        "slowdown": {str(k): v for k, v in found.crowd.items()},
        "estimated_seconds": before,
        "predicted_seconds": after,
        "costs": Costs(found, path).figures(plan),
    }


def _print(plan: Plan, found: Profile, path: Path, before: float, after: float) -> None:
    from superscaler.cli.costs import Costs

    print(found.machine)
    print(f"{len(found.ops)} ops, {len(found.blocks)} task bodies and {len(found.moves)} collectives in {path}")
    if found.link is not None:
        print(f"link: {found.link.bandwidth / 1e9:.2f} GB/s, {found.link.latency * 1e6:.0f} µs")
    crowd = [f"{factor:.2f} × with {busy}" for busy, factor in found.crowd.items() if busy > 1]
    if crowd:
        print(f"tasks take longer while other workers compute: {', '.join(crowd)}")
    print(Costs(found, path).text(plan))
    print(f"a step: {after:.4g} s; estimated before {before:.4g} s")
