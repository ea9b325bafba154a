"""Example inputs for the ops that models are made of: norms, attention, losses, optimizers."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from op_examples import Draw, bools, example, ints, reals, size, sizes
from op_examples_tensors import ids
from split_harness import Case, execute, whole_part


@example("aten.native_layer_norm.default")
def layer_norm(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 1, 4)
    tail = list(shape[draw(st.integers(0, len(shape) - 1)) :])
    parameters = [reals(draw, *tail), reals(draw, *tail)] if draw(st.booleans()) else []
    names = ("$1", "$2") if parameters else (None, None)
    return Case(target, [reals(draw, *shape), *parameters], ("$0", tail, *names, 1e-5), exact=False)


def _statistics(x: torch.Tensor, tail: int, count: int) -> list[torch.Tensor]:
    dims = tuple(range(x.ndim - tail, x.ndim))
    rstd = 1 / (x.var(dims, correction=0, keepdim=True) + 0.1).sqrt()
    return [x.mean(dims, keepdim=True), rstd] if count == 2 else [rstd]


@example(*(f"superscaler.{n}_norm_backward_{w}" for n in ("layer", "rms") for w in ("input", "weight")))
def norm_backward(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 2, 4)
    rms = "rms" in target
    tail = 1 if rms else draw(st.integers(1, len(shape) - 1))
    x, g = reals(draw, *shape), reals(draw, *shape)
    statistics = _statistics(x, tail, 1 if rms else 2)
    inputs = [g, x, *statistics]
    if target.endswith("input") and draw(st.booleans()):
        inputs.append(reals(draw, *shape[len(shape) - tail :]))
    outs = [shape] if target.endswith("input") else [shape[len(shape) - tail :]]
    shape_given = (
        ("#shape",) if target == "superscaler.layer_norm_backward_weight" and (tail > 1 or draw(st.booleans())) else ()
    )
    return Case(target, inputs, (*_numbers(len(inputs)), *shape_given), outs, exact=False)


@example("superscaler.rms_norm")
def rms_norm(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 1, 4)
    weight = [reals(draw, shape[-1])] if draw(st.booleans()) else []
    return Case(target, [reals(draw, *shape), *weight], ("$0", *(["$1"] if weight else []), 1e-6), exact=False)


@example(
    "aten._softmax.default",
    "aten._log_softmax.default",
    "aten._softmax_backward_data.default",
    "aten._log_softmax_backward_data.default",
)
def softmax(draw: Draw, target: str) -> Case:
    shape = sizes(draw)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    x = reals(draw, *shape)
    if "backward" not in target:
        return Case(target, [x], ("$0", dim, False), exact=False)
    out = x.log_softmax(dim) if "log" in target else x.softmax(dim)
    return Case(target, [reals(draw, *shape), out], ("$0", "$1", dim, "float64"), exact=False)


@example("superscaler.attention", "superscaler.attention_backward", "superscaler.attention_mask_backward")
def attention(draw: Draw, target: str) -> Case:
    b, h, r, s, t, d = (size(draw, 3), size(draw, 3), size(draw, 2), size(draw, 5), size(draw, 5), size(draw, 4))
    e = draw(st.sampled_from([d, d, d + 1]))
    learned = "mask_backward" in target
    p = 0.0 if learned else draw(st.sampled_from([0.0, 0.0, 0.3]))
    q, k, v = reals(draw, b, h * r, s, d), reals(draw, b, h, t, d), reals(draw, b, h, t, e)
    inputs, causal = [q, k, v], draw(st.booleans())
    if learned or draw(st.booleans()):
        shape = tuple(draw(st.sampled_from([n, 1])) for n in (b, h * r, s, t))
        shape = shape[draw(st.integers(0, 3)) :]
        inputs.append(reals(draw, *shape) if learned or draw(st.booleans()) else bools(draw, *shape))
    scale = draw(st.sampled_from([None, 0.5]))
    placed = ("#key", "#seed", "#region")
    forward = Case("superscaler.attention", inputs, (*_numbers(len(inputs)), causal, scale, p, *placed),
                   [(b, h * r, s, e), (b, h * r, s)], exact=False)  # fmt: skip
    if target == "superscaler.attention":
        return forward
    out, lse = execute(forward.op, forward.rule, inputs, whole_part(forward))
    inputs = [reals(draw, b, h * r, s, e), q, k, v, out.contiguous(), lse, *inputs[3:]]
    outs = [tuple(inputs[-1].shape)] if learned else [tuple(x.shape) for x in (q, k, v)]
    return Case(target, inputs, (*_numbers(len(inputs)), causal, scale, p, *placed), outs, exact=False)


@example("superscaler.cache_append", "superscaler.cached_attention")
def caching(draw: Draw, target: str) -> Case:
    b, h, r, s, d, e = (size(draw, 3), size(draw, 3), size(draw, 2), size(draw, 3), size(draw, 4), size(draw, 4))
    t = s + size(draw, 5)
    start = torch.tensor(draw(st.integers(0, t - s)))
    keys = reals(draw, t, b, h, d)
    if target.endswith("append"):
        return Case(target, [keys, reals(draw, b, h, s, d), start], ("$0", "$1", "$2"))
    q, values = reals(draw, b, h * r, s, d), reals(draw, t, b, h, e)
    return Case(target, [q, keys, values, start], ("$0", "$1", "$2", "$3", 0.5), exact=False)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(f"${i}" for i in range(count))


def labels(draw: Draw, v: int, ignore: int, *shape: int) -> torch.Tensor:
    found = ids(draw, v, *shape)
    return torch.where(bools(draw, *shape), found, ignore) if draw(st.booleans()) else found


@example(
    "superscaler.logsumexp",
    "superscaler.pick",
    "superscaler.nll",
    "superscaler.count_valid",
    "superscaler.cross_entropy_backward",
)
def loss(draw: Draw, target: str) -> Case:
    tokens, v, ignore = sizes(draw, 1, 2), size(draw, 12), draw(st.sampled_from([-100, 0]))
    logits, targets = reals(draw, *tokens, v), labels(draw, v, ignore, *tokens)
    match target.split(".")[1]:
        case "logsumexp":
            return Case(target, [logits], ("$0",), exact=False)
        case "pick":
            return Case(target, [ints(draw, *tokens, v), targets], ("$0", "$1", "#start:v"), [tokens])
        case "nll":
            picked, lse = ints(draw, *tokens), ints(draw, *tokens)
            return Case(target, [lse, picked, targets], ("$0", "$1", "$2", ignore))
        case "count_valid":
            return Case(target, [targets], ("$0", ignore, "float64"))
        case _:
            g = reals(draw, *(tokens if draw(st.booleans()) else ()))
            lse = logits.logsumexp(-1)
            args = ("$0", "$1", "$2", "$3", "#start:v", ignore)
            return Case(target, [g, logits, targets, lse], args, [(*tokens, v)], exact=False)


@example("superscaler.adamw", "superscaler.sgd")
def optimizer(draw: Draw, target: str) -> Case:
    shape = sizes(draw, 0, 3)
    p, g, m = (reals(draw, *shape) for _ in range(3))
    lr, clip = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    clips = [clip] if draw(st.booleans()) else []
    if "adamw" in target:
        step = torch.tensor(float(size(draw, 5)))
        inputs = [p, g, m, m.square(), step, lr, *clips]
        refs = (*_numbers(6), "$6" if clips else None)
        return Case(target, inputs, (*refs, 0.9, 0.95, 1e-8, 0.1), exact=False)
    buffers = [m] if draw(st.booleans()) else []
    inputs = [p, g, lr, *clips, *buffers]
    refs = (*_numbers(3), *(["$3"] if clips else [None]), *([f"${len(inputs) - 1}"] if buffers else []))
    return Case(target, inputs, (*refs, 0.9, 0.0, draw(st.booleans()) and bool(buffers), 0.1), exact=False)


@example("superscaler.sumsq", "superscaler.clip_coefficient")
def clipping(draw: Draw, target: str) -> Case:
    if target.endswith("sumsq"):
        return Case(target, [ints(draw, *sizes(draw, 0))], ("$0",))
    return Case(target, [ints(draw, low=1)], ("$0", 1.0), exact=False)


@example("superscaler.grouped_mm", "superscaler.grouped_mm_backward_weight")
def grouped(draw: Draw, target: str) -> Case:
    counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    b, h, o, e = sum(counts) + 1, size(draw), size(draw), len(counts)
    ends = torch.tensor(counts).cumsum(0)
    if target.endswith("weight"):
        inputs = [ints(draw, b, h), ints(draw, b, o), ends]
        return Case(target, inputs, ("$0", "$1", "$2", "#start:e", "#local:e"), [(e, h, o)])
    return Case(target, [ints(draw, b, h), ints(draw, e, h, o), ends], ("$0", "$1", "$2", "#start:e"), [(b, o)])


@example(
    "aten.convolution.default", "superscaler.convolution_backward_input", "superscaler.convolution_backward_weight"
)
def convolution(draw: Draw, target: str) -> Case:
    n, g, c, o, b = size(draw, 2), size(draw, 3), size(draw, 3), size(draw, 3), size(draw, 3)
    transposed = draw(st.booleans())
    kernel = [size(draw, 3) for _ in range(n)]
    x = ints(draw, b, g * c, *(k + size(draw, 4) for k in kernel))
    weight = ints(draw, *((g * c, o) if transposed else (g * o, c)), *kernel)
    stride, padding = [size(draw, 2) for _ in kernel], [draw(st.integers(0, k - 1)) for k in kernel]
    fixed = (stride, padding, [1] * n, transposed, [0] * n)
    settings = (*fixed, draw(st.sampled_from(["#local:g", g])))
    out = torch.ops.aten.convolution.default(x, weight, None, *fixed, g)
    if target == "aten.convolution.default":
        bias = [ints(draw, g * o)] if draw(st.booleans()) else []
        return Case(target, [x, weight, *bias], ("$0", "$1", "$2" if bias else None, *settings), [tuple(out.shape)])
    grad = ints(draw, *out.shape)
    if target.endswith("input"):
        return Case(target, [grad, weight], ("$0", "$1", "#shape", *settings), [tuple(x.shape)])
    return Case(target, [grad, x], ("$0", "$1", "#shape", *settings), [tuple(weight.shape)])


@example(*(f"aten.{n}.default" for n in (
    "avg_pool2d", "avg_pool2d_backward", "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward",
    "max_pool2d_with_indices", "max_pool2d_with_indices_backward",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
)))  # fmt: skip
def spatial(draw: Draw, target: str) -> Case:
    x = reals(draw, size(draw, 3), size(draw, 3), size(draw, 4) + 3, size(draw, 4) + 3)
    name = target.split(".")[1]
    settings: tuple[object, ...] = ([2, 3], [2, 1], [1, 1], False, True, None)
    if "upsample" in name:
        return Case(target, [x], ("$0", [7, 5], *([] if "nearest" in name else [True])), exact=False)
    if "adaptive" in name:
        out = torch.ops.aten._adaptive_avg_pool2d(x, [2, 2])
        settings = () if "backward" in name else ([2, 2],)
    elif "avg" in name:
        out = torch.ops.aten.avg_pool2d(x, *settings)
    else:
        settings = ([2, 3], [2, 1], [1, 1], [1, 1], False)
        out, indices = torch.ops.aten.max_pool2d_with_indices(x, *settings)
        if "backward" in name:
            return Case(target, [reals(draw, *out.shape), x, indices], ("$0", "$1", *settings, "$2"), exact=False)
    if "backward" in name:
        return Case(target, [reals(draw, *out.shape), x], ("$0", "$1", *settings), exact=False)
    return Case(target, [x], ("$0", *settings), exact=False)
