"""An op at small shapes, to be executed on shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import SplitError
from superscaler.ir.graph import Op
from superscaler.ir.rules import discovered, has_rule
from superscaler.ir.rules.build import input_of
from superscaler.ir.rules.rule import Shape
from superscaler.transforms.discover.isolate import Attempts

Function = Callable[..., Any]
Outputs = list[Tensor]


class Untried(SplitError):
    """An op that runs on nothing that a trial gives it."""


# What an op raises that does not run on what it is given.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
_SMALL = (6, 4, 10, 8, 12, 9, 14, 15, 16, 18, 20, 21)
_LARGEST = 1 << 20  # elements of an op executed at its own shapes


@dataclass(frozen=True)
class Trial:
    """An op at shapes to execute it at."""

    function: Function
    args: tuple[Any, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]
    tolerance: float
    attempts: Attempts

    @property
    def tries(self) -> int:
        """How often a property is tried: small tensors, where masks and ranges show seldom, more often."""
        return max(8, min(64, 256 // max(1, min(prod(shape) for shape in self.shapes))))

    def inputs(self, seed: int) -> list[Tensor]:
        """Multiples of 1/64 of both signs, with many zeros for odd seeds; for integers, valid indices of every dim."""
        generator = torch.Generator().manual_seed(seed)
        lowest = min((n for shape in self.shapes for n in shape), default=1)

        def draw(shape: Shape, dtype: torch.dtype) -> Tensor:
            if dtype.is_floating_point:
                drawn = torch.randint(-256, 257, shape, generator=generator).to(dtype) / 64
                return drawn * (torch.rand(shape, generator=generator) > 0.25) if seed % 2 else drawn
            high = 2 if dtype == torch.bool else max(lowest, 1)
            return torch.randint(0, high, shape, generator=generator).to(dtype)

        return [draw(shape, dtype) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    def run(self, inputs: Sequence[Tensor]) -> Outputs:
        """The op's tensor results. Whatever the op raises is raised."""
        args, kwargs = list(self.args), dict[str, Any]()
        if args and isinstance(args[-1], dict):
            kwargs = {k: _filled(v, inputs) for k, v in args.pop()["kw"].items()}
        found = self.function(*(_filled(a, inputs) for a in args), **kwargs)
        return [found] if isinstance(found, Tensor) else [x for x in found if isinstance(x, Tensor)]

    def same(self, left: Tensor, right: Tensor) -> bool:
        """Whether two results agree, to rounding relative to the largest value."""
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        if not left.is_floating_point() or not left.numel():
            return torch.equal(left, right)
        finite = right[right.isfinite()].abs()
        scale = 1 + (float(finite.max()) if finite.numel() else 0.0)
        return torch.allclose(left, right, rtol=0, atol=self.tolerance * scale, equal_nan=True)


def _filled(arg: Any, inputs: Sequence[Tensor]) -> Any:
    if isinstance(arg, list | tuple):
        return [_filled(a, inputs) for a in arg]
    number = input_of(arg)
    if number is not None:
        return inputs[number]
    named = getattr(torch, arg, None) if isinstance(arg, str) else None
    return named if isinstance(named, torch.dtype) else arg


def function_of(target: str) -> Function:
    """The registered torch op that a graph's target names. Raises :class:`SplitError` if it must not be executed."""
    room, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, room), name, None)
    found = getattr(packet, overload or "default", None) if packet is not None else None
    if found is None:
        raise SplitError(f"op {target} is not registered with torch", hint="import the module that registers it")
    schema = found._schema
    if schema.is_mutable:
        raise SplitError(
            f"op {target} changes its inputs: {schema}", hint="register a form of it that returns its results"
        )
    tags = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    if tags & set(found.tags):
        raise SplitError(
            f"op {target} is random, or its shapes depend on its data",
            f"schema: {schema}",
            hint="state its rule: @superscaler.op(...)",
        )
    return found


def trial_of(
    op: Op,
    ins: tuple[Shape, ...],
    outs: tuple[Shape, ...],
    dtypes: Sequence[str],
    function: Function,
    attempts: Attempts,
) -> Trial:
    """The op at the first shapes and dtypes at which it runs: small and in float64, if it can."""
    if not ins:
        raise SplitError(
            f"op {op.target} has no tensor inputs: it is not executed to discover its rule",
            hint="state its rule: @superscaler.op(...)",
        )
    given = tuple(getattr(torch, name) for name in dtypes)
    wide = tuple(torch.float64 if d.is_floating_point else d for d in given)
    reason = "it is too large to be executed at its own shapes"
    for shapes, kinds in product(dict.fromkeys((_shrunk(ins), ins)), dict.fromkeys((wide, given))):
        if sum(prod(shape) for shape in shapes) > _LARGEST:
            continue
        trial = Trial(function, op.args, shapes, kinds, 1e-11 if kinds == wide else 1e-5, attempts)
        if not attempts.may(f"run at {shapes}, {kinds}"):
            reason = "it ends the process that executes it"
            continue
        try:
            found = _sound(op, trial)
        except FAILURES as error:
            reason = str(error).partition("\n")[0]
            continue
        if [x.ndim for x in found[: len(outs)]] == [len(shape) for shape in outs]:
            return trial
    if has_rule(op.target) and not discovered.known(op.target):
        raise SplitError(
            f"op {op.target} cannot be executed to test the rule that it states",
            f"where: {op.source or op.name}",
            f"why: {reason}",
            hint="it must return new tensors, of the shapes that the rule gives",
        )
    raise Untried(
        f"no split rule for op {op.target}, and none can be discovered",
        f"where: {op.source or op.name}",
        f"why: {reason}",
        hint="register it with @superscaler.op and its rule",
    )


def _shrunk(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Small shapes whose dims are equal where those of ``shapes`` are."""
    sizes = [n for n in dict.fromkeys(n for shape in shapes for n in shape) if n > 1]
    small = {n: _SMALL[i] if i < len(_SMALL) else n for i, n in enumerate(sizes)}
    return tuple(tuple(small.get(n, n) for n in shape) for shape in shapes)


def _sound(op: Op, trial: Trial) -> Outputs:
    """One execution; refuses ops that change their inputs or give another result each time."""
    inputs = trial.inputs(0)
    kept = [x.clone() for x in inputs]
    once, again = trial.run(inputs), trial.run([x.clone() for x in kept])
    if not all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True)):
        raise SplitError(
            f"op {op.target} changes its inputs",
            f"where: {op.source or op.name}",
            hint="an op that returns its results",
        )
    if not all(trial.same(a, b) for a, b in zip(once, again, strict=True)):
        raise SplitError(
            f"op {op.target} gives another result each time",
            f"where: {op.source or op.name}",
            hint="state its rule: @superscaler.op(...)",
        )
    if all(x.numel() and bool(x.isnan().all()) for x in once if x.is_floating_point()) and once[0].is_floating_point():
        raise ValueError("it gives nothing but NaN on small integers")
    return once
