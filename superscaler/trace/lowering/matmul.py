"""Matrix products without their bias, which is added by an op of its own: a split contraction would add it n times."""

from __future__ import annotations

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.lowering.pointwise import binary, scale
from superscaler.trace.views import reshape


def mm(b: Builder, x: Value, y: Value) -> Value:
    """[n, k] × [k, m] -> [n, m]."""
    return b.op("aten.mm.default", [x, y], ((x.shape[0], y.shape[1]), x.dtype))


def bmm(b: Builder, x: Value, y: Value) -> Value:
    """[e, n, k] × [e, k, m] -> [e, n, m]."""
    return b.op("aten.bmm.default", [x, y], ((x.shape[0], x.shape[1], y.shape[2]), x.dtype))


def _mm(b: Builder, c: Call) -> Result:
    return mm(b, c["self"], c["mat2"])


def _bmm(b: Builder, c: Call) -> Result:
    return bmm(b, c["self"], c["mat2"])


def _added(b: Builder, c: Call, product: Value) -> Value:
    """``beta * self + alpha * product``."""
    product = scale(b, product, c["alpha"]) if c["alpha"] != 1 else product
    if c["beta"] == 0:
        return product
    bias: Value = c["self"]
    bias = scale(b, bias, c["beta"]) if c["beta"] != 1 else bias
    return binary(b, "add", product, bias, c.out)


def _addmm(b: Builder, c: Call) -> Result:
    return _added(b, c, mm(b, c["mat1"], c["mat2"]))


def _baddbmm(b: Builder, c: Call) -> Result:
    return _added(b, c, bmm(b, c["batch1"], c["batch2"]))


def _mv(b: Builder, c: Call) -> Result:
    matrix, vector = c.args
    return reshape(b, mm(b, matrix, reshape(b, vector, (vector.shape[0], 1))), c.out[0])


def _dot(b: Builder, c: Call) -> Result:
    x, y = c.args
    return reshape(b, mm(b, reshape(b, x, (1, x.shape[0])), reshape(b, y, (y.shape[0], 1))), ())


LOWERINGS: dict[str, Lowering] = {
    "aten.mm.default": _mm,
    "aten.bmm.default": _bmm,
    "aten.addmm.default": _addmm,
    "aten.baddbmm.default": _baddbmm,
    "aten.mv.default": _mv,
    "aten.dot.default": _dot,
}
