"""Triton's interpreter with NumPy 2.4 and later: before Triton 3.9, a number of a kernel was an array of one element to
it, which NumPy takes for the bound of a loop no more. Only the interpreter is touched, and only where it is used."""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def mend() -> None:
    """Let loops of interpreted kernels have bounds that are known when they run."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        # After the interpreter's own, which is put back together with it when the kernel has run.
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend
