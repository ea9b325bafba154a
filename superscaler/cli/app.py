"""Which commands there are. To add one: a function in a file of its group, and a line here."""

from __future__ import annotations

from typing import Annotated

import typer

from superscaler import __version__
from superscaler.cli import catalogue, compiling, generating, memory, profiling, running, scheduling, viewing

HELP = "From a PyTorch model and a description of a cluster to a verified, executable parallelization plan."


def superscaler_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_options)
    app.command("compile-plan")(compiling.compile_plan)
    app.command("check")(viewing.check)
    app.command("simulate")(viewing.simulate)
    app.command("show")(viewing.show)
    app.command("explain")(viewing.explain)
    app.command("profile")(profiling.profile)
    app.command("run")(running.run)
    app.command("generate")(generating.generate)
    app.command("memory")(memory.memory)
    app.command("schedule")(scheduling.schedule)
    app.command("ops")(catalogue.ops)
    app.command("plans")(catalogue.plans)
    return app


def compile_plan_app() -> typer.Typer:
    """The one command that is installed under its own name too."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("compile-plan")(compiling.compile_plan)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"superscaler {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """From a PyTorch model and a description of a cluster to a verified, executable parallelization plan."""
