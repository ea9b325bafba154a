"""The public names: those of the contract, each there, each documented, and nothing heavy imported before use."""

from __future__ import annotations

import inspect

import pytest

import superscaler as ss
from superscaler import errors

CONTRACT = {
    "AdamW", "Cluster", "Group", "PipelineProblem", "Plan", "Planner", "SGD", "SuperscalerError", "check", "compile",
    "compile_decoder",
    "errors", "explain", "launch", "op", "plan", "plans", "profile", "schedule", "simulate",
}  # fmt: skip


def test_the_names_are_those_of_the_contract() -> None:
    assert set(ss.__all__) == CONTRACT
    assert dir(ss) == sorted(CONTRACT)


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_every_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(ss, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        ss.compil  # noqa: B018


def test_every_error_is_in_the_tree_that_the_docstring_draws() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert all(issubclass(getattr(errors, name), ss.SuperscalerError) for name in classes)
    assert classes <= set((errors.__doc__ or "").split())


def test_an_error_says_what_where_and_what_to_try() -> None:
    error = errors.InfeasiblePlan("no schedule fits gpu0's 80.0 GiB", "peak 93.1 GiB at stage 0", hint="pipeline=8")
    assert str(error).splitlines() == [
        "no schedule fits gpu0's 80.0 GiB",
        "  peak 93.1 GiB at stage 0",
        "  try: pipeline=8",
    ]
