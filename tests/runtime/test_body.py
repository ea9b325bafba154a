"""Bodies write where they are told to, and say what they had to copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from superscaler.runtime.body import Body, Outputs, build, out_form
from superscaler.runtime.custom import op
from superscaler.runtime.resolve import Line, Resolved, Shape

F64, F32 = torch.float64, torch.float32


def body(lines: list[Line], shapes: list[Shape], outs: tuple[int, ...], uses: Outputs, *dtypes: Any) -> Body:
    """A body of float64 values; ``dtypes``: of an output and its storage, where they are others."""
    found = dict(enumerate(dtypes)) or {p: (F64, F64) for p in range(len(outs))}
    return build("test", Resolved(tuple(lines), tuple(shapes), ()), outs, uses, found)


def line(target: str, ins: tuple[int, ...], outs: tuple[int, ...], *shapes: Shape, args: tuple[Any, ...] = ()) -> Line:
    return Line(target, (*(f"${i}" for i in range(len(ins))), *args), ins, outs, shapes)


A, B = torch.arange(6, dtype=F64).reshape(2, 3), torch.arange(12, dtype=F64).reshape(3, 4)
MM = line("aten.mm.default", (0, 1), (2,), (2, 4))


def test_a_product_is_written_or_added_by_the_product_itself() -> None:
    storage = torch.ones(2, 4, dtype=F64)
    stored = body([MM], [(2, 3), (3, 4)], (2,), Outputs(stored=(0,)))
    assert stored.module.forward(A, B, storage) is None
    assert torch.equal(storage, A @ B)
    assert "torch.mm(x0, x1, out = out0)" in stored.module.code
    added = body([MM], [(2, 3), (3, 4)], (2,), Outputs(added=(0,)))
    added.module.forward(A, B, storage)
    assert torch.equal(storage, 2 * (A @ B))
    assert "out0.addmm_(x0, x1)" in added.module.code
    assert (stored.copies, added.copies) == (0, 0)


def test_storage_of_another_dtype_is_written_by_a_counted_copy() -> None:
    storage = torch.zeros(2, 4, dtype=F64)
    given = body([MM], [(2, 3), (3, 4)], (2,), Outputs(stored=(0,)), (F32, F64))
    given.module.forward(A.float(), B.float(), storage)
    assert torch.equal(storage, A @ B)
    assert (given.copies, given.copied) == (1, 8 * 8)
    more = body([MM], [(2, 3), (3, 4)], (2,), Outputs(added=(0,)), (F32, F64))
    more.module.forward(A.float(), B.float(), storage)
    assert torch.equal(storage, 2 * (A @ B))


@pytest.mark.parametrize("made", [F64, F32])
@pytest.mark.parametrize("uses", [Outputs(added=(0,)), Outputs(stored=(0,))])
def test_what_reads_a_term_in_the_same_body_reads_no_sum(uses: Outputs, made: torch.dtype) -> None:
    """Nor the storage, where that is of another dtype."""
    twice = line("aten.add.Tensor", (2, 2), (3,), (2, 4))
    for first in (MM, line("aten.mul.Tensor", (0, 0), (2,), (2, 4))):
        given = [A.to(made), B.to(made)] if first is MM else [torch.full((2, 4), 3.0, dtype=made)] * 2
        storage = torch.ones(2, 4, dtype=F64)
        shapes = [tuple(x.shape) for x in given]
        out = body([first, twice], shapes, (2, 3), uses, (made, F64), (made, made)).module.forward(*given, storage)
        term = given[0] @ given[1] if first is MM else given[0] * given[1]
        assert out.dtype == made
        assert torch.equal(out, 2 * term)
        assert torch.equal(storage, term.double() + (1 if uses.added else 0))


def test_a_result_that_outlives_its_task_owns_its_memory() -> None:
    turned = line("aten.permute.default", (0,), (1,), (3, 2), args=((1, 0),))
    for uses, shares in ((Outputs(), True), (Outputs(owned=(0,)), False)):
        out = body([turned], [(2, 3)], (1,), uses).module.forward(A)
        assert torch.equal(out, A.T)
        assert (out.untyped_storage().data_ptr() == A.untyped_storage().data_ptr()) is shares
        assert out.is_contiguous() is not shares


def test_ops_without_a_rule_of_ours_get_their_operands_in_one_piece() -> None:
    @op("b h -> b h", name="tests::flattening")
    def flattening(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1).mul(2).view(x.shape)

    turned = line("aten.permute.default", (0,), (1,), (3, 2), args=((1, 0),))
    doubled = line(flattening.target, (1,), (2,), (3, 2))
    assert torch.equal(body([turned, doubled], [(2, 3)], (2,), Outputs()).module.forward(A), 2 * A.T)


SLEPT = Line("superscaler.sleep", ("$0", 0.0, 0.0), (1,), (2,), ((2, 3),))
DOUBLED = line("aten.add.Tensor", (0, 0), (1,), (2, 3))


@pytest.mark.parametrize("uses", [Outputs(), Outputs(owned=(0,)), Outputs(stored=(0,)), Outputs(added=(0,))])
@pytest.mark.parametrize("kept", [F64, F32])
def test_what_only_hands_on_what_nobody_else_reads_copies_nothing(uses: Outputs, kept: torch.dtype) -> None:
    given = body([DOUBLED, SLEPT], [(2, 3)], (2,), uses, (F64, kept))
    storage = torch.ones(2, 3, dtype=kept)
    out = given.module.forward(A, *[storage][: len(uses.given)])
    assert torch.equal(
        storage if uses.given else out, (2 * A + (1 if uses.added else 0)).to(kept if uses.given else F64)
    )
    assert "out = add" in given.module.code
    assert given.copies == (1 if uses.stored and kept is F32 else 0)


def test_what_others_read_is_copied_before_it_is_handed_on() -> None:
    again = line("aten.mul.Tensor", (1, 2), (3,), (2, 3))
    for lines, outs in (([DOUBLED, SLEPT, again], (2, 3)), ([DOUBLED, SLEPT], (1, 2))):
        first, second = body(lines, [(2, 3)], outs, Outputs()).module.forward(A)
        assert first.data_ptr() != second.data_ptr()
        assert torch.equal(first, 2 * A)
        assert torch.equal(second, 4 * A * A if len(lines) == 3 else 2 * A)
    own = Line(SLEPT.target, SLEPT.args, (0,), (2,), SLEPT.shapes)
    assert body([own], [(2, 3)], (2,), Outputs()).module.forward(A).data_ptr() != A.data_ptr()


def test_several_results_some_of_them_stored() -> None:
    norm = line("aten.native_layer_norm.default", (0, 1, 1), (2, 3, 4), (2, 3), (2, 1), (2, 1))
    norm = Line(norm.target, ("$0", (3,), "$1", "$2", 1e-5), norm.ins, norm.outs, norm.shapes)
    given = body([norm], [(2, 3), (3,)], (2, 3, 4), Outputs(stored=(1,)))
    mean = torch.zeros(2, 1, dtype=F64)
    out, rstd = given.module.forward(A, torch.ones(3, dtype=F64), mean)
    assert torch.allclose(mean, A.mean(1, keepdim=True))
    assert torch.allclose(out.std(1, correction=0), torch.ones(2, dtype=F64), atol=1e-4)
    assert rstd.shape == (2, 1)
    assert (given.copies, given.copied) == (1, 2 * 8)


# p, gradient, learning rate, clip, momentum buffer -> p, buffer
SGD = line("superscaler.sgd", (0, 1, 2, 3, 4), (5, 6), (2,), (2,), args=(0.5, 0.0, False, 0.0))
SHAPES: list[Shape] = [(2,), (2,), (), (), (2,)]


def sgd_operands() -> list[torch.Tensor]:
    return [torch.tensor(v, dtype=F64) for v in ([1.0, 2.0], [1.0, 1.0], 0.1, 1.0, [2.0, 4.0])]


@pytest.mark.parametrize("copied", [(), (0,), (1,), (0, 1)])
def test_an_optimizer_step_overwrites_state_and_copies_what_must_stay(copied: tuple[int, ...]) -> None:
    operands = sgd_operands()
    out, buffer = body([SGD], SHAPES, (5, 6), Outputs(updated=((5, copied),))).module.forward(*operands)
    assert torch.allclose(out, torch.tensor([0.8, 1.7], dtype=F64))
    assert torch.allclose(buffer, torch.tensor([2.0, 3.0], dtype=F64))
    assert (out is operands[0], buffer is operands[4]) == (0 not in copied, 1 not in copied)
    assert torch.equal(operands[0], sgd_operands()[0]) is (0 in copied)
    assert torch.equal(operands[4], sgd_operands()[4]) is (1 in copied)


def test_a_copied_operand_can_be_the_storage() -> None:
    operands, storage = sgd_operands(), torch.zeros(2, dtype=F64)
    given = body([SGD], SHAPES, (5, 6), Outputs(stored=(0,), updated=((5, (0,)),)))
    given.module.forward(*operands, storage)
    assert torch.allclose(storage, torch.tensor([0.8, 1.7], dtype=F64))
    assert torch.equal(operands[0], sgd_operands()[0])
    assert given.copies == 0


def test_which_ops_write_to_storage_themselves() -> None:
    assert out_form("aten.relu.default") is torch.ops.aten.relu.out
    assert out_form("superscaler.reshape") is None
    assert out_form("aten.permute.default") is None
    assert out_form("aten.native_layer_norm.default") is None
