"""nn.Module on fake tensors -> the joint forward and backward FX graph."""

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
from superscaler.trace.decompositions import table
from superscaler.trace.entry import Entry
from superscaler.trace.failures import explained
from superscaler.trace.intercept import Intercept


def capture(
    entry: Entry, tensors: Sequence[Tensor], mode: FakeTensorMode, *, promote: bool, position_ids: bool
) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph, whose placeholders and output carry descriptors, and the constants that the model's code holds.

    ``promote``: every float becomes float64. Raises :class:`TraceError` for whatever cannot be traced.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if promote:  # a traced factory call without a dtype takes the default one again when it is traced jointly
            stack.enter_context(_default_float64())
        program = _export(entry, tensors, promote=promote, position_ids=position_ids)
        joint: Any = aot_export_joint_with_descriptors(stack, program.module(), tuple(tensors), decompositions=table())
        constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
        return joint.graph_module.graph, constants


def _export(
    entry: Entry, tensors: Sequence[Tensor], *, promote: bool, position_ids: bool
) -> torch.export.ExportedProgram:
    with transformers_masks.installed(position_ids=position_ids), preserve_node_meta(), Intercept(promote=promote):
        return torch.export.export(entry, tuple(tensors), strict=False)


@contextlib.contextmanager
def _default_float64() -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
