"""What only some plans can get wrong, one mistake at a time, in plans written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from editing import put, replace, with_block, with_entry, with_order, with_program, with_value

from superscaler.errors import CheckError
from superscaler.ir.check import Fault, check
from superscaler.ir.layout import Layout, Partial, Shard
from superscaler.ir.plan import Plan
from superscaler.ir.program import Accumulate, Block, Call, Collect, Commit, Item, Mask, Program, Slice, Step, Value
from tests.ir.plans_by_hand import in_one_piece, tensor_parallel
from tests.ir.plans_by_hand_more import co_sharded, collected, global_norm, offloaded, pipelined, split_vocabulary


def fails(plan: Plan) -> Fault:
    with pytest.raises(CheckError) as caught:
        check(plan)
    assert isinstance(caught.value, Fault)
    return caught.value


def program(plan: Plan, role: int = 0) -> Program:
    return next(iter(plan.entries.values())).programs[role]


def entry_name(plan: Plan) -> str:
    return next(iter(plan.entries))


def edited(plan: Plan, block: int, change: Callable[[list[Any]], None], role: int = 0) -> Plan:
    """The plan with the steps of a block changed."""
    steps: list[Step] = list(program(plan, role).blocks[block].steps)
    change(steps)
    return with_block(plan, entry_name(plan), role, block, steps=tuple(steps))


def find(plan: Plan, kind: type, block: int | None = None, role: int = 0) -> tuple[int, int]:
    """(block, place) of the first step of a kind."""
    for b, found in enumerate(program(plan, role).blocks):
        for i, step in enumerate(found.steps):
            if isinstance(step, kind) and block in (None, b):
                return b, i
    raise AssertionError(kind)


def with_new_value(plan: Plan, value: Value, role: int = 0) -> tuple[Plan, int]:
    values = program(plan, role).values
    return with_program(plan, entry_name(plan), role, values=(*values, value)), len(values)


# --- state ------------------------------------------------------------------------------------------------------------


def test_state_read_after_its_commit() -> None:
    """A slice of the old weight behind the commit of the new one, in the same task."""
    plan = in_one_piece()
    w1 = program(plan).state["w1"]
    plan, copy = with_new_value(plan, Value("w1", Layout("m")))
    error = fails(edited(plan, 2, lambda steps: steps.append(Slice(w1, copy))))
    assert error.kind == "stale read"
    assert "tensor 'w1'" in str(error)
    assert "all reads of the old content before the commit" in str(error)


def test_state_read_by_a_task_after_its_commit() -> None:
    plan = in_one_piece()
    w1 = program(plan).state["w1"]
    plan, copy = with_new_value(plan, Value("w1", Layout("m")))
    late = Block("late", "reduce", "m", (Slice(w1, copy),))
    plan = with_program(plan, "train", 0, blocks=(*program(plan).blocks, late))
    plan = with_order(plan, "train", 0, lambda order: order.append(Item(3, 0, 0, 0)))
    error = fails(plan)
    assert error.kind == "stale read"
    assert "block 3 (late)" in str(error)


def test_a_view_of_state_read_after_the_commit() -> None:
    """The view shares the storage that the commit overwrites."""
    plan = in_one_piece()
    w1 = program(plan).state["w1"]
    plan, view = with_new_value(plan, Value("w1", Layout("m")))
    plan, copy = with_new_value(plan, Value("w1", Layout("m")))

    def look(steps: list[Any]) -> None:
        steps.insert(0, Slice(w1, view))
        steps.append(Slice(view, copy))

    error = fails(edited(plan, 2, look))
    assert error.kind == "stale read"
    assert "a view of" in str(error)


def test_state_committed_twice() -> None:
    plan = in_one_piece()
    assert fails(edited(plan, 2, lambda steps: steps.append(steps[-1]))).kind == "duplicated commit"


def test_state_written_in_place() -> None:
    plan = in_one_piece()
    block, i = find(plan, Call, 2)
    call: Call = program(plan).blocks[block].steps[i]  # type: ignore[assignment]
    w1 = program(plan).state["w1"]
    plan = with_value(plan, "train", 0, w1, tensor="w1")

    def write(steps: list[Any]) -> None:
        steps[i] = replace(call, outs=put(call.outs, 0, w1))

    assert fails(edited(plan, block, write)).kind in ("wrong tensor", "stale read")


# --- partial values ---------------------------------------------------------------------------------------------------


def test_a_logsumexp_summed_as_a_sum() -> None:
    """FACTS §2, trap 6: right gradients, and a loss that is wrong by 70 %."""
    plan = split_vocabulary()
    part = program(plan).values.index(Value("lse", Layout("m", (("t", Partial("logsumexp")),))))
    error = fails(with_value(plan, "eval", 0, part, layout=Layout("m", (("t", Partial()),))))
    assert error.kind == "wrong kind of partial"
    assert "along 't'" in str(error)


def test_a_replicated_term_counted_by_every_rank() -> None:
    plan = global_norm()
    block, i = find(plan, Mask, role=1)
    mask: Mask = program(plan, 1).blocks[block].steps[i]  # type: ignore[assignment]
    error = fails(edited(plan, block, lambda steps: steps.__setitem__(i, Slice(mask.src, mask.dst)), role=1))
    assert error.kind == "complete read as partial"


def test_a_mask_along_no_axis_of_its_mesh() -> None:
    plan = global_norm()
    block, i = find(plan, Mask, role=1)
    mask: Mask = program(plan, 1).blocks[block].steps[i]  # type: ignore[assignment]
    error = fails(edited(plan, block, lambda steps: steps.__setitem__(i, replace(mask, axes=("w",))), role=1))
    assert error.kind == "wrong group"


@pytest.mark.parametrize(("terms", "kind"), [((0,), "counted twice"), ((), "partial read as complete")])
def test_the_meshes_of_a_global_sum_bring_disjoint_terms(terms: tuple[int, ...], kind: str) -> None:
    """The second mesh says that it brings the first one's term, or all of them."""
    plan = global_norm()
    number = next(i for i, v in enumerate(program(plan, 1).values) if v.terms == (1,))
    plan = with_value(plan, "eval", 1, number, terms=terms)
    error = fails(plan)
    assert error.kind in (kind, "not a term", "counted twice", "reduction too early")


