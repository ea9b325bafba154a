"""Parts of ops: what the placeholders stand for."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.layout import Axis, Space
from superscaler.ir.rules import build_rule
from superscaler.ir.rules.part import op_key, part_of_op
from superscaler.ir.rules.rule import Split


def test_a_part_knows_its_stretch_of_every_dim() -> None:
    op = Op("embed", "superscaler.embedding", ("w", "ids"), ("y",), ("$0", "$1", "#start:v", None))
    rule = build_rule(op, ((10, 4), (6, 3)), ((6, 3, 4),))
    space = Space((Axis("data", 2, "space"), Axis("tensor", 3, "space")), ())
    splits = (("data", Split("b", 6)), ("tensor", Split("v", 10)))
    part = part_of_op(rule, op, splits, space, {"data": 1, "tensor": 2}, (6, 3, 4))
    assert part.local == {"b": 3, "h": 4, "s": 3, "v": 3}
    assert (part.start["b"], part.start["v"], part.size["v"]) == (3, 7, 10)
    assert part.shape == (3, 3, 4)
    assert str(part.region) == "[3:6; 0:3; 0:4]"
    assert part.whole("s")
    assert not part.whole("v")


def test_axes_that_split_one_dim_nest() -> None:
    op = Op("relu", "aten.relu.default", ("x",), ("y",), ("$0",))
    rule = build_rule(op, ((12,),), ((12,),))
    space = Space((Axis("outer", 2, "space"), Axis("inner", 3, "time")), ())
    splits = (("outer", Split("h", 12)), ("inner", Split("h", 12)))
    part = part_of_op(rule, op, splits, space, {"outer": 1, "inner": 1}, (12,))
    assert str(part.region) == "[8:10]"


def test_a_gradient_draws_what_its_forward_op_drew() -> None:
    forward = Op("dropout_3", "superscaler.dropout", ("x",), ("y",), ())
    backward = Op("dropout_7", "superscaler.dropout", ("g",), ("dx",), (), link="dropout_3")
    other = Op("dropout_4", "superscaler.dropout", ("x",), ("z",), ())
    assert op_key(forward) == op_key(backward) != op_key(other)
