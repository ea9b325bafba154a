"""nn.Module on fake tensors -> the joint forward and backward FX graph.

Autograd itself runs under the trace, so whatever it supports is in the graph: custom autograd functions, gradients of
gradients, hooks on tensors.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.traceback import preserve_node_meta

from superscaler.trace import transformers_masks
from superscaler.trace.checkpoints import not_recomputed
from superscaler.trace.decompositions import table
from superscaler.trace.entry import Entry
from superscaler.trace.failures import explained
from superscaler.trace.intercept import Intercept
from superscaler.trace.places import Places


def capture(
    entry: Entry, tensors: Sequence[Tensor], mode: FakeTensorMode, *, promote: bool, position_ids: bool
) -> fx.Graph:
    """The graph, whose placeholders and output carry descriptors.

    ``promote``: every float becomes float64. Raises :class:`TraceError` for whatever cannot be traced.
    """
    places = Places()
    with contextlib.ExitStack() as stack:
        for context in (
            explained(),
            _quiet(),
            _default_dtype(torch.float64 if promote else torch.get_default_dtype()),
            transformers_masks.installed(position_ids=position_ids),
            not_recomputed(),
            places.watched(entry.model),
            preserve_node_meta(),
            mode,
            Intercept(places, promote=promote),
        ):
            stack.enter_context(context)
        joint: Any = aot_export_joint_with_descriptors(stack, entry, tuple(tensors), decompositions=table())
        return joint.graph_module.graph


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
