"""A parameter (or other state): where it lives, who reads it, how its gradient comes about, who updates it."""

from __future__ import annotations

from collections.abc import Iterable

from superscaler.ir.entry import Contents, StateTensor
from superscaler.ir.explain.events import Event, events
from superscaler.ir.explain.explanation import Explanation, explanation, shortened
from superscaler.ir.explain.words import holders, layout_words
from superscaler.ir.graph import ITEMSIZE
from superscaler.ir.summary import bytes_text

MOST = 24


def explain_state(plan: Contents, tensor: StateTensor) -> Explanation:
    """The explanation of a state tensor."""
    space, size = plan.space, ITEMSIZE[tensor.dtype]
    for length in tensor.shape:
        size *= length
    where = "in host memory beside" if tensor.memory == "host" else "on"
    return explanation(
        f"{tensor.kind} {tensor.name}: {list(tensor.shape)} of {tensor.dtype}, {bytes_text(size)}",
        lives=[
            f"{where} {tensor.layout.mesh}, {layout_words(tensor.layout, space)}; {_start(tensor)}",
            *holders(tensor.layout, tensor.shape, tensor.dtype, space),
        ],
        is_read=_lines(e for e in events(plan, {tensor.name}) if e.verb != "makes"),
        its_gradient=_gradient(plan, tensor),
        its_update=_update(plan, tensor),
        beside_it=[
            f"{t.name}: {layout_words(t.layout, space)}"
            for t in plan.state
            if t.kind == "optimizer" and t.name.rpartition(".")[0] == tensor.name
        ],
    )


def _start(tensor: StateTensor) -> str:
    if isinstance(tensor.init, str):
        _, _, other = tensor.init.partition(":")
        return f"starts as the model's {other or tensor.name}"
    return f"starts as {tensor.init:g}"


def _gradient(plan: Contents, tensor: StateTensor) -> list[str]:
    found: list[str] = []
    for name, entry in plan.entries.items():
        gradient = entry.graph.gradients.get(tensor.name)
        if gradient is None:
            continue
        found += _lines(e for e in events(plan, {gradient}) if e.entry == name and e.verb != "reads")
        for program in entry.programs:
            if tensor.name in program.gradients:
                layout = program.values[program.gradients[tensor.name]].layout
                found.append(f"in the end {layout_words(layout, plan.space)} on {layout.mesh}")
    return list(dict.fromkeys(found))


def _update(plan: Contents, tensor: StateTensor) -> list[str]:
    found: list[str] = []
    for name, entry in plan.entries.items():
        new = entry.graph.updates.get(tensor.name)
        if new is not None:
            found += _lines(e for e in events(plan, {new}) if e.entry == name and e.verb != "reads")
    return found


def _lines(found: Iterable[Event]) -> list[str]:
    listed = list(found)
    several = len({e.entry for e in listed}) > 1 or any(e.entry != "train" for e in listed)
    return shortened([(f"{e.entry}: " if several else "") + e.line for e in listed], MOST, "steps")
