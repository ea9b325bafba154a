"""An op, or all ops of a module: where they run, how they are split, what brings their operands there."""

from __future__ import annotations

from superscaler.ir.check.fault import workers_text
from superscaler.ir.entry import Contents, Entry
from superscaler.ir.explain.events import Event, events
from superscaler.ir.explain.explanation import Explanation, explanation, shortened
from superscaler.ir.explain.words import KINDS, named, split_words
from superscaler.ir.graph import Op
from superscaler.ir.program import Call, Program
from superscaler.ir.rules import rule_for

MOST = 24


def explain_op(plan: Contents, name: str) -> Explanation:
    """The explanation of an op, in every entry that has it."""
    title, runs, splits, moves = "", list[str](), list[str](), list[str]()
    for entry_name, entry in plan.entries.items():
        op = entry.graph.op.get(name)
        if op is None:
            continue
        title = title or _title(entry, op)
        prefix = f"{entry_name}: " if len(plan.entries) > 1 else ""
        made = [e for e in events(plan, set(op.outputs)) if e.entry == entry_name and e.op == op and e.verb == "makes"]
        runs += [prefix + line for line in dict.fromkeys(_run(e, op) for e in made)]
        splits += [prefix + line for line in dict.fromkeys(line for e in made for line in _splits(plan, entry, e))]
        moved = (e for e in events(plan, {*op.inputs, *op.outputs}) if e.entry == entry_name and e.verb == "moves")
        moves += [prefix + e.line for e in moved]
    return explanation(title, runs=runs, is_split=splits, its_operands_and_results=shortened(moves, MOST, "steps"))


def _title(entry: Entry, op: Op) -> str:
    def shown(names: tuple[str, ...]) -> str:
        return ", ".join(f"{n} {list(entry.graph.tensor[n].shape)}" for n in names)

    rule = rule_for(op, entry.graph)
    found = " (found by discovery)" if rule.discovered else ""
    return f"{op.phase} op {named(op)}: {op.target}, {rule}{found}; {shown(op.inputs)} -> {shown(op.outputs)}"


def _run(event: Event, op: Op) -> str:
    kind = event.block.kind
    if op.phase == "forward" and kind in ("backward", "weight"):
        kind = "recompute"
    stage = f", stage {event.block.stage}" if event.block.stage >= 0 else ""
    return f"on {workers_text(event.program.workers)}{stage}, {event.often}: {KINDS.get(kind, kind)}"


def _splits(plan: Contents, entry: Entry, event: Event) -> list[str]:
    assert event.op is not None
    assert event.row is not None
    axes = plan.space.mesh(event.mesh).axes
    return split_words(event.op, entry, event.row.splits, axes, plan.space)


def explain_module(plan: Contents, path: str) -> Explanation:
    """The parameters and ops of a module and of those inside it."""

    def inside(name: str) -> bool:
        return name == path or name.startswith((f"{path}.", f"{path}/"))

    state = [t for t in plan.state if inside(t.name) and t.kind in ("parameter", "buffer")]
    entry = plan.entries.get("train") or next(iter(plan.entries.values()))
    ops = [op for op in entry.graph.ops if op.module == path or op.module.startswith(f"{path}.")]
    numbers = {i for i, op in enumerate(entry.graph.ops) if op in ops}
    places = {workers_text(p.workers): len(numbers & _run_by(entry, p)) for p in entry.programs}
    return explanation(
        f"module {path}: {len(state)} parameters and buffers, {len(ops)} ops",
        state=shortened([f"{t.name} {list(t.shape)} of {t.dtype}, {t.layout}" for t in state], MOST, "tensors"),
        runs=[f"{where}: {count} ops" for where, count in places.items() if count],
        ops=shortened([named(op) for op in ops], MOST, "ops"),
    )


def _run_by(entry: Entry, program: Program) -> set[int]:
    """The ops that a role runs, by number."""
    calls = [step for block in program.blocks for step in block.steps if isinstance(step, Call)]
    return {call.base + row.offset for call in calls for row in entry.definitions[call.definition].rows}


__all__ = ["explain_module", "explain_op"]
