"""Users' own ops, with their split rule in the annotation.

    @ss.op("b h s d, b h t d -> b h s t", linear=[(0,), (1,)])
    def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
        return q @ k.mT * scale

    @scores.backward
    def _(grad: Tensor, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return grad @ k * scale, grad.mT @ q * scale

Called in a model, ``scores`` is one op of its graph; on a worker it is the plain function. ``compile`` executes it on
small shards first, and refuses a rule that is not what the function does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from math import prod
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import SplitError, UsageError
from superscaler.ir.plan import Plan
from superscaler.ir.rules import register, specs
from superscaler.ir.rules.rule import Shape, Spec, parse_rule
from superscaler.runtime.ops.table import function, provide

Function = Callable[..., Any]
Groups = Sequence[tuple[int, ...]]


def _schema(body: Function) -> str:
    """Its parameters as torch declares them. Raises :class:`UsageError` where an annotation lacks or is unknown."""
    try:
        return str(torch.library.infer_schema(body, mutates_args=()))
    except ValueError as e:
        reason = str(e).partition("infer_schema(func): ")[2] or str(e)
        raise UsageError(
            f"@superscaler.op: the signature of {getattr(body, '__name__', 'the function')} says too little",
            reason.partition(" Got func")[0],
            hint="def f(x: Tensor, scale: float) -> Tensor",
        ) from None


class CustomOp:
    """A user's op: call it in a model. ``name`` is torch's name of it, ``target`` the one in graphs."""

    def __init__(self, body: Function, rule: str, linear: Groups, fake: Function | None, name: str | None) -> None:
        update_wrapper(self, body)
        self.function = body
        self.rule = rule
        self.name = name or _torch_name(body)
        self.schema = _schema(body)
        self.tensors = _tensor_arguments(self.schema)
        ins, outs = (_operands(side) for side in _sides(rule))
        if len(ins) != len(self.tensors):
            raise UsageError(
                f"op {self.name}: its rule has {len(ins)} inputs, its signature {len(self.tensors)} tensors",
                f"rule: {rule}",
                f"signature: {self.schema}",
                hint="an operand in the rule for each tensor argument",
            )
        self._outs = len(outs)
        self._linear = tuple(tuple(group) for group in linear)
        self._definition = _define(self.name, self.schema, body, rule, self._linear, fake)

    @property
    def target(self) -> str:
        return self.name.replace("::", ".")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._definition(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> CustomOp:
        return self  # a function: a copied module calls the same op

    def __reduce__(self) -> str:
        return self.function.__qualname__  # pickled by name, as functions are

    def backward(
        self, body: Function | None = None, *, rule: str | None = None, wrt: Sequence[int] | None = None,
        fake: Function | None = None,
    ) -> Any:  # fmt: skip
        """Register the gradient: a function of the outputs' gradients and then the arguments of the op.

        It returns one gradient per tensor argument, or per those numbered in ``wrt``. Its rule, unless given, is the
        op's own turned around: gradients lie like the tensors, and dims that one lacks are summed over. That holds
        where outputs are sums over the dims they lack; dims that are reduced otherwise are kept whole.
        """
        if body is None:
            return lambda found: self.backward(found, rule=rule, wrt=wrt, fake=fake)
        numbers = tuple(range(len(self.tensors)) if wrt is None else wrt)
        text = rule or _turned(self.rule, numbers)
        arguments = self.schema[1 : self.schema.rindex(") ->")]
        grads = ", ".join(f"Tensor grad{i}" for i in range(self._outs))
        returns = "Tensor" if len(numbers) == 1 else f"({', '.join(['Tensor'] * len(numbers))})"
        schema = f"({grads}{', ' + arguments if arguments else ''}) -> {returns}"
        name = f"{self.name}_backward"
        inner = _one(body) if len(numbers) == 1 else body
        definition = _define(name, schema, inner, text, (tuple(range(self._outs)),), fake)
        self._register_gradient(definition, numbers)
        return body

    def _register_gradient(self, definition: Any, numbers: tuple[int, ...]) -> None:
        tensors, outs = self.tensors, self._outs

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(*(inputs[i] for i in tensors))
            ctx.constants = [None if i in tensors else x for i, x in enumerate(inputs)]

        def gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            arguments = list(ctx.constants)
            for position, value in zip(tensors, ctx.saved_tensors, strict=True):
                arguments[position] = value
            found = definition(*grads[:outs], *arguments)
            given = (found,) if isinstance(found, Tensor) else found
            result: list[Tensor | None] = [None] * len(arguments)
            for number, value in zip(numbers, given, strict=True):
                result[tensors[number]] = value
            return tuple(result)

        self._definition.register_autograd(gradient, setup_context=setup)


def op(
    rule: str, *, linear: Groups = (), fake: Function | None = None, name: str | None = None
) -> Callable[[Function], CustomOp]:
    """Make a function of tensors an op with this split rule: ``@op("b h, h o -> b o", linear=[(0,), (1,)])``.

    ``rule``: einsum-like, one operand per tensor argument and per result; ``d!`` keeps a dim whole, ``d^max`` and
    ``d^min`` are reductions that are not sums. ``linear``: groups of inputs (by number) in which the function is
    jointly linear, through which partial sums may pass. ``fake``: shapes and dtypes of the results, as torch's
    ``register_fake``; unless given, shapes are the rule's and the dtype is that of the first floating-point tensor.
    ``name``: torch's name, by default ``module::function``. The function must be annotated, and give new tensors.

    Raises :class:`UsageError` if the rule does not fit the signature.
    """
    return lambda body: CustomOp(body, rule, linear, fake, name)


def _torch_name(body: Function) -> str:
    room, name = (re.sub(r"\W", "_", part) for part in (str(body.__module__), body.__qualname__))
    return f"{room}::{name}"


def _sides(rule: str) -> tuple[str, str]:
    left, arrow, right = rule.partition("->")
    if not arrow or "->" in right:
        raise UsageError(f"rule {rule!r} has no arrow, or several", hint='write it as "b h, h o -> b o"')
    return left, right


def _operands(side: str) -> list[str]:
    return [operand.strip() for operand in side.split(",")]


def _tensor_arguments(schema: str) -> tuple[int, ...]:
    """The positions of the arguments that are tensors."""
    arguments = re.split(r",\s*(?![^\[]*\])", schema[1 : schema.rindex(") ->")])
    kinds = [argument.split(" ")[0] for argument in arguments if argument != "*"]
    for kind in kinds:
        if kind.startswith("Tensor") and kind != "Tensor":
            raise UsageError(f"an op takes tensors, not {kind}: {schema}", hint="write one argument per tensor")
    return tuple(i for i, kind in enumerate(kinds) if kind == "Tensor")


def _define(
    name: str, schema: str, body: Function, rule: str, linear: tuple[tuple[int, ...], ...], fake: Function | None
) -> Any:
    definition = torch.library.custom_op(name, body, mutates_args=(), schema=schema)
    definition.register_fake(fake or _shapes(rule, name))
    target = name.replace("::", ".")
    register(target, "custom", Spec(rule, linear))
    provide(target, body)
    return definition


def _one(body: Function) -> Function:
    """A gradient of one tensor may be returned alone or as a tuple of one."""

    def single(*args: Any) -> Tensor:
        found = body(*args)
        return found if isinstance(found, Tensor) else found[0]

    return single


def _shapes(rule: str, name: str) -> Function:
    """The shapes of the results as the rule tells them from those of the inputs."""
    left, right = (_operands(side) for side in _sides(rule))

    def fake(*args: Any) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        known = parse_rule(f"{', '.join(left)} -> ", [tuple(t.shape) for t in tensors], [], family="custom").dims
        like = next((t for t in tensors if t.is_floating_point()), tensors[0])
        try:
            found = [like.new_empty(_shape(operand, {n: d.size for n, d in known.items()})) for operand in right]
        except KeyError as error:
            raise SplitError(
                f"op {name}: the size of dim {error.args[0]!r} cannot be told from its inputs",
                f"rule: {rule}",
                hint="give fake=: a function that returns empty tensors of the right shapes",
            ) from None
        return found[0] if len(found) == 1 else tuple(found)

    return fake


def _shape(operand: str, sizes: dict[str, int]) -> Shape:
    """The shape of an operand of a rule; raises KeyError for a dim whose size is not known."""
    dims = re.findall(r"\([^)]*\)|[^\s()]+", operand)
    factors = [re.findall(r"[A-Za-z_]\w*|\d+", re.sub(r"\^\w+", "", dim)) for dim in dims]
    return tuple(prod(int(f) if f.isdigit() else sizes[f] for f in dim) for dim in factors)


def _turned(rule: str, numbers: Sequence[int]) -> str:
    """The rule of a gradient: results' gradients and inputs in, inputs' gradients out."""
    left, right = (_operands(re.sub(r"\^(max|min|logsumexp)", "!", side)) for side in _sides(rule))
    return f"{', '.join([*right, *left])} -> {', '.join(left[i] for i in numbers)}"


@dataclass(frozen=True)
class Exported:
    """A user's op as a worker needs it: its rule, and the plain function."""

    rule: str
    linear: tuple[tuple[int, ...], ...]
    function: Function


def users_ops(plan: Plan) -> dict[str, Exported]:
    """The users' ops in a plan, to be sent to workers that have not imported their modules."""
    return exported({op.target for entry in plan.entries.values() for op in entry.graph.ops})


def exported(targets: Iterable[str]) -> dict[str, Exported]:
    """Those of ``targets`` that are users' ops."""
    found: dict[str, Exported] = {}
    for target in targets:
        family, spec = specs().get(target, ("", None))
        if family == "custom" and spec is not None and isinstance(spec.rule, str):
            found[target] = Exported(spec.rule, spec.linear, function(target))
    return found


def adopt(ops: Mapping[str, Exported]) -> None:
    """Make users' ops that another process registered known here: they can be executed, not traced."""
    for target, given in ops.items():
        register(target, "custom", Spec(given.rule, given.linear))
        provide(target, given.function)
