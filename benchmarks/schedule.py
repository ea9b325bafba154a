"""Certified schedules against their bars: ``python -m benchmarks.schedule [row ...] [--draws 0:5] [--quick]``.

Rows: linear (the proofs), scale, real, frontier, mixed, honesty, runs. F = B = W = 10 unless said; V is 2P stages of
half the cost on P devices. Prints one line per figure with its bar and keeps it in ``benchmarks/results/schedule.json``
with its date, commit and versions, as soon as it is measured; figures of another commit are named at the end.
``--draws 0:5`` takes some of the 20 draws of ``real`` (its worst and mean come when all are of one commit), ``--quick``
fewer draws and sizes, which are printed only. Times are wall seconds of this machine: quote them with its load.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from superscaler.scheduler import Problem, verify
from superscaler.scheduler.certified import named_pipeline, solve_pipeline
from superscaler.scheduler.constructive import orders, peak_activations
from superscaler.scheduler.flow import flow_of
from superscaler.scheduler.frontier import Swapping, least_bandwidth, scheduling_alone, unlimited_bound, with_relief
from superscaler.scheduler.greedy import greedy, policies, tuning
from superscaler.scheduler.greedy_back import greedy_back
from superscaler.scheduler.pipeline import PipelineProblem, to_problem
from superscaler.scheduler.pipeline_timetable import PipelineTimetable
from superscaler.scheduler.playground import to_json
from superscaler.scheduler.ramps import ramp_bound

ACTIVATION, TICK = 64 << 20, 1e-3
REAL_BARS: dict[str, tuple[float, float | None]] = {"linear": (0.005, 20.0), "v": (0.03, None)}
"""By placement the gap, and the seconds if they have a bar."""
RESULTS = Path(__file__).parent / "results" / "schedule.json"


@dataclass(frozen=True)
class Line:
    """One measured figure beside its bar; ``met`` is None where there is none to meet."""

    row: str
    what: str
    measured: str
    bar: str
    met: bool | None

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "MISS", None: "    "}[self.met]
        return f"{mark} {self.row:<9} {self.what:<48} {self.measured}   [{self.bar}]"


def v(devices: int, microbatches: int, activations: int | None, comm: int = 0) -> PipelineProblem:
    """A V of half stages."""
    return PipelineProblem(2 * devices, microbatches, 5, 5, 5, comm, activations, placement="v")


def timed(problem: PipelineProblem) -> tuple[PipelineTimetable, float]:
    """The solved and verified timetable and the seconds that solving took."""
    began = perf_counter()
    table = solve_pipeline(problem)
    seconds = perf_counter() - began
    check(table)
    return table, seconds


def check(table: PipelineTimetable) -> None:
    """Every dependency, lane and memory, by the verifier of the generic problem."""
    verify(to_problem(table.problem, sends=False), [t for kind in table.starts for row in kind for t in row])


def told(table: PipelineTimetable, seconds: float) -> str:
    """Makespan, bound, gap and time."""
    known = table.certificate
    return f"{known.status} {known.makespan} (bound {known.bound}, gap {known.gap:.2%}) in {seconds:.2f} s"


def linear(quick: bool) -> Iterator[Line]:
    """Proof, linear: K = p at c = 0 and 1, and the memory-starved (8, 32, 4)."""
    sizes = [(4, 8, 0.5), (4, 16, 0.5), (8, 16, 0.5), (8, 32, 0.5), (32, 128, 2.0)] + (
        [] if quick else [(64, 256, 10.0)]
    )
    for p, m, limit in sizes:
        for comm in (0, 1):
            table, seconds = timed(PipelineProblem(p, m, comm=comm, max_activations=p))
            met = table.certificate.status == "optimal" and seconds <= limit
            yield Line("linear", f"({p},{m},{p}) c={comm}", told(table, seconds), f"proven in {limit} s", met)
    table, seconds = timed(PipelineProblem(8, 32, max_activations=4))
    met = table.certificate.status == "optimal" and table.makespan == 1510 and seconds <= 10
    yield Line("linear", "(8,32,4)", told(table, seconds), "1510 proven in 10 s", met)
    flow = flow_of(PipelineProblem(8, 32, max_activations=8))
    began = perf_counter()
    greedy(flow, tuning(flow, next(policies(flow))[0]))
    first = perf_counter() - began
    yield Line("linear", "first feasible schedule, (8,32,8)", f"{first:.4f} s", "0.1 s", first <= 0.1)


def scale(quick: bool) -> Iterator[Line]:
    """Scale: gap and time at 32 x 128 and 64 x 256, with communication, and at 1,024 micro-batches."""
    for p, m, limit in ((32, 128, 2.0),) if quick else ((32, 128, 2.0), (64, 256, 10.0)):
        for what, problem in (
            ("linear K=p", PipelineProblem(p, m, max_activations=p)),
            ("linear K=2p", PipelineProblem(p, m, max_activations=2 * p)),
            ("V K=4p", v(p, m, 4 * p)),
        ):
            table, seconds = timed(problem)
            met = table.certificate.gap == 0 and seconds <= limit
            yield Line("scale", f"{what} {p}x{m}", told(table, seconds), f"gap 0 in {limit} s", met)
        table, seconds = timed(v(p, m, 2 * p))
        yield Line("scale", f"V K=2p {p}x{m}", told(table, seconds), "gap 1 %", table.certificate.gap <= 0.01)
    for p, m, comm, bar in ((8, 32, 0, 0.01), (8, 32, 1, 0.02), (32, 128, 1, 0.05)):
        table, seconds = timed(v(p, m, 2 * p, comm))
        met = table.certificate.gap <= bar
        yield Line("scale", f"V K=2p c={comm} {p}x{m}", told(table, seconds), f"gap {bar:.0%}", met)
    yield from _many(PipelineProblem(8, 32, comm=1, max_activations=8), "linear K=p c=1")
    yield from _many(v(8, 32, 16, comm=1), "V K=2p c=1")


def _many(problem: PipelineProblem, what: str) -> Iterator[Line]:
    """m = 1,024 against m = 32 (the best of several each, interleaved), and the time to write the slots."""
    many = replace(problem, microbatches=1024)
    short, long = [], []
    for _ in range(20 if _solving(problem) < 0.1 else 3):
        short.append(_solving(problem))
        long.append(_solving(many))
    ratio = min(long) / min(short)
    measured = f"{min(long):.3f} s against {min(short):.3f} s: {ratio:.2f}x"
    yield Line("scale", f"m=1024 over m=32, {what}", measured, "1.5x", ratio <= 1.5)
    table = solve_pipeline(many)
    check(table)
    began = perf_counter()
    to_json(table)
    seconds = perf_counter() - began
    yield Line("scale", f"writing the slots at m=1024, {what}", f"{seconds:.3f} s", "0.2 s", seconds <= 0.2)


def _solving(problem: PipelineProblem) -> float:
    began = perf_counter()
    solve_pipeline(problem)
    return perf_counter() - began


def real(quick: bool, draws: range = range(20)) -> Iterator[Line]:
    """Real costs: every stage's size drawn within 20 % of F:B:W = 100:120:90, c = 10, (8, 32)."""
    draw = random.Random(2026)
    for number in range(3 if quick else 20):
        for placement, stages, half in (("linear", 8, 1), ("v", 16, 2)):
            sizes = [draw.uniform(0.8, 1.2) / half for _ in range(stages)]
            if number not in draws:
                continue
            costs = [tuple(round(base * size) for size in sizes) for base in (100, 120, 90)]
            table, seconds = timed(PipelineProblem(stages, 32, *costs, 10, 8 * half, placement=placement))
            bar, limit = REAL_BARS[placement]
            met = table.gap <= bar and (limit is None or seconds <= limit)
            wanted = "gap 0.5 % in 20 s" if limit else "gap 3 %, aim 0.5 %"
            yield Line("real", f"{placement}, draw {number}", told(table, seconds), wanted, met)


