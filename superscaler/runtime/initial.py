"""Where a job's state comes from: the caller's model, given weights, or a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from superscaler.errors import PlanError, UsageError, did_you_mean
from superscaler.ir.argument import shown
from superscaler.ir.plan import Plan, StateTensor
from superscaler.ir.region import Region
from superscaler.runtime.crew import Crew
from superscaler.runtime.packing import packing

_SAME = "the model that the plan was compiled from, or compile this one"
BATCH = 64 << 20  # bytes under way to the workers at a time


def aliases(plan: Plan) -> dict[str, str]:
    """Tied name -> the name under which the plan has the tensor."""
    return dict(plan.model.get("aliases", {}))


def copied(plan: Plan) -> list[StateTensor]:
    """The state tensors that start as copies of the model's."""
    return [t for t in plan.state if isinstance(t.init, str)]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a model by name, tied ones under each of their names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def check_names(plan: Plan, given: Mapping[str, Tensor], *, what: str, partial: bool = False) -> dict[str, Tensor]:
    """State tensor -> its source. Raises :class:`PlanError` naming the first that is missing or mis-shaped.

    ``partial``: some may be missing.
    """
    tied = aliases(plan)
    by_name = {tied.get(name, name): tensor for name, tensor in given.items()}
    by_name.update({name: tensor for name, tensor in given.items() if name not in tied})
    sources: dict[str, Tensor] = {}
    for tensor in copied(plan):
        source = by_name.get(source_of(tensor))
        if source is None and partial:
            continue
        if source is None:
            raise PlanError(f"{what} has no {tensor.name!r}, which the plan has", *_origin(plan), hint=_SAME)
        if tuple(source.shape) != tensor.shape:
            raise PlanError(
                f"{tensor.name!r} has shape {tuple(source.shape)} in {what} and {tensor.shape} in the plan",
                *_origin(plan),
                hint=_SAME,
            )
        if source.is_meta:
            raise PlanError(f"{tensor.name!r} is on the meta device: it has no content", hint="weights=, or init_seed=")
        sources[tensor.name] = source
    return sources


def check_weights(plan: Plan, given: Mapping[str, Tensor], *, beside: frozenset[str]) -> dict[str, Tensor]:
    """State tensor -> its source among given tensors; ``beside``: what the model has, so that it may be missing.

    Raises :class:`PlanError` naming the first that is missing, mis-shaped or unknown to plan and model.
    """
    for name, tensor in given.items():
        _refuse_no_tensor(name, tensor)
    sources = check_names(plan, given, what="weights", partial=bool(beside))
    known = {source_of(t) for t in plan.state} | set(aliases(plan)) | beside
    extra = next((name for name in given if name not in known), None)
    if extra is not None:
        raise PlanError(
            f"weights have {extra!r}, which the plan has not", *_origin(plan), hint=did_you_mean(extra, sorted(known))
        )
    return sources


def _refuse_no_tensor(name: object, given: object) -> None:
    if not isinstance(name, str) or not isinstance(given, Tensor):
        raise UsageError(f"weights[{name!r}] is {shown(given)}", hint="tensors by name: model.state_dict()")


def check_model(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """State tensor -> the model's tensor. Raises :class:`PlanError` if the plan was compiled from another model."""
    sources = check_names(plan, tensors_of(model), what=type(model).__name__)
    known = {source_of(t) for t in copied(plan)} | set(aliases(plan))
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in known:
            raise PlanError(f"the model has a parameter {name!r}, which the plan has not", *_origin(plan), hint=_SAME)
    return sources


def source_of(tensor: StateTensor) -> str:
    """The model's name of what a state tensor is a copy of: its own, or what ``init`` says after a colon."""
    _, _, name = str(tensor.init).partition(":")
    return name or tensor.name


def _origin(plan: Plan) -> tuple[str, ...]:
    name = plan.model.get("name")
    return (f"the plan was compiled from {name}",) if name else ()


def send_state(plan: Plan, crew: Crew, sources: Mapping[str, Tensor]) -> None:
    """Copy each worker's regions to it, a bounded number of bytes at a time."""
    for batch in _batches(plan, sources):
        parts: list[tuple[Any, ...]] = []
        for worker in range(crew.size):
            mine: dict[str, Tensor] = {}
            for tensor, source in batch:
                mesh = plan.space.mesh(tensor.layout.mesh)
                if worker in mesh.devices:
                    region = plan.space.region(tensor.shape, tensor.layout, mesh.coords(worker))
                    mine[tensor.name] = packing(Region.full(tensor.shape), region).take(source.detach()).contiguous()
            parts.append((mine,))
        crew.call("load", parts)


def _batches(plan: Plan, sources: Mapping[str, Tensor]) -> Iterator[list[tuple[StateTensor, Tensor]]]:
    batch: list[tuple[StateTensor, Tensor]] = []
    size = 0
    for tensor in plan.state:
        source = sources.get(tensor.name)
        if source is None:
            continue
        batch.append((tensor, source))
        size += source.numel() * source.element_size()
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def draw_state(plan: Plan, crew: Crew, seed: int) -> None:
    """Start without weights: matrices normal with standard deviation 0.02, scales of norms one, biases zero.

    Raises :class:`UsageError` for a buffer, whose content no seed can tell.
    """
    drawn: dict[str, str] = {}
    filled: dict[str, float] = {}
    for tensor in copied(plan):
        name = source_of(tensor)
        if tensor.kind == "buffer":
            raise UsageError(
                f"buffer {tensor.name!r} cannot be drawn from a seed", hint="launch with the model, or weights="
            )
        if len(tensor.shape) > 1:
            drawn[tensor.name] = name
        else:
            filled[tensor.name] = 1.0 if name.endswith("weight") else 0.0
    crew.call("draw", [(drawn, seed)] * crew.size)
    crew.call("fill", [(filled,)] * crew.size)
