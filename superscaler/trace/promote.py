"""Float64 through and through: casts to a smaller float inside a model become casts to float64.

Models cast to float32 in losses, norms and position tables; a float64 comparison is then only good to 1e-7. This mode
is used by ``trace(dtype="f64")`` and by tests on the plain model that they compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SMALLER = frozenset({torch.float32, torch.float16, torch.bfloat16})
_METHODS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.float: torch.Tensor.double,
    torch.Tensor.half: torch.Tensor.double,
    torch.Tensor.bfloat16: torch.Tensor.double,
}


def _promoted(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _SMALLER else value


def promoted_call(
    func: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The call with every float dtype in it replaced by float64."""
    changed = {name: _promoted(value) for name, value in kwargs.items()}
    return _METHODS.get(func, func), tuple(_promoted(arg) for arg in args), changed


class Float64Mode(TorchFunctionMode):
    """Inside it, no torch function makes a float smaller than float64, and new floats are float64."""

    def __enter__(self) -> Float64Mode:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        torch.set_default_dtype(self.before)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func, args, changed = promoted_call(func, args, kwargs or {})
        return func(*args, **changed)
