"""The traced graphs of repeated modules: one per kind of call and per set of outputs that the loss depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from superscaler.trace.entry import unchanged
from superscaler.trace.inputs import filled
from superscaler.trace.regions import Layout
from superscaler.trace.repeats import Template

Capture = Callable[[Any, Sequence[Tensor]], fx.Graph]


class RegionEntry(nn.Module):
    """``forward(*tensors)`` gives the tensors among a module's results; those not ``present`` without gradient."""

    def __init__(self, template: Template, present: tuple[int, ...]) -> None:
        super().__init__()
        self.model = template.module
        self._template = template
        self._present = present

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = filled(self._template.leaves, self._template.spec, tensors)
        with unchanged(self.model):
            output = self.model(*args, **kwargs)
        results = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        return tuple((x if i in self._present else x.detach()).clone() for i, x in enumerate(results))


class Templates:
    """Captures each graph when it is first asked for."""

    def __init__(self, capture: Capture, mode: FakeTensorMode) -> None:
        self._capture = capture
        self._mode = mode
        self._graphs: dict[tuple[int, tuple[int, ...]], fx.Graph] = {}

    def graph(self, template: Template, present: tuple[int, ...]) -> fx.Graph:
        """The graph of one kind of call; forward only if nothing is ``present``."""
        key = id(template), present
        if key not in self._graphs:
            with torch.set_grad_enabled(bool(present)):
                self._graphs[key] = self._capture(RegionEntry(template, present), self._inputs(template.inputs))
        return self._graphs[key]

    def _inputs(self, layouts: Sequence[Layout]) -> list[Tensor]:
        with self._mode:
            return [layout.empty().requires_grad_(layout.requires_grad) for layout in layouts]
