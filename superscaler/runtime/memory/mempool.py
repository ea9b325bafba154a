"""PyTorch's own CUDA activations in a pool of ours, with no compiled library.

``torch.cuda.MemPool`` takes an allocator given by two function addresses; ours are ctypes callbacks into a
:class:`Pool`, so activations, arenas and KV caches share one budget. torch asks for segments (2 MiB and more) and
caches inside of them; a segment that torch lets go of goes back to the pool.

What torch's libraries keep for themselves stays out of it (:func:`settle_libraries`), as the context does.

Callbacks need the interpreter lock while torch's allocator holds its own. So only one Python thread per process may
allocate CUDA memory while a pool is in use; our background thread never touches torch's allocator.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import TYPE_CHECKING, Any

from superscaler.errors import BackendUnavailable, SuperscalerError
from superscaler.garbage import uncollected
from superscaler.runtime.memory.pool import Pool
from superscaler.runtime.memory.vtensor import VTensor

if TYPE_CHECKING:
    import torch

_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)

# torch may call until the process ends, whatever became of the pool: closures and allocators are never freed.
_CALLBACKS: list[Any] = []


class Segments:
    """The two callbacks over one pool: a segment is a vTensor."""

    def __init__(self, pool: Pool, owner: str = "activations") -> None:
        self._pool = pool
        self._owner = owner
        self._segments: dict[int, VTensor] = {}
        self.allocate_callback = _ALLOCATE(self._allocate)
        self.free_callback = _FREE(self._free)
        _CALLBACKS.append((self.allocate_callback, self.free_callback))

    @property
    def mapped(self) -> int:
        """Bytes that torch has now."""
        return sum(segment.mapped for segment in self._segments.values())

    def _allocate(self, size: int, _device: int, _stream: int | None) -> int | None:
        # An exception cannot pass through torch; no address means out of memory to it, and it raises its own error.
        # A tensor that a search for garbage found would be freed while torch's allocator is at work.
        try:
            with uncollected():
                segment = self._pool.reserve(size, owner=self._owner)
                segment.extend(size)
        except SuperscalerError:
            return None
        self._segments[segment.address] = segment
        return segment.address

    def _free(self, address: int | None, _size: int, _device: int, _stream: int | None) -> None:
        segment = self._segments.pop(address or 0, None)
        if segment is None:
            return
        try:
            segment.free()
        except SuperscalerError:
            # It stays ours, and goes with the pool.
            self._segments[segment.address] = segment


def open_memory_pool(pool: Pool, owner: str = "activations") -> Any:
    """A ``torch.cuda.MemPool`` over ``pool``: ``with torch.cuda.use_mem_pool(open_memory_pool(pool)): …``.

    Raises :class:`BackendUnavailable` where torch has no CUDA or the pool is not on a device.
    """
    import torch

    custom_allocator = getattr(importlib.import_module("torch._C"), "_cuda_customAllocator", None)
    if custom_allocator is None or pool.backend.name != "cuda":
        raise BackendUnavailable(
            "PyTorch's activations can only live in a pool on a CUDA device",
            f"the pool's backend is {pool.backend.name!r}; torch {torch.__version__} "
            + ("has CUDA" if custom_allocator is not None else "has no CUDA"),
            hint='Pool(backend="cuda") and a CUDA build of torch',
        )
    segments = Segments(pool, owner)
    addresses = (
        ctypes.cast(call, ctypes.c_void_p).value for call in (segments.allocate_callback, segments.free_callback)
    )
    allocator = custom_allocator(*addresses)
    # Before torch 2.11 a MemPool did not keep its allocator alive, and blocks may outlive the pool.
    _CALLBACKS.append(allocator)
    return torch.cuda.MemPool(allocator)


def settle_libraries(device: torch.device) -> None:
    """Have cuBLAS allocate its workspaces now, outside of any pool. To be called before a pool is entered.

    A workspace (32 MiB on Hopper) comes from torch's allocator with the first product of a thread and stream, and every
    later product works in it, whoever's it is. In a pool of ours it would be gone when the pool is closed.
    """
    import torch

    release_libraries()
    x = torch.ones(32, 32, device=device)
    torch.mm(x, x)
    torch.addmm(x[0], x, x)  # by cuBLASLt, which has another one


def release_libraries() -> None:
    """Have cuBLAS let go of its workspaces: the next product makes new ones. To be called before a pool is closed."""
    importlib.import_module("torch._C")._cuda_clearCublasWorkspaces()
