"""How each traced ATen op becomes ops of the Graph: one file per family, each with its table ``LOWERINGS``.

An op in no table becomes the op of the same name with the same arguments.
"""

from __future__ import annotations

from dataclasses import replace

from superscaler.trace.draft import Builder, Value
from superscaler.trace.lowering import (
    attention,
    convolution,
    creation,
    gather,
    loss,
    matmul,
    norm,
    pointwise,
    reduction,
    shapes,
)
from superscaler.trace.lowering.call import Call, Lowering, Result
from superscaler.trace.lowering.pointwise import cast

LOWERINGS: dict[str, Lowering] = {
    **attention.LOWERINGS,
    **convolution.LOWERINGS,
    **creation.LOWERINGS,
    **gather.LOWERINGS,
    **loss.LOWERINGS,
    **matmul.LOWERINGS,
    **norm.LOWERINGS,
    **pointwise.LOWERINGS,
    **reduction.LOWERINGS,
    **shapes.LOWERINGS,
}

# They decide where a result lies, which is no matter of the Graph.
_PLACEMENT = frozenset({"layout", "device", "pin_memory", "memory_format", "non_blocking", "requires_grad"})


def _of_floats(b: Builder, call: Call) -> Call:
    """A float function of integers, with a cast of its own: its result would be of the default dtype where it runs."""
    dtypes = {like[1] for like in call.outs if like is not None}
    tensors = [arg for arg in call.args if isinstance(arg, Value)]
    if len(dtypes) != 1 or not tensors or any(x.floating for x in tensors) or "float" not in min(dtypes):
        return call
    return replace(call, args=tuple(cast(b, x, min(dtypes)) if isinstance(x, Value) else x for x in call.args))


def lower(b: Builder, call: Call) -> Result:
    """Append the ops of ``call`` and give its results."""
    found = LOWERINGS.get(call.target)
    if found is not None:
        return found(b, call)
    call = _of_floats(b, call)
    kwargs = {name: value for name, value in call.kwargs.items() if name not in _PLACEMENT and value is not None}
    args = [*call.args, {"kw": kwargs}] if kwargs else list(call.args)
    name = call.target if call.target.startswith("aten.") else call.target.removesuffix(".default")
    outs = [like for like in call.outs if like is not None]
    op = b.ops_of(name, args, *outs)
    if len(outs) == len(call.outs):
        return op.outputs if len(outs) > 1 else op.outputs[0]
    given = iter(op.outputs)
    return tuple(None if like is None else next(given) for like in call.outs)


__all__ = ["LOWERINGS", "Call", "Lowering", "Result", "lower"]
