"""Reductions over dims: a split reduced dim gives partials of the reduction's kind, unless it must be whole."""

from __future__ import annotations

from superscaler.ir.graph import Op
from superscaler.ir.rules.build import arg, dims_arg, keywords, marked, names, rule_text
from superscaler.ir.rules.rule import Builder, Shape, Spec


def _keeps(op: Op, position: int) -> bool:
    return bool(arg(op, position, keywords(op).get("keepdim", False)))


def reducing(mark: str, *, dims: int | None = 1, keepdim: int = 2, outs: int = 1) -> Builder:
    """Reduce the dims given as argument ``dims`` (all, where that is None); ``mark`` tells how each may be split."""

    def build(op: Op, ins: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> str:
        rank = len(ins[0])
        reduced = dims_arg(arg(op, dims) if dims is not None else None, rank)
        keep = dims is not None and _keeps(op, keepdim)
        kept = ["" if i in reduced else name for i, name in enumerate(names(rank))]
        left = marked(names(rank), reduced, mark)
        right = kept if keep else [name for name in kept if name]
        return rule_text([left], [right] * outs)

    return build


def along(mark: str = "!", *, dim: int = 1, default: int = -1, outs: int = 1) -> Builder:
    """Same shape out as in; the dim given as argument ``dim`` must be whole."""

    def build(op: Op, ins: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> str:
        rank = len(ins[0])
        dims = marked(names(rank), [int(arg(op, dim, default))] if rank else [], mark)
        return rule_text([dims], [dims] * outs)

    return build


def topk(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> str:
    """``topk(x, k, dim)``: values and indices; the dim is whole on both sides."""
    dim = int(arg(op, 2, -1)) % len(ins[0])
    left = marked(names(len(ins[0])), [dim], "!")
    right = ["k!" if i == dim else name for i, name in enumerate(left)]
    return rule_text([left], [right, right])


def histogram(op: Op, ins: tuple[Shape, ...], outs: tuple[Shape, ...]) -> str:
    """``aten.histc.default($0, bins, min, max)``: counts add up; without bounds they depend on every element."""
    given = arg(op, 2, 0) < arg(op, 3, 0)
    dims = names(len(ins[0]))
    return rule_text([dims if given else marked(dims, range(len(dims)), "!")], [["n!"]])


_SUM = "b s h -> b s"
_ALONG = "b s h! -> b s h!"

RULES: dict[str, Spec] = {
    "aten.sum.dim_IntList": Spec(reducing(""), linear=((0,),), shown=_SUM),
    "aten.sum.default": Spec(reducing("", dims=None), linear=((0,),), shown="b s h ->"),
    "aten.mean.dim": Spec(reducing("!"), linear=((0,),), shown="b s h! -> b s"),
    "aten.mean.default": Spec(reducing("!", dims=None), linear=((0,),), shown="b! s! h! ->"),
    "aten.amax.default": Spec(reducing("^max"), shown="b s h^max -> b s"),
    "aten.amin.default": Spec(reducing("^min"), shown="b s h^min -> b s"),
    "aten.max.default": Spec(reducing("^max", dims=None), shown="b^max s^max h^max ->"),
    "aten.min.default": Spec(reducing("^min", dims=None), shown="b^min s^min h^min ->"),
    "aten.any.default": Spec(reducing("^max", dims=None), shown="b^max s^max h^max ->"),
    "aten.all.default": Spec(reducing("^min", dims=None), shown="b^min s^min h^min ->"),
    "aten.any.dim": Spec(reducing("^max"), shown="b s h^max -> b s"),
    "aten.all.dim": Spec(reducing("^min"), shown="b s h^min -> b s"),
    "aten.any.dims": Spec(reducing("^max"), shown="b s h^max -> b s"),
    "aten.all.dims": Spec(reducing("^min"), shown="b s h^min -> b s"),
    "aten.logsumexp.default": Spec(reducing("^logsumexp"), shown="b s h^logsumexp -> b s"),
    "aten.prod.default": Spec(reducing("!", dims=None), shown="b! s! h! ->"),
    "aten.prod.dim_int": Spec(reducing("!"), shown="b s h! -> b s"),
    "aten.var.correction": Spec(reducing("!"), shown="b s h! -> b s"),
    "aten.var_mean.correction": Spec(reducing("!", outs=2), shown="b s h! -> b s, b s"),
    "aten.linalg_vector_norm.default": Spec(reducing("!", dims=2, keepdim=3), shown="b s h! -> b s"),
    "aten.max.dim": Spec(reducing("!", outs=2), shown="b s h! -> b s, b s"),
    "aten.min.dim": Spec(reducing("!", outs=2), shown="b s h! -> b s, b s"),
    "aten.argmax.default": Spec(reducing("!"), shown="b s h! -> b s"),
    "aten.argmin.default": Spec(reducing("!"), shown="b s h! -> b s"),
    "aten.cumsum.default": Spec(along(dim=1), linear=((0,),), shown=_ALONG),
    "aten.cumprod.default": Spec(along(dim=1), shown=_ALONG),
    "aten.logcumsumexp.default": Spec(along(dim=1), shown=_ALONG),
    "aten.sort.default": Spec(along(dim=1, outs=2), shown="b s h! -> b s h!, b s h!"),
    "aten.argsort.default": Spec(along(dim=1), shown=_ALONG),
    "aten.histc.default": Spec(histogram, shown="b s h -> n!"),
    "aten.topk.default": Spec(topk, shown="b s h! -> b s k!, b s k!"),
}
