"""Optimizers in the graph: clipping and updates are ops like any other, so ZeRO and offload are ordinary plans."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from itertools import count
from math import inf, nan

import msgspec

from superscaler.errors import UsageError
from superscaler.ir.argument import shown
from superscaler.ir.entry import MASTER
from superscaler.ir.graph import DRIVEN, Graph, Op, Tensor
from superscaler.transforms.precision import HALF, wide, with_wide_gradients


class Group(msgspec.Struct, frozen=True):
    """Parameters (by name globs) with their own weight decay or learning-rate factor."""

    names: tuple[str, ...]
    weight_decay: float | None = None
    lr_scale: float = 1.0


class SGD(msgspec.Struct, frozen=True, tag="sgd"):
    """``torch.optim.SGD``: momentum, Nesterov, weight decay; clipping by global norm if ``clip_norm``."""

    lr: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    groups: tuple[Group, ...] = ()


class AdamW(msgspec.Struct, frozen=True, tag="adamw"):
    """``torch.optim.AdamW``: decoupled weight decay; clipping by global norm if ``clip_norm``.

    ``groups``: later groups win; ``AdamW.no_decay()`` is the usual one for biases and norms.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    clip_norm: float | None = None
    groups: tuple[Group, ...] = ()

    @staticmethod
    def no_decay(*names: str) -> Group:
        """A group without weight decay: biases and norms unless other globs are given."""
        return Group(names or ("*bias", "*norm*", "*ln_*", "*.ln*"), weight_decay=0.0)


Optimizer = SGD | AdamW
_RANGES = (
    ("lr", 0.0, inf), ("momentum", 0.0, inf), ("weight_decay", 0.0, inf), ("eps", 0.0, inf), ("betas", 0.0, 1.0),
)  # fmt: skip
"""The numbers of optimizers: from, to below (as ``torch.optim`` has them)."""


def _group(optimizer: Optimizer, name: str) -> tuple[float, float]:
    decay, scale = optimizer.weight_decay, 1.0
    for group in optimizer.groups:
        if any(fnmatch.fnmatchcase(name, glob) for glob in group.names):
            decay = group.weight_decay if group.weight_decay is not None else decay
            scale = group.lr_scale
    return decay, scale


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []

    def tensor(self, name: str, shape: tuple[int, ...], dtype: str, kind: str = "activation") -> str:
        """A new tensor; its name, which is another where the model has one of this name."""
        name = name if name not in self.graph.tensor else f"{DRIVEN}{name}"
        self.tensors.append(Tensor(name, shape, dtype, kind))  # type: ignore[arg-type]
        return name

    def op(
        self, name: str, target: str, ins: Sequence[str | None], outs: Sequence[str], *args: object, module: str
    ) -> None:
        """``ins``: None for an operand that the op goes without."""
        given = tuple(i for i in ins if i is not None)
        numbers = count()
        refs = tuple(None if i is None else f"${next(numbers)}" for i in ins)
        function = target.rsplit(".", 1)[-1]
        self.ops.append(Op(name, target, given, tuple(outs), (*refs, *args), "optimizer", module, function))


def with_optimizer(graph: Graph, optimizer: Optimizer | None) -> Graph:
    """The graph with clipping and parameter updates after the gradients. State starts at zero.

    A parameter in half precision has a float32 master beside the optimizer's other state: that is what steps, and the
    parameter is its cast. Raises :class:`UsageError` for a group that matches no parameter or for senseless figures.
    """
    graph = with_wide_gradients(graph)
    if optimizer is None:
        return graph
    _verify(graph, optimizer)
    b = _Builder(graph)
    dtype = wide(next(iter(graph.tensor[p].dtype for p in graph.gradients), "float32"))
    inputs = [b.tensor("lr", (), dtype, "input")]
    if isinstance(optimizer, AdamW):
        inputs.append(b.tensor("step", (), dtype, "input"))
    clip = _clip(b, graph, optimizer.clip_norm, dtype)
    updates = dict(graph.updates)
    for name, gradient in graph.gradients.items():
        decay, scale = _group(optimizer, name)
        lr = inputs[0] if scale == 1.0 else _scaled(b, inputs[0], scale, dtype)
        stepped = _master(b, graph, name) if graph.tensor[name].dtype in HALF else name
        if isinstance(optimizer, AdamW):
            updates.update(_adamw(b, graph, optimizer, stepped, name, gradient, inputs[1], lr, clip, decay))
        else:
            updates.update(_sgd(b, graph, optimizer, stepped, name, gradient, lr, clip, decay))
        if stepped != name:
            updates[name] = _narrowed(b, graph, name)
    return Graph(
        (*graph.tensors, *b.tensors),
        (*graph.ops, *b.ops),
        (*graph.inputs, *inputs),
        graph.outputs,
        graph.gradients,
        updates,
    )