def summary(lines: list[dict[str, Any]], commit: str) -> Iterator[Line]:
    """The worst and the mean gap of ``real``'s draws, once all of them are of ``commit``."""
    for placement, (bar, _) in REAL_BARS.items():
        mine = [x for x in lines if x["what"].startswith(f"{placement}, draw") and x.get("commit") == commit]
        gaps = [float(line["measured"].partition("gap ")[2].partition("%")[0]) / 100 for line in mine]
        if len(gaps) == 20:
            under = sum(gap <= 0.005 for gap in gaps)
            measured = f"worst {max(gaps):.2%}, mean {sum(gaps) / len(gaps):.2%}, {under} of 20 within 0.5 %"
            yield Line("real", f"{placement}, all draws", measured, f"gap {bar:.1%}", max(gaps) <= bar)


def frontier(quick: bool) -> Iterator[Line]:
    """The memory frontier of V at (8, 32), c = 0, alone and with swap and recomputation.

    Swapping: an activation of a half stage has 64 MiB, a tick is 1 ms (a forward of a half stage: 5 ms).
    """
    bars = {16: (995, 995), 10: (1045, 0), 8: (1085, 1075)}
    problem = v(8, 32, None)
    curve = scheduling_alone(problem, (8, 10, 14, 16) if quick else range(4, 18))
    for memory, table in curve.items():
        check(table)
        length, bound = bars.get(memory, (None, 0))
        met = None if length is None else table.makespan <= length and table.certificate.bound >= bound
        bar = "" if length is None else f"<= {length}" + (f", bound >= {bound}" if bound else "")
        yield Line("frontier", f"V K={memory}", told(table, table.certificate.seconds), bar, met)
    for name, length in (("v_half", 1045), ("v_min", 1095)):
        table = named_pipeline(problem, name)
        check(table)
        held = max(map(peak_activations, orders(name, problem.shape)))
        measured = f"{table.makespan}, {held} activations"
        yield Line("frontier", f"{name} as published, by name", measured, f"<= {length}", table.makespan <= length)
    bound = unlimited_bound(problem).value
    for bandwidth in (10e9, 12.5e9, 25e9) if quick else (6e9, 8e9, 10e9, 12.5e9, 15e9, 25e9, 50e9):
        for memory in (8,) if quick else (4, 5, 6, 7, 8, 10, 12):
            point = with_relief(curve, memory, Swapping(ACTIVATION, bandwidth, TICK))
            if point is None:
                continue
            measured = f"{point.makespan} (bound {bound}), bubble {point.bubble:.2%}: "
            measured += f"{point.swaps} swaps, {point.recomputes} recomputed"
            yield Line("frontier", f"V K={memory}, swap at {bandwidth / 1e9:g} GB/s", measured, "", None)
    found = least_bandwidth(curve, 8, 0.045, ACTIVATION, TICK)
    measured = "nowhere"
    if found is not None:
        swap, point = found
        measured = f"bubble {point.bubble:.2%} from {swap.bandwidth / 1e9:.3g} GB/s on, {point.swaps} swaps, "
        measured += f"{point.recomputes} recomputed: an activation moves in {swap.ticks / 5:g} forwards of a half stage"
    yield Line("frontier", "half memory (K=8) with swap", measured, "where 4.5 % is possible", found is not None)


