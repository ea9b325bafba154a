"""Keys and values of many sequences of unequal length, each contiguous, all in one pool.

    cache = KVCache(pool, KVLayout(layers=32, heads=8, dim=128), max_tokens=1 << 17)
    sequence = cache.create(prompt)             # maps what is cached of the prompt; .length says how much that is
    sequence.append(prompt[sequence.length:])   # room for these tokens; then write keys(layer)[...], values(layer)[...]
    child = sequence.fork()                     # the same chunks; the tail is copied by whoever appends first
    sequence.free()                             # its chunks stay cached until somebody needs the memory

A kernel sees base addresses that never change and plain tensors; there is no page table.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import torch

from superscaler.errors import OutOfMemory, UsageError, UseAfterFree, VirtualMemoryError
from superscaler.ir.argument import shown, whole, wholes
from superscaler.runtime.kernels.attention import CachedKV
from superscaler.runtime.memory import Pool, VTensor
from superscaler.runtime.memory.sizes import of_kind, text_of
from superscaler.runtime.serving.kv_layout import KVLayout
from superscaler.runtime.serving.radix import Block, Node, PrefixTree


class KVCache:
    """Sequences of at most ``max_tokens`` tokens.

    ``ahead``: with fewer tokens of room than this, the next chunk is mapped in the background. ``block``: a cached
    prefix that ends inside a chunk is used if that saves so many tokens (its chunk must be copied). ``owner``: the
    name under which the pool counts its memory. Raises :class:`UsageError` for an argument of another kind.
    """

    def __init__(
        self, pool: Pool, layout: KVLayout, max_tokens: int, *, owner: str = "kv", ahead: int = 0, block: int = 16
    ) -> None:
        of_kind(pool, Pool, "a KV cache's pool", "superscaler.runtime.memory.Pool(...)")
        of_kind(layout, KVLayout, "a KV cache's layout", "KVLayout(layers=..., heads=..., dim=...)")
        if whole(max_tokens, "max_tokens") <= 0:
            raise UsageError(f"max_tokens={max_tokens}", hint="a positive number of tokens")
        self.pool = pool
        self.layout = layout
        self.max_tokens = whole(max_tokens, "max_tokens")
        self.owner = text_of(owner, "a KV cache's owner")
        self.ahead = whole(ahead, "ahead")
        self.block = whole(block, "block")
        self.tree = PrefixTree()
        # Eviction may be asked for by any thread that needs memory.
        self.lock = threading.RLock()
        pool.add_reclaimer(self.reclaim)

    def create(self, tokens: Sequence[int] = ()) -> KVSequence:
        """A sequence that has the longest cached prefix of ``tokens``, but not the last one (it is to be computed).

        Raises :class:`UsageError` where ``tokens`` are not whole numbers.
        """
        tokens = tokens_of(tokens, self.owner)
        sequence = KVSequence(self)
        if len(tokens) > 1 and self.tree.nodes:
            try:
                self._reuse(sequence, tokens[:-1])
            except BaseException:
                sequence.free(keep=False)
                raise
        return sequence

    def _reuse(self, sequence: KVSequence, tokens: list[int]) -> None:
        chunk, layout = self.pool.chunk, self.layout
        with self.lock:
            node, partial, common = self.tree.match(self.blocks(tokens))
            deepest = partial if partial is not None and common >= self.block else node
            if deepest.parent is None:
                return
            matched = layout.first_token(node.depth + 1, chunk) + (common if deepest is partial else 0)
            # The last token may reach into a chunk that was not matched.
            matched = min(matched, layout.capacity((deepest.depth + 1) * chunk), len(tokens))
            if not matched:
                return
            self.tree.touch(deepest)
            path = list(deepest.path())[::-1]
            sequence.map_nodes(path[: layout.chunks(matched, chunk)], tokens[:matched])

    def blocks(self, tokens: Sequence[int]) -> list[Block]:
        """The tokens of each chunk of a plane, in order; the last block may be short."""
        blocks: list[Block] = []
        while (begin := self.layout.first_token(len(blocks), self.pool.chunk)) < len(tokens):
            end = self.layout.first_token(len(blocks) + 1, self.pool.chunk)
            blocks.append(tuple(tokens[begin:end]))
        return blocks

    def keep(self, sequence: KVSequence) -> None:
        """Remember the sequence's chunks under its tokens."""
        with self.lock:
            node = self.tree.root
            try:
                for depth, block in enumerate(self.blocks(sequence.tokens)):
                    child = self.tree.containing(node, block)
                    if child is None:
                        lo, hi = depth * self.pool.chunk, (depth + 1) * self.pool.chunk
                        child = self.tree.insert(node, block, [plane.hold(lo, hi) for plane in sequence.planes])
                    node = child
            finally:
                # Also where the system refused the rest: what nobody touched would never be evicted.
                if node.parent is not None:
                    self.tree.touch(node)

    def reclaim(self, nbytes: int) -> int:
        """Evict cached prefixes until ``nbytes`` are free, as far as that frees anything; returns how many are."""
        with self.lock:
            return self.tree.evict(-(-nbytes // self.pool.chunk)) * self.pool.chunk

    @property
    def cached_tokens(self) -> int:
        """Tokens that cached prefixes hold."""
        return self.tree.tokens

    def batch(self, sequences: Sequence[KVSequence], layer: int, device: torch.device | str = "cpu") -> CachedKV:
        """What the attention kernels take of one layer, on ``device``. The addresses hold for the sequences' lives.

        Raises :class:`UsageError` for what is no sequence of this cache or no layer, :class:`UseAfterFree` for a
        sequence that was freed.
        """
        layout = self.layout
        group, within = layout.place(layer)
        for sequence in self._own(sequences):
            sequence.check_alive()
        offset = within * layout.heads * layout.dim * layout.dtype.itemsize
        keys = [sequence.planes[group].address + offset for sequence in sequences]
        values = [sequence.planes[group + layout.groups].address + offset for sequence in sequences]
        lengths = [sequence.length for sequence in sequences]
        return CachedKV(
            keys=torch.tensor(keys, dtype=torch.int64, device=device),
            values=torch.tensor(values, dtype=torch.int64, device=device),
            lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
            longest=max(lengths, default=0),
            heads=layout.heads,
            dim=layout.dim,
            token_stride=layout.row // layout.dtype.itemsize,
            dtype=layout.dtype,
        )

    def _own(self, sequences: Sequence[KVSequence]) -> Sequence[KVSequence]:
        of_kind(sequences, Sequence, f"{self.owner}: a batch", "a list of sequences that create(...) made")
        for sequence in sequences:
            if getattr(sequence, "cache", None) is not self:
                raise UsageError(
                    f"{self.owner}: {shown(sequence)} in a batch is no sequence of this cache",
                    hint="sequences that its create(...) and their fork() made",
                )
        return sequences


class KVSequence:
    """One sequence: ``length`` tokens, each with keys and values in every layer. Made by :meth:`KVCache.create`."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.length = 0
        self.tokens: list[int] = []
        self._room = 0
        self._asked = 0
        size = cache.max_tokens * cache.layout.row
        self.planes: list[VTensor] = [cache.pool.reserve(size, cache.owner) for _ in range(cache.layout.planes)]

    def append(self, tokens: int | Sequence[int]) -> None:
        """Make room for more tokens: their number, or (so that the prefix can be cached) what they are.

        Raises :class:`OutOfMemory`, or :class:`UsageError` for what is neither, and leaves the sequence as it was.
        """
        if isinstance(tokens, int):
            count = tokens
        else:
            tokens = tokens_of(tokens, self.cache.owner)
            count = len(tokens)
        if count < 0:
            raise UsageError(f"{self.cache.owner}: {count} more tokens", hint="a sequence grows; free() it, or fork()")
        length = self.length + count
        if length > self._room:
            self._grow(length)
        if not isinstance(tokens, int):
            self.tokens += tokens
        self.length = length
        if self._room - length < self.cache.ahead and self._asked <= self._room:
            self._grow_ahead()

    def _grow(self, length: int) -> None:
        self.check_alive()
        layout, chunk = self.cache.layout, self.cache.pool.chunk
        if length > self.cache.max_tokens:
            raise OutOfMemory(
                f"{self.cache.owner}: a sequence of {length:,} tokens",
                f"at most {self.cache.max_tokens:,} were reserved",
                hint="a larger max_tokens: address range costs no memory",
            )
        size = min(layout.chunks(length, chunk) * chunk, self.planes[0].reserved)
        grown: list[tuple[VTensor, int]] = []
        begin = self.length * layout.row
        try:
            for plane in self.planes:
                before = plane.size
                if begin < before:
                    # The tail was shared by a fork or a prefix: writing into it takes a copy of our own.
                    plane.writable(begin, before)
                if before < size:
                    plane.extend(size - before)
                    grown.append((plane, before))
        except BaseException:
            for plane, before in grown:
                plane.trim(before)
            raise
        self._room = min(layout.capacity(size), self.cache.max_tokens)

    def _grow_ahead(self) -> None:
        self._asked = self._room + 1
        for plane in self.planes:
            plane.extend_ahead(self.cache.pool.chunk)

    def map_nodes(self, nodes: list[Node], tokens: list[int]) -> None:
        """Map the chunks of a cached prefix (an empty sequence's beginning)."""
        for index, plane in enumerate(self.planes):
            plane.share_chunks([node.chunks[index] for node in nodes])
        self.tokens = tokens
        self.length = self._room = len(tokens)

    def fork(self) -> KVSequence:
        """A second sequence with the same tokens and chunks. Raises :class:`OutOfMemory` and leaves no trace."""
        self.check_alive()
        child = KVSequence(self.cache)
        try:
            for ours, theirs in zip(self.planes, child.planes, strict=True):
                if self.length:
                    theirs.share(
                        ours, self.cache.layout.chunks(self.length, self.cache.pool.chunk) * self.cache.pool.chunk
                    )
        except BaseException:
            child.free(keep=False)
            raise
        child.tokens, child.length, child._room = list(self.tokens), self.length, self.length
        # Our own tail is shared now as well: the next append takes the slow path, and copies it.
        self._room = self.length
        return child

    def keys(self, layer: int) -> torch.Tensor:
        """The keys of a layer, ``[length, heads, dim]``: a view, no copy. Raises :class:`UsageError` for no layer."""
        return self._view(layer, 0)

    def values(self, layer: int) -> torch.Tensor:
        """The values of a layer, ``[length, heads, dim]``: a view, no copy. Raises :class:`UsageError` for no layer."""
        return self._view(layer, self.cache.layout.groups)

    def _view(self, layer: int, first: int) -> torch.Tensor:
        self.check_alive()
        layout = self.cache.layout
        group, within = layout.place(layer)
        shape = (self.length, layout.layers_per_chunk, layout.heads, layout.dim)
        return self.planes[first + group].tensor(shape, layout.dtype)[:, within]

    def free(self, *, keep: bool = True) -> None:
        """Give the sequence up. With ``keep``, what is known by its tokens stays cached until memory is needed."""
        self.check_alive()
        if keep and self.length and len(self.tokens) == self.length:
            # Caching is a favour: where the system refuses, the prefix is computed again.
            with contextlib.suppress(VirtualMemoryError):
                self.cache.keep(self)
        self._room = 0
        while self.planes:
            self.planes[-1].free()
            self.planes.pop()

    def check_alive(self) -> None:
        """Raise :class:`UseAfterFree` for a sequence that was freed."""
        if not self.planes:
            raise UseAfterFree(
                f"{self.cache.owner}: a sequence was used after it was freed", hint="create(...) another one"
            )


def tokens_of(tokens: Any, owner: str) -> list[int]:
    """Tokens as a list of ints. Raises :class:`UsageError` for anything else; a plain list of them is told at once."""
    if tokens.__class__ is list:
        for token in tokens:
            if token.__class__ is not int:
                break
        else:
            return tokens
    return list(wholes(tokens, f"{owner}: tokens"))