def test_a_term_that_no_mesh_brings() -> None:
    """The add_n has a third input, which nobody adds."""
    plan = global_norm()
    graph = plan.entries["eval"].graph
    add = graph.ops[-1]
    ops = (*graph.ops[:-1], replace(add, inputs=("a", "b", "b"), args=("$0", "$1", "$2")))
    error = fails(with_entry(plan, "eval", graph=replace(graph, ops=ops)))
    assert error.kind == "reduction too early"
    assert "term 2" in str(error)


def test_roles_that_cut_a_sum_in_different_ways() -> None:
    """Two roles share a mesh; one splits the batch by halves, the other by turns: their terms do not add up."""
    plan = _two_roles_on_one_mesh()
    check(plan)
    definition = plan.entries["eval"].definitions[1]
    row = definition.rows[0]
    split = (("t", replace(row.splits[0][1], extent=2, inner=1)),)
    changed = replace(definition, rows=(replace(row, splits=split),))
    plan = with_entry(plan, "eval", definitions=put(plan.entries["eval"].definitions, 1, changed))
    x = program(plan, 1).inputs["x"]
    plan = with_value(plan, "eval", 1, x, layout=Layout("m", (("t", Shard(0, 2, 1)),)))
    error = fails(plan)
    assert error.kind == "mixed partials"


def _two_roles_on_one_mesh() -> Plan:
    """Σ x over a split batch, by two workers with a Program each."""
    from superscaler.ir.layout import Axis, Mesh, Space
    from superscaler.ir.program import Collective, Definition, Grouping
    from superscaler.ir.rules.rule import Split
    from tests.ir.plans_by_hand import Role, graph_of, plan_of

    graph = graph_of("s = aten.sum.dim_IntList x | 0", {"x": (8,), "s": ()}, ("x",), outputs={"s": "s"})
    ops = (replace(graph.ops[0], args=("$0", [0])),)
    graph = replace(graph, ops=ops)
    space = Space((Axis("t", 2, "space"),), (Mesh("m", ("t",), (2,), (0, 1)),))
    definitions: list[Definition] = []
    programs = []
    for worker in (0, 1):
        role = Role(graph, space, (worker,), definitions)
        x, part, total = role.value("x", t=Shard(0, 2, 4)), role.value("s", t=Partial()), role.value("s")
        call = role.call("s", (x,), (part,), splits={"s": {"t": Split("h", 2, 4)}})
        role.run(role.block("forward", call, Collective("all_reduce", part, total, ("t",), 0, 0)))
        programs.append(role.program(inputs={"x": x}, outputs={"s": total}))
    return plan_of(graph, space, programs, definitions, {}, groupings=(Grouping(((0, 1),)),), name="eval")


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_co_shard_left_out() -> None:
    plan = co_sharded()
    places = [i for i, step in enumerate(program(plan).blocks[0].steps) if isinstance(step, Accumulate)]
    error = fails(edited(plan, 0, lambda steps: steps.pop(places[1])))
    assert error.kind == "reduction too early"
    assert "1 of 2 contributions are in; part = 1 is missing" in str(error)