def mixed(quick: bool) -> Iterator[Line]:
    """Half of the devices twice as fast, stage sizes balanced to speed, c = 0: the share of the summed throughput."""
    speed = (1,) * 4 + (2,) * 4
    for what, problem, bar in (
        ("V m=32", _balanced(v(8, 32, 16), speed), 0.95),
        ("linear m=64", _balanced(PipelineProblem(8, 64, max_activations=8), speed), 0.95),
        ("linear m=128", _balanced(PipelineProblem(8, 128, max_activations=8), speed), 0.95),
        ("linear m=32", _balanced(PipelineProblem(8, 32, max_activations=8), speed), 0.93),
    ):
        table, seconds = timed(problem)
        work = problem.microbatches * sum(sum(problem.costs(kind)) for kind in ("forward", "backward", "weight"))
        share = work / (sum(speed) * table.makespan)
        yield Line("mixed", what, f"{share:.2%}; {told(table, seconds)}", f"{bar:.0%}", share >= bar)


def _balanced(problem: PipelineProblem, speed: tuple[int, ...]) -> PipelineProblem:
    shape = problem.shape
    costs = {
        kind: tuple(cost * speed[shape.device(s)] for s, cost in enumerate(problem.costs(kind)))
        for kind in ("forward", "backward", "weight")
    }
    return replace(problem, **costs, speed=speed)


