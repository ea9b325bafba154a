"""A pipeline's schedule with its certificate, in a time that does not grow with the number of micro-batches.

Closed-form bound, greedy family, steady state if memory is tight, exact windows at the ramps, exact proof if small; all
of it on no more micro-batches than show both ramps and the steady state, which is then repeated.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice, product
from time import monotonic

from superscaler.errors import ScheduleError
from superscaler.scheduler.activations import check_activations
from superscaler.scheduler.bounds import Bound, closed_form
from superscaler.scheduler.constructive import Orders, check, find, orders
from superscaler.scheduler.flow import Flow, Starts, flow_of
from superscaler.scheduler.greedy import Policy, Tuning, greedy, policies, tuning
from superscaler.scheduler.greedy_back import greedy_back
from superscaler.scheduler.listing import LaneOrder, list_schedule
from superscaler.scheduler.named_starts import named_orders, named_starts
from superscaler.scheduler.periodic import ALL_SPANS, Course, extend, feasible
from superscaler.scheduler.pipeline import MOST_TASKS, PipelineProblem, enumerable, to_problem
from superscaler.scheduler.pipeline_timetable import PipelineTimetable, Sends
from superscaler.scheduler.polish import Budget, from_kernel, from_pattern, is_slow, pace, polish, prove
from superscaler.scheduler.problem import Certificate, Problem, Status, Timetable, makespan
from superscaler.scheduler.ramps import device_bounds, ramp_bound
from superscaler.scheduler.sends import with_sends
from superscaler.scheduler.solve import solve
from superscaler.scheduler.tune import Make, climb

EFFORT = 4.0
_GREEDY_VISITS = 1_000_000
"""Tasks that the greedy family may visit: about two seconds."""
_CLIMB_VISITS = 400_000
"""Tasks that each hill climb may visit, per unit of effort."""
_EXACT_TASKS = 800
"""Up to so many tasks the whole problem goes to the exact solver at once."""
_KERNEL_TASKS = 4000
_ROUNDS = 4
"""Rounds of tuning and polishing for problems of up to so many tasks."""
_BUSIEST = 2
"""Devices that are relaxed together at first."""
_BUSIER = 4
"""And when the schedule is short, so that little is left to be ruled out: before, the solver proves less with more."""
_MORE = 5
"""Policies tried once the bound is reached, for one that repeats itself."""
_EXTENDED = 8
"""Constructive schedules tried on many micro-batches, those first that promise most by their pace."""
_LIGHTER = 6
"""Policies tried in less memory."""
_LONGER = 3
"""Policies tried on more micro-batches when the steady state does not show."""
_EVEN = (
    (Policy("oldest first", 0.9, 0.5, 0.3), False),
    (Policy("oldest first", 0.9, 2.0, 0.3), False),
    (Policy("backward first", 0.9, 2.0, 0.3), True),
)
"""Policies that repeat themselves after one micro-batch, most often, from the end or not."""
_WRITTEN_OUT = MOST_TASKS // 2
"""Up to so many tasks are scheduled one by one rather than repeated with a gap."""
_WRITING = 4e-6
"""Seconds, about, that one task takes there."""


def solve_pipeline(
    problem: PipelineProblem, *, seed: int = 0, effort: float = EFFORT, time_limit: float | None = None
) -> PipelineTimetable:
    """The best schedule found for ``problem`` with its certificate.

    ``effort`` is deterministic: the same seed gives the same schedule on a busy machine too. ``time_limit`` (seconds)
    is a fuse: what it cuts says ``time_limit``. Raises :class:`InfeasiblePlan` if memory holds no schedule.
    """
    began = monotonic()
    check_activations(problem)
    if problem.placement == "bidirectional":
        return _bidirectional(problem, seed, effort, time_limit, began)
    budget = Budget(effort, seed, None if time_limit is None else began + time_limit)
    if not problem.comm_is_a_delay:
        return _with_sends(problem, budget, began)
    search = _Search(flow_of(problem), budget)
    course = search.run()
    certificate = replace(search.certificate(course), seconds=monotonic() - began)
    return PipelineTimetable(problem, course, certificate)


def _bidirectional(
    problem: PipelineProblem, seed: int, effort: float, time_limit: float | None, began: float
) -> PipelineTimetable:
    """``problem``, whose micro-batches go either way, from the named schedules of it."""
    whole = to_problem(problem)
    budget = Budget(effort, seed, None if time_limit is None else began + time_limit)
    named = named_orders(problem.shape, problem.limits, lambda: budget.blown)
    known = {name: list_schedule(whole, _turns(whole, steps)) for name, steps in named}
    name = min(known, key=lambda each: makespan(whole, known[each]), default="")
    left = None if budget.left is None else max(0.0, budget.left)
    table = solve(whole, seed=seed, effort=effort, time_limit=left, hint=known.get(name))
    certificate = replace(table.certificate, seconds=monotonic() - began)
    if certificate.baseline[1] == "hint":
        certificate = replace(certificate, baseline=(certificate.baseline[0], name))
    return _by_the_job(problem, replace(table, certificate=certificate))


def _turns(whole: Problem, steps: Orders) -> LaneOrder:
    """The orders of steps as orders of the jobs of the compute lanes."""
    index = {(job.kind, job.stage, job.microbatch): i for i, job in enumerate(whole.jobs)}
    return {(d, "compute"): [index[step] for step in order] for d, order in enumerate(steps)}


def _with_sends(problem: PipelineProblem, budget: Budget, began: float) -> PipelineTimetable:
    """``problem`` with sends as jobs: half of what may be spent goes to the tasks, the rest to tasks and sends."""
    enumerable(problem)
    half = replace(budget, effort=budget.effort / 2)
    now = monotonic()
    search = _Search(
        flow_of(problem), half if budget.deadline is None else replace(half, deadline=(now + budget.deadline) / 2)
    )
    course = search.run()
    table = with_sends(to_problem(problem), search.flow, course.expand(), search.bound, half)
    cut = search.budget.blown and table.certificate.status != "optimal"
    searched = search.searched and table.certificate.status == "constructive"
    status: Status = "time_limit" if cut else "feasible" if searched else table.certificate.status
    certificate = replace(table.certificate, status=status, seconds=monotonic() - began)
    return _by_the_job(problem, replace(table, certificate=certificate))


def solve_flow(
    flow: Flow, *, seed: int = 0, effort: float = EFFORT, time_limit: float | None = None
) -> tuple[Starts, bool]:
    """The starts of the best schedule found for ``flow``, and whether ``time_limit`` seconds cut the search."""
    search = _Search(flow, Budget(effort, seed, None if time_limit is None else monotonic() + time_limit))
    return search.run().expand(), search.budget.blown


def named_pipeline(problem: PipelineProblem, name: str) -> PipelineTimetable:
    """``problem`` under the schedule ``name``; its certificate says how far from the bound that is.

    Raises :class:`UsageError` for an unknown name, :class:`ScheduleError` if the schedule does not fit in memory.
    """
    began = monotonic()
    find(name)
    enumerable(problem)
    whole = to_problem(problem)
    steps = orders(name, problem.shape)
    check(problem.shape, steps, problem.limits)
    flat = list_schedule(whole, _turns(whole, steps))
    starts, sends = _by_kind(problem, whole, flat)
    length = makespan(whole, flat)
    plain = problem.placement != "bidirectional"
    bound = ramp_bound(flow_of(problem)) if plain else closed_form(whole)
    certificate = Certificate(
        status="optimal" if length == bound.value else "constructive",
        makespan=length,
        bound=bound.value,
        bound_source=bound.source,
        baseline=(length, name),
        binding=bound.binding,
        seconds=monotonic() - began,
    )
    return PipelineTimetable(problem, Course(starts, length), certificate, sends)


class _Search:
    """The steps of one solution. The best schedule is kept here, whatever a solver returns."""

    def __init__(self, flow: Flow, budget: Budget) -> None:
        self.flow = flow
        self.small = flow.with_microbatches(min(flow.microbatches, max(32, 4 * flow.devices)))
        self.budget = self.less_writing(budget)
        self.bound = ramp_bound(flow)
        self.floor = ramp_bound(self.small).value
        self.starts: Starts = []
        self.length = 0
        self.name = ""
        self.baseline = (0, "")
        self.searched = False
        self.course: Course | None = None

    def run(self) -> Course:
        """The best schedule of all micro-batches."""
        self.construct()
        self.baseline = (self.length, self.name)
        if self.length > self.floor and self.budget.effort > 0 and not self.budget.blown:
            self.searched = True
            self.improve()
        if not feasible(self.small, self.starts):
            raise ScheduleError("a schedule failed its own check", hint="please report this problem")
        course = self.course or self.of_all()
        # What a constructive schedule of all micro-batches takes: it repeats the same steady state.
        self.baseline = (self.baseline[0] + course.makespan - self.length, self.baseline[1])
        return course

    def less_writing(self, budget: Budget) -> Budget:
        """``budget`` without the time that it may take to write out all micro-batches where only few are searched."""
        if budget.left is None or self.small.microbatches == self.flow.microbatches:
            return budget
        writing = min(budget.left / 2, min(self.flow.tasks, MOST_TASKS) * _WRITING)
        return replace(budget, deadline=monotonic() + budget.left - writing)

    def of_all(self) -> Course:
        """The shortest course of all micro-batches: repeated, or where that has a gap and they are few, written out.

        A constructive schedule without a gap has none either, most often, when it goes on: written out at once.
        """
        course = None
        if self.tried[0][0] == self.floor and self.flow.microbatches > self.small.microbatches:
            course = self.even()
            if (course is None or self.late(course)) and self.flow.tasks <= _WRITTEN_OUT:
                course = _shorter(course, self.written_out(1))
        if course is None or (self.late(course) and not self.budget.blown):
            course = _shorter(self.repeated(), course)
        if course is None or (self.late(course) and self.few()):
            count = 0 if self.budget.blown else max(3, _GREEDY_VISITS // 4 // self.flow.tasks)
            course = _shorter(course, self.written_out(1 + count))
        assert course is not None
        return course

    def even(self) -> Course | None:
        """The first course without a gap of the policies that repeat themselves soonest, else the last of them."""
        course = None
        for policy, back in _EVEN:
            starts = (greedy_back if back else greedy)(self.small, tuning(self.small, policy))
            course = extend(self.small, starts, self.flow.microbatches) or course
            if self.over(course) or (course is not None and not self.late(course)):
                break
        return course

    def late(self, course: Course) -> bool:
        """Whether a course made of fewer micro-batches leaves a gap."""
        return self.flow.microbatches > self.small.microbatches and course.makespan > self.bound.value

    def few(self) -> bool:
        """Whether all micro-batches can be scheduled one by one in no time."""
        return 4 * self.flow.tasks < _GREEDY_VISITS // 4

    def repeated(self) -> Course | None:
        """The shortest course of all micro-batches that repeats a steady state, or None."""
        course = self.extended()
        if self.over(course) or (course is not None and not (self.late(course) and self.small.tasks < _KERNEL_TASKS)):
            return course
        return _shorter(course, self.longer())

    def over(self, course: Course | None) -> bool:
        """Whether time is over, with ``course`` for a result, or few enough micro-batches to write out."""
        return self.budget.blown and (course is not None or self.flow.tasks <= MOST_TASKS)

    def extended(self) -> Course | None:
        """The shortest of the best few extended: on many micro-batches a better steady state outdoes better ramps."""
        many = self.flow.microbatches
        best = extend(self.small, self.starts, many)
        for make, tuned in self.promising(_EXTENDED) if many > self.small.microbatches else ():
            if self.over(best):
                break
            best = _shorter(best, extend(self.small, make(self.small, tuned), many))
        return best

    def promising(self, count: int) -> list[tuple[Make, Tuning]]:
        """Those of the family that promise the shortest schedules of all micro-batches, one of each length."""
        alike = {promise: (make, tuned) for promise, make, tuned in reversed(self.promises)}
        return [alike[promise] for promise in sorted(alike)[:count]]

    def longer(self) -> Course | None:
        """Two and four times as many micro-batches, for memory may take long to fill: the best policies, and the first
        of the family in no more memory than 1F1B takes, which fills sooner.

        What is left for repetition is a multiple of the periods that :func:`extend` looks for.
        """
        less = tuple(min(room, self.small.stages) for room in self.small.capacity)
        for factor in (2, 4):
            few = factor * self.small.microbatches
            if few > self.flow.microbatches:
                break
            flow = self.small.with_microbatches(few + (self.flow.microbatches - few) % ALL_SPANS)
            tries = [(flow, make, tuned) for _, _, make, tuned in self.tried[:_LONGER]]
            if less != flow.capacity:
                light = flow.with_capacity(less)
                for policy, back in islice(policies(light), _LIGHTER):
                    tries.append((light, greedy_back if back else greedy, tuning(light, policy)))
            best = None
            for like, make, tuned in tries:
                best = _shorter(best, extend(like, make(like, tuned), self.flow.microbatches))
                if self.budget.blown:
                    return best
            if best is not None:
                return best
        return None

    def written_out(self, count: int) -> Course:
        """All micro-batches scheduled one by one, by the shortest of few and those that promise most."""
        if self.flow.tasks > MOST_TASKS:
            raise ScheduleError(
                f"no steady state was found, and {self.flow.tasks} tasks are too many to be scheduled one by one",
                hint="fewer micro-batches",
            )
        tries = [self.tried[0][2:], *([self.promises[0][1:], *self.promising(count)] if count > 1 else [])]
        starts = min((make(self.flow, tuned) for make, tuned in tries), key=self.flow.makespan)
        if not feasible(self.flow, starts):
            raise ScheduleError("a schedule failed its own check", hint="please report this problem")
        return Course(starts, self.flow.makespan(starts))

    def construct(self) -> None:
        """The greedy family, from the start and from the end, until the bound or enough tasks are visited.

        At the bound a few more are tried if that schedule has no steady state to be repeated.
        """
        small = self.small
        self.tried: list[tuple[int, int, Make, Tuning]] = []
        self.promises: list[tuple[float, Make, Tuning]] = []
        extra = self.flow.microbatches - small.microbatches
        more = _MORE
        for number, (policy, back) in enumerate(policies(small)):
            make, tuned = (greedy_back if back else greedy), tuning(small, policy)
            starts = make(small, tuned)
            self.offer(starts, f"{policy}{', from the end' if back else ''}")
            self.tried.append((small.makespan(starts), number, make, tuned))
            self.promises.append((small.makespan(starts) + extra * pace(starts), make, tuned))
            if small.makespan(starts) == self.floor:
                self.course = extend(small, starts, self.flow.microbatches) if feasible(small, starts) else None
            more -= self.length == self.floor
            enough = len(self.tried) * small.tasks > _GREEDY_VISITS
            if self.course is not None or not more or enough or self.budget.blown:
                break
        self.tried.sort(key=lambda entry: entry[:2])
        if self.length > self.floor:
            for name, starts in named_starts(small, lambda: self.budget.blown):
                self.offer(starts, name)

    def improve(self) -> None:
        small, budget = self.small, self.budget
        if small.tasks <= _EXACT_TASKS:
            starts, proven = prove(small, self.starts, self.floor, replace(budget, effort=budget.effort / 8))
            self.offer(starts, "exact")
            if proven and small.microbatches == self.flow.microbatches:
                self.bound = Bound(self.length, "exact search", self.bound.binding)
            if proven:
                return
        tunable = small.tasks < _KERNEL_TASKS
        with self.relaxing(_BUSIEST):
            if tunable and is_slow(small, self.starts):
                self.try_kernel()
            if tunable:
                self.climb_and_polish(range(1))
        with self.relaxing(_BUSIER):
            if tunable:
                self.climb_and_polish(range(1, _ROUNDS))
            self.offer(polish(small, self.starts, self.floor, budget), "exact windows")

    @contextmanager
    def relaxing(self, devices: int) -> Generator[None]:
        """A better bound from the devices of the highest bounds together, for small problems without repetition.

        It is looked for beside what is done meanwhile, which leaves a core to it most of the time, and counts from the
        end on, so that nothing depends on which of the two is sooner.
        """
        small, budget = self.small, self.budget
        whole = small.tasks <= _EXACT_TASKS and small.microbatches == self.flow.microbatches
        if not whole or budget.blown or self.length == self.floor:
            yield
            return
        from superscaler.scheduler.cpsat_relaxation import relaxed_bound

        alone = device_bounds(small)
        busiest = sorted(range(small.devices), key=lambda d: (-alone[d].value, d))[:devices]
        search = partial(relaxed_bound, effort=budget.effort / 2, seed=budget.seed, time_limit=budget.left)
        with ThreadPoolExecutor(1) as beside:
            found = beside.submit(search, small, busiest, self.floor, self.length)
            yield
            value = found.result()
        if value > self.bound.value:
            names = ", ".join(map(str, sorted(busiest)))
            self.bound = Bound(value, f"exact search on devices {names}", self.bound.binding)
        self.floor = max(self.floor, value)

    def climb_and_polish(self, turns: range) -> None:
        """Both directions tuned, each polished for a while: the longer one often ends as the shorter.

        Small problems take several rounds, from other policies: cheaper than staying where windows gain nothing.
        """
        rounds = _ROUNDS if self.small.tasks <= _EXACT_TASKS else 1
        part = replace(self.budget, effort=self.budget.effort / (4 * rounds) * (1 if rounds == 1 else 1.5))
        tries = round(self.budget.effort * _CLIMB_VISITS / self.small.tasks / rounds**0.5)
        patience = tries if rounds == 1 else tries // 3  # there is another round to come
        for turn, make in product(turns, (greedy, greedy_back)):
            # Policies of one length mostly make one schedule.
            ranked = list({entry[0]: entry[3] for entry in reversed(self.tried) if entry[2] is make}.values())[::-1]
            if turn >= min(rounds, len(ranked)) or self.length == self.floor or part.blown:
                continue
            seed = part.seed + turn
            starts = climb(self.small, make, ranked[turn], self.floor, tries, patience, seed, lambda: part.blown)
            polished = polish(self.small, starts, self.floor, replace(part, seed=seed))
            self.offer(polished, "tuned greedy, exact windows")

    def try_kernel(self) -> None:
        """A steady state beats greedy where memory is tight, by how much shows only after its ramps are polished."""
        starts = from_pattern(self.small) or from_kernel(
            self.small, replace(self.budget, effort=self.budget.effort / 4)
        )
        if starts is not None:
            short = replace(self.budget, effort=self.budget.effort / 4)
            self.offer(polish(self.small, starts, self.floor, short), "steady state")

    def offer(self, starts: Starts, name: str) -> None:
        length = self.small.makespan(starts)
        if not self.starts or length < self.length:
            self.starts, self.length, self.name = starts, length, name

    def certificate(self, course: Course) -> Certificate:
        length = course.makespan
        status: Status = "feasible" if self.searched else "constructive"
        if self.budget.blown:
            status = "time_limit"
        return Certificate(
            status="optimal" if length == self.bound.value else status,
            makespan=length,
            bound=self.bound.value,
            bound_source=self.bound.source,
            baseline=self.baseline,
            binding=self.bound.binding,
            seed=self.budget.seed,
        )


def _shorter(a: Course | None, b: Course | None) -> Course | None:
    """The shorter of those that there are, ``a`` if they are equal."""
    return min(filter(None, (a, b)), key=lambda course: course.makespan, default=None)


def _by_the_job(problem: PipelineProblem, table: Timetable) -> PipelineTimetable:
    """The schedule of all jobs of ``problem`` as one of its tasks and sends."""
    starts, sends = _by_kind(problem, table.problem, table.starts)
    return PipelineTimetable(problem, Course(starts, table.makespan), table.certificate, sends)


def _by_kind(problem: PipelineProblem, whole: Problem, flat: tuple[int, ...]) -> tuple[Starts, Sends | None]:
    stages, count = problem.stages, problem.microbatches
    starts = [
        [list(flat[(kind * stages + s) * count : (kind * stages + s + 1) * count]) for s in range(stages)]
        for kind in range(3)
    ]
    sends: Sends = {}
    for job, start in zip(whole.jobs[3 * stages * count :], flat[3 * stages * count :], strict=True):
        sends[job.kind.removeprefix("send_"), job.stage, job.microbatch] = start
    return starts, sends or None
