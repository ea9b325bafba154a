"""``superscaler::sleep`` and ``sleep_each``: ops that cost a known time, for benchmarks of schedules.

They sleep after their input has arrived, never until a planned time, so whatever a runtime adds shows up in full. They
cost that time to some microseconds: a machine whose processors take long to wake would make every sleep longer, by what
differs from one minute to the next.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from typing import Any

import torch
from torch import Tensor

_TIMER_SLACK = 29  # prctl's number for how late a thread may be woken
_AWAKE = 0.0003  # seconds: a processor that has to be woken takes up to this
_leave = getattr(os, "sched_yield", lambda: None)
_thread = threading.local()


def _nap(milliseconds: float) -> None:
    """Sleep for all but the last of it, then stay awake, leaving the processor to whoever has something to do."""
    if not 0 <= milliseconds < float("inf"):
        raise ValueError(f"sleep length must be non-negative, not {milliseconds} ms")
    end = time.perf_counter() + milliseconds / 1000
    if sys.platform == "linux" and not hasattr(_thread, "exact"):
        ctypes.CDLL(None).prctl(_TIMER_SLACK, 1, 0, 0, 0)
        _thread.exact = True
    time.sleep(max(milliseconds / 1000 - _AWAKE, 0.0))
    while time.perf_counter() < end:
        _leave()


def slept(x: Tensor, milliseconds: float, *_: float, out: Tensor | None = None) -> Tensor:
    """``x`` (written to ``out``, which may be ``x``), so many milliseconds after all work before it on its device."""
    if torch.cuda.is_initialized() and x.is_cuda:
        torch.cuda.current_stream(x.device).synchronize()
    if milliseconds:
        _nap(milliseconds)
    if out is x:
        return x
    return x.clone() if out is None else out.copy_(x)


def slept_each(x: Tensor, milliseconds: float, *_: float, out: Tensor | None = None) -> Tensor:
    """``x``, that many milliseconds per element of it after all work before it on its device is done."""
    return slept(x, milliseconds * x.numel(), out=out)


@torch.library.custom_op("superscaler::sleep", mutates_args=())
def _sleep(x: Tensor, milliseconds: float, backward_milliseconds: float) -> Tensor:
    return slept(x, milliseconds)


@torch.library.custom_op("superscaler::sleep_backward", mutates_args=())
def _sleep_backward(grad: Tensor, milliseconds: float) -> Tensor:
    return slept(grad, milliseconds)


@torch.library.custom_op("superscaler::sleep_each", mutates_args=())
def _sleep_each(x: Tensor, milliseconds: float, backward_milliseconds: float) -> Tensor:
    return slept_each(x, milliseconds)


@torch.library.custom_op("superscaler::sleep_each_backward", mutates_args=())
def _sleep_each_backward(grad: Tensor, milliseconds: float) -> Tensor:
    return slept_each(grad, milliseconds)


@_sleep.register_fake
@_sleep_each.register_fake
def _(x: Tensor, milliseconds: float, backward_milliseconds: float) -> Tensor:
    return torch.empty_like(x)


@_sleep_backward.register_fake
@_sleep_each_backward.register_fake
def _(grad: Tensor, milliseconds: float) -> Tensor:
    return torch.empty_like(grad)


def _setup(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
    ctx.milliseconds = inputs[2]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _sleep_backward(grad, ctx.milliseconds), None, None


def _gradient_each(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _sleep_each_backward(grad, ctx.milliseconds), None, None


_sleep.register_autograd(_gradient, setup_context=_setup)
_sleep_each.register_autograd(_gradient_each, setup_context=_setup)


def sleep(x: Tensor, milliseconds: float, backward_milliseconds: float | None = None) -> Tensor:
    """``x`` after a sleep; its gradient sleeps ``backward_milliseconds`` (as long, if not given).

    However ``x`` is split, each part sleeps as long. ``sleep(x, 20, 20) * sleep(weight, 0, 20)`` has a forward, an
    input gradient and a weight gradient of 20 ms each.
    """
    return _sleep(x, milliseconds, milliseconds if backward_milliseconds is None else backward_milliseconds)


def sleep_each(x: Tensor, milliseconds: float, backward_milliseconds: float | None = None) -> Tensor:
    """As :func:`sleep`, but so many milliseconds per element: a part of ``x`` sleeps its share."""
    return _sleep_each(x, milliseconds, milliseconds if backward_milliseconds is None else backward_milliseconds)
