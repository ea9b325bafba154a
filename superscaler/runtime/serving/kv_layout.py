"""How keys and values lie in memory: which layers share a range, and where its chunks end in tokens.

A *plane* is one vTensor of a sequence: the keys, or the values, of ``layers_per_chunk`` consecutive layers, token after
token. One layer per plane keeps a layer's keys dense, which kernels like (all layers in one range costs a third of the
throughput through the TLB, as kvcached found); more layers per plane make a chunk last fewer tokens, which short
sequences like.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from superscaler.errors import UsageError
from superscaler.ir.argument import whole
from superscaler.runtime.memory.sizes import of_kind


@dataclass(frozen=True, slots=True)
class KVLayout:
    """``layers`` layers of ``heads`` key-value heads of ``dim`` elements each."""

    layers: int
    heads: int
    dim: int
    dtype: torch.dtype = torch.float16
    layers_per_chunk: int = 1

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "dim", "layers_per_chunk"):
            whole(getattr(self, name), name)
        of_kind(self.dtype, torch.dtype, "a KV layout's dtype", "torch.float16, torch.bfloat16, …")
        if min(self.layers, self.heads, self.dim, self.layers_per_chunk) <= 0 or self.layers % self.layers_per_chunk:
            raise UsageError(
                f"a KV layout of {self.layers} layers, {self.heads} heads of {self.dim}, "
                f"{self.layers_per_chunk} layers per chunk",
                hint="positive numbers; layers_per_chunk divides layers",
            )

    @property
    def groups(self) -> int:
        """Planes of keys, and as many of values."""
        return self.layers // self.layers_per_chunk

    @property
    def planes(self) -> int:
        """vTensors per sequence."""
        return 2 * self.groups

    @property
    def row(self) -> int:
        """Bytes of one token in one plane."""
        return self.layers_per_chunk * self.heads * self.dim * self.dtype.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all planes."""
        return self.row * self.planes

    def place(self, layer: int) -> tuple[int, int]:
        """Which group of planes a layer's keys and values are in, and which of its layers it is."""
        if not 0 <= whole(layer, "a layer") < self.layers:
            raise UsageError(f"layer {layer} of {self.layers}", hint=f"0 … {self.layers - 1}")
        return divmod(layer, self.layers_per_chunk)

    def chunks(self, tokens: int, chunk: int) -> int:
        """How many chunks of a plane so many tokens touch."""
        return -(-tokens * self.row // chunk)

    def first_token(self, index: int, chunk: int) -> int:
        """The first token that begins in chunk ``index`` or later."""
        return -(-index * chunk // self.row)

    def capacity(self, nbytes: int) -> int:
        """How many tokens fit into so many bytes of a plane."""
        return nbytes // self.row
