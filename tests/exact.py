"""How exactness is judged (DESIGN §6): a plan against plain torch, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from superscaler.api import compile, compile_graphs
from superscaler.ir.cluster import Cluster
from superscaler.ir.plan import Plan
from superscaler.plans import PlanScript, parse
from superscaler.runtime.launch import Backend, launch
from superscaler.trace import trace
from superscaler.trace.promote import Float64Mode
from superscaler.transforms.optimize import SGD, AdamW, Optimizer, with_optimizer

STEPS = 3
Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Result:
    """What three steps give: the loss of each, the gradients of the first, the state before and after all."""

    losses: list[float]
    gradients: dict[str, Tensor]
    start: dict[str, Tensor]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]


class Subject:
    """A model with a batch, in float64, traced once: any number of plans are compared with one run of plain torch."""

    def __init__(
        self, model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
        loss: Loss | None = None,
    ) -> None:  # fmt: skip
        self.model = as_double(copy.deepcopy(model))
        self.args = [as_double(a) for a in args]
        self.kwargs = {name: as_double(a) for name, a in (kwargs or {}).items()}
        self.loss = loss
        self._expected: dict[Optimizer, Result] = {}
        self.traced = trace(self.model, self.args, self.kwargs, loss=loss, dtype="f64")

    def compile(self, plan: PlanScript | str, devices: int, optimizer: Optimizer) -> Plan:
        """The checked plan of a training step."""
        aliases = {other: names[0] for names in self.traced.state.values() for other in names[1:]}
        return compile_graphs(
            {"train": with_optimizer(self.traced.graph, optimizer)},
            Cluster.local(devices),
            parse(plan) if isinstance(plan, str) else plan,
            model={"name": type(self.model).__name__, "aliases": aliases},
            settings={"seed": 0, "dtype": "f64", "lr": optimizer.lr, "optimizer": msgspec.to_builtins(optimizer)},
        )

    def expected(self, optimizer: Optimizer) -> Result:
        if optimizer not in self._expected:
            self._expected[optimizer] = reference(self.model, self.args, self.kwargs, self.loss, optimizer)
        return self._expected[optimizer]

    def run(self, plan: Plan, backend: Backend = "inline") -> Result:
        """Three steps of a compiled plan, in one process unless ``backend`` is another."""
        return run(plan, self.model, self.args, self.kwargs, backend)

    def assert_exact(self, plan: PlanScript | str, devices: int, optimizer: Optimizer | None = None) -> Plan:
        """Compile, check and run ``plan`` in one process; loss, gradients and state after 3 steps as plain torch's."""
        optimizer = optimizer or SGD(lr=0.1)
        compiled = self.compile(plan, devices, optimizer)
        compare(self.run(compiled), self.expected(optimizer), optimizer)
        return compiled


def assert_exact(
    model: nn.Module,
    args: Sequence[Any],
    plan: Any,
    devices: int,
    *,
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
    kwargs: dict[str, Any] | None = None,
    evaluate: bool = False,
) -> Plan:
    """The same by way of ``compile``, as a user calls it; ``evaluate``: its entry ``eval`` is made and checked, too."""
    optimizer = optimizer or SGD(lr=0.1)
    model = as_double(copy.deepcopy(model))
    args, kwargs = [as_double(a) for a in args], {name: as_double(a) for name, a in (kwargs or {}).items()}
    compiled = compile(
        model, args, kwargs, cluster=Cluster.local(devices), plan=plan, loss=loss, optimizer=optimizer, dtype="f64",
        evaluate=evaluate,
    )  # fmt: skip
    compare(run(compiled, model, args, kwargs), reference(model, args, kwargs, loss, optimizer), optimizer)
    return compiled


def as_double(value: Any) -> Any:
    """Floating-point tensors, alone or in a module's parameters, buffers and plain attributes, in float64."""
    if isinstance(value, nn.Module):
        for module in value.double().modules():
            vars(module).update({n: as_double(v) for n, v in vars(module).items() if isinstance(v, Tensor)})
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def reference_optimizer(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer that ``optimizer`` must equal (one group)."""
    parameters = list(model.parameters())
    if isinstance(optimizer, AdamW):
        return torch.optim.AdamW(
            parameters, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
    )


def reference(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], loss: Loss | None, optimizer: Optimizer
) -> Result:
    """Three steps of plain torch on a copy of the model."""
    model = copy.deepcopy(model).train()
    stepper = reference_optimizer(model, optimizer)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for step in range(STEPS):
        stepper.zero_grad()
        with Float64Mode():
            output = model(*args, **kwargs)
            value = loss(output) if loss else getattr(output, "loss", output)
            value.backward()
        losses.append(value.item())
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        if optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        stepper.step()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    return Result(losses, gradients, start, parameters, dict(model.named_buffers()))


def run(
    plan: Plan, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], backend: Backend = "inline"
) -> Result:
    """Three steps of the plan's training entry."""
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    with launch(plan, model, backend=backend) as job:
        for step in range(STEPS):
            losses.append(job.step(*args, **kwargs))
            gradients = gradients if step else job.gradients()
        state = job.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    return Result(
        losses,
        gradients,
        start,
        {n: t for n, t in state.items() if n not in buffers},
        {n: t for n, t in state.items() if n in buffers},
    )


def compare(found: Result, expected: Result, how: Optimizer) -> None:
    """Losses, gradients, parameters and buffers, as DESIGN §6 says."""
    for step, (got, loss) in enumerate(zip(found.losses, expected.losses, strict=True)):
        assert abs(got - loss) <= 1e-9 * max(1.0, abs(loss)), f"loss of step {step}: {got} instead of {loss}"
    compare_gradients(found.gradients, expected.gradients)
    compare_parameters(found.parameters, expected, how)
    for name, buffer in found.buffers.items():
        assert torch.allclose(buffer, expected.buffers[name], rtol=1e-9, atol=1e-9), f"buffer {name}"


def compare_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error <= 1e-9 * max(gradient.norm(), 1e-6 * norm), f"gradient of {name}: off by {error:.3g}"


def compare_parameters(found: Mapping[str, Tensor], expected: Result, optimizer: Optimizer) -> None:
    whole = torch.stack([p.norm() for p in expected.start.values()]).norm()
    for name, parameter in expected.parameters.items():
        error = (found[name] - parameter).norm()
        if isinstance(optimizer, AdamW):
            allowed = 1e-7 * max(parameter.norm(), optimizer.lr * STEPS * parameter.numel() ** 0.5)
        else:
            allowed = 1e-9 * max(parameter.norm(), 1e-6 * whole)
        assert error <= allowed, f"{name} after {STEPS} steps: off by {error:.3g}, allowed {allowed:.3g}"
