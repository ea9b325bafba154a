"""Communication between workers: one interface, two implementations (``inline`` and ``distributed``).

Every communication is known by its key, (number in the plan, micro-batch), equal on all that take part. A call posts
it and returns a :class:`Handle`; nothing blocks before ``Handle.wait``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from superscaler.ir.layout import PartialKind

Key = tuple[int, int]
Group = tuple[int, ...]


class Posted(NamedTuple):
    """What a handle stands for, for messages."""

    kind: str
    key: Key
    peers: Group

    def __str__(self) -> str:
        return f"{self.kind} number {self.key[0]}, micro-batch {self.key[1]}, with workers {list(self.peers)}"


class Handle(Protocol):
    """A communication under way. Its tensors must stay untouched until ``wait`` has returned."""

    @property
    def posted(self) -> Posted:
        """What it stands for."""
        ...

    def ready(self) -> bool:
        """Whether ``wait`` would return at once."""
        ...

    def wait(self) -> None:
        """Return when the tensors may be used. Raises :class:`WorkerError` when the time limit has passed."""
        ...


class Comm(Protocol):
    """One worker's side of all communication. Tensors are contiguous, but those that are sent.

    ``ordered``: peers must post what they exchange in one order; otherwise keys alone match them.
    """

    ordered: bool

    def send(self, tensor: Tensor, peer: int, key: Key) -> Handle | None:
        """Send a tensor, in row-major order, to a peer that receives as many elements under the same key.

        None: it was copied, there is nothing to wait for.
        """
        ...

    def recv(self, tensor: Tensor, peer: int, key: Key) -> Handle:
        """Receive into ``tensor``."""
        ...

    def all_reduce(self, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        """Reduce (``sum``, ``max`` or ``min``) in place over the group."""
        ...

    def reduce_scatter(self, out: Tensor, tensor: Tensor, kind: PartialKind, group: Group, key: Key) -> Handle:
        """``tensor``: one row per member. ``out``: this worker's row, reduced."""
        ...

    def all_gather(self, out: Tensor, tensor: Tensor, group: Group, key: Key) -> Handle:
        """``out``: one row per member."""
        ...

    def all_to_all(
        self, out: Tensor, tensor: Tensor, taken: list[int], given: list[int], group: Group, key: Key
    ) -> Handle:
        """Flat tensors: ``given[i]`` elements go to member i, ``taken[i]`` come from it."""
        ...
