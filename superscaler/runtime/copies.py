"""Copies between device and host memory, beside what is computed: on a GPU on a stream of their own, else in a thread.

A copy begins when all work issued before it is done, and is waited for where its result is read or its source reused.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from superscaler.runtime.comm import Handle, Posted
from superscaler.runtime.post import Post

_COPY = Posted("copy between device and host memory", (0, 0), ())


class Copies:
    """The transfer lane of one worker."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="transfer")

    @cached_property
    def _stream(self) -> Any:
        return torch.cuda.Stream(self.device)

    def copy(self, src: Tensor, dst: Tensor) -> Post:
        """Begin to copy ``src`` to ``dst``, which is the result."""
        return Post(self._copy(src, dst))

    def _copy(self, src: Tensor, dst: Tensor) -> Generator[Handle, None, Tensor]:
        yield _Streamed(self._stream, src, dst) if self.device.type == "cuda" else _Threaded(self._thread, src, dst)
        return dst


class _Threaded:
    posted = _COPY

    def __init__(self, thread: ThreadPoolExecutor, src: Tensor, dst: Tensor) -> None:
        self.future: Future[Tensor] = thread.submit(dst.copy_, src)

    def ready(self) -> bool:
        return True  # it waits for no other worker

    def wait(self) -> None:
        self.future.result()


class _Streamed:
    posted = _COPY

    def __init__(self, stream: Any, src: Tensor, dst: Tensor) -> None:
        self.main = torch.cuda.current_stream(dst.device if dst.is_cuda else src.device)
        stream.wait_stream(self.main)
        with torch.cuda.stream(stream):
            dst.copy_(src, non_blocking=True)
            self.over = torch.cuda.Event()
            self.over.record(stream)

    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        """What is issued from now on comes after the copy."""
        self.over.wait(self.main)
