"""nn.Module on fake tensors -> the joint forward and backward FX graph.

Autograd itself runs under the trace, so whatever it supports is in the graph: custom autograd functions, gradients of
gradients, hooks on tensors.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.traceback import preserve_node_meta

from superscaler.trace import transformers_masks
from superscaler.trace.checkpoints import not_recomputed
from superscaler.trace.decompositions import table
from superscaler.trace.failures import explained
from superscaler.trace.intercept import Intercept
from superscaler.trace.places import Places
from superscaler.trace.repeats import Repeats
from superscaler.trace.substitutes import masks_unread


@dataclass(frozen=True)
class Tracing:
    """How a model is traced. ``promote``: every float becomes float64. ``position_ids``: they are among the inputs."""

    mode: FakeTensorMode
    promote: bool
    position_ids: bool

    def capture(self, entry: Any, tensors: Sequence[Tensor], repeats: Repeats | None = None) -> fx.Graph:
        """The joint graph of ``entry`` (which has its module as ``model``); placeholders and output have descriptors.

        Calls of the modules in ``repeats`` are one op each. Raises :class:`TraceError` for what cannot be traced.
        """
        with contextlib.ExitStack() as stack:
            self._enter(stack, entry.model, repeats, rehearsing=False)
            joint: Any = aot_export_joint_with_descriptors(stack, entry, tuple(tensors), decompositions=table())
            return joint.graph_module.graph

    def rehearse(self, entry: Any, tensors: Sequence[Tensor], repeats: Repeats) -> None:
        """Run ``entry`` once, untraced, so that ``repeats`` learns the calls of its modules."""
        with contextlib.ExitStack() as stack:
            self._enter(stack, entry.model, repeats, rehearsing=True)
            entry(*tensors)

    def refuse_memory(self, entry: Any, tensors: Sequence[Tensor]) -> None:
        """Where a forward changes numbers or names that its modules hold, see whether the next would differ by them."""
        if entry.changed:
            with contextlib.ExitStack() as stack:
                self._enter(stack, entry.model, None, rehearsing=True)
                entry.refuse_memory(*tensors)

    def _enter(
        self, stack: contextlib.ExitStack, model: nn.Module, repeats: Repeats | None, *, rehearsing: bool
    ) -> None:
        places = Places()
        for context in (
            explained(),
            _quiet(),
            _default_dtype(torch.float64 if self.promote else torch.get_default_dtype()),
            transformers_masks.installed(position_ids=self.position_ids),
            not_recomputed(),
            masks_unread(),
            places.watched(model),
            repeats.taken_over(rehearsing=rehearsing) if repeats is not None else contextlib.nullcontext(),
            preserve_node_meta(),
            self.mode,
            Intercept(places, promote=self.promote, regions=repeats is not None),
        ):
            stack.enter_context(context)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """No warnings, and no log of what fails on fake tensors: that becomes an error of ours."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before
