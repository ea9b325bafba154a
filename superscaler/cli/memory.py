"""``superscaler memory``: who holds virtual memory on this machine now."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Annotated

import typer

from superscaler.cli.console import print_json, print_table
from superscaler.errors import UsageError


def memory(
    watch: Annotated[float | None, typer.Option(help="Show it again every so many seconds, until interrupted.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Reserved, mapped and shared bytes by process, pool and owner: of all pools of this user's processes."""
    if watch is not None and (watch <= 0 or as_json):
        raise UsageError("--watch takes a positive number of seconds, and no --json", hint="--watch 1")
    if as_json:
        from superscaler.runtime.memory.table import live_table

        print_json({"rows": [asdict(row) for row in live_table()]})
        return
    while True:
        _show(again=watch is not None)
        if watch is None:
            return
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            return


def _show(*, again: bool) -> None:
    from superscaler.ir.summary import bytes_text
    from superscaler.runtime.memory.table import live_table

    if again and sys.stdout.isatty():
        print("\033[H\033[2J", end="")
    rows = live_table()
    print_table(
        ["process", "pool", "owner", "reserved", "mapped", "shared"],
        [[r.pid, r.pool, r.owner, *map(bytes_text, (r.reserved, r.mapped, r.shared))] for r in rows],
    )
    if not rows:
        print("no process of this user has a pool")
