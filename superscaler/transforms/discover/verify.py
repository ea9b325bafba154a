"""Rules that users state for their own ops, put to the test: an annotation that lies is found by executing the op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import torch
from torch import Tensor

from superscaler.errors import SplitError
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Axis, Layout, Partial, Space
from superscaler.ir.region import Region
from superscaler.ir.rules import build_rule, specs
from superscaler.ir.rules.rule import Rule, Split, Splits, op_layouts
from superscaler.transforms.discover.isolate import Announce, Attempts, isolated
from superscaler.transforms.discover.trial import FAILURES, Outputs, Trial, function_of, trial_of

_SECONDS = 60.0  # of one op


def verify_custom(graph: Graph) -> None:
    """Test the rules of all ops that users registered, each once. Raises :class:`SplitError` for one that lies."""
    seen: set[tuple[object, ...]] = set()
    for op in graph.ops:
        if specs().get(op.target, ("",))[0] != "custom":
            continue
        tensors = [graph.tensor[name] for name in (*op.inputs, *op.outputs)]
        key = (op.target, repr(op.args), *(t.shape for t in tensors))
        if key not in seen:
            seen.add(key)
            verify(graph, op)


def verify(graph: Graph, op: Op) -> None:
    """Execute ``op`` whole and cut along every dim that its rule says can be split, and compare.

    Raises :class:`SplitError` naming the dim, or the inputs it is said to be linear in, for which the results differ.
    """
    ending = isolated(lambda announce: _complaint(graph, op, announce), _SECONDS)
    if ending.result is None:
        raise SplitError(
            f"the rule of op {op.target} is not what the op does: parts of it cannot be executed",
            f"why: {ending.reason}, at {ending.attempt}",
            f"where: {op.source or op.name}",
            hint="a rule that keeps whole (dim!) what the op needs whole",
        )
    if ending.result:
        what, details, hint = msgspec.json.decode(ending.result, type=tuple[str, tuple[str, ...], str | None])
        raise SplitError(what, *details, hint=hint)


def _complaint(graph: Graph, op: Op, announce: Announce) -> bytes:
    """What is wrong with the op's rule, as data; nothing if it is true."""
    ins, outs = ([graph.tensor[name] for name in names] for names in (op.inputs, op.outputs))
    shapes, attempts = tuple(t.shape for t in outs), Attempts(announce=announce)
    try:
        trial = trial_of(
            op, tuple(t.shape for t in ins), shapes, [t.dtype for t in ins], function_of(op.target), attempts
        )
        _check(op, trial)
    except SplitError as error:
        return msgspec.json.encode((error.what, error.details, error.hint))
    return b""


def _check(op: Op, trial: Trial) -> None:
    inputs = trial.inputs(0)
    whole = trial.run(inputs)
    rule = build_rule(op, trial.shapes, tuple(tuple(x.shape) for x in whole))
    for splits, space in _splittings(rule):
        trial.attempts.announce(f"a split along {splits[0][1]}")
        try:
            got = _in_parts(trial, rule, inputs, whole, splits, space)
            right = all(trial.same(a, b) for a, b in zip(got, whole, strict=True))
        except FAILURES:
            right = False
        if not right:
            raise _lie(op, rule, splits[0][1])


def _lie(op: Op, rule: Rule, split: Split) -> SplitError:
    if split.passes:
        what = f"it is not linear in its inputs {split.inputs}"
    else:
        what = f"parts of dim {split.dim!r} do not make the whole"
    return SplitError(
        f"the rule of op {op.target} is not what the op does: {what}",
        f"rule: {rule}",
        f"where: {op.source or op.name}",
        hint=f"mark the dim {split.dim}! to keep it whole" if not split.passes else "leave that group out of linear=",
    )


def _splittings(rule: Rule) -> Iterator[tuple[Splits, Space]]:
    """Each dim cut evenly and unevenly, in two and three; each linear group in three terms."""
    for name, dim in rule.dims.items():
        if dim.whole or dim.size < 2:
            continue
        cuts = {(1, dim.size - 1), (dim.size - 1, 1), (dim.size - dim.size // 2, dim.size // 2)}
        cuts |= {(1, 1, dim.size - 2)} if dim.size > 2 else set()
        for sizes in sorted(cuts):
            yield (("a", Split(name, dim.size)),), Space((Axis("a", len(sizes), "space", sizes),), ())
    for group in rule.linear:
        yield (("a", Split("+", inputs=group)),), Space((Axis("a", 3, "space"),), ())


def _in_parts(trial: Trial, rule: Rule, inputs: list[Tensor], whole: Outputs, splits: Splits, space: Space) -> Outputs:
    """The outputs of the op executed in the parts of one axis and put together again."""
    ins, outs = op_layouts(rule, splits, "", space)
    ways = space.axes[0].ways
    spread = [_terms(x, ways) if layout.partial else [x] * ways for x, layout in zip(inputs, ins, strict=True)]
    results: list[Outputs] = []
    regions: list[list[Region]] = []
    for index in range(ways):
        at = {"a": index}
        given = [
            _taken(terms[index], _region(terms[index], layout, space, at))
            for terms, layout in zip(spread, ins, strict=True)
        ]
        results.append(trial.run(given))
        regions.append([_region(w, layout, space, at) for w, layout in zip(whole, outs, strict=True)])
    return [
        _together(w, layout, [r[k] for r in results], [r[k] for r in regions])
        for k, (w, layout) in enumerate(zip(whole, outs, strict=True))
    ]


def _region(x: Tensor, layout: Layout, space: Space, at: Mapping[str, int]) -> Region:
    return space.region(tuple(x.shape), layout, at)


def _terms(x: Tensor, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(-5, 6, x.shape, generator=generator).to(x.dtype) for _ in range(count - 1)]
    return [*drawn, x - torch.stack(drawn).sum(0)]


def _taken(x: Tensor, region: Region) -> Tensor:
    for dim, index in enumerate(_indices(region)):
        x = x.index_select(dim, index)
    return x


def _together(whole: Tensor, layout: Layout, parts: list[Tensor], regions: list[Region]) -> Tensor:
    partial = [state for _, state in layout.states if isinstance(state, Partial)]
    if partial:
        stacked = torch.stack(parts)
        kind = partial[0].kind
        if kind == "logsumexp":
            return stacked.logsumexp(0)
        return {"sum": stacked.sum, "max": stacked.amax, "min": stacked.amin}[kind](0).to(whole.dtype)
    out = torch.full_like(whole, 0)
    for part, region in zip(parts, regions, strict=True):
        if tuple(part.shape) != region.shape:
            raise ValueError("a part of another shape")
        out[torch.meshgrid(*_indices(region), indexing="ij")] = part
    return out


def _indices(region: Region) -> list[Tensor]:
    return [torch.tensor([i for start, stop in span for i in range(start, stop)], dtype=torch.long) for span in region]
