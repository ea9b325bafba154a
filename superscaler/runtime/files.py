"""Safetensors files, read by region and written tensor by tensor: memory for one tensor, whatever the file's size.

The format: eight bytes of header length, a JSON header with a dtype, a shape and byte offsets per name, then the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from superscaler.ir.region import Region, Span
from superscaler.runtime.packing import packing

CODES = {
    "float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip


def read_region(path: Path, name: str, region: Region) -> Tensor:
    """The elements of a region of a tensor in a file, packed; only the bounding box is read."""
    with safe_open(str(path), framework="pt") as file:
        if not region:
            return file.get_tensor(name)
        box = Region(Span.of([(span[0][0], span[-1][1])]) if span else span for span in region)
        if box.empty:
            return file.get_slice(name)[tuple(slice(0, 0) for _ in box)].reshape(region.shape)
        part = file.get_slice(name)[tuple(slice(*span[0]) for span in box)]
    return packing(box, region).take(part)


def describe(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype code) of every tensor of a file. Raises ``OSError`` or ``ValueError`` if it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 100_000_000:
            raise ValueError("the header's length is out of bounds")
        text = file.read(length)
        if len(text) != length:
            raise ValueError("the header is cut off")
        header: dict[str, Any] = json.loads(text)
        data = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
        if path.stat().st_size != 8 + length + max(data, default=0):
            raise ValueError("the data is cut off")
    return {n: (tuple(row["shape"]), row["dtype"]) for n, row in header.items() if n != "__metadata__"}


def write(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...], str, int]], data: Callable[[str], Iterable[Tensor]]
) -> None:
    """Write a file. ``tensors``: (name, shape, dtype, bytes) in order; ``data(name)``: its content, in flat pieces."""
    rows = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, dtype, size in rows:
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, *_ in rows:
            for piece in data(name):
                _write_bytes(file, piece)
        file.flush()


def _write_bytes(file: BinaryIO, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    file.write(flat.numpy().data)
