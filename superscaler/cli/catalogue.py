"""``superscaler ops`` and ``superscaler plans``: what there is."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from superscaler.cli.console import Progress, clean_stdout, print_json, print_table
from superscaler.cli.subject import BATCH, Request

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def ops(
    coverage: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="How many ops of a model have a rule: gpt, hf:DIR, package.module:factory."),
    ] = None,
    batch: Annotated[int, typer.Option(help="With --coverage: the global batch.")] = BATCH,
    seq: Annotated[int | None, typer.Option(help="With --coverage: the sequence length.")] = None,
    as_json: Json = False,
) -> None:
    """List the split rules by family: op, rule, and the dims that it can be split along; or a model's coverage."""
    if coverage is not None:
        _coverage(Request(coverage, batch=batch, seq=seq), as_json=as_json)
        return
    from superscaler.ir.rules.listing import rows

    found = rows()
    if as_json:
        print_json({"ops": [{"family": r.family, "op": r.target, "rule": r.rule, "dims": r.dims} for r in found]})
        return
    families = dict.fromkeys(r.family for r in found)
    for family in families:
        print_table(
            [family, "rule", "dims"],
            [(r.target, r.rule, " ".join(r.dims)) for r in found if r.family == family],
        )
    print(f"{len(found)} ops in {len(families)} families")


def _coverage(request: Request, *, as_json: bool) -> None:
    """Ops of a training step of a model, by how their rule came about. No weights are made or read."""
    from superscaler.cli.subject import without_memory

    with Progress() as progress, clean_stdout(as_json):
        progress(f"building {request.name}")
        built = without_memory(request)
        from superscaler import api

        progress("tracing, and finding rules")
        found = api.coverage(built.model, built.args, built.kwargs)
    if as_json:
        counts = {"instances": found.instances, "ruled": found.ruled, "discovered": found.discovered}
        counts |= {"split": found.split, "missing": found.missing}
        print_json({"model": request.name, "share": found.share, **counts})
    else:
        print(found)


def plans(as_json: Json = False) -> None:
    """List the plans that come with superscaler, with their options."""
    from superscaler.plans import PLANS

    found = [(name, _options(make), (inspect.getdoc(make) or "").partition("\n\n")[0]) for name, make in PLANS.items()]
    if as_json:
        print_json({"plans": [{"name": name, "options": options, "what": what} for name, options, what in found]})
        return
    print_table(
        ["plan", "options", "what it does"],
        [(n, ",".join(o), " ".join(w.replace("``", "`").split())) for n, o, w in found],
    )
    print("on the command line: --plan NAME:key=value,key=value; auto chooses; or script.py:function")


def _options(make: object) -> list[str]:
    """``key=default`` of each option that the command line can state."""
    parameters = inspect.signature(make).parameters.values()  # type: ignore[arg-type]
    return [f"{p.name}={_text(p.default)}" for p in parameters if p.name != "plan"]


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
