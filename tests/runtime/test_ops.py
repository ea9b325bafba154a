"""The functions that execute ops, against plain torch and its autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superscaler.errors import SplitError
from superscaler.ir.region import Region, Span
from superscaler.ir.rules.part import Part
from superscaler.runtime.ops import INPLACE, OUT_FORMS, bind, function, sleep
from superscaler.runtime.ops.random import bits, keep_mask

SEED = (3, 1)


def randn(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# --- attention -------------------------------------------------------------------------------------------------------


def _place(q: Tensor) -> tuple[Any, ...]:
    return 5, SEED, Region.full((*q.shape[:3], q.shape[3]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("masking", ["none", "bool", "bias", "row"])
@pytest.mark.parametrize("value_dim", [8, 6])
def test_attention_is_that_of_torch(causal: bool, groups: int, masking: str, value_dim: int) -> None:
    torch.manual_seed(0)
    q, k, v = randn(2, 4, 5, 8, grad=True), randn(2, 4 // groups, 7, 8, grad=True), None
    v = randn(2, 4 // groups, 7, value_dim, grad=True)
    masks = {"none": None, "bool": torch.rand(2, 1, 5, 7) > 0.3, "bias": randn(4, 5, 7), "row": randn(1, 1, 1, 7)}
    mask = masks[masking]
    whole = mask
    if causal:
        allowed = torch.ones(5, 7, dtype=torch.bool).tril()
        whole = (
            allowed
            if mask is None
            else mask & allowed
            if mask.dtype == torch.bool
            else mask.masked_fill(~allowed, -torch.inf)
        )
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=whole, enable_gqa=True, scale=0.3)
    given = [] if mask is None else [mask]
    with torch.no_grad():
        out, lse = function("superscaler.attention")(q, k, v, *given, causal, 0.3, 0.0, *_place(q))
    close(out, expected)
    scores = (q @ k.repeat_interleave(groups, 1).mT) * 0.3
    if whole is not None:
        scores = scores.masked_fill(~whole, -torch.inf) if whole.dtype == torch.bool else scores + whole
    attends = scores.logsumexp(-1) > -torch.inf
    close(lse[attends], scores.logsumexp(-1)[attends])
    g = randn(*out.shape)
    grads = torch.autograd.grad(expected, (q, k, v), g)
    with torch.no_grad():
        found = function("superscaler.attention_backward")(g, q, k, v, out, lse, *given, causal, 0.3, 0.0, *_place(q))
    for got, grad in zip(found, grads, strict=True):
        close(got, grad)


@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 1, 5, 7), (4, 5, 7), (5, 7), (1, 4, 1, 7)])
def test_the_gradient_of_a_learned_mask(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v, mask = randn(2, 4, 5, 8), randn(2, 4, 7, 8), randn(2, 4, 7, 8), randn(*shape, grad=True)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    g = randn(*expected.shape)
    (grad,) = torch.autograd.grad(expected, mask, g)
    rest = (mask.detach(), False, None, 0.0, 5, SEED, Region.full(shape))
    out, lse = function("superscaler.attention")(q, k, v, *rest)
    close(function("superscaler.attention_mask_backward")(g, q, k, v, out, lse, *rest), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernels_agree_with_the_math(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v, g = (randn(2, 4, 33, 16) for _ in range(4))
    exact = function("superscaler.attention")(q, k, v, True, None, 0.0, *_place(q))
    grads = function("superscaler.attention_backward")(g, q, k, v, *exact, True, None, 0.0, *_place(q))
    low = [x.to(dtype) for x in (q, k, v, g)]
    found = function("superscaler.attention")(*low[:3], True, None, 0.0, *_place(q))
    back = function("superscaler.attention_backward")(low[3], *low[:3], *found, True, None, 0.0, *_place(q))
    assert found[1].dtype == torch.float32
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for got, expected in zip((*found, *back), (*exact, *grads), strict=True):
        close(got.double(), expected, tolerance)


def test_attention_dropout_drops_weights_and_its_gradient_repeats_the_draw() -> None:
    torch.manual_seed(0)
    q, k, v = randn(2, 2, 6, 4, grad=True), randn(2, 2, 5, 4, grad=True), randn(2, 2, 5, 4, grad=True)
    kept = keep_mask(Region.full((2, 2, 6, 5)), 0.4, 5, SEED, q.device) / 0.6
    expected = ((q @ k.mT / 2).softmax(-1) * kept) @ v
    g = randn(*expected.shape)
    grads = torch.autograd.grad(expected, (q, k, v), g)
    with torch.no_grad():
        out, lse = function("superscaler.attention")(q, k, v, False, None, 0.4, *_place(q))
        found = function("superscaler.attention_backward")(g, q, k, v, out, lse, False, None, 0.4, *_place(q))
    close(out, expected)
    for got, grad in zip(found, grads, strict=True):
        close(got, grad)


def test_a_query_that_attends_to_nothing_gives_zeros() -> None:
    q, k, v = randn(1, 1, 2, 4), randn(1, 1, 3, 4), randn(1, 1, 3, 5)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    out, lse = function("superscaler.attention")(q, k, v, mask, False, None, 0.0, *_place(q))
    assert torch.equal(out[0, 0, 1], torch.zeros(5, dtype=torch.float64))
    grads = function("superscaler.attention_backward")(
        randn(*out.shape), q, k, v, out, lse, mask, False, None, 0.0, *_place(q)
    )
    assert all(bool(torch.isfinite(x).all()) for x in grads)


# --- norms, losses, convolutions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tail", [1, 2])
def test_layer_norm_gradients(affine: bool, tail: int) -> None:
    torch.manual_seed(0)
    x = randn(3, 4, 5, grad=True)
    shape = list(x.shape[3 - tail :])
    weight, bias = (randn(*shape, grad=True), randn(*shape, grad=True)) if affine else (None, None)
    out = F.layer_norm(x, shape, weight, bias)
    g = randn(3, 4, 5)
    expected = torch.autograd.grad(out, (x, weight) if weight is not None else x, g)
    with torch.no_grad():
        _, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, 1e-5)
        given = [] if weight is None else [weight]
        close(function("superscaler.layer_norm_backward_input")(g, x, mean, rstd, *given), expected[0])
        if weight is not None:
            close(function("superscaler.layer_norm_backward_weight")(g, x, mean, rstd, shape), expected[1])


@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_and_its_gradients(affine: bool) -> None:
    torch.manual_seed(0)
    x, weight = randn(3, 4, 5, grad=True), randn(5, grad=True) if affine else None
    expected = F.rms_norm(x, [5], weight, 1e-6)
    g = randn(3, 4, 5)
    grads = torch.autograd.grad(expected, (x, weight) if weight is not None else x, g)
    given = [] if weight is None else [weight]
    with torch.no_grad():
        out, rstd = function("superscaler.rms_norm")(x, *given, 1e-6)
        close(out, expected)
        close(function("superscaler.rms_norm_backward_input")(g, x, rstd, *given), grads[0])
        if affine:
            close(function("superscaler.rms_norm_backward_weight")(g, x, rstd), grads[1])


@pytest.mark.parametrize("ignore", [-100, 3])
def test_cross_entropy_in_pieces(ignore: int) -> None:
    torch.manual_seed(0)
    logits, labels = randn(12, 9, grad=True), torch.randint(0, 9, (12,))
    labels[::3] = ignore
    expected = F.cross_entropy(logits, labels, ignore_index=ignore)
    (grad,) = torch.autograd.grad(expected, logits)
    with torch.no_grad():
        lse = function("superscaler.logsumexp")(logits)
        picked = function("superscaler.pick")(logits, labels, None)
        count = function("superscaler.count_valid")(labels, ignore, torch.float64)
        close(function("superscaler.nll")(lse, picked, labels, ignore) / count, expected)
        close(function("superscaler.cross_entropy_backward")(1 / count, logits, labels, lse, None, ignore), grad)


@pytest.mark.parametrize("width", [1, 3, 20])
@pytest.mark.parametrize("padding", [None, 2])
def test_embedding_gradient(padding: int | None, width: int) -> None:
    torch.manual_seed(0)
    weight, ids = randn(7, width, grad=True), torch.randint(0, 7, (4, 5))
    out = F.embedding(ids, weight, padding)
    g = randn(width, 5, 4).permute(2, 1, 0)  # as a transposed bias is: not contiguous
    (expected,) = torch.autograd.grad(out, weight, g)
    assert torch.equal(function("superscaler.embedding")(weight, ids, None, padding), out)
    close(function("superscaler.embedding_backward")(g, ids, 7, None, padding), expected)
    halves = [function("superscaler.embedding_backward")(g, ids, n, start, padding) for n, start in ((4, 0), (3, 4))]
    close(torch.cat(halves), expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_gradients(transposed: bool) -> None:
    torch.manual_seed(0)
    x, weight = randn(2, 4, 7, 6, grad=True), randn(4, 4, 3, 2, grad=True)
    args = ([2, 1], [1, 0], [1, 1], transposed, [0, 0], 1)
    out = torch.ops.aten.convolution.default(x, weight, None, *args)
    g = randn(*out.shape)
    grads = torch.autograd.grad(out, (x, weight), g)
    with torch.no_grad():
        close(function("superscaler.convolution_backward_input")(g, weight, x.shape, *args), grads[0])
        close(function("superscaler.convolution_backward_weight")(g, x, weight.shape, *args), grads[1])


def test_grouped_products() -> None:
    torch.manual_seed(0)
    x, w, ends = randn(7, 3, grad=True), randn(4, 3, 5, grad=True), torch.tensor([2, 2, 5, 7])
    expected = torch.cat([x[:2] @ w[0], x[2:5] @ w[2], x[5:] @ w[3]])
    g = randn(7, 5)
    (grad,) = torch.autograd.grad(expected, w, g)
    with torch.no_grad():
        close(function("superscaler.grouped_mm")(x, w, ends, None), expected)
        close(function("superscaler.grouped_mm_backward_weight")(x, g, ends, None, 4), grad)


# --- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_adamw_is_that_of_torch(dtype: torch.dtype, clip: float) -> None:
    torch.manual_seed(0)
    start, lr = randn(5, 3, dtype=dtype), 0.02
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([theirs], lr=lr, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 5):
        g = randn(5, 3, dtype=dtype)
        theirs.grad = g * clip
        optimizer.step()
        scalars = (torch.tensor(float(step)), torch.tensor(lr, dtype=torch.float64), torch.tensor(clip, dtype=dtype))
        p, m, v = function("superscaler.adamw")(p, g, m, v, *scalars, 0.8, 0.9, 1e-6, 0.1)
        close(p, theirs.detach(), 1e-12 if dtype == torch.float64 else 1e-5)


def test_adamw_with_half_parameters_keeps_wide_moments() -> None:
    torch.manual_seed(0)
    g, p = randn(6).bfloat16(), randn(6).bfloat16()
    m = v = torch.zeros(6)
    scalars = (torch.tensor(1.0), torch.tensor(0.1), None)
    found = function("superscaler.adamw")(p, g, m, v, *scalars, 0.9, 0.99, 1e-8, 0.0)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32]
    close(found[0].double(), p.double() - 0.1 * g.double().sign(), 1e-2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_sgd_is_that_of_torch(momentum: float, nesterov: bool, dampening: float) -> None:
    if nesterov and (not momentum or dampening):
        pytest.skip("torch refuses it")
    torch.manual_seed(0)
    start = randn(5, 3)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD(
        [theirs], lr=0.1, momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=0.01
    )
    p, buf = start.clone(), torch.zeros_like(start)
    for step in range(1, 4):
        g = randn(5, 3)
        theirs.grad = g.clone()
        optimizer.step()
        state = [buf, torch.tensor(float(step))] if momentum else []
        found = function("superscaler.sgd")(
            p, g, torch.tensor(0.1, dtype=torch.float64), None, *state, momentum, dampening, nesterov, 0.01
        )
        p, buf = found if momentum else (found, buf)
        close(p, theirs.detach())


def test_clipping_is_that_of_torch() -> None:
    torch.manual_seed(0)
    grads = [randn(4, 3), randn(7)]
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    total = torch.stack([function("superscaler.sumsq")(g) for g in grads]).sum()
    coefficient = function("superscaler.clip_coefficient")(total, 1.0)
    for p, g in zip(parameters, grads, strict=True):
        close(g * coefficient, p.grad)


@pytest.mark.parametrize("target", sorted(INPLACE))
def test_forms_in_place_overwrite_the_state_they_name(target: str) -> None:
    torch.manual_seed(0)
    one = torch.tensor(1.0, dtype=torch.float64)
    p, g, m, v = randn(4), randn(4), randn(4), randn(4).abs()
    given: dict[str, list[Any]] = {
        "superscaler.adamw": [p, g, m, v, one, one, None, 0.9, 0.9, 1e-8, 0.1],
        "superscaler.sgd": [p, g, one, None, m, 0.9, 0, False, 0],
        "superscaler.cache_append": [randn(6, 2, 3, 4), randn(2, 3, 1, 4), torch.tensor(2)],
    }
    args = given[target]
    expected = function(target)(*[a.clone() if isinstance(a, Tensor) else a for a in args])
    form, places = INPLACE[target]
    found = form(*args)
    outs = [[x] if isinstance(x, Tensor) else x for x in (found, expected)]
    for number, (got, whole) in enumerate(zip(*outs, strict=True)):
        assert got is args[places[number]]
        assert torch.equal(got, whole)


def test_out_forms_write_where_they_are_told() -> None:
    x, y = randn(4, 4), randn(4, 4)
    extra: dict[str, list[Any]] = {
        "aten.cat.default": [[x, y], 1],
        "aten.sum.dim_IntList": [x, [0]],
        "aten.amax.default": [x, [0]],
        "aten.pow.Tensor_Scalar": [x, 2],
        "superscaler.cast": [x, torch.bfloat16],
    }
    for target, form in OUT_FORMS.items():
        binary = target.split(".")[1] in ("add", "sub", "mul", "div", "mm")
        one = [x, 0.0] if "sleep" in target else [x]
        args = extra.get(target, [x, y] if binary else [x[None], y[None]] if "bmm" in target else one)
        expected = function(target)(*args)
        out = torch.empty_like(expected)
        form(*args, out=out)
        assert torch.equal(out.nan_to_num(), expected.nan_to_num()), target


# --- randomness ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_part_draws_what_the_whole_draws(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    whole = bits(Region.full(shape), 7, SEED, torch.device("cpu"))
    spans = []
    for size in shape:
        chosen = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
        spans.append(Span.of((i, i + 1) for i in chosen))
    part = bits(Region(spans), 7, SEED, torch.device("cpu"))
    for dim, span in enumerate(spans):
        whole = whole.index_select(dim, torch.tensor([i for a, b in span for i in range(a, b)]))
    assert torch.equal(part, whole)


def _draw(key: int = 1, seed: tuple[int, int] = (0, 0), shape: tuple[int, ...] = (512, 512)) -> Tensor:
    return bits(Region.full(shape), key, seed, torch.device("cpu")).double() / 2**31


@pytest.mark.parametrize("shape", [(262144,), (512, 512), (262144, 1), (1, 262144), (64, 64, 64), (16, 2, 8, 1024)])
def test_draws_are_uniform_and_independent(shape: tuple[int, ...]) -> None:
    """Within five standard errors: mean, variance, neighbours along each dim, and every bit."""
    x = _draw(shape=shape)
    n, five = x.numel(), 5 / x.numel() ** 0.5
    assert abs(float(x.mean())) < five / 3**0.5
    assert abs(float(x.var()) - 1 / 3) < five * 0.3
    for dim in range(x.ndim):
        if x.shape[dim] > 1:
            pair = x.narrow(dim, 0, x.shape[dim] - 1) * x.narrow(dim, 1, x.shape[dim] - 1)
            assert abs(float(pair.mean())) < 5 / pair.numel() ** 0.5 / 3
    words = bits(Region.full(shape), 1, (0, 0), torch.device("cpu")).flatten()
    for bit in range(8, 32):
        ones = int(((words >> bit) & 1).sum())
        assert abs(ones - n / 2) < 5 * n**0.5 / 2


@pytest.mark.parametrize("other", [{"key": 2}, {"seed": (1, 0)}, {"seed": (0, 1)}])
def test_ops_steps_and_runs_draw_independently(other: dict[str, Any]) -> None:
    x, y = _draw(), _draw(**other)
    assert abs(float((x * y).mean())) < 5 / x.numel() ** 0.5 / 3
    assert int((x == y).sum()) < 10


def test_rows_and_columns_are_not_shifted_copies() -> None:
    kept = (_draw(shape=(400, 256)) > 0).double() * 2 - 1
    agreement = kept @ kept.T / 256  # of each pair of rows: a normal number with σ = 1/16
    agreement.fill_diagonal_(0)
    assert float(agreement.abs().max()) < 6.5 / 16
    agreement = kept.T @ kept / 400
    agreement.fill_diagonal_(0)
    assert float(agreement.abs().max()) < 6.5 / 20


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_keeps_the_mean(p: float) -> None:
    x = torch.ones(400, 400, dtype=torch.float64)
    out = function("superscaler.dropout")(x, p, 4, SEED, Region.full(x.shape))
    kept = float((out != 0).double().mean())
    assert abs(kept - (1 - p)) <= 5 * (p * (1 - p)) ** 0.5 / 400
    assert p == 1 or torch.equal(out[out != 0].unique(), torch.tensor([1 / (1 - p)], dtype=torch.float64))


def test_normal_numbers_are_normal() -> None:
    x = function("superscaler.normal")((512, 512), torch.float64, 3, SEED, Region.full((512, 512)))
    moments = [float(x.pow(k).mean()) for k in (1, 2, 3, 4)]
    for got, expected, sigma in zip(moments, (0, 1, 0, 3), (1, 2**0.5, 15**0.5, 96**0.5), strict=True):
        assert abs(got - expected) < 5 * sigma / 512


# --- sleep, calls ----------------------------------------------------------------------------------------------------


def test_sleep_gives_its_input_and_a_gradient() -> None:
    x = randn(3, grad=True)
    y = sleep(x, 1, 2)
    assert torch.equal(y, x)
    (grad,) = torch.autograd.grad((y * 2).sum(), x)
    assert torch.equal(grad, torch.full((3,), 2.0, dtype=torch.float64))


def test_sleep_is_traced_as_two_ops() -> None:
    def step(x: Tensor) -> Tensor:
        return torch.autograd.grad(sleep(x, 1.0, 2.0).sum(), x)[0]

    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(step, tracing_mode="fake")(randn(3, grad=True)).graph
    targets = {str(n.target): n.args[1:] for n in graph.nodes if "sleep" in str(n.target)}
    assert targets == {"superscaler.sleep.default": (1.0, 2.0), "superscaler.sleep_backward.default": (2.0,)}


def test_placeholders_become_what_they_stand_for_in_the_part() -> None:
    part = Part({"v": 3, "b": 2}, {"v": 4, "b": 0}, {"v": 7, "b": 2}, (2, 3), Region.full((2, 3)), (9, 1), 77)
    args = ("$0", ["$1", None], "#shape", "#start:v", "#start:b", "#size:v", "#local:v", "#seed", "#key", "#region",
            "float32", {"kw": {"dtype": "int64", "n": 1}})  # fmt: skip
    bound, kwargs = bind(args, ["a", "b"], part)
    assert bound == ["a", ["b", None], (2, 3), 4, None, 7, 3, (9, 1), 77, Region.full((2, 3)), torch.float32]
    assert kwargs == {"dtype": torch.int64, "n": 1}


@pytest.mark.parametrize("target", ["aten.from_file.default", "aten.mm.out", "os.system", "superscaler.none"])
def test_only_ops_with_a_rule_run(target: str) -> None:
    with pytest.raises(SplitError, match="may not run"):
        function(target)


@pytest.mark.parametrize("milliseconds", [-1.0, float("nan"), float("inf")])
def test_a_sleep_has_a_length(milliseconds: float) -> None:
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        sleep(torch.ones(2), milliseconds)
