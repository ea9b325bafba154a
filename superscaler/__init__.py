"""superscaler: from a PyTorch model and a description of a cluster to a verified, executable parallelization plan.

The public names; nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from superscaler.errors import SuperscalerError

if TYPE_CHECKING:
    from superscaler import errors, plans
    from superscaler.api import check, compile, explain, launch, plan, profile, schedule, simulate
    from superscaler.decoding import compile_decoder
    from superscaler.ir.cluster import Cluster
    from superscaler.ir.plan import Plan
    from superscaler.plans import Planner
    from superscaler.runtime.custom import op
    from superscaler.scheduler.pipeline import PipelineProblem
    from superscaler.transforms.optimize import SGD, AdamW, Group

__version__ = "0.1.0"

# Public name -> the module that has it; a name of its own module is that module.
_HOMES = {
    "AdamW": "transforms.optimize",
    "Cluster": "ir.cluster",
    "Group": "transforms.optimize",
    "PipelineProblem": "scheduler.pipeline",
    "Plan": "ir.plan",
    "Planner": "plans",
    "SGD": "transforms.optimize",
    "check": "api",
    "compile": "api",
    "compile_decoder": "decoding",
    "errors": "errors",
    "explain": "api",
    "launch": "api",
    "op": "runtime.custom",
    "plan": "api",
    "plans": "plans",
    "profile": "api",
    "schedule": "api",
    "simulate": "api",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'superscaler' has no attribute {name!r}")
    module = import_module(f"superscaler.{home}")
    value = module if home == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "SGD",
    "AdamW",
    "Cluster",
    "Group",
    "PipelineProblem",
    "Plan",
    "Planner",
    "SuperscalerError",
    "check",
    "compile",
    "compile_decoder",
    "errors",
    "explain",
    "launch",
    "op",
    "plan",
    "plans",
    "profile",
    "schedule",
    "simulate",
]
