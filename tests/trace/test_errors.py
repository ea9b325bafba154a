"""What cannot be traced is refused with the model's line, the reason and what to try; never with torch's traceback."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.errors import SuperscalerError, TraceError, UsageError
from superscaler.trace import trace


class Model(nn.Module):
    """A linear layer inside the function under test."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def branch(m: Any, x: Tensor) -> Tensor:
    h = m.linear(x).mean()
    return h if h > 0 else -h


def count(m: Any, x: Tensor) -> Tensor:
    return m.linear(x)[: int(x.sum())].mean()


def number(m: Any, x: Tensor) -> Tensor:
    return m.linear(x).mean() * m.linear(x).tolist()[0][0]


def selected(m: Any, x: Tensor) -> Tensor:
    h = m.linear(x)
    return h[h > 0].mean()


def asserted(m: Any, x: Tensor) -> Tensor:
    assert (x == x).all()
    return m.linear(x).mean()


def through_numpy(m: Any, x: Tensor) -> Tensor:
    return m.linear(torch.from_numpy(x.numpy() * 2)).mean()


def wrong_shape(m: Any, x: Tensor) -> Tensor:
    return m.linear(x.reshape(3, 5)).mean()


def wrong_name(m: Any, x: Tensor) -> Tensor:
    return m.nothing(x)


def writes_parameter(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.linear.bias.add_(1)
    return m.linear(x).mean()


def draws_integers(m: Any, x: Tensor) -> Tensor:
    return (m.linear(x) + torch.randint(3, (4,))).mean()


def turned(m: Any, x: Tensor) -> Tensor:
    return torch.view_as_complex(m.linear(x).unflatten(-1, (2, 2))).abs().mean()


def gumbel(m: Any, x: Tensor) -> Tensor:
    return F.gumbel_softmax(m.linear(x)).sum()


WITH_LINE = {
    turned: ("complex numbers", "torch.view_as_complex"),
    branch: ("values of a tensor", "h if h > 0"),
    count: ("values of a tensor", "int(x.sum())"),
    number: ("known only when it runs", "tolist"),
    selected: ("depends on data", "h[h > 0]"),
    asserted: ("values of a tensor", "assert (x == x).all()"),
    through_numpy: ("numpy", "x.numpy()"),
    wrong_shape: ("invalid for input", "x.reshape(3, 5)"),
    wrong_name: ("nothing", "m.nothing(x)"),
    writes_parameter: ("linear.bias", "bias.add_(1)"),
    draws_integers: ("random", "torch.randint"),
    gumbel: ("random", "F.gumbel_softmax"),
}


@pytest.mark.parametrize("forward", WITH_LINE, ids=lambda f: f.__name__)
def test_the_line_the_reason_and_what_to_try(forward: Any, capfd: pytest.CaptureFixture[str]) -> None:
    reason, line = WITH_LINE[forward]
    with pytest.raises(TraceError) as caught:
        trace(Model(forward), (torch.randn(4, 4),))
    text = str(caught.value)
    assert reason in text
    assert f"{__file__}:" in text
    assert line in text
    assert "try: " in text
    assert capfd.readouterr().err == "", "torch's own report stays out of the way"


OUTPUTS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "no scalar": (lambda m, x: m.linear(x), "shape (4, 4)"),
    "nothing": (lambda m, x: None, "NoneType"),
    "no loss in it": (lambda m, x: {"logits": m.linear(x)}, "a dict"),
    "an integer": (lambda m, x: m.linear(x).argmax(), "torch.int64"),
    "no gradient": (lambda m, x: m.linear(x).detach().mean(), "no parameter"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_what_is_no_loss(case: str) -> None:
    forward, reason = OUTPUTS[case]
    with pytest.raises(TraceError) as caught:
        trace(Model(forward), (torch.randn(4, 4),))
    assert reason in str(caught.value)


def mean(m: Any, x: Tensor) -> Tensor:
    return m.linear(x).mean()


BAD_INPUTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "an array": ((np.zeros((4, 4)),), "x is a ndarray, not a tensor"),
    "none": ((), "missing a required argument: 'x'"),
    "too many": ((torch.zeros(4, 4), torch.zeros(4)), "too many positional arguments"),
    "no tensor": ((1.0,), "no input is a tensor"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(case: str) -> None:
    args, reason = BAD_INPUTS[case]
    with pytest.raises(TraceError, match=reason):
        trace(Model(mean), args)


def test_a_lazy_layer_has_no_shape() -> None:
    with pytest.raises(TraceError, match="no shape yet"):
        trace(nn.Sequential(nn.LazyLinear(3)), (torch.zeros(4, 4),))


def test_a_model_that_cannot_be_copied() -> None:
    model = Model(mean)
    model.lock = threading.Lock()
    with pytest.raises(TraceError, match="cannot be copied"):
        trace(model, (torch.zeros(4, 4),))


def test_a_backward_is_refused_at_the_line_of_its_forward() -> None:
    def chosen(m: Model, x: Tensor) -> Tensor:
        return torch.zeros(4, 4).index_put((x > 0,), m.linear(x).mean().reshape(1)).sum()

    with pytest.raises(TraceError, match=r"index_put\(\(x > 0,\)"):
        trace(Model(chosen), (torch.randn(4, 4),))


def test_torch_logs_nothing_of_what_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(caplog.handler)
    with pytest.raises(TraceError, match="broadcast"):
        trace(Model(lambda m, x: (m.linear(x) + torch.zeros(4, 7)).sum()), (torch.zeros(4, 4),))
    log.removeHandler(caplog.handler)
    assert not [r for r in caplog.records if r.name == log.name]


@pytest.mark.parametrize(("setting", "value"), [("mode", "trian"), ("dtype", "fp32")])
def test_unknown_settings(setting: str, value: str) -> None:
    with pytest.raises(UsageError, match=value):
        trace(Model(mean), (torch.zeros(4, 4),), **{setting: value})


def test_nothing_is_left_behind_after_a_failure() -> None:
    before = torch.get_default_dtype(), F.dropout, F.scaled_dot_product_attention
    with pytest.raises(SuperscalerError):
        trace(Model(branch), (torch.randn(4, 4),), dtype="f64")
    assert (torch.get_default_dtype(), F.dropout, F.scaled_dot_product_attention) == before
    assert torch.zeros(2).add(1).tolist() == [1.0, 1.0]
