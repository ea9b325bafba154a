"""Lookups by index: embeddings (the vocabulary can be split), gather and scatter, advanced indexing.

A part of an embedding's vocabulary looks up its own rows and gives zeros for the others: a sum over the vocabulary.
"""

from __future__ import annotations

from superscaler.errors import SplitError
from superscaler.ir.graph import Op
from superscaler.ir.rules.build import arg, input_of, linear_groups, marked, names, rule_text
from superscaler.ir.rules.rule import Rule, Shape, Spec, parse_rule

Shapes = tuple[Shape, ...]


def _ids(rank: int) -> list[str]:
    return ["b", "s", *(f"i{i}" for i in range(2, rank))][:rank]


def embedding(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.embedding($0 weight, $1 ids, "#start:v", padding_idx)``."""
    ids = _ids(len(ins[1]))
    return rule_text([["v", "h"], ids], [[*ids, "h"]])


def embedding_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.embedding_backward($0 grad, $1 ids, "#local:v", "#start:v", padding_idx)``."""
    ids = _ids(len(ins[1]))
    return rule_text([[*ids, "h"], ids], [["v", "h"]])


def _aligned(source: Shape, index: Shape, dim: int) -> tuple[list[str], list[str]]:
    """Dims of the source and of the index of a gather: those of equal size are one dim, others are whole."""
    dims = names(len(index))
    left, right = list(dims), list(dims)
    for i, (a, b) in enumerate(zip(source, index, strict=True)):
        if i == dim:
            left[i], right[i] = "v!", dims[i]
        elif a != b:
            left[i], right[i] = f"v{i}!", dims[i] + "!"
    return left, right


def gather(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.gather.default($0, dim, $1 index)``: the source's dim is whole, the index can be split."""
    if not ins[0]:
        return rule_text([[], []], [[]])
    left, index = _aligned(ins[0], ins[1], int(arg(op, 1)) % len(ins[0]))
    return rule_text([left, index], [index])


def gather_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.gather_backward($0 grad, $1 index, "#shape", dim)``: adds each element where it was taken from."""
    left, index = _aligned(outs[0], ins[1], int(arg(op, 3)) % len(outs[0]))
    return rule_text([index, index], [left])


def scatter(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``aten.scatter.src|value|scatter_add.default($0, dim, $1 index, $2 src)``: the dim is whole on all operands."""
    dim = int(arg(op, 1)) % max(len(ins[0]), 1)
    dims = names(len(ins[0]))
    shapes = list(zip(*ins, strict=True))  # per dim, its size in each operand
    split = {i for i, of in enumerate(shapes) if i != dim and len(set(of)) == 1}
    operands = [[n if i in split else f"{n}{k}!" for i, n in enumerate(dims)] for k in range(len(ins))]
    left = operands[0]
    linear = linear_groups(op, ((0, 3),))
    return parse_rule(rule_text(operands, [left]), ins, outs, family="gather", linear=linear)


def index_select(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.index_select.default($0, dim, $1 index)``."""
    dims = list(names(len(ins[0])))
    dim = int(arg(op, 1)) % len(dims)
    index = dims[dim]
    source = ["v!" if i == dim else name for i, name in enumerate(dims)]
    return rule_text([source, [index] if ins[1] else []], [dims])


def index_add(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.index_add.default($0, dim, $1 index, $2 source)``: the dim and the index are whole."""
    dims = list(names(len(ins[0])))
    dim = int(arg(op, 1)) % len(dims)
    target = marked(dims, [dim], "!")
    source = ["i!" if i == dim else name for i, name in enumerate(dims)]
    return rule_text([target, ["i!"], source], [target])


def _indexed(op: Op, position: int) -> list[int | None]:
    found: list[int | None] = []
    for index in arg(op, position):
        number = input_of(index)
        if number is None and index is not None:
            raise SplitError(
                f"{op.name} ({op.target}): index {index!r} is no tensor", op.where, hint="tensors or : for indices"
            )
        found.append(number)
    return found


def _index_dims(op: Op, position: int, source: Shape, ins: Shapes) -> tuple[list[str], list[str], list[list[str]]]:
    """Dims of ``source``, of ``source[indices]``, and of each index, for advanced indexing."""
    indices = _indexed(op, position)
    indices += [None] * (len(source) - len(indices))
    at = [i for i, number in enumerate(indices) if number is not None]
    rank = max((len(ins[n]) for n in indices if n is not None), default=0)
    shape = tuple(
        max((ins[n][k - rank + len(ins[n])] for n in indices if n is not None and k >= rank - len(ins[n])), default=1)
        for k in range(rank)
    )
    lookups = [f"i{k}" for k in range(rank)]
    dims = names(len(source))
    taken = [f"v{i}!" if i in at else name for i, name in enumerate(dims)]
    kept = [name for i, name in enumerate(dims) if i not in at]
    adjacent = at == list(range(at[0], at[-1] + 1)) if at else True
    place = at[0] if at and adjacent else 0
    result = [*kept[:place], *lookups, *kept[place:]]
    each = [
        [
            lookups[rank - len(ins[n]) + k] if size == shape[rank - len(ins[n]) + k] else ""
            for k, size in enumerate(ins[n])
        ]
        for n in indices
        if n is not None
    ]
    return taken, result, each


def _numbered(op: Op, position: int) -> list[int]:
    return [n for n in _indexed(op, position) if n is not None]


def index(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.index.Tensor($0, [$1, None, …])``: indexed dims whole, the others and the indices' own can be split."""
    taken, result, each = _index_dims(op, 1, ins[0], ins)
    operands: list[list[str]] = [taken, *([] for _ in ins[1:])]
    for number, dims in zip(_numbered(op, 1), each, strict=True):
        operands[number] = dims
    return rule_text(operands, [result])


def index_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.index_backward($0 grad, [$1, None, …], "#shape")``: adds each element where it was taken from."""
    taken, result, each = _index_dims(op, 1, outs[0], ins)
    operands: list[list[str]] = [result, *([] for _ in ins[1:])]
    for number, dims in zip(_numbered(op, 1), each, strict=True):
        operands[number] = dims
    return rule_text(operands, [taken])


def index_put(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``aten.index_put.default($0, [$1, …], $2 values, accumulate)``: indexed dims and indices are whole."""
    taken, result, each = _index_dims(op, 1, ins[0], ins)
    whole = {name: name + "!" for name in result if name.startswith("i")}
    operands: list[list[str]] = [taken, *([] for _ in ins[1:])]
    for number, dims in zip(_numbered(op, 1), each, strict=True):
        operands[number] = [whole.get(d, d) for d in dims]
    values = input_of(arg(op, 2))
    assert values is not None
    shape = ins[values]
    sizes = _result_sizes(result, taken, each, ins, _numbered(op, 1))
    skipped = len(result) - len(shape)
    operands[values] = [
        whole.get(name, name) if size == sizes[name] else ""
        for name, size in zip(result[skipped:], shape, strict=True)
    ]  # fmt: skip
    text = rule_text(operands, [taken])
    return parse_rule(text, ins, outs, family="gather", linear=linear_groups(op, ((0, 2),)))


def _result_sizes(
    result: list[str], taken: list[str], each: list[list[str]], ins: Shapes, numbers: list[int]
) -> dict[str, int]:
    sizes = dict(zip(taken, ins[0], strict=True))
    for dims, number in zip(each, numbers, strict=True):
        sizes |= {name: size for name, size in zip(dims, ins[number], strict=True) if name}
    return {name: sizes.get(name, 1) for name in result}


def bucketize(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.bucketize.Tensor($0, $1 boundaries)``."""
    dims = names(len(ins[0]))
    return rule_text([dims, ["v!"]], [dims])


G = ((0,),)
RULES: dict[str, Spec] = {
    "superscaler.embedding": Spec(embedding, G, ("v",), shown="v h, b s -> b s h"),
    "superscaler.embedding_backward": Spec(embedding_backward, G, ("v",), shown="b s h, b s -> v h"),
    "aten.gather.default": Spec(gather, G, shown="b v!, b h -> b h"),
    "superscaler.gather_backward": Spec(gather_backward, G, shown="b h, b h -> b v!"),
    "aten.scatter.src": Spec(scatter, ((0, 2),), shown="b v!, b h!, b h! -> b v!"),
    "aten.scatter.value": Spec(scatter, shown="b v!, b h! -> b v!"),
    "aten.scatter_add.default": Spec(scatter, ((0, 2),), shown="b v!, b h!, b h! -> b v!"),
    "aten.index_select.default": Spec(index_select, G, shown="v! h, b -> b h"),
    "aten.index_add.default": Spec(index_add, ((0, 2),), shown="b! h, i!, i! h -> b! h"),
    "aten.index.Tensor": Spec(index, G, shown="v! h, i0 -> i0 h"),
    "superscaler.index_backward": Spec(index_backward, G, shown="i0 h, i0 -> v! h"),
    "aten.index_put.default": Spec(index_put, ((0, 2),), shown="v! h, i0!, i0! h -> v! h"),
    "aten.bucketize.Tensor": Spec(bucketize, shown="b h, v! -> b h"),
}
