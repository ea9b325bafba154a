"""Building a model without its memory: of fake tensors, so that only shapes and dtypes exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

Made = TypeVar("Made")


def without_memory(make: Callable[[], Made]) -> Made:
    """What ``make`` returns, its tensors fake: GPT-3 175B takes no more than a small model.

    A module whose making reads the values of tensors (``tensor.item()``) cannot be fake, and is made for real.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return make()
    except Exception as error:
        if not _reads_values(error):
            raise
    return make()


def _reads_values(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, a number asked of a tensor that has none."""
    while error is not None and not isinstance(error, DataDependentOutputException):
        error = error.__cause__
    return error is not None


def draw_from(seed: int) -> None:
    """Start torch's global generator, from which modules draw their first weights."""
    torch.manual_seed(seed)