def test_a_co_shard_at_anothers_index() -> None:
    """The second part is computed, but added as the first."""
    plan = co_sharded()
    places = [i for i, step in enumerate(program(plan).blocks[0].steps) if isinstance(step, Accumulate)]

    def change(steps: list[Any]) -> None:
        steps[places[1]] = replace(steps[places[1]], at=(("part", 0),))

    assert fails(edited(plan, 0, change)).kind == "counted twice"


def test_a_part_read_at_no_index() -> None:
    plan = co_sharded()
    places = [i for i, step in enumerate(program(plan).blocks[0].steps) if isinstance(step, Call)]

    def change(steps: list[Any]) -> None:
        steps[places[0]] = replace(steps[places[0]], at=())

    assert fails(edited(plan, 0, change)).kind == "wrong time index"


def test_a_micro_batch_not_collected() -> None:
    plan = collected()
    error = fails(with_order(plan, "eval", 0, lambda order: order.pop(1) and None))
    assert error.kind == "reduction too early"
    assert "micro = 1 is missing" in str(error)


def test_parts_of_an_inner_axis_do_not_make_up_an_outer_one() -> None:
    """Micro-batches split the same digit as the workers, but outside of them: what is collected lies elsewhere."""
    plan = collected()
    space = replace(plan.space, axes=tuple(reversed(plan.space.axes)))
    assert fails(replace(plan, space=space)).kind in ("wrong layout", "wrong region")


def test_a_sum_begun_again_after_its_release() -> None:
    """The first term of a run is written, later ones are added to what lies there."""
    plan = tensor_parallel()
    loss = program(plan).outputs["loss"]
    plan = with_program(plan, "train", 0, outputs={}, frees=(*program(plan).frees, (loss,)))

    def release(order: list[Item]) -> None:
        order[0] = replace(order[0], frees=len(program(plan).frees) - 1)

    assert fails(with_order(plan, "train", 0, release)).kind == "read after free"


def test_collecting_what_is_to_be_summed() -> None:
    plan = tensor_parallel()
    block, i = find(plan, Accumulate)
    step: Accumulate = program(plan).blocks[block].steps[i]  # type: ignore[assignment]
    error = fails(edited(plan, block, lambda steps: steps.__setitem__(i, Collect(step.src, step.into))))
    assert error.kind == "partial read as complete"


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_value_in_host_memory_is_not_read() -> None:
    plan = offloaded()
    blocks = program(plan).blocks
    call: Call = blocks[3].steps[0]  # type: ignore[assignment]
    away = blocks[1].steps[0].dst  # type: ignore[union-attr]
    error = fails(edited(plan, 3, lambda steps: steps.__setitem__(0, replace(call, ins=put(call.ins, 3, away)))))
    assert error.kind == "host value"
    assert "an offload to device" in str(error)


def test_a_value_fetched_before_it_was_put_away() -> None:
    plan = offloaded()
    assert fails(with_order(plan, "train", 0, lambda order: order.insert(1, order.pop(2)))).kind == "missing value"


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_stage_that_sends_to_itself_only() -> None:
    plan = pipelined()
    route = plan.entries["train"].routes[0]
    piece = replace(route.pieces[0], source=1)
    routes = put(plan.entries["train"].routes, 0, replace(route, pieces=(piece,)))
    error = fails(with_entry(plan, "train", routes=routes))
    assert error.kind == "wrong rank"
    assert "which does not hold it" in str(error)


def test_a_fault_survives_the_way_between_processes() -> None:
    import pickle

    error = fails(with_program(in_one_piece(), "train", 0, arena=0))
    again = pickle.loads(pickle.dumps(error))
    assert (again.kind, str(again)) == (error.kind, str(error))


def test_a_commit_of_another_layout() -> None:
    plan = in_one_piece()
    block, i = find(plan, Commit)
    commit: Commit = program(plan).blocks[block].steps[i]  # type: ignore[assignment]
    error = fails(edited(plan, block, lambda steps: steps.__setitem__(i, replace(commit, src=commit.state))))
    assert error.kind == "wrong commit"
    assert "tensor 'w1n'" in str(error)
