"""The static check: proves a plan's Programs against its Graph and the installed rules, before anything runs.

It knows nothing of how plans are made. Per entry it proves

- *values*: each block is run on what its values hold: every op is the Graph's, split as its rule allows, on inputs that
  lie as it needs them; every move leads from one layout to the other; every sum over time has each of its terms once
  before it is read;
- *no deadlock*: under rendezvous, with one order of communications per worker;
- *memory*: nothing is read after it is released, buffers that live together lie apart, all fits onto its device;
- *the schedule*: planned times respect dependencies and lanes;
- *results*: outputs, gradients and new state are the Graph's, complete, on every worker that holds them.

The proof rests on the split rules, which are tested by execution, and on discovered ones, which the report names.
Its cost grows with roles and tasks, not with devices: a block is judged once, whatever its micro-batch and worker.
"""

from __future__ import annotations

from time import perf_counter

from superscaler.ir.check.bodies import Bodies, Body, Meeting
from superscaler.ir.check.capacity import state_bytes
from superscaler.ir.check.deadlock import check_deadlock
from superscaler.ir.check.fault import Fault, FaultKind, Place, fault
from superscaler.ir.check.graphs import check_graph
from superscaler.ir.check.lanes import check_certificate, check_ends, check_lanes
from superscaler.ir.check.matching import check_matching
from superscaler.ir.check.meetings import check_meetings
from superscaler.ir.check.memory import check_memory
from superscaler.ir.check.ops import Ops
from superscaler.ir.check.order import History, check_order
from superscaler.ir.check.programs import check_programs, check_role
from superscaler.ir.check.regions import Regions
from superscaler.ir.check.report import EntryReport, Report
from superscaler.ir.check.results import check_results
from superscaler.ir.check.scope import Scope
from superscaler.ir.check.sizes import PartSizes
from superscaler.ir.check.spaces import Layouts, check_space, check_state
from superscaler.ir.check.steps import run_block
from superscaler.ir.entry import Contents, Entry, refuse_no_plan

UNEXPECTED = "the check can make no sense of it"

__all__ = ["EntryReport", "Fault", "FaultKind", "Place", "Report", "check"]


def check(plan: Contents, *, strict: bool = False) -> Report:
    """Prove that ``plan`` computes what its Graphs say, on every worker, without deadlock and within memory.

    ``strict``: refuse rules found by discovery. Raises :class:`Fault` (a :class:`CheckError`) that names the kind of
    fault, the worker, the task, the tensor, and what would be right. The time taken is reported in seconds.
    """
    refuse_no_plan(plan)
    began = perf_counter()
    try:
        entries = _check_entries(plan)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        # What no pass expected is no proof. A plan from a stranger shall not end in a traceback.
        raise fault("malformed plan", UNEXPECTED, None, f"{type(e).__name__}: {e}") from e
    assumptions = sorted({text for _, found in entries.values() for text in found})
    if strict and assumptions:
        raise fault(
            "discovered rule", f"the proof rests on {len(assumptions)} discovered rules", None, *assumptions[:8],
            right="without --strict, or rules written down for these ops",
        )  # fmt: skip
    report = {name: entry for name, (entry, _) in entries.items()}
    return Report(report, tuple(assumptions), perf_counter() - began)


def _check_entries(plan: Contents) -> dict[str, tuple[EntryReport, list[str]]]:
    check_space(plan)
    layouts = Layouts(plan.space)
    check_state(plan, layouts)
    state = state_bytes(plan)
    return {name: _check_entry(plan, name, entry, layouts, state) for name, entry in plan.entries.items()}


def _check_entry(
    plan: Contents, name: str, entry: Entry, layouts: Layouts, state: dict[int, int]
) -> tuple[EntryReport, list[str]]:
    scope = Scope(plan, name, entry)
    check_graph(scope)
    check_programs(scope, layouts)
    scope.add_roles()
    for role in scope.roles:
        check_role(role, layouts)
        check_lanes(role)
    comms = check_matching(scope)
    kept, done = _run_roles(scope, plan)
    check_deadlock(scope, done)
    check_results(scope, kept)
    check_ends(scope, done)
    check_certificate(scope)
    memory = 0
    for role in scope.roles:
        sizes = PartSizes(plan.space, role.workers)
        memory = max(memory, check_memory(role, *kept[role.index], sizes, state))
    tasks = sum(len(program.order) for program in entry.programs)
    return EntryReport(len(scope.roles), tasks, comms, memory), _assumptions(scope)


def _run_roles(scope: Scope, plan: Contents) -> tuple[dict[int, tuple[Bodies, History]], dict[int, dict[int, Body]]]:
    """Every block of every role, run once, in the order in which blocks first execute; then the order of tasks."""
    ops, regions = Ops(scope), Regions(plan.space)
    kept: dict[int, tuple[Bodies, History]] = {}
    done: dict[int, dict[int, Body]] = {}
    meetings: list[Meeting] = []
    for role in scope.roles:
        bodies = Bodies(role, ops, regions)
        blocks = dict.fromkeys(item.block for item in role.program.order)
        done[role.index] = {number: run_block(bodies, number) for number in blocks}
        kept[role.index] = (bodies, check_order(role, bodies, done[role.index]))
        meetings += bodies.meetings
    check_meetings(scope, meetings, regions)
    return kept, done


def _assumptions(scope: Scope) -> list[str]:
    """The discovered rules that the Graph's ops use."""
    found = ((op.target, scope.rule(i)) for i, op in enumerate(scope.graph.ops))
    return [f"{target}: {rule}" for target, rule in found if rule.discovered]
