"""The plans that come with superscaler, by name; each is a short file that a user could have written.

A plan is a function of a :class:`Planner`. ``parse`` reads ``NAME:key=value,key=value``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from typing import Any

from superscaler.errors import UsageError, did_you_mean
from superscaler.plans.co_shard import co_shard
from superscaler.plans.dap import dap
from superscaler.plans.data_parallel import data_parallel
from superscaler.plans.interlaced import interlaced
from superscaler.plans.megatron import megatron
from superscaler.plans.pipeline import pipeline
from superscaler.plans.placement import placement_for, stages_per_device
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
DEGREES = ("data", "replicas", "tensor", "pipeline", "stages", "ways")
"""The options of plans whose product is the number of devices."""


def single() -> PlanScript:
    """The whole model on one device."""
    return data_parallel(1)


def parse(text: str, **given: Any) -> PlanScript:
    """The plan that ``NAME:key=value,…`` names. ``given``: options stated elsewhere, which must agree.

    Nested plans (``recompute``'s) are written with a plus: ``recompute:ops=all+megatron:tensor=2``. Raises
    :class:`UsageError` for an unknown plan or key, with the nearest known one.
    """
    outer, _, inner = text.partition("+")
    name, values = _named(outer)
    signature = inspect.signature(PLANS[name]).parameters
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


def devices_of(text: str) -> int:
    """How many devices the plan that ``text`` names is for: the product of its degrees, said or by default.

    0 if one of them is below 1, which the plan itself refuses. Raises :class:`UsageError` as :func:`parse` does.
    """
    name, said = _named(text.rpartition("+")[2])
    values = {key: parameter.default for key, parameter in inspect.signature(PLANS[name]).parameters.items()} | said
    degrees = [values[key] for key in DEGREES if key in values]
    if any(degree < 1 for degree in degrees):
        return 0
    if "stages" in values and "placement" in values:
        each = stages_per_device(placement_for(values["schedule"], values["placement"]), values["chunks"])
        return prod(degrees) // each
    return prod(degrees)


def _named(text: str) -> tuple[str, dict[str, Any]]:
    """The name of a plan, and the options that ``NAME:key=value,…`` gives it."""
    name, _, options = text.partition(":")
    if name not in PLANS:
        raise UsageError(f"unknown plan {name!r}", hint=did_you_mean(name, PLANS))
    known = {key: found for key, found in inspect.signature(PLANS[name]).parameters.items() if key != "plan"}
    values: dict[str, Any] = {}
    for part in filter(None, options.split(",")):
        key, eq, value = part.partition("=")
        if key not in known:
            raise UsageError(f"plan {name!r} has no option {key!r}", hint=did_you_mean(key, known))
        if not eq or key in values:
            wrong = "is given twice" if eq else "has no value"
            raise UsageError(f"plan {name!r}: {key} {wrong}", hint=f"{key}={known[key].default}, say, once")
        values[key] = _convert(name, key, value, known[key])
    return name, values


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
    "devices_of",
    "interlaced",
    "megatron",
    "parse",
    "pipeline",
    "recompute",
    "single",
    "three_f_one_b",
    "zero",
]