def _verify(graph: Graph, optimizer: Optimizer) -> None:
    for group in optimizer.groups:
        if group.names == AdamW.no_decay().names:
            continue
        for glob in group.names:
            if not any(fnmatch.fnmatchcase(name, glob) for name in graph.gradients):
                raise UsageError(
                    f"optimizer group {glob!r} matches no parameter", hint=", ".join([*graph.gradients][:8])
                )
    if optimizer.clip_norm is not None and not _number(optimizer.clip_norm) > 0:
        raise UsageError(f"clip_norm must be positive, not {shown(optimizer.clip_norm)}", hint="clip_norm=1.0")
    for name, least, most in _RANGES:
        given = getattr(optimizer, name, 0.0)
        for number in given if isinstance(given, tuple | list) else (given,):
            if not least <= _number(number) < most:
                raise UsageError(f"{name} must be from {least:g} to below {most:g}, not {shown(given)}",
                                 hint=f"as by default: {name}={getattr(type(optimizer)(), name)}")  # fmt: skip
    if isinstance(optimizer, SGD) and optimizer.nesterov and not optimizer.momentum:
        raise UsageError("nesterov=True needs a momentum", hint="momentum=0.9")


def _number(given: object) -> float:
    """``given`` if it is a number; what is none is in no range."""
    return float(given) if isinstance(given, int | float) and not isinstance(given, bool) else nan


def _scaled(b: _Builder, lr: str, scale: float, dtype: str) -> str:
    name = f"lr*{scale:g}"
    if all(t.name != name for t in b.tensors):
        b.tensor(name, (), dtype)
        b.op(f"optimizer/{name}", "aten.mul.Scalar", [lr], [name], scale, module="optimizer")
    return name


def _clip(b: _Builder, graph: Graph, max_norm: float | None, dtype: str) -> str | None:
    """The factor on every gradient: none without clipping."""
    if max_norm is None:
        return None
    clip = b.tensor("clip", (), dtype)
    squares: list[str] = []
    for name, gradient in graph.gradients.items():
        squares.append(b.tensor(f"{name}.grad_sq", (), dtype))
        b.op(f"{name}/sumsq", "superscaler.sumsq", [gradient], [squares[-1]], module=name.rpartition(".")[0])
    total = b.tensor("grad_norm_sq", (), dtype)
    b.op("optimizer/norm", "superscaler.add_n", squares, [total], module="optimizer")
    b.op("optimizer/clip", "superscaler.clip_coefficient", [total], [clip], float(max_norm), module="optimizer")
    return clip


def _master(b: _Builder, graph: Graph, name: str) -> str:
    """The float32 copy of a parameter: it starts as the parameter does."""
    return b.tensor(name + MASTER, graph.tensor[name].shape, wide(graph.tensor[name].dtype), "optimizer")


def _narrowed(b: _Builder, graph: Graph, name: str) -> str:
    """A parameter's new value from its master's."""
    tensor = graph.tensor[name]
    new = b.tensor(f"{name}.new", tensor.shape, tensor.dtype)
    module = name.rpartition(".")[0]
    b.op(f"{name}/cast", "superscaler.cast", [f"{name}{MASTER}.new"], [new], tensor.dtype, module=module)
    return new


def _state(b: _Builder, graph: Graph, name: str, what: str) -> tuple[str, str]:
    parameter = graph.tensor[name]
    old = b.tensor(f"{name}.{what}", parameter.shape, wide(parameter.dtype), "optimizer")
    return old, b.tensor(f"{name}.{what}.new", parameter.shape, wide(parameter.dtype))


def _adamw(
    b: _Builder, graph: Graph, o: AdamW, stepped: str, name: str, grad: str, step: str, lr: str, clip: str | None,
    decay: float,
) -> dict[str, str]:  # fmt: skip
    parameter = graph.tensor[name]
    new = b.tensor(f"{stepped}.new", parameter.shape, wide(parameter.dtype))
    m, m_new = _state(b, graph, name, "exp_avg")
    v, v_new = _state(b, graph, name, "exp_avg_sq")
    ins = [stepped, grad, m, v, step, lr, clip]
    module = name.rpartition(".")[0]
    b.op(f"{name}/adamw", "superscaler.adamw", ins, [new, m_new, v_new], *o.betas, o.eps, decay, module=module)
    return {stepped: new, m: m_new, v: v_new}


def _sgd(
    b: _Builder, graph: Graph, o: SGD, stepped: str, name: str, grad: str, lr: str, clip: str | None, decay: float
) -> dict[str, str]:
    parameter = graph.tensor[name]
    new = b.tensor(f"{stepped}.new", parameter.shape, wide(parameter.dtype))
    updates = {stepped: new}
    ins, outs = [stepped, grad, lr, clip], [new]
    if o.momentum:
        buffer, buffer_new = _state(b, graph, name, "momentum_buffer")
        ins, outs = [*ins, buffer], [new, buffer_new]
        updates[buffer] = buffer_new
    # torch starts the buffer as the first gradient: the same as from zero, there being no dampening.
    options = (o.momentum, 0.0, o.nesterov, decay)
    b.op(f"{name}/sgd", "superscaler.sgd", ins, outs, *options, module=name.rpartition(".")[0])
    return updates
