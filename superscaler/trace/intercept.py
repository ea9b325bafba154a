"""The torch functions that a trace takes over: attention, cross-entropy, dropout, random numbers, float casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.traceback import annotate
from torch.overrides import TorchFunctionMode

from superscaler.errors import TraceError
from superscaler.trace import library, losses, randomness, substitutes
from superscaler.trace.attention import attention
from superscaler.trace.effects import Irregular
from superscaler.trace.places import Places
from superscaler.trace.promote import promoted_call
from superscaler.trace.provenance import annotation
from superscaler.trace.source import current_line, shown

_GRADIENTS = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


class Intercept(TorchFunctionMode):
    """Active while a model is traced. ``promote``: every float becomes float64 (see :mod:`.promote`).

    ``regions``: repeated modules are opaque, so no gradient may be taken inside the model.
    """

    def __init__(self, places: Places, *, promote: bool, regions: bool = False) -> None:
        super().__init__()
        self.regions = regions
        self.places = places
        self.promote = promote
        self._sites = 0
        # Results of log_softmax and their logits: nll_loss of such a result is a cross-entropy. The tensors are kept
        # alive, so an id is not used twice.
        self._logits: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._handlers: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self.attention,
            F.multi_head_attention_forward: self._multi_head_attention,
            F.cross_entropy: losses.cross_entropy,
            F.nll_loss: self._nll_loss,
            **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), self._log_softmax),
            **dict.fromkeys((F.dropout, torch.dropout), self._dropout),
            **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout), self._feature_dropout),
            **{f: self._random(build) for f, build in randomness.BUILDERS.items()},
            **substitutes.HANDLERS,
            **dict.fromkeys(randomness.REFUSED, _refuse_random),
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "__get__":  # an attribute: nothing is computed
            return func(*args, **kwargs)
        if self.regions and func in _GRADIENTS and self.places.busy:
            raise Irregular("a gradient is taken inside the model")
        if self.promote:
            func, args, kwargs = promoted_call(func, args, kwargs)
        handler = self._handlers.get(func, func)
        if func in (F.log_softmax, torch.log_softmax, Tensor.log_softmax):
            kwargs = {**kwargs, "_func": func}
        with annotate(annotation(current_line(), self.places.current, func.__name__)):
            return handler(*args, **kwargs)

    def site(self) -> int:
        """A number that no other call of this trace has."""
        self._sites += 1
        return self._sites

    def attention(self, *args: Any, **kwargs: Any) -> Tensor:
        """``F.scaled_dot_product_attention`` as one op, or in parts where the mask is learned."""
        return attention(*args, **kwargs, site=self.site())

    def _multi_head_attention(self, *args: Any, **kwargs: Any) -> Any:
        # Its body calls the other functionals by their global names, and this mode is off inside it.
        saved = F.scaled_dot_product_attention, F.dropout
        F.scaled_dot_product_attention, F.dropout = self.attention, self._dropout
        try:
            return F.multi_head_attention_forward(*args, **kwargs)
        finally:
            F.scaled_dot_product_attention, F.dropout = saved

    def _log_softmax(self, x: Tensor, dim: int | None = None, *args: Any, _func: Any, **kwargs: Any) -> Tensor:
        out: Tensor = _func(x, dim, *args, **kwargs)
        if dim is not None and out.dtype == x.dtype:
            self._logits[id(out)] = (out, x, dim % x.ndim)
        return out

    def _nll_loss(self, x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _, logits, dim = self._logits.get(id(x), (x, None, -1))
        if logits is not None and dim == (1 if logits.ndim > 1 else 0):
            return losses.cross_entropy(logits, target, *args, **kwargs)
        return losses.nll_loss(x, target, *args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        out = library.dropout(input, float(p), self.site()) if p < 1.0 else input * 0.0
        return input.copy_(out) if inplace else out

    def _feature_dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        channels = input.shape[: min(2, input.ndim)]
        ones = input.new_ones((*channels, *(1 for _ in input.shape[len(channels) :])))
        out = input * self._dropout(ones, p)
        return input.copy_(out) if inplace else out

    def _random(self, build: randomness.Builder) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: build(self.site, *args, **kwargs)


def _refuse_random(*_: Any, **__: Any) -> None:
    raise TraceError(
        "a random function has no form here that draws the same numbers however the work is split",
        f"at {shown(current_line())}",
        hint="F.dropout, torch.rand, torch.randn or torch.bernoulli",
    )
