"""What callers give: whole numbers of bytes, names, and shapes and dtypes that torch can make tensors of."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from superscaler.errors import UsageError
from superscaler.ir.argument import shown

if TYPE_CHECKING:
    import torch


def bytes_of(number: int, owner: str) -> int:
    """The number, if it is one that can count bytes. Raises :class:`UsageError` naming the owner otherwise."""
    try:
        return operator.index(number)
    except TypeError:
        raise UsageError(f"{owner}: {number!r} bytes", hint="a whole number") from None


def text_of(name: object, what: str) -> str:
    """The name, if it is a text. Raises :class:`UsageError` saying what it was to name otherwise."""
    if isinstance(name, str):
        return name
    raise UsageError(f"{what}: {name!r} is no name", hint="a string")


def of_kind(value: object, kind: type, what: str, hint: str) -> None:
    """Raise :class:`UsageError` saying what it was to be, if the value is of another kind."""
    if not isinstance(value, kind):
        raise UsageError(f"{what} cannot be {shown(value)}", hint=hint)


def size_of(shape: Sequence[int], dtype: torch.dtype, owner: str) -> int:
    """The bytes of a tensor. Raises :class:`UsageError` naming the owner for what is no shape or no usable dtype."""
    try:
        # Quantized ones need a scale, which only torch can give them.
        known = type(dtype).__name__ == "dtype" and not repr(dtype).startswith("torch.q")
        nbytes = math.prod(map(operator.index, shape)) * dtype.itemsize
    except (TypeError, AttributeError):
        known, nbytes = False, 0
    if not known:
        raise UsageError(
            f"{owner}: a tensor of shape {shape!r} and dtype {dtype!r}",
            hint="a sequence of sizes, and a dtype of torch that is not quantized",
        )
    return nbytes
