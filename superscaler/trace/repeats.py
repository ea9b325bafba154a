"""Modules that repeat are traced once.

Tracing costs a millisecond per op, and a deep model is one block over and over. A rehearsal runs the model on fake
tensors and learns, for the first of several like modules (:mod:`.likeness`), what a call gives; while the model is
traced, a stand-in without parameters makes each such call one opaque op; when the trace is written as a Graph, the op
is replaced by the traced block, with the parameters of the member that was called.

A call that does more than compute its results from its inputs and state (writes buffers or attributes, reads a number
that is another in every member, has hooks) is not taken over. Whatever else goes wrong, the model is traced whole.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from superscaler.trace.effects import Irregular, effects_of, hooks_of, tripwires
from superscaler.trace.inputs import SLOT, filled, is_static
from superscaler.trace.likeness import alike
from superscaler.trace.regions import Layout, call_region, encoded


@dataclass(frozen=True)
class Template:
    """A call of one member that stands for all calls of its kind: where its tensors go, and what it gives."""

    module: nn.Module
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    inputs: tuple[Layout, ...]
    out_leaves: tuple[Any, ...]
    out_spec: pytree.TreeSpec
    outputs: tuple[Layout, ...]
    text: str  # ``outputs`` as an argument of the op


@dataclass(frozen=True)
class Call:
    """One call: of which kind, by the member at which path."""

    template: Template
    path: str


@dataclass
class _Member:
    path: str
    module: nn.Module
    group: int
    varying: tuple[tuple[str, str], ...]
    regular: bool = True
    hooks: list[int] = field(default_factory=list[int])


class StandIn(nn.Module):
    """Takes a module's place in its list: calls it, shows its attributes, passes for its class, has no parameters.

    So the model must not look for parameters while it runs (``entry.running``): it would miss these.
    """

    def __init__(self, module: nn.Module, entry: Any) -> None:
        super().__init__()
        vars(self)["_stands_for"] = module
        vars(self)["_entry"] = entry

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type(vars(self)["_stands_for"])

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_stands_for"], name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Generator[tuple[str, nn.Module]]:
        if vars(self)["_entry"].running:
            raise Irregular("the forward looks for modules or parameters")
        return super().named_modules(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["_stands_for"](*args, **kwargs)


class Repeats:
    """The repeated modules of a model, and their calls by number.

    ``anchor``: a scalar that every call takes as its first input, so that results require a gradient where the
    parameters, which are no inputs of the op, do.
    """

    def __init__(self, entry: Any) -> None:
        self.calls: dict[int, Call] = {}
        self._entry = entry
        model: nn.Module = entry.model
        self._members = [
            _Member(path, model.get_submodule(path), number, group.varying)
            for number, group in enumerate(alike(model))
            for path in group.paths
        ]
        self._templates: dict[Any, Template | None] = {}
        self._rehearsing = False
        self._inside = False

    def __bool__(self) -> bool:
        return any(member.regular for member in self._members)

    @contextmanager
    def taken_over(self, *, rehearsing: bool) -> Generator[None]:
        """Inside it the members' calls are opaque ops. ``rehearsing``: learn what kinds of calls there are."""
        self._rehearsing = rehearsing
        members = [member for member in self._members if member.regular]
        for member in members:
            member.hooks = hooks_of(member.module)
            member.module.forward = self._stub(member, member.module.forward)  # type: ignore[method-assign]
            self._replace(member, StandIn(member.module, self._entry))
        try:
            yield
        finally:
            for member in members:
                self._replace(member, member.module)
                del vars(member.module)["forward"]

    def _replace(self, member: _Member, module: nn.Module) -> None:
        owner, _, name = member.path.rpartition(".")
        self._entry.model.get_submodule(owner)._modules[name] = module

    def _stub(self, member: _Member, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._called(member, forward, args, kwargs)

    def _called(
        self, member: _Member, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._inside:
            return forward(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        settings = tuple(SLOT if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        inputs = tuple(Layout.of(x) for x in tensors)
        key = member.group, repr(spec), repr(settings), inputs, torch.is_grad_enabled()
        plain = all(leaf is SLOT or is_static(leaf) for leaf in settings) and not torch.is_autocast_enabled("cpu")
        known = plain and hooks_of(member.module) == member.hooks
        if known and self._rehearsing and key not in self._templates:
            return self._rehearsed(member, forward, key, _Arguments(settings, spec, inputs, args, kwargs))
        template = self._templates.get(key) if known else None
        if template is None:
            if not self._rehearsing:
                raise Irregular(f"{member.path} is called in a way that it was not in the rehearsal")
            member.regular = False
            return forward(*args, **kwargs)
        number = len(self.calls)
        self.calls[number] = Call(template, member.path)
        results = call_region([self._entry.anchor, *tensors], template.text, number)
        return filled(template.out_leaves, template.out_spec, results)

    def _rehearsed(self, member: _Member, forward: Callable[..., Any], key: Any, given: _Arguments) -> Any:
        """Run the member's own forward, and learn what it gives if it does nothing else."""
        self._templates[key] = None
        leaves = pytree.tree_leaves((given.args, given.kwargs))
        before = effects_of(member.module, leaves)
        self._inside = True
        try:
            with tripwires(member.module, member.varying):
                output = forward(*given.args, **given.kwargs)
        except Exception:  # it may have read a tripwire: run it as it is, so that a true error shows
            member.regular = False
            return forward(*given.args, **given.kwargs)
        finally:
            self._inside = False
        out_leaves, out_spec = pytree.tree_flatten(output)
        tensors = [leaf for leaf in out_leaves if isinstance(leaf, Tensor)]
        settings = tuple(SLOT if isinstance(leaf, Tensor) else leaf for leaf in out_leaves)
        pure = effects_of(member.module, leaves) == before
        if pure and tensors and all(leaf is SLOT or is_static(leaf) for leaf in settings):
            outputs = tuple(Layout.of(x) for x in tensors)
            self._templates[key] = Template(
                member.module, given.leaves, given.spec, given.inputs, settings, out_spec, outputs, encoded(outputs)
            )
        else:
            member.regular = False
        return output


@dataclass(frozen=True)
class _Arguments:
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    inputs: tuple[Layout, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
