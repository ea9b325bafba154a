"""Execute an op whole and split, and compare: what every split rule is tested with.

A part gets the regions of the inputs that the rule asks for (random terms of them, where it takes partials); its
outputs are put together as the rule says they lie. Nothing here knows what any op computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from superscaler.ir.graph import Op
from superscaler.ir.layout import Axis, Layout, Partial, Space
from superscaler.ir.region import Region
from superscaler.ir.rules import build_rule
from superscaler.ir.rules.part import Part, part_of_op
from superscaler.ir.rules.rule import Rule, Split, Splits, check_splits, op_layouts
from superscaler.runtime.ops import bind, execute, function

SEED = (11, 3)


@dataclass
class Case:
    """An op on given inputs. ``outs``: shapes of the outputs, for ops whose arguments ask for them."""

    target: str
    inputs: list[Tensor]
    args: tuple[Any, ...]
    outs: list[tuple[int, ...]] | None = None
    exact: bool = True
    tolerance: float = 1e-12
    op: Op = field(init=False)
    rule: Rule = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(f"x{i}" for i in range(len(self.inputs)))
        self.op = Op("op", self.target, names, (), self.args)
        ins = tuple(tuple(x.shape) for x in self.inputs)
        if self.outs is None:
            args, kwargs = bind(self.args, self.inputs, Part())
            found = function(self.target)(*args, **kwargs)
            found = (found,) if isinstance(found, Tensor) else found
            self.outs = [tuple(x.shape) for x in found]
        self.rule = build_rule(self.op, ins, tuple(self.outs))


def take(x: Tensor, region: Region) -> Tensor:
    """The elements of ``x`` in ``region``, packed."""
    for dim, span in enumerate(region):
        index = torch.cat([torch.arange(a, b) for a, b in span]) if span else torch.empty(0, dtype=torch.long)
        x = x.index_select(dim, index)
    return x


def put(x: Tensor, region: Region, value: Tensor) -> None:
    """Write ``value`` into the elements of ``x`` in ``region``."""
    index = [torch.cat([torch.arange(a, b) for a, b in s]) if s else torch.empty(0, dtype=torch.long) for s in region]
    x[torch.meshgrid(*index, indexing="ij") if index else ()] = value


def whole_part(case: Case) -> Part:
    """All of the op as one part."""
    return _seeded(part_of_op(case.rule, case.op, (), Space((), ()), {}, case.outs[0]))


def _seeded(part: Part) -> Part:
    return Part(part.local, part.start, part.size, part.shape, part.region, SEED, part.key)


def terms(x: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """``count`` tensors whose sum is ``x``."""
    drawn = [torch.randint(-5, 6, x.shape, generator=generator).to(x.dtype) for _ in range(count - 1)]
    return [*drawn, x - sum(drawn) if drawn else x]


def combine(kind: str, values: list[Tensor]) -> Tensor:
    """The reduction of partial values."""
    stacked = torch.stack(values)
    if stacked.dtype == torch.bool:
        return stacked.any(0) if kind == "max" else stacked.all(0)
    if kind == "logsumexp":
        return torch.logsumexp(stacked, 0)
    return {"sum": stacked.sum, "max": stacked.amax, "min": stacked.amin}[kind](0)


def _partial(layout: Layout) -> list[tuple[str, str]]:
    return [(name, state.kind) for name, state in layout.states if isinstance(state, Partial)]


def run_split(case: Case, splits: Splits, space: Space) -> list[Tensor]:
    """The outputs of the op executed in parts and put together again."""
    check_splits(case.op, case.rule, splits)
    ins, outs = op_layouts(case.rule, splits, "", space)
    generator = torch.Generator().manual_seed(0)
    spread: list[dict[tuple[int, ...], Tensor]] = []
    for x, layout in zip(case.inputs, ins, strict=True):
        axes = [name for name, _ in _partial(layout)]
        keys = list(product(*(range(space.axis(name).ways) for name in axes)))
        spread.append(dict(zip(keys, terms(x, len(keys), generator), strict=True)))
    results: list[dict[tuple[int, ...], tuple[Region, Tensor]]] = [{} for _ in outs]
    for index in product(*(range(axis.ways) for axis in space.axes)):
        coords = dict(zip((axis.name for axis in space.axes), index, strict=True))
        local: list[Tensor] = []
        for x, layout in zip(spread, ins, strict=True):
            value = x[tuple(coords[name] for name, _ in _partial(layout))]
            local.append(take(value, space.region(tuple(value.shape), layout, coords)).contiguous())
        part = _seeded(part_of_op(case.rule, case.op, splits, space, coords, case.outs[0]))
        for number, value in enumerate(execute(case.op, case.rule, local, part)):
            region = space.region(case.outs[number], outs[number], coords)
            assert tuple(value.shape) == region.shape, (
                f"output {number} of part {coords}: {value.shape} is not {region}"
            )
            results[number][index] = (region, value)
    return [_assemble(case.outs[n], outs[n], results[n], space) for n in range(len(outs))]


def _assemble(
    shape: tuple[int, ...], layout: Layout, parts: dict[tuple[int, ...], tuple[Region, Tensor]], space: Space
) -> Tensor:
    names = [axis.name for axis in space.axes]
    for axis, kind in reversed(_partial(layout)):
        at = names.index(axis)
        groups: dict[tuple[int, ...], list[tuple[Region, Tensor]]] = {}
        for index, part in parts.items():
            groups.setdefault((*index[:at], 0, *index[at + 1 :]), []).append(part)
        parts = {index: (group[0][0], combine(kind, [v for _, v in group])) for index, group in groups.items()}
    out = torch.empty(shape, dtype=next(iter(parts.values()))[1].dtype)
    seen = torch.zeros(shape, dtype=torch.bool)
    for region, value in parts.values():
        put(out, region, value)
        put(seen, region, torch.ones_like(value, dtype=torch.bool))
    assert bool(seen.all()), f"the parts under {layout} do not cover {shape}"
    for region, value in parts.values():  # parts that hold the same region hold the same value
        assert torch.equal(take(out, region).nan_to_num(), value.nan_to_num()), f"copies differ under {layout}"
    return out


def compare(case: Case, got: list[Tensor]) -> None:
    """The split results against the whole."""
    whole = execute(case.op, case.rule, case.inputs, whole_part(case))
    for number, (expected, value) in enumerate(zip(whole, got, strict=True)):
        assert value.dtype == expected.dtype, f"output {number} is {value.dtype}, not {expected.dtype}"
        if case.exact or not expected.is_floating_point():
            assert torch.equal(expected.nan_to_num(), value.nan_to_num()), f"output {number} differs under {case.rule}"
        else:
            scale = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
            torch.testing.assert_close(
                value, expected, rtol=case.tolerance, atol=case.tolerance * (1 + scale), equal_nan=True
            )


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def splittings(draw: st.DrawFn, rule: Rule) -> tuple[Splits, Space]:
    """One to three axes, each a digit of a dim (balanced or unevenly sized, nested too) or a partial passed through."""
    free = [name for name, dim in rule.dims.items() if not dim.whole and dim.size > 1]
    choices = [*free, *rule.linear]
    splits: list[tuple[str, Split]] = []
    axes: list[Axis] = []
    left: dict[Split, int] = {}
    for number in range(draw(st.integers(1, 3)) if choices else 0):
        choice = draw(st.sampled_from(choices))
        name = f"axis{number}"
        if isinstance(choice, tuple):
            splits.append((name, Split("+", inputs=choice)))
            axes.append(Axis(name, draw(st.integers(2, 3)), "space"))
            continue
        used = next((s for _, s in splits if s.dim == choice), None)
        split = used or draw(_digits(choice, rule))
        room = left.get(split, split.extent)
        if room < 2:
            continue
        ways = draw(st.integers(2, min(room, 4)))
        sizes = None
        if split not in left and draw(st.booleans()):
            cuts = sorted(draw(st.sets(st.integers(1, room - 1), min_size=ways - 1, max_size=ways - 1)))
            sizes = tuple(b - a for a, b in zip([0, *cuts], [*cuts, room], strict=True))
        left[split] = min(sizes) if sizes else room // ways
        splits.append((name, split))
        axes.append(Axis(name, ways, "space", sizes))
    return tuple(splits), Space(tuple(axes), ())


@st.composite
def _digits(draw: st.DrawFn, dim: str, rule: Rule) -> Split:
    size = rule.dims[dim].size
    extent = draw(st.sampled_from([d for d in divisors(size) if d > 1]))
    inner = draw(st.sampled_from(divisors(size // extent)))
    return Split(dim, extent, size // extent if dim in rule.contiguous else inner)
