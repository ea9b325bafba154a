"""``superscaler ops`` and ``superscaler plans``: what there is."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from superscaler.cli.console import print_json, print_table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def ops(as_json: Json = False) -> None:
    """List the split rules by family: op, rule, and the dims that it can be split along."""
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
