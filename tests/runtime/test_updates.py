"""An update runs in place only where nobody can tell."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from superscaler.ir.layout import Layout
from superscaler.ir.program import Block, Call, Commit, Definition, Program, Row, Slice, Step, Value
from superscaler.runtime.storage import users
from superscaler.runtime.updates import in_place

# p 0, gradient 1, rate 2, clip 3, buffer 4 -> new p 5, new buffer 6
ROW = Row(0, "superscaler.sgd", ("$0", "$1", "$2", "$3", "$4", 0.5, 0.0, False, 0.0), (0, 1, 2, 3, 4), (5, 6), ())
SGD = Definition(5, (ROW,), (5, 6))
CALL = Call(0, 0, (0, 1, 2, 3, 4), (5, 6), "m")
BOTH: tuple[Step, ...] = (CALL, Commit(5, 0), Commit(6, 4))


def updated(
    *steps: Step, definition: Definition = SGD, program: Program | None = None, others: tuple[Definition, ...] = ()
) -> tuple[object, object]:
    block = Block("optimizer", "optimizer", "m", steps)
    values = tuple(Value(f"t{i}", Layout("m")) for i in range(9))
    base = program or Program((0,), values, (), (), (), {}, {}, {}, {})
    program = replace(base, blocks=(block, *base.blocks))
    found = in_place(program, users(program), block, steps.index(CALL), (definition, *others))
    return found.rows, dict(found.state)


def test_all_results_become_the_state_they_were_made_from() -> None:
    assert updated(*BOTH) == (((5, ()),), {5: 0, 6: 4})


def test_a_result_that_goes_elsewhere_has_its_operand_copied() -> None:
    assert updated(CALL, Commit(6, 4)) == (((5, (0,)),), {6: 4})
    assert updated(CALL, Commit(5, 7), Commit(6, 4)) == (((5, (0,)),), {6: 4})


@pytest.mark.parametrize(
    "steps",
    [
        (CALL, Slice(0, 8), Slice(4, 8), Commit(5, 0), Commit(6, 4)),  # the old content is still read
        (CALL,),  # nothing is committed
        (Commit(5, 0), Commit(6, 4), CALL),  # committed before it is made
    ],
)
def test_otherwise_nothing_is_overwritten(steps: tuple[Step, ...]) -> None:
    assert updated(*steps) == ((), {})


def test_rows_behind_it_that_read_the_operand_keep_it() -> None:
    reader = Row(1, "aten.neg.default", ("$0",), (0,), (7,), ())
    assert updated(*BOTH, definition=Definition(5, (ROW, reader), (5, 6))) == (((5, (0,)),), {6: 4})
    before = Row(1, "aten.neg.default", ("$0",), (0,), (7,), ())
    assert updated(*BOTH, definition=Definition(5, (before, ROW), (5, 6))) == (((5, ()),), {5: 0, 6: 4})


def test_views_of_the_operand_that_are_read_later_keep_it() -> None:
    view = Row(1, "aten.permute.default", ("$0", (1, 0)), (0,), (7,), ())
    reader = Row(2, "aten.neg.default", ("$0",), (7,), (8,), ())
    assert updated(*BOTH, definition=Definition(5, (view, ROW, reader), (5, 6))) == (((5, (0,)),), {6: 4})
    assert updated(*BOTH, definition=Definition(5, (view, reader, ROW), (5, 6))) == (((5, ()),), {5: 0, 6: 4})


@pytest.mark.parametrize("made", [Slice(0, 7), Call(1, 0, (0,), (7,), "m")])
def test_views_made_by_earlier_steps(made: Step) -> None:
    view = Definition(1, (Row(1, "aten.permute.default", ("$0", (1, 0)), (0,), (1,), ()),), (1,))
    assert updated(made, *BOTH, others=(view,)) == (((5, ()),), {5: 0, 6: 4})
    assert updated(made, *BOTH, Slice(7, 8), others=(view,)) == (((5, (0,)),), {6: 4})


def test_an_operand_given_twice_is_kept() -> None:
    twice = Call(0, 0, (0, 0, 2, 3, 4), (5, 6), "m")
    block = Block("optimizer", "optimizer", "m", (twice, Commit(5, 0), Commit(6, 4)))
    program = Program((0,), tuple(Value(f"t{i}", Layout("m")) for i in range(9)), (block,), (), (), {}, {}, {}, {})
    assert in_place(program, users(program), block, 0, (SGD,)).rows == ((5, (0,)),)


def test_results_that_others_need_too() -> None:
    values = tuple(Value(f"t{i}", Layout("m")) for i in range(9))
    other = Block("other", "reduce", "m", (Slice(5, 8),))
    named = Program((0,), values, (), (), (), {}, {}, {"new": 6}, {})
    assert updated(*BOTH, program=named) == (((5, (1,)),), {5: 0})
    assert updated(*BOTH, program=replace(named, blocks=(other,), outputs={})) == (((5, (0,)),), {6: 4})


def test_an_op_that_lacks_the_operand_overwrites_nothing() -> None:
    """It fails when it runs, where it is said which task it was."""
    short = Row(0, ROW.target, ROW.args[:3], ROW.ins, ROW.outs, ())
    assert updated(*BOTH, definition=Definition(5, (short,), (5, 6))) == ((), {})
