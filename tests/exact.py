"""How exactness is judged (DESIGN §6): a plan against plain torch, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from superscaler.api import compile
from superscaler.ir.cluster import Cluster
from superscaler.ir.plan import Plan
from superscaler.runtime.launch import launch
from superscaler.trace.promote import Float64Mode
from superscaler.transforms.optimize import SGD, AdamW, Optimizer

STEPS = 3


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


def as_double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_exact(
    model: nn.Module,
    args: Sequence[Any],
    plan: Any,
    devices: int,
    *,
    optimizer: Optimizer | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    kwargs: dict[str, Any] | None = None,
) -> Plan:
    """Compile, check and run ``plan`` in one process; loss, gradients and parameters after 3 steps as plain torch's."""
    optimizer = optimizer or SGD(lr=0.1)
    model = copy.deepcopy(model).double()
    args, kwargs = [as_double(a) for a in args], {name: as_double(a) for name, a in (kwargs or {}).items()}
    compiled = compile(
        model, args, kwargs, cluster=Cluster.local(devices), plan=plan, loss=loss, optimizer=optimizer, dtype="f64"
    )
    expected = copy.deepcopy(model).train()
    stepper = reference_optimizer(expected, optimizer)
    start = {n: p.detach().clone() for n, p in expected.named_parameters()}
    with launch(compiled, model, backend="inline") as job:
        for step in range(STEPS):
            stepper.zero_grad()
            with Float64Mode():
                output = expected(*args, **kwargs)
                value = loss(output) if loss else getattr(output, "loss", output)
                value.backward()
            got = job.step(*args, **kwargs)
            assert abs(got - value.item()) <= 1e-9 * max(1.0, abs(value.item())), f"loss of step {step}"
            if step == 0:
                compare_gradients(job.gradients(), expected)
            if optimizer.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(expected.parameters(), optimizer.clip_norm)
            stepper.step()
        compare_parameters(job.state_dict(), expected, start, optimizer)
    return compiled


def compare_gradients(found: dict[str, torch.Tensor], expected: nn.Module) -> None:
    norm = torch.stack([p.grad.norm() for p in expected.parameters() if p.grad is not None]).norm()
    for name, parameter in expected.named_parameters():
        if parameter.grad is None:
            continue
        error = (found[name] - parameter.grad).norm()
        assert error <= 1e-9 * max(parameter.grad.norm(), 1e-6 * norm), f"gradient of {name}: off by {error:.3g}"


def compare_parameters(
    found: dict[str, torch.Tensor], expected: nn.Module, start: dict[str, torch.Tensor], optimizer: Optimizer
) -> None:
    whole = torch.stack([p.norm() for p in start.values()]).norm()
    for name, parameter in expected.named_parameters():
        error = (found[name] - parameter.detach()).norm()
        if isinstance(optimizer, AdamW):
            allowed = 1e-7 * max(parameter.norm(), optimizer.lr * STEPS * parameter.numel() ** 0.5)
        else:
            allowed = 1e-9 * max(parameter.norm(), 1e-6 * whole)
        assert error <= allowed, f"{name} after {STEPS} steps: off by {error:.3g}, allowed {allowed:.3g}"
