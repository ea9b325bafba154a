"""Every fault that is put into a plan is caught, and named."""

from __future__ import annotations

from collections import Counter

import faults
import pytest
from compiled import KINDS, compiled

from superscaler.errors import CheckError
from superscaler.ir.check import Fault, check
from superscaler.ir.plan import Plan

CLASSES = faults.load_all()
QUICK = [kind for kind in KINDS if "alphafold2" not in kind[0]]  # its plans take a quarter of a minute each
PLACELESS = {"out of memory", "malformed plan", "no rule"}  # these name a tensor or a device instead


@pytest.mark.parametrize("name", CLASSES)
def test_faults_of_this_class_are_caught_and_named(name: str) -> None:
    fault_class = CLASSES[name]
    tried = 0
    for kind in QUICK:
        for _, broken in faults.injected(compiled(*kind), seed=1, only=name):
            tried += 1
            with pytest.raises(CheckError) as caught:
                check(broken)
            error = caught.value
            assert isinstance(error, Fault)
            assert error.kind in fault_class.named, f"{kind[0]}: {error}"
            assert str(error).startswith(f"{error.kind}: ")
            assert "entry " in str(error) or error.kind in PLACELESS, error
    assert tried, "no plan had a place for this fault"


def test_the_fourteen_bugs_are_among_them() -> None:
    assert {c.bug for c in CLASSES.values()} == set(range(15))


def verdict(plan: Plan) -> str:
    """The kind of fault that the check names, or "" if it finds none."""
    try:
        check(plan)
    except Fault as error:
        return error.kind
    return ""


@pytest.mark.slow
def test_a_thousand_faults_in_plans_of_all_kinds() -> None:
    found = Counter(
        (fault_class.name, verdict(broken) in fault_class.named)
        for kind in KINDS
        for fault_class, broken in faults.injected(compiled(*kind), seed=2, each=5)
    )
    assert [name for name, named in found if not named] == []
    assert found.total() >= 1000
