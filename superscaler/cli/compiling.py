"""``superscaler compile-plan``: from a model and a cluster to a checked plan file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from superscaler.cli import costs
from superscaler.cli.console import Progress, clean_stdout, print_json, print_table, refuse_place
from superscaler.cli.subject import BATCH, Request, settings_of

if TYPE_CHECKING:
    from superscaler.ir.plan import Plan
    from superscaler.plans.auto import Trial

Number = Literal["f32", "bf16", "f64"]


def compile_plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="gpt, swin, alphafold2, t5, hf:DIR (a directory or its config.json), or package.module:factory.",
        ),
    ],
    preset: Annotated[str | None, typer.Option(help="The model's size by name; the smallest by default.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the preset.")
    ] = None,
    plan: Annotated[
        str, typer.Option(help="auto, NAME[:key=value,…] (see `superscaler plans`), or script.py:function.")
    ] = "auto",
    cluster: Annotated[str, typer.Option(help="local, a preset (h100, …), or FILE.toml.")] = "local",
    devices: Annotated[int | None, typer.Option(help="How many; by default what the plan names.")] = None,
    batch: Annotated[int, typer.Option(help="The global batch.")] = BATCH,
    seq: Annotated[int | None, typer.Option(help="The sequence length; the model's own by default.")] = None,
    microbatches: Annotated[int | None, typer.Option(help="How many parts the batch is run in.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB per device, instead of the device's own.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, sgd or none.")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="The learning rate.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Clip gradients to this global norm.")] = None,
    dtype: Annotated[Number, typer.Option(help="Of parameters and activations.")] = "f32",
    time_limit: Annotated[float | None, typer.Option(help="Seconds that a search for a schedule may take.")] = None,
    seed: Annotated[int, typer.Option(help="Of the schedule search, and of dropout when the plan runs.")] = 0,
    profile: Annotated[str, typer.Option(help=costs.HELP)] = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The plan file; MODEL.plan.json by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compile a model into a plan for a cluster, check it, and write it to a file. No weights are made or read."""
    from superscaler.cli import choices, subject
    from superscaler.plans.auto import Auto

    file = output or choices.default_file(model)
    refuse_place(file)
    with Progress() as progress, clean_stdout(as_json):
        script = choices.script_of(plan, microbatches, progress)
        choices.uses_all(plan, devices)
        where = choices.cluster_of(cluster, devices, memory, plan)
        steps = choices.optimizer_of(optimizer, lr, clip_norm)
        used = costs.costs_of(profile, where, where.size)
        if isinstance(script, Auto):
            script.profile = used.profile
        request = Request(model, preset, settings_of(setting or []), batch, seq)
        progress(f"building {model}")
        built = subject.without_memory(request)
        from superscaler import api

        made = api.compile(
            built.model, built.args, built.kwargs, cluster=where, plan=script, optimizer=steps, seed=seed, dtype=dtype,
            time_limit=time_limit, profile=used.profile, progress=progress,
        )  # fmt: skip
        tried: list[Trial] = getattr(script, "tried", [])
        made.model["source"] = request.recorded()
        made.settings["plan"] = choices.stated(script, plan, microbatches)
        progress(f"writing {file}")
        made.save(file)
    if as_json:
        print_json({**_figures(made, file, tried), "costs": used.figures(made)})
    else:
        _print(made, file, tried)
        print(used.text(made))


def _figures(plan: Plan, file: Path, tried: list[Trial]) -> dict[str, Any]:
    from superscaler.ir.summary import summary

    return {
        "file": str(file),
        "plan": plan.settings["plan"],
        "compile_seconds": plan.settings.get("compile_seconds"),
        **msgspec.to_builtins(summary(plan)),
        **({"tried": [_trial(t) for t in tried]} if tried else {}),
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {"plan": trial.name, "seconds": trial.seconds, "peak_bytes": trial.peak, "refused": trial.refused or None}


def _print(plan: Plan, file: Path, tried: list[Trial]) -> None:
    from superscaler.ir.summary import bytes_text

    if tried:
        rows = [(t.name, f"{t.seconds:.4g} s" if t.peak else "-", bytes_text(t.peak) if t.peak else "-",
                 t.refused or ("chosen" if t.name == plan.settings["plan"] else "")) for t in tried]  # fmt: skip
        print_table(["tried", "step", "peak", ""], rows)
    print(plan)
    print(f"checked; compiled in {plan.settings.get('compile_seconds', 0):.1f} s; wrote {file}")
