"""What is traced: the user's model with its loss, from a flat list of tensors to the named results of an entry."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from superscaler.errors import TraceError
from superscaler.trace.caches import forget
from superscaler.trace.inputs import Inputs, path_key
from superscaler.trace.remembered import OWN, Key, differing, memory_of, refuse_what_changes_again

Mode = Literal["train", "eval"]
Loss = Callable[[Any], Tensor]


class Entry(nn.Module):
    """``forward(*tensors)`` gives the loss alone in training; every named result in evaluation.

    ``names`` are those of the results, known once it has run. It may run several times: what a forward leaves on its
    modules (caches, say) is gone before the next; ``changed`` names what was of it. ``anchor``: see
    :class:`.repeats.Repeats`.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, loss: Loss | None, mode: Mode) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()
        self.changed: list[Key] = []
        self.anchor: nn.Parameter | None = None
        self.running = False
        self._inputs = inputs
        self._loss = loss
        self._mode: Mode = mode

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self._inputs.call(tensors)
        before = memory_of(self.model)
        with unchanged(self.model):
            self.running = True
            try:
                output = self.model(*args, **kwargs)
                loss = self._loss(output) if self._loss is not None else _loss_of(output)
            finally:
                self.running = False
            self.changed = differing(before, memory_of(self.model))
            results = {} if loss is None and self._mode == "eval" else {"loss": _scalar(loss, output)}
            if self._mode == "eval":
                results |= {name: value for name, value in _tensors_of(output).items() if value is not loss}
        self.names = tuple(results)
        # A result that shares memory with an input or with another result would be left out of the graph.
        return tuple(value.clone() for value in results.values())

    def refuse_memory(self, *tensors: Tensor) -> None:
        """Raise :class:`TraceError` for numbers, names and lists by which one forward would differ from the next."""
        args, kwargs = self._inputs.call(tensors)
        with unchanged(self.model):
            refuse_what_changes_again(self.model, self.changed, lambda: self.model(*args, **kwargs))


@contextmanager
def unchanged(model: nn.Module) -> Generator[None]:
    """Undo assignments to modules; a buffer that was replaced is written to, which is what autograd's trace sees.

    What cached functions keep of it is forgotten too.
    """
    buffers = dict(model.named_buffers(remove_duplicate=False))
    before = [(module, _attributes(module)) for module in model.modules()]
    try:
        yield
        for name, value in list(model.named_buffers(remove_duplicate=False)):
            old = buffers.get(name)
            if old is not None and old is not value:
                old.copy_(value)
                owner, _, last = name.rpartition(".")
                setattr(model.get_submodule(owner), last, old)
    finally:
        for module, attributes in before:
            for name in vars(module).keys() - attributes.keys() - OWN:
                del vars(module)[name]
            vars(module).update(attributes)
        forget()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside its parameters, buffers and submodules; lists and dicts copied."""
    own = {name: value for name, value in vars(module).items() if name not in OWN}
    return {name: copy.copy(value) if type(value) in (list, dict) else value for name, value in own.items()}


def _loss_of(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output if output.numel() == 1 else None
    if isinstance(output, Mapping):
        return output.get("loss")
    return getattr(output, "loss", None)


def _scalar(loss: Any, output: Any) -> Tensor:
    if loss is None:
        shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else None
        raise TraceError(
            f"the model gives {shape or f'a {type(output).__name__}'}, which holds no loss",
            hint="loss=lambda output: ..., or (transformers) pass labels",
        )
    if not isinstance(loss, Tensor) or not loss.is_floating_point() or loss.numel() != 1:
        shape = f"of shape {tuple(loss.shape)} and {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TraceError(f"the loss must be one floating-point number; it is {shape}", hint="loss.mean(), say")
    return loss.reshape(())


def _tensors_of(output: Any) -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"output": output}
    found: dict[str, Tensor] = {}
    leaves = pytree.tree_flatten_with_path(output)[0]
    if [leaf for _, leaf in leaves] == [output]:  # an object that torch cannot look into
        leaves = pytree.tree_flatten_with_path(dict(vars(output)) if hasattr(output, "__dict__") else {})[0]
    for path, leaf in leaves:
        if isinstance(leaf, Tensor):
            name = ".".join(str(path_key(entry)) for entry in path)
            found[name if not name[:1].isdigit() else f"output.{name}"] = leaf
    return found
