"""Functions that remember results (``functools.lru_cache``): what a trace makes is of no use to anyone after it."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from superscaler.trace.source import is_users

_module: Any = functools
_Wrapper: Any = type(functools.lru_cache(lambda: None))
_known: list[Any] = []


@contextmanager
def caches_watched() -> Generator[None]:
    """Inside it :func:`forget` knows the cached functions of users' code: those that there are, and new ones."""
    made: Callable[..., Any] = _module._lru_cache_wrapper

    def wrapper(*args: Any) -> Any:
        found = made(*args)
        _known.append(found)
        return found

    _known[:] = [found for found in gc.get_objects() if type(found) is _Wrapper and _of_users(found)]
    _module._lru_cache_wrapper = wrapper
    try:
        yield
    finally:
        _module._lru_cache_wrapper = made
        forget()
        _known.clear()


def forget() -> None:
    """Clear the caches that hold a tensor of a trace."""
    for found in _known:
        if any(map(_traced, gc.get_referents(found))):
            found.cache_clear()


def _of_users(found: Any) -> bool:
    code = getattr(getattr(found, "__wrapped__", None), "__code__", None)
    return code is None or is_users(code.co_filename)


def _traced(result: Any) -> bool:
    listed = result if isinstance(result, tuple | list) else [result]
    return any(isinstance(each, FakeTensor | FunctionalTensor) for each in listed)