def honesty(quick: bool) -> Iterator[Line]:
    """Exhaustive search and solver agree; no bound exceeds a schedule; the same seed gives the same schedule."""
    from tests.scheduler.oracle import random_pipeline, shortest

    count = 40 if quick else 200
    agree = 0
    for seed in range(1000, 1000 + count):
        problem = random_pipeline(seed)
        table = solve_pipeline(problem)
        agree += table.certificate.status == "optimal" and table.makespan == shortest(_plain(problem))
    yield Line("honesty", "exhaustive search agrees", f"{agree} of {count}", "all of 200", agree == count)
    checked, above = 0, 0
    draw = random.Random(5)
    while checked < (400 if quick else 4000):
        flow = flow_of(replace(random_pipeline(draw.randrange(10**9)), comm=draw.choice((0, 1))))
        bound = ramp_bound(flow).value
        for policy, back in draw.sample(list(policies(flow)), 8):
            above += bound > flow.makespan((greedy_back if back else greedy)(flow, tuning(flow, policy)))
            checked += 1
    yield Line("honesty", "bounds above a feasible schedule", f"{above} of {checked}", "0 of 2000", above == 0)
    problem = v(4, 16, 7, comm=1)
    quiet = solve_pipeline(problem, effort=0.5).starts
    with loaded():
        same = quiet == solve_pipeline(problem, effort=0.5).starts
    yield Line("honesty", "same seed, same schedule, idle and loaded", str(same), "True", same)


@contextmanager
def loaded() -> Generator[None]:
    """Twice as many busy processes as there are cores."""
    processes = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _burn() -> None:
    while True:
        sum(range(10_000))


def runs(quick: bool) -> Iterator[Line]:
    """Named and solved schedules on Ray workers, tasks asleep."""
    from benchmarks.slept_schedules import SCHEDULES, lines

    yield from lines(SCHEDULES[:2] if quick else SCHEDULES, (8,) if quick else (8, 16), 21)


def _plain(problem: PipelineProblem) -> Problem:
    return to_problem(problem)


ROWS: dict[str, Callable[[bool], Iterator[Line]]] = {
    "linear": linear,
    "scale": scale,
    "real": real,
    "frontier": frontier,
    "mixed": mixed,
    "honesty": honesty,
    "runs": runs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"which rows, of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--draws", default="0:20", metavar="FIRST:END", help="which of the 20 draws of row real")
    parser.add_argument("--quick", action="store_true", help="fewer draws and sizes; nothing is kept")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))  # two rows need the tests' oracle and another benchmark
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no row is called {', '.join(unknown)}: there are {', '.join(ROWS)}")
    from ortools.sat.python import cp_model  # noqa: F401  (its import is no part of solving)

    ROWS["real"] = lambda quick: real(quick, range(*map(int, options.draws.split(":"))))
    rows = options.rows or list(ROWS)
    for row in rows:
        names: set[str] = set()
        for line in ROWS[row](options.quick):
            print(line, flush=True)
            names.add(line.what)
            if not options.quick:
                write([line])
        if not options.quick and row != "real":
            _keep([line for line in _kept() if line["row"] != row or line["what"] in names])
    if not options.quick:
        finish(rows)


def finish(rows: list[str]) -> None:
    """The summary of ``real`` if it can be made, and the figures of ``rows`` that are not of this commit."""
    kept, here = _kept(), commit()
    for line in summary([line for line in kept if line["row"] == "real"], here) if "real" in rows else ():
        print(line)
        write([line])
    for line in _kept():
        if line["row"] in rows and line.get("commit") != here:
            print(f"old  {line['row']:<9} {line['what']:<48} of commit {line.get('commit', 'unknown')}")


def commit() -> str:
    """The last commit of what is measured; a ``+`` says that files were changed after it."""
    code = ("superscaler", "benchmarks/*.py")
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return (git("log", "-1", "--format=%h", "--", *code) or "unknown") + ("+" if changed else "")


def write(lines: list[Line]) -> None:
    """What was measured now replaces what has the same row and name; the rest stays, with its own date and commit."""
    versions = {name: version(name) for name in ("superscaler", "ortools")} | {"python": platform.python_version()}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = [{**asdict(line), "date": now, "commit": commit(), "versions": versions} for line in lines]
    names = {(line["row"], line["what"]) for line in new}
    kept = [line for line in _kept() if (line["row"], line["what"]) not in names]
    _keep(kept + new)


def _keep(lines: list[dict[str, Any]]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": {"cores": os.cpu_count()}, "lines": lines}, indent=1) + "\n")


def _kept() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["lines"] if RESULTS.exists() else []


if __name__ == "__main__":
    main()
