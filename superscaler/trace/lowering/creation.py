"""Tensors made from nothing. They stay ops, however large: nothing is evaluated while tracing."""

from __future__ import annotations

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering.call import Call, Lowering, Result


def _filled(value: float) -> Lowering:
    def lower(b: Builder, c: Call) -> Result:
        shape, dtype = c.out
        return b.full(shape, value if "float" in dtype else bool(value) if dtype == "bool" else int(value), dtype)

    return lower


def _full(b: Builder, c: Call) -> Result:
    value = c.named["s"] if "s" in c.named else c["value"] if "value" in c.named else c["fill_value"]
    if isinstance(value, Value):  # aten.fill.Tensor
        return b.op("superscaler.expand", [value, "#shape"], c.out)
    dtype = c.out[1]
    return b.full(c.out[0], float(value) if "float" in dtype else bool(value) if dtype == "bool" else int(value), dtype)


def _arange(b: Builder, c: Call) -> Result:
    start, step = c.named.get("start", 0), c.named.get("step", 1)
    return b.op("superscaler.arange", [start, step, c.out[1], "#start:n", "#local:n"], c.out)


LOWERINGS: dict[str, Lowering] = {
    **{
        f"aten.{name}.default": _filled(value)
        for names, value in (
            (("zeros", "zeros_like", "new_zeros", "_efficientzerotensor", "empty", "empty_like", "new_empty"), 0.0),
            (("ones", "ones_like", "new_ones"), 1.0),
        )
        for name in names
    },
    **dict.fromkeys(("aten.empty.memory_format", "aten.empty_strided.default"), _filled(0.0)),
    "aten.new_empty_strided.default": _filled(0.0),
    "aten.full.default": _full,
    "aten.full_like.default": _full,
    "aten.new_full.default": _full,
    "aten.fill.Scalar": _full,
    "aten.fill.Tensor": _full,
    "aten.scalar_tensor.default": _full,
    **{f"aten.arange.{form}": _arange for form in ("default", "start", "start_step")},
}
