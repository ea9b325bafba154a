"""Co-shard (SuperScaler, §5): attention and MLP split along heads and hidden into parts that stay on their device.

The parts run one after the other and what is large is recomputed, so only one part's large activations are held;
nothing is sent.
"""

from superscaler.errors import PlanError, UsageError
from superscaler.ir.graph import Op
from superscaler.plans.megatron import megatron
from superscaler.plans.planner import Planner, PlanScript


def co_shard(
    parts: int = 2,
    modules: str = "*",
    small: int = 4,
    data: int = 1,
    tensor: int = 1,
    pipeline: int = 1,
    microbatches: int = 1,
) -> PlanScript:
    """The layers of ``modules`` (a glob) in ``parts`` turns, inside the parallelism of ``megatron``.

    Results smaller than 1/``small`` of their layer's largest are made whole and kept: to make them again would cost
    much, for little memory. The others, and what reads them, are computed part by part, and again in the backward.
    """

    if small < 1:
        raise UsageError(f"co_shard: small must be at least 1, not {small}", hint="small=4, as if nothing were said")

    def plan(p: Planner) -> None:
        megatron(data, tensor, pipeline, microbatches)(p)
        inner = [op for op in p.inner(modules) if p.family(op) != "view"]
        linears = [op for op in inner if op.target == "aten.mm.default"]
        if parts > 1 and not linears:
            raise _nothing_to_split(p, modules)
        again = [op for layer in p.layers(inner) for op in large(p, layer, small)]
        axis = p.turns([*again, *(reader for op in again for reader in p.readers(op))], parts)
        for op in inner:
            if (heads := heads_of(p, op)) and heads < parts * tensor:
                raise PlanError(
                    f"attention of {heads} heads cannot be split {parts * tensor} ways",
                    op.where,
                    hint=f"parts × tensor of {heads} or less, or modules=GLOB of layers that have more",
                )
            if p.family(op) == "attention":
                p.prefer(op, "h", parts, axis=axis)
        for op in filter(lambda op: inside(p, op), linears):
            p.prefer(op, "o", parts, axis=axis)
        if parts > 1:
            p.recompute(again)

    return plan


def _nothing_to_split(p: Planner, modules: str) -> PlanError:
    """Why no linear layer was found: the model repeats none, or the glob matches none of those."""
    linears = [op for op in p.inner() if op.target == "aten.mm.default"]
    if not linears:
        return PlanError(
            "co_shard: the model has no repeated layers with a linear layer in them, whose parts could take turns",
            "repeated layers have a number in their path, as those of a ModuleList or Sequential",
            hint="recompute, which saves memory in any model",
        )
    names = list(dict.fromkeys(op.module for op in linears))
    return PlanError(
        f"co_shard: modules={modules!r} matches no linear layer of the model's repeated layers",
        f"these are {', '.join(names[:3])}{', …' if len(names) > 3 else ''}",
        hint="modules='*', which is all of them",
    )


def heads_of(p: Planner, op: Op) -> int:
    """How many heads an op has that is attention, or the softmax of scores [..., heads, queries, keys]; else 0."""
    if op.target == "aten._softmax.default" and len(p.shape(op)) > 3:
        return p.shape(op)[-3]
    return p.size(op, "h") if p.family(op) == "attention" else 0


def large(p: Planner, layer: list[Op], small: int) -> list[Op]:
    """The ops of a layer whose results are not small beside its largest."""
    most = max(map(p.bytes, layer))
    return [op for op in layer if p.bytes(op) * small >= most]


def inside(p: Planner, op: Op) -> bool:
    """Whether products read what an op makes before any norm does: what norms read is the residual stream."""
    readers = p.readers(op)
    normed = any(p.family(reader) in ("norm", "reduction") for reader in readers)
    return not normed and all(inside(p, reader) for reader in readers if p.family(reader) == "pointwise")
