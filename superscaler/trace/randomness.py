"""Random tensors while tracing: their bits depend on global element numbers only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from superscaler.trace.library import NAMESPACE

Site = Callable[[], int]
Builder = Callable[..., Tensor]


@custom_op(f"{NAMESPACE}::uniform", mutates_args=())
def uniform(shape: list[int], dtype: torch.dtype, site: int) -> Tensor:
    """Independent draws from [0, 1)."""
    raise NotImplementedError("superscaler_trace ops are traced, never run")


@uniform.register_fake
def _(shape: list[int], dtype: torch.dtype, site: int) -> Tensor:
    return torch.empty(shape, dtype=dtype)


@custom_op(f"{NAMESPACE}::normal", mutates_args=())
def normal(shape: list[int], dtype: torch.dtype, site: int) -> Tensor:
    """Independent draws from the standard normal distribution."""
    raise NotImplementedError("superscaler_trace ops are traced, never run")


@normal.register_fake
def _(shape: list[int], dtype: torch.dtype, site: int) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _sizes(size: tuple[Any, ...]) -> list[int]:
    first: Any = size[0] if size else ()
    return [int(n) for n in (size if isinstance(first, int) else first)]


def _rand(site: Site, *size: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    shape = _sizes(size or (kwargs["size"],))
    return uniform(shape, dtype or torch.get_default_dtype(), site())


def _rand_like(site: Site, like: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return uniform(list(like.shape), dtype or like.dtype, site())


def _randn(site: Site, *size: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    shape = _sizes(size or (kwargs["size"],))
    return normal(shape, dtype or torch.get_default_dtype(), site())


def _randn_like(site: Site, like: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return normal(list(like.shape), dtype or like.dtype, site())


def _bernoulli(site: Site, probability: Tensor, p: float | None = None, **_: Any) -> Tensor:
    draw = uniform(list(probability.shape), probability.dtype, site())
    return (draw < (probability if p is None else p)).to(probability.dtype)


def _bernoulli_(site: Site, x: Tensor, p: float | Tensor = 0.5, **_: Any) -> Tensor:
    return x.copy_(uniform(list(x.shape), torch.get_default_dtype(), site()) < p)


BUILDERS: dict[Any, Builder] = {
    torch.rand: _rand,
    torch.rand_like: _rand_like,
    torch.randn: _randn,
    torch.randn_like: _randn_like,
    torch.bernoulli: _bernoulli,
    torch.Tensor.bernoulli: _bernoulli,
    torch.Tensor.bernoulli_: _bernoulli_,
}

REFUSED: tuple[Any, ...] = (
    torch.normal,
    torch.randint,
    torch.randint_like,
    torch.randperm,
    torch.multinomial,
    torch.poisson,
    torch.Tensor.multinomial,
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.random_,
    torch.Tensor.exponential_,
    torch.Tensor.geometric_,
    torch.Tensor.log_normal_,
    torch.Tensor.cauchy_,
    torch.nn.functional.alpha_dropout,
    torch.nn.functional.feature_alpha_dropout,
    torch.nn.functional.rrelu,
    torch.nn.functional.gumbel_softmax,
)
