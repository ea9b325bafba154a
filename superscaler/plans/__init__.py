"""The plans that come with superscaler, by name; each is a short file that a user could have written.

A plan is a function of a :class:`Planner`. ``parse`` reads ``NAME:key=value,key=value``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from superscaler.errors import UsageError, did_you_mean
from superscaler.plans.co_shard import co_shard
from superscaler.plans.dap import dap
from superscaler.plans.data_parallel import data_parallel
from superscaler.plans.interlaced import interlaced
from superscaler.plans.megatron import megatron
from superscaler.plans.pipeline import pipeline
from superscaler.plans.planner import Parts, Planner, PlanScript, Stage
from superscaler.plans.recompute import recompute
from superscaler.plans.three_f_one_b import three_f_one_b
from superscaler.plans.zero import zero

PLANS: dict[str, Callable[..., PlanScript]] = {
    "data_parallel": data_parallel,
    "megatron": megatron,
    "pipeline": pipeline,
    "recompute": recompute,
    "zero": zero,
    "co_shard": co_shard,
    "interlaced": interlaced,
    "three_f_one_b": three_f_one_b,
    "dap": dap,
}


def single() -> PlanScript:
    """The whole model on one device."""
    return data_parallel(1)


def parse(text: str, **given: Any) -> PlanScript:
    """The plan that ``NAME:key=value,…`` names. ``given``: options stated elsewhere, which must agree.

    Nested plans (``recompute``'s) are written with a plus: ``recompute:ops=all+megatron:tensor=2``. Raises
    :class:`UsageError` for an unknown plan or key, with the nearest known one.
    """
    outer, _, inner = text.partition("+")
    name, _, options = outer.partition(":")
    if name not in PLANS:
        raise UsageError(f"unknown plan {name!r}", hint=did_you_mean(name, PLANS))
    signature = inspect.signature(PLANS[name]).parameters
    values: dict[str, Any] = {}
    for part in filter(None, options.split(",")):
        key, eq, value = part.partition("=")
        if key not in signature:
            raise UsageError(f"plan {name!r} has no option {key!r}", hint=did_you_mean(key, signature))
        if not eq or key in values:
            wrong = "is given twice" if eq else "has no value"
            raise UsageError(f"plan {name!r}: {key} {wrong}", hint=f"{key}={signature[key].default}, say, once")
        values[key] = _convert(name, key, value, signature[key])
    if inner and "plan" not in signature:
        around = ", ".join(other for other in PLANS if "plan" in inspect.signature(PLANS[other]).parameters)
        raise UsageError(
            f"plan {name!r} does not go around another plan, {inner!r}",
            hint=f"{around}+{inner}, the options of {name!r} itself, or a script that says both",
        )
    if inner:
        values["plan"] = parse(inner, **given)
        return PLANS[name](**values)
    for key, value in given.items():
        if value is None or key not in signature:
            continue
        if key in values and values[key] != value:
            raise UsageError(f"--{key} {value} and {key}={values[key]} in --plan disagree", hint="state one of them")
        values[key] = value
    return PLANS[name](**values)


def _convert(plan: str, key: str, value: str, parameter: inspect.Parameter) -> Any:
    default = parameter.default
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return int(value) if isinstance(default, int) else value
    except (ValueError, KeyError):
        hint = f"{key}={default}, as if nothing were said"
        raise UsageError(f"plan {plan!r}: {key}={value!r} is not {_kind(default)}", hint=hint) from None


def _kind(default: object) -> str:
    return "true or false" if isinstance(default, bool) else "a whole number"


__all__ = [
    "PLANS",
    "Parts",
    "PlanScript",
    "Planner",
    "Stage",
    "co_shard",
    "dap",
    "data_parallel",
    "interlaced",
    "megatron",
    "parse",
    "pipeline",
    "recompute",
    "single",
    "three_f_one_b",
    "zero",
]
