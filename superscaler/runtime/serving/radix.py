"""A radix tree over token blocks: which chunks hold the keys and values of which prefixes.

An edge is the tokens of one chunk (a block), so a node is exactly what can be mapped, and given back, as a whole. A
prefix is found block by block; the last block may match in part, since its chunk is shared read-only and copied by the
first who writes into it. Eviction is page-aware: only blocks whose going frees whole chunks go, and of those that were
used at the same time the emptier one, which costs the fewest tokens.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from superscaler.runtime.memory import Chunks

Block = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Node:
    """One block of tokens behind its parent's prefix, and its chunk in each plane."""

    parent: Node | None
    tokens: Block
    depth: int
    chunks: list[Chunks]
    children: dict[Block, Node] = field(default_factory=dict["Block", "Node"])
    by_first: dict[Block, list[Node]] = field(default_factory=dict["Block", "list[Node]"])
    used: int = 0

    def path(self) -> Iterator[Node]:
        """From this node up to, and without, the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class PrefixTree:
    """Prefixes and their chunks. A block has the tokens that begin in one chunk of a plane: none, where a token's row
    is larger than a chunk and goes on in the next ones. The last block may be short."""

    def __init__(self) -> None:
        self.root = Node(None, (), -1, [])
        self.nodes = 0
        self.tokens = 0
        self._clock = itertools.count(1)
        self._order = itertools.count()
        self._leaves: list[tuple[int, int, int, Node]] = []

    def match(self, blocks: Sequence[Block]) -> tuple[Node, Node | None, int]:
        """The deepest node of whole blocks; its child that shares a start of the next block, and how long that is."""
        node = self.root
        for block in blocks:
            child = node.children.get(block)
            if child is None:
                return (node, *_longest(node, block))
            node = child
        return node, None, 0

    def containing(self, parent: Node, block: Block) -> Node | None:
        """The child whose tokens begin with the block's. A chunk must not be under two nodes: neither could go."""
        child = parent.children.get(block)
        if child is None:
            child, common = _longest(parent, block)
            return child if common == len(block) else None
        return child

    def insert(self, parent: Node, block: Block, chunks: list[Chunks]) -> Node:
        """A new node; shorter tails that it contains are dropped."""
        for other in list(parent.by_first.get(block[:1], ())):
            if not other.children and block[: len(other.tokens)] == other.tokens:
                self._remove(other)
        node = Node(parent, block, parent.depth + 1, chunks)
        parent.children[block] = node
        parent.by_first.setdefault(block[:1], []).append(node)
        self.nodes += 1
        self.tokens += len(block)
        return node

    def touch(self, node: Node) -> None:
        """The prefix that ends here was used now."""
        now = next(self._clock)
        for each in node.path():
            each.used = now
        self._offer(node)

    def _offer(self, node: Node) -> None:
        if node.parent is None or node.children:
            return
        if len(self._leaves) > 4 * self.nodes + 64:
            self._leaves = [entry for entry in self._leaves if entry[0] == entry[3].used and entry[3].chunks]
            heapq.heapify(self._leaves)
        heapq.heappush(self._leaves, (node.used, len(node.tokens), next(self._order), node))

    def evict(self, chunks: int) -> int:
        """Give up the least recently used blocks until so many chunks are free; returns how many are."""
        freed = 0
        in_use: list[Node] = []
        while freed < chunks and self._leaves:
            used, _, _, node = heapq.heappop(self._leaves)
            if used != node.used or node.children or not node.chunks:
                continue
            if any(each.shared for each in node.chunks):
                # A live sequence maps them: nothing would be freed.
                in_use.append(node)
                continue
            freed += len(node.chunks)
            self._remove(node)
            if node.parent is not None:
                self._offer(node.parent)
        for node in in_use:
            self._offer(node)
        return freed

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.tokens]
        same = node.parent.by_first[node.tokens[:1]]
        same.remove(node)
        if not same:
            del node.parent.by_first[node.tokens[:1]]
        self.nodes -= 1
        self.tokens -= len(node.tokens)
        chunks, node.chunks = node.chunks, []
        for each in chunks:
            each.free()


def _longest(node: Node, block: Block) -> tuple[Node | None, int]:
    """The child with the longest common start with ``block``."""
    best, length = None, 0
    for child in node.by_first.get(block[:1], ()):
        common = common_start(child.tokens, block)
        if common > length:
            best, length = child, common
    return best, length


def common_start(a: Block, b: Block) -> int:
    """How many tokens two blocks have in common at their beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
