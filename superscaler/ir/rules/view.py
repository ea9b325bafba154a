"""Views: reshapes, permutations, blocks, slices, concatenations. All are linear; most move dims without splitting."""

from __future__ import annotations

from superscaler.errors import SplitError
from superscaler.ir.graph import Op
from superscaler.ir.rules.build import arg, broadcast_dims, dims_arg, input_of, joined, marked, names, rule_text
from superscaler.ir.rules.factors import reshape_rule
from superscaler.ir.rules.rule import Builder, Rule, Shape, Spec, parse_rule

Shapes = tuple[Shape, ...]
X = ((0,),)


def reshape(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """See :mod:`superscaler.ir.rules.factors`."""
    return reshape_rule(ins[0], outs[0])


def expand(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.expand($0, "#shape")``: dims of size one, and new leading ones, repeat the input."""
    dims = names(len(outs[0]))
    return rule_text([broadcast_dims(ins[0], outs[0], dims)], [dims])


def permute(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.permute.default($0, dims)``."""
    dims = names(len(ins[0]))
    return rule_text([dims], [[dims[int(d)] for d in arg(op, 1)]])


def block(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.block($0, dim, index, "#local:l")``: the index-th of equal consecutive blocks of a dim."""
    dim = int(arg(op, 1)) % len(ins[0])
    count, rest = divmod(ins[0][dim], outs[0][dim]) if outs[0][dim] else (1, 0)
    if rest:
        raise SplitError(
            f"{op.name}: {ins[0][dim]} elements are no whole number of blocks of {outs[0][dim]}",
            op.where,
            hint="blocks whose size divides the dim",
        )
    dims = ["l" if i == dim else name for i, name in enumerate(names(len(ins[0])))]
    return rule_text([_merged(dims, dim, count)], [dims])


def unblock(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.unblock($0, dim, index, count)``: the adjoint of ``block``, zeros in the other blocks."""
    dim = int(arg(op, 1)) % len(ins[0])
    dims = ["l" if i == dim else name for i, name in enumerate(names(len(ins[0])))]
    return rule_text([dims], [_merged(dims, dim, int(arg(op, 3)))])


def _merged(dims: list[str], dim: int, count: int, *, inner: bool = False) -> list[str]:
    """``dims`` with that one merged with a factor that is never split: ``(3 l)``, or ``(l 3)`` if it is inside."""
    text = f"({dims[dim]} {count})" if inner else f"({count} {dims[dim]})"
    return [text if i == dim else name for i, name in enumerate(dims)]


def resized(op: Op, ins: Shapes, outs: Shapes) -> str:
    """Same rank on both sides; the dims whose size changes are whole (slices, pads and their adjoints)."""
    dims = names(len(ins[0]))
    changed = [i for i, (a, b) in enumerate(zip(ins[0], outs[0], strict=True)) if a != b]
    right = [name + "_out!" if i in changed else name for i, name in enumerate(dims)]
    return rule_text([marked(dims, changed, "!")], [right])


def pad(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``aten.constant_pad_nd($0, pad, value)``: padded dims whole; linear if it pads with zero."""
    pads = [int(p) for p in arg(op, 1)]
    rank = len(ins[0])
    padded = [rank - 1 - i // 2 for i, p in enumerate(pads) if p]
    dims = names(rank)
    right = [name + "_out!" if i in padded else name for i, name in enumerate(dims)]
    text = rule_text([marked(dims, padded, "!")], [right])
    return parse_rule(text, ins, outs, family="view", linear=X if arg(op, 2, 0) == 0 else ())


def sliced(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.slice.Tensor($0, dim, start, end, step)``: the dim whole on both sides."""
    return _one_dim(ins, outs, int(arg(op, 1, 0)))


def slice_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.slice_backward($0, "#shape", dim, start, end, step)``: the adjoint of a slice."""
    return _one_dim(ins, outs, int(arg(op, 2)))


def _one_dim(ins: Shapes, outs: Shapes, dim: int) -> str:
    dims = names(len(ins[0]))
    right = [name + "_out!" if i == dim % len(dims) else name for i, name in enumerate(dims)]
    return rule_text([marked(dims, [dim], "!")], [right])


def select(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.select.int($0, dim, index)``."""
    dims = names(len(ins[0]))
    dim = int(arg(op, 1)) % len(dims)
    return rule_text([marked(dims, [dim], "!")], [[name for i, name in enumerate(dims) if i != dim]])


def select_backward(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``superscaler.select_backward($0, "#shape", dim, index)``: the adjoint of ``select``."""
    dims = names(len(outs[0]))
    dim = int(arg(op, 2)) % len(dims)
    return rule_text([[name for i, name in enumerate(dims) if i != dim]], [marked(dims, [dim], "!")])


def scattered(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``slice_scatter($0, $1, dim, …)`` and ``select_scatter($0, $1, dim, index)``: the dim is whole."""
    dims = names(len(ins[0]))
    dim = int(arg(op, 2, 0)) % len(dims)
    whole = marked(dims, [dim], "!")
    if len(ins[1]) < len(ins[0]):
        return rule_text([whole, [name for i, name in enumerate(dims) if i != dim]], [whole])
    return rule_text([whole, [name + "_src!" if i == dim else name for i, name in enumerate(dims)]], [whole])


def cat(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``aten.cat.default([$0, …], dim)``: equal lengths ``l, l -> (2 l)``, else that dim is whole; jointly linear."""
    given = [i for i in map(input_of, arg(op, 0)) if i is not None]
    rank, dim = len(outs[0]), int(arg(op, 1, 0)) % len(outs[0])
    dims = list(names(rank))
    if len({shape[dim] for shape in ins}) == 1:
        dims[dim] = "l"
        left, right = [dims for _ in ins], _merged(dims, dim, len(given))
    else:
        left = [[f"l{n}!" if i == dim else name for i, name in enumerate(dims)] for n in range(len(ins))]
        right = ["l!" if i == dim else name for i, name in enumerate(dims)]
    return parse_rule(rule_text(left, [right]), ins, outs, family="view", linear=(tuple(sorted(set(given))),))


def stack(op: Op, ins: Shapes, outs: Shapes) -> Rule:
    """``aten.stack.default([$0, …], dim)``: a new dim, which is whole."""
    given = [i for i in map(input_of, arg(op, 0)) if i is not None]
    dims = list(names(len(ins[0])))
    right = list(dims)
    right.insert(int(arg(op, 1, 0)) % (len(dims) + 1), str(len(given)))
    return parse_rule(
        rule_text([dims for _ in ins], [right]), ins, outs, family="view", linear=(tuple(sorted(set(given))),)
    )


def whole_dims(position: int) -> Builder:
    """Same shape on both sides; the dims given as that argument (all, if none are) are whole."""

    def build(op: Op, ins: Shapes, outs: Shapes) -> str:
        dims = marked(names(len(ins[0])), dims_arg(arg(op, position), len(ins[0])), "!")
        return rule_text([dims], [dims])

    return build


def triangle(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.tril.default`` and ``triu``: the last two dims are whole."""
    dims = marked(names(len(ins[0])), [-1, -2], "!")
    return rule_text([dims], [dims])


def repeat(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.repeat.default($0, repeats)``: each dim is its repeats outside, its own elements inside."""
    repeats = [int(n) for n in arg(op, 1)]
    new = len(repeats) - len(ins[0])
    dims = list(names(len(ins[0])))
    right = [str(n) for n in repeats[:new]]
    right += [f"({n} {name})" if n > 1 else name for n, name in zip(repeats[new:], dims, strict=True)]
    return f"{joined(dims)} -> {joined(right)}"


def repeat_interleave(op: Op, ins: Shapes, outs: Shapes) -> str:
    """``aten.repeat_interleave.self_int($0, repeats, dim)``: the repeats are inside the dim."""
    dims = list(names(len(ins[0])))
    dim = int(arg(op, 2)) % len(dims)
    return f"{joined(dims)} -> {joined(_merged(dims, dim, int(arg(op, 1)), inner=True))}"


RULES: dict[str, Spec] = {
    "superscaler.reshape": Spec(reshape, X, shown="b s (h d) -> (b s) h d"),
    "superscaler.expand": Spec(expand, X, shown="b 1 h -> b s h"),
    "aten.permute.default": Spec(permute, X, shown="b h s d -> b s h d"),
    "superscaler.block": Spec(block, X, shown="(3 l) h -> l h"),
    "superscaler.unblock": Spec(unblock, X, shown="l h -> (3 l) h"),
    "aten.slice.Tensor": Spec(sliced, X, shown="b s! h -> b s_out! h"),
    "superscaler.slice_backward": Spec(slice_backward, X, shown="b s! h -> b s_out! h"),
    "aten.select.int": Spec(select, X, shown="b s! h -> b h"),
    "superscaler.select_backward": Spec(select_backward, X, shown="b h -> b s! h"),
    "aten.slice_scatter.default": Spec(scattered, ((0, 1),), shown="b s! h, b s_src! h -> b s! h"),
    "aten.select_scatter.default": Spec(scattered, ((0, 1),), shown="b s! h, b h -> b s! h"),
    "aten.cat.default": Spec(cat, ((0, 1),), shown="l h, l h -> (2 l) h"),
    "aten.stack.default": Spec(stack, ((0, 1),), shown="b h, b h -> 2 b h"),
    "aten.constant_pad_nd.default": Spec(pad, X, shown="b s! h -> b s_out! h"),
    "aten.flip.default": Spec(whole_dims(1), X, shown="b s! h -> b s! h"),
    "aten.roll.default": Spec(whole_dims(2), X, shown="b s! h -> b s! h"),
    "aten.tril.default": Spec(triangle, X, shown="b s! h! -> b s! h!"),
    "aten.triu.default": Spec(triangle, X, shown="b s! h! -> b s! h!"),
    "aten.repeat.default": Spec(repeat, X, shown="s h -> (3 s) h"),
    "aten.repeat_interleave.self_int": Spec(repeat_interleave, X, shown="s h -> (s 3) h"),
}
