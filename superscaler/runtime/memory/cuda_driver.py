"""The seam to NVIDIA's driver: the dozen calls of virtual memory management that the CUDA backend needs.

All logic is above it (:mod:`~superscaler.runtime.memory.cuda`) and is tested with a driver that only keeps books. Each
call is counted by name; a failure is a :class:`DriverError`. cuda-python lets go of the interpreter lock in its calls.
"""

from __future__ import annotations

import errno
import importlib
import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from superscaler.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

OLDEST_DRIVER = 12000  # CUDA 12.0


class DriverError(OSError):
    """A driver call failed; ``errno`` is ``ENOMEM`` where the device has no more memory."""


class VirtualMemoryDriver(Protocol):
    """What the backend asks of a driver. Addresses and sizes are bytes, handles are physical chunks."""

    calls: Counter[str]

    def granularity(self) -> int: ...
    def reserve(self, size: int) -> int: ...
    def free_address(self, address: int, size: int) -> None: ...
    def create(self, size: int) -> int: ...
    def release(self, handle: int) -> None: ...
    def map(self, address: int, size: int, handle: int) -> None: ...
    def unmap(self, address: int, size: int) -> None: ...
    def set_access(self, address: int, size: int, *, writable: bool) -> None: ...
    def fill_zero(self, address: int, size: int) -> None: ...
    def copy(self, target: int, source: int, size: int) -> None: ...
    def synchronize(self) -> None: ...
    def tensor(self, address: int, size: int, keep: object) -> torch.Tensor: ...


class CudaDriver:
    """:class:`VirtualMemoryDriver` through cuda-python, on one device's primary context.

    Raises :class:`BackendUnavailable` without a driver, with one older than CUDA 12.0, or without a capable device.
    """

    def __init__(self, device: int = 0) -> None:
        self.calls: Counter[str] = Counter()
        self.device = device
        self._api = load_api()
        self._thread = threading.local()
        try:
            self._context = self._open_device()
            self._properties = self._allocation_properties()
            self._stream = self._open_stream()
        except (DriverError, RuntimeError) as error:
            raise BackendUnavailable(
                "the cuda backend has no NVIDIA driver or device to work with",
                str(error).splitlines()[0],
                hint='install the driver, free the device, or use Pool(backend="host")',
            ) from error

    def _open_device(self) -> Any:
        api = self._api
        self._raw("cuInit", 0)
        version = self._raw("cuDriverGetVersion")
        handle = self._raw("cuDeviceGet", self.device)
        attribute = api.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        capable = self._raw("cuDeviceGetAttribute", attribute, handle)
        if version < OLDEST_DRIVER or not capable:
            raise BackendUnavailable(
                f"the cuda backend needs a driver of CUDA {OLDEST_DRIVER // 1000}.0 with virtual memory management",
                f"the driver is of CUDA {version // 1000}.{version % 1000 // 10}; device {self.device} "
                + ("can" if capable else "cannot"),
                hint='update the driver, or use Pool(backend="host")',
            )
        return self._raw("cuDevicePrimaryCtxRetain", handle)

    def _open_stream(self) -> int:
        """A stream of our own, which waits for no other and goes with us."""
        stream = int(self._call("cuStreamCreate", self._api.CUstream_flags.CU_STREAM_NON_BLOCKING))
        weakref.finalize(self, self._api.cuStreamDestroy, stream).atexit = False
        return stream

    def _allocation_properties(self) -> Any:
        api = self._api
        properties = api.CUmemAllocationProp()
        properties.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = self.device
        return properties

    def granularity(self) -> int:
        """The smallest chunk (2 MiB on today's devices)."""
        flag = self._api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        return int(self._call("cuMemGetAllocationGranularity", self._properties, flag))

    def reserve(self, size: int) -> int:
        return int(self._call("cuMemAddressReserve", size, 0, 0, 0))

    def free_address(self, address: int, size: int) -> None:
        self._call("cuMemAddressFree", address, size)

    def create(self, size: int) -> int:
        return int(self._call("cuMemCreate", size, self._properties, 0))

    def release(self, handle: int) -> None:
        self._call("cuMemRelease", handle)

    def map(self, address: int, size: int, handle: int) -> None:
        # The driver accepts no offset but 0: a handle is mapped whole.
        self._call("cuMemMap", address, size, 0, handle, 0)

    def unmap(self, address: int, size: int) -> None:
        self._call("cuMemUnmap", address, size)

    def set_access(self, address: int, size: int, *, writable: bool) -> None:
        flags = self._api.CUmemAccess_flags
        access = self._api.CUmemAccessDesc()
        access.location.type = self._api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = self.device
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if writable else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        self._call("cuMemSetAccess", address, size, [access], 1)

    def fill_zero(self, address: int, size: int) -> None:
        """Done when it returns, without waiting for other streams."""
        self._call("cuMemsetD8Async", address, 0, size, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Device to device; done when it returns."""
        self._call("cuMemcpyDtoDAsync", target, source, size, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def synchronize(self) -> None:
        """Wait for everything submitted to the device so far."""
        self._call("cuCtxSynchronize")

    def tensor(self, address: int, size: int, keep: object) -> torch.Tensor:
        """The bytes as a uint8 tensor that keeps ``keep`` alive."""
        import torch

        if not size:
            # Where nothing is mapped, torch cannot tell whose address it is.
            return torch.empty(0, dtype=torch.uint8, device=f"cuda:{self.device}")
        return torch.as_tensor(_CudaArray(address, size, keep), device=f"cuda:{self.device}")

    def _call(self, name: str, *arguments: Any) -> Any:
        # A context is current per thread, and the background thread calls as well.
        if not getattr(self._thread, "entered", False):
            self._raw("cuCtxSetCurrent", self._context)
            self._thread.entered = True
        return self._raw(name, *arguments)

    def _raw(self, name: str, *arguments: Any) -> Any:
        self.calls[name] += 1
        code, *result = getattr(self._api, name)(*arguments)
        if int(code):
            out_of_memory = self._api.CUresult.CUDA_ERROR_OUT_OF_MEMORY
            raise DriverError(errno.ENOMEM if code == out_of_memory else errno.EIO, f"{name}: {code.name}")
        return result[0] if result else None


class _CudaArray:
    """Device memory for torch to look at. The protocol knows no bfloat16, so bytes it is."""

    def __init__(self, address: int, size: int, keep: object) -> None:
        self.keep = keep
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def load_api() -> Any:
    """cuda-python's driver module."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise BackendUnavailable(
            "the cuda backend needs cuda-python", str(error), hint="pip install 'superscaler[gpu]'"
        ) from error
