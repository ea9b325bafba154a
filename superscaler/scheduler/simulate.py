"""Simulate: the predicted course of a plan's entry, without a tensor in sight."""

from __future__ import annotations

from superscaler.errors import UsageError
from superscaler.ir.argument import known, shown
from superscaler.ir.check.capacity import state_bytes
from superscaler.ir.entry import Contents, Entry, refuse_no_plan
from superscaler.ir.program import Program
from superscaler.scheduler.contention import replay_shared
from superscaler.scheduler.profile import Profile
from superscaler.scheduler.profiled import durations as profiled
from superscaler.scheduler.replay import Durations, Replay, replay
from superscaler.scheduler.timeline import Level, RoleTimeline, Span, Timeline
from superscaler.transforms.usage import reads, writes


def simulate(
    plan: Contents, entry: str | None = None, *, profile: Profile | None = None, durations: Durations | None = None
) -> Timeline:
    """When each task of one run of an entry (default: ``train``, or the only one) starts and ends on each role.

    ``profile``: what was measured on a machine, instead of what the plan states; workers that share its cores slow
    each other down as measured. Or ``durations``: (role, item) -> microseconds. Cost grows with roles and tasks, not
    with workers. Raises :class:`UsageError` for an unknown entry, and for what is no plan.
    """
    refuse_no_plan(plan)
    _refuse_no_profile(profile)
    name = entry or ("train" if "train" in plan.entries else next(iter(plan.entries)))
    found = known(name, plan.entries, "the plan has no entry")
    if profile is not None and durations is None:
        durations = profiled(plan, name, profile)
    post = round(profile.post * 1e6) if profile is not None else 0
    if profile is not None and durations is not None and _shares_cores(plan, profile):
        run = replay_shared(found, durations, profile.slowdown, plan.cluster.per_node, posts=lambda *_: post)
    else:
        run = replay(found, durations, posts=lambda *_: post)
    makespan = max((end for ends in run.ends for end in ends), default=0)
    chain = run.critical()
    held = state_bytes(plan)
    roles = tuple(
        _role(found, program, run, i, makespan, held, frozenset(item for role, item in chain if role == i))
        for i, program in enumerate(found.programs)
    )
    workers = sum(len(role.workers) for role in roles)
    bubble = sum(role.bubble * len(role.workers) for role in roles) / workers if workers else 0.0
    return Timeline(name, makespan, bubble, roles, tuple(chain))


def _refuse_no_profile(profile: object) -> None:
    if profile is not None and not isinstance(profile, Profile):
        raise UsageError(f"profile={shown(profile)} is no profile", hint="profile=superscaler.profile(plan)")


def _shares_cores(plan: Contents, profile: Profile) -> bool:
    """Whether workers compute on the cores of one machine, as the profile's did."""
    return plan.workers > 1 and profile.machine.kind == "cpu" and all(d.name == "cpu" for d in plan.cluster.kinds)


def _role(
    entry: Entry,
    program: Program,
    run: Replay,
    index: int,
    makespan: int,
    held: dict[int, int],
    critical: frozenset[int],
) -> RoleTimeline:
    spans = _spans(program, run, index, critical)
    busy = _busy(spans)
    bubble = 1.0 - busy.get("compute", 0) / makespan if makespan else 0.0
    state = max((held.get(worker, 0) for worker in program.workers), default=0)
    return RoleTimeline(
        program.workers, spans, busy, bubble, state, program.arena, program.peak, _levels(entry, program, spans, state)
    )


def _busy(spans: tuple[Span, ...]) -> dict[str, int]:
    """How long something happens on each lane. Messages are under way at the same time: that time counts once."""
    busy: dict[str, int] = {}
    until: dict[str, int] = {}
    for span in sorted(spans, key=lambda span: span.start):
        begin = max(span.start, until.get(span.lane, 0))
        busy[span.lane] = busy.get(span.lane, 0) + max(0, span.end - begin)
        until[span.lane] = max(begin, span.end)
    return busy


def _spans(program: Program, run: Replay, index: int, critical: frozenset[int]) -> tuple[Span, ...]:
    found: list[Span] = []
    for number, item in enumerate(program.order):
        block = program.blocks[item.block]
        microbatch = item.microbatch if block.over else -1
        start, end = run.starts[index][number], run.ends[index][number]
        found.append(
            Span(number, block.name, block.kind, block.lane, block.stage, microbatch, start, end, number in critical)
        )
    return tuple(found)


def _levels(entry: Entry, program: Program, spans: tuple[Span, ...], state: int) -> tuple[Level, ...]:
    """State and live arena over time: a buffer lives from the first task that touches it to the one that frees it."""
    size = {buffer.value: buffer.size for buffer in program.buffers}
    touched = [
        tuple(dict.fromkeys(v for step in block.steps for v in (*reads(step), *writes(step)) if v in size))
        for block in program.blocks
    ]
    live: set[tuple[int, int]] = set()
    level, changes = state, [(0, state)]
    for span, item in zip(spans, program.order, strict=True):
        born = {key for v in touched[item.block] for key in _instances(entry, program, item.block, v, item.microbatch)}
        for key in born - live:
            level += size[key[0]]
        live |= born
        changes.append((span.start, level))
        freed = program.frees[item.frees] if item.frees >= 0 else ()
        gone = {key for v in freed if v in size for key in _instances(entry, program, item.block, v, item.microbatch)}
        level -= sum(size[key[0]] for key in gone & live)
        live -= gone
        changes.append((span.end, level))
    return _merged(changes)


def _instances(entry: Entry, program: Program, block: int, value: int, microbatch: int) -> list[tuple[int, int]]:
    if not program.values[value].over:
        return [(value, -1)]
    if program.blocks[block].over:
        return [(value, microbatch)]
    return [(value, j) for j in range(entry.microbatches)]


def _merged(changes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """The last level at each time, where it differs from the one before. Posted tasks may be listed out of order."""
    at: dict[int, int] = {}
    clock = 0
    for time, level in changes:
        clock = max(clock, time)
        at[clock] = level
    found: list[Level] = []
    for time, level in at.items():
        if not found or found[-1].bytes != level:
            found.append(Level(time, level))
    return tuple(found)
