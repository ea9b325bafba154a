"""How state starts: nothing in a graph says it, so only the one start that each kind of state has is believed."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from compiled import compiled

from superscaler.errors import CheckError
from superscaler.ir.check import check
from superscaler.ir.entry import StateTensor
from superscaler.ir.plan import Plan


def started(plan: Plan, which: Callable[[StateTensor], bool], init: str | float) -> Plan:
    """The plan with the first such state tensor starting otherwise."""
    chosen = next(i for i, state in enumerate(plan.state) if which(state))
    state = [msgspec.structs.replace(s, init=init) if i == chosen else s for i, s in enumerate(plan.state)]
    return msgspec.structs.replace(plan, state=tuple(state))


def parameter(state: StateTensor) -> bool:
    return state.kind == "parameter"


def moment(state: StateTensor) -> bool:
    return state.kind == "optimizer"


@pytest.mark.parametrize(("which", "init"), [
    (parameter, "parameter:blocks.1.mlp.up.weight"), (parameter, "buffer"), (parameter, 0.0),
    (moment, 1.0), (moment, float("nan")), (moment, "parameter"), (moment, "parameter:norm.weight"),
    (moment, "own"),
])  # fmt: skip
def test_another_start_is_refused(which: Callable[[StateTensor], bool], init: str | float) -> None:
    plan = compiled("data_parallel:ways=2", 2, True)
    check(plan)
    if init == "own":
        init = f"parameter:{next(filter(moment, plan.state)).name.rpartition('.')[0]}"
    with pytest.raises(CheckError, match="starts as"):
        check(started(plan, which, init))
