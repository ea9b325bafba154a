"""Schedules as they run: pipelines of sleeping tasks on Ray workers, beside torch's ZBV and DualPipeV in the same run.

    python -m benchmarks.slept_schedules [--schedules zb_v:v,solve:v,...] [--microbatches 8,16] [--steps 21]

It is the row "runs" of ``benchmarks/schedule.py``, which runs all of it.

A stage of a linear pipeline sleeps 20 ms in its forward, its input gradient and its weight gradient; where a device has
two stages, each sleeps 10 ms. A step is timed inside the workers, ours from the first task to the last, torch's between
barriers; *called* is what a caller of ours waits, Ray's part included. *Predicted* is what replaying the plan says,
with task bodies, posts and messages measured here before the steps. A machine that others share is not the same from
one minute to the next, so steps are made in three rounds, each predicted before it; what counts is the median of what
steps took over what was predicted for them. What that is by the first round's prediction alone stands beside it.
*Overhead* is what a step takes beyond what the plan stated when it was compiled, which counts the network
(``Cluster.local``: 1 ms for each message, more than it takes); torch states none, so for it beyond the least that its
own order can take with these sleeps and no network. The share is shown with ours counted in that way, too. Steps of
ours and of torch's two take turns; torch's processes are stopped when it is not theirs. Ours is compared with torch's
of the same schedule (zb_v with ZBV, dualpipe_v with DualPipeV), else with the smaller one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import ScheduleDualPipeV, ScheduleZBVZeroBubble

from benchmarks.schedule import Line, write
from superscaler.api import compile as compile_plan
from superscaler.ir.cluster import Cluster
from superscaler.ir.plan import Entry, Plan
from superscaler.ir.program import Item
from superscaler.runtime.distributed import connect, serve
from superscaler.runtime.gaps import begun
from superscaler.runtime.launch import launch
from superscaler.runtime.links import arrivals, comm_of
from superscaler.runtime.moves import Measured, courses, measure_moves
from superscaler.runtime.ops import sleep
from superscaler.runtime.ops.sleeping import slept
from superscaler.scheduler import Job, Problem, list_schedule, makespan
from superscaler.scheduler.keys import Keys
from superscaler.scheduler.replay import Durations, replay
from superscaler.transforms.optimize import SGD

DEVICES, WIDTH, MILLISECONDS = 4, 8, 20.0
REPLAYS = 50
ROUNDS = 3
MEASURING = 2.0  # seconds that every Program of a plan is run before a round, to find out what its tasks take
MESSAGES = 100  # of each worker, to find out how long one is under way
STAGES = {"linear": 4, "bidirectional": 4, "v": 8, "interleaved": 8}
SCHEDULES = (
    "1f1b:linear", "zb_h1:linear", "chimera:bidirectional", "interleaved_1f1b:interleaved", "zb_v:v", "v_half:v",
    "v_min:v", "dualpipe_v:v", "solve:linear", "solve:v",
)  # fmt: skip
Instance = tuple[int, Item]  # a role's
TORCH = {"ZBV": ScheduleZBVZeroBubble, "DualPipeV": ScheduleDualPipeV}


@dataclass(frozen=True)
class Ran:
    """What steps took, in milliseconds, each with what was predicted before it; what was stated before; and the least
    that their order can take with these sleeps and no network."""

    name: str
    microbatches: int
    least: float
    stated: float
    predicted: Sequence[float]
    times: Sequence[float]
    called: Sequence[float]

    @property
    def measured(self) -> float:
        return statistics.median(self.times)

    @property
    def overhead(self) -> float:
        return max(self.measured - self.stated, 0.0)

    @property
    def off(self) -> float:
        return statistics.median(took / said for took, said in zip(self.times, self.predicted, strict=True)) - 1

    def __str__(self) -> str:
        predicted = " ".join(f"{said:.1f}" for said in dict.fromkeys(self.predicted))
        first = self.measured / self.predicted[0] - 1
        figures = f"{self.measured:.1f} ms ({self.off:+.2%}), predicted {predicted} (by the first {first:+.2%})"
        called = statistics.median(self.called)
        return f"{figures}, planned {self.stated:.1f}, called {called:.1f}, {len(self.times)} steps"


# --- ours ------------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Sleeps in its forward, for its input's gradient and, behind ``scale``, for its weight's; nothing else to do."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.scale, self.milliseconds = nn.Parameter(torch.ones(WIDTH)), milliseconds

    def forward(self, x: Tensor) -> Tensor:
        return sleep(x, self.milliseconds, self.milliseconds) * sleep(self.scale, 0.0, self.milliseconds)


class Slept(nn.Module):
    """A layer per stage and a loss, of which every backward needs all of the forward. A bias stands in front, so that
    the first stage, too, has an input gradient."""

    def __init__(self, stages: int, milliseconds: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(WIDTH))
        self.layers = nn.Sequential(*(Layer(milliseconds) for _ in range(stages)))

    def forward(self, x: Tensor) -> Tensor:
        return loss(self.layers(x + self.bias))


def loss(x: Tensor) -> Tensor:
    return x.square().sum()


def task_of(placement: str) -> float:
    """Milliseconds of a task."""
    return MILLISECONDS * DEVICES / STAGES[placement]


def planned(schedule: str, placement: str, microbatches: int) -> tuple[Plan, nn.Module, Tensor]:
    """The plan of a schedule, its model and its batch."""
    torch.manual_seed(0)
    stages = STAGES[placement]
    model, x = Slept(stages, task_of(placement)), torch.randn(microbatches, WIDTH)
    script = f"pipeline:stages={stages},microbatches={microbatches},schedule={schedule},placement={placement}"
    cluster = Cluster.local(DEVICES)
    return compile_plan(model, (x,), cluster=cluster, plan=script, optimizer=SGD(lr=0.0), evaluate=False), model, x


@cache
def store() -> Any:
    """Where the processes of the crew find each other."""
    return serve(DEVICES, limit=120)


@cache
def crew() -> list[ProcessPoolExecutor]:
    """A process for every worker, connected to the others."""
    found = [ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in range(DEVICES)]
    for joined in [pool.submit(join, worker, store().port) for worker, pool in enumerate(found)]:
        joined.result(120)
    return found


def join(worker: int, port: int) -> None:
    torch.set_num_threads(1)
    connect(worker, DEVICES, "127.0.0.1", port, device=torch.device("cpu"), limit=120)


def measured(plan: Plan, task: float, worker: int) -> tuple[Measured, list[float]]:
    x = torch.zeros(WIDTH)
    with torch.no_grad():
        found = measure_moves(plan, worker, DEVICES, least=MEASURING, limit=120)
        comm = comm_of(worker, DEVICES, torch.device("cpu"))
        return found, arrivals(comm, MESSAGES, lambda: slept(x, task))


def predict(plan: Plan, task: float) -> float:
    """The milliseconds of a step: the plan's Programs replayed with its task bodies, what communication takes of a
    worker, and how long messages are under way behind a sleep of ``task`` milliseconds, all measured just before by as
    many processes as there are workers.

    The median of replays in which tasks and messages take as long as ones that were measured: where many wait for each
    other, it is the slower one that counts, so a step takes longer than it would if all were as long as the mean.
    """
    measuring = [pool.submit(measured, plan, task, worker) for worker, pool in enumerate(crew())]
    each = [future.result(240) for future in measuring]
    found, arriving = each[0][0], [seconds for _, arrived in each for seconds in arrived]
    drawn = Drawn(plan, found, arriving)
    return statistics.median(drawn.step() for _ in range(REPLAYS)) / 1000


class Drawn:
    """Steps of which every task and message takes as long as one that was measured, drawn anew for each step."""

    def __init__(self, plan: Plan, found: Measured, arriving: Sequence[float]) -> None:
        self.entry, self.found, self.arriving = plan.entries["train"], found, arriving
        self.keys = [Keys(plan, self.entry, program) for program in self.entry.programs]
        self.courses = courses(plan, "train")
        self.orders = [begun(course, p) for course, p in zip(self.courses, self.entry.programs, strict=True)]
        self.posts, self.finishes = self.between()
        self.generator = random.Random(0)

    def step(self) -> int:
        """Microseconds of one."""
        run = replay(
            self.entry,
            self.lengths(),
            posts=lambda role, item: self.posts.get((role, item), 0),
            finishes=lambda role, item: self.finishes.get((role, item), 0),
            orders=self.orders,
        )
        return max(end for ends in run.ends for end in ends)

    def lengths(self) -> Durations:
        """Of tasks, and of messages under way."""

        @cache
        def length(role: int, item: Item) -> int:
            keys = self.keys[role]
            body = self.found.blocks.get(keys.block(item.block, item.microbatch))
            met = sum(self.found.moves[key] for key in keys.meetings(item).values())
            return self.draw(self.arriving if body is None else body) + round(met * 1e6)

        return length

    def between(self) -> tuple[dict[Instance, int], dict[Instance, int]]:
        """Of what lies between tasks: for each post its part, or all of it where nothing is posted."""
        posts, finishes = dict[Instance, int](), dict[Instance, int]()
        for role, course in enumerate(self.courses):
            order = self.entry.programs[role].order
            for gap in course[1:]:
                took = round(self.found.gaps[gap.key] * 1e6)
                if not gap.posts:
                    finishes[role, order[gap.item]] = took
                posts |= {(role, order[number]): took // len(gap.posts) for number in gap.posts}
        return posts, finishes

    def draw(self, seconds: Sequence[float]) -> int:
        return max(1, round(self.generator.choice(seconds) * 1e6))


def ours(name: str, microbatches: int, steps: int, beside: Callable[[], None]) -> Ran:
    """Steps of a named or solved schedule ("NAME:PLACEMENT") on four Ray workers, in rounds, each predicted before it;
    ``beside``: called before each step."""
    schedule, _, placement = name.partition(":")
    plan, model, x = planned(schedule, placement, microbatches)
    stated = plan.entries["train"].certificate.makespan / 1000
    predicted, times, called = list[float](), list[float](), list[float]()
    with launch(plan, model) as job:
        for _ in range(3):  # connections are made, code is warm
            job.step(x)
        for count in rounds(steps):
            predicted += [predict(plan, task_of(placement))] * count  # beside Ray, as the run
            for _ in range(count):
                beside()
                begin = time.perf_counter()
                job.step(x)
                called.append((time.perf_counter() - begin) * 1000)
                tasks = [task for task in job.trace() if task.lane == "compute"]
                times.append((max(task.end for task in tasks) - min(task.start for task in tasks)) / 1000)
    least = without_network(plan.entries["train"], task_of(placement))
    return Ran(name, microbatches, least, stated, predicted, times, called)


def rounds(steps: int) -> list[int]:
    """How many of them each round has."""
    return [steps * (i + 1) // ROUNDS - steps * i // ROUNDS for i in range(ROUNDS)]


def without_network(entry: Entry, task: float) -> float:
    """The least milliseconds that the plan's order can take: tasks are whole sleeps, messages are nothing."""

    def sleeps(role: int, item: Item) -> int:
        computes = entry.programs[role].blocks[item.block].lane == "compute"
        return round((item.end - item.start) / 1000 / task) * round(task * 1000) if computes else 0

    return max(end for ends in replay(entry, sleeps).ends for end in ends) / 1000


# --- torch -----------------------------------------------------------------------------------------------------------


class Nap(torch.autograd.Function):
    """Sleeps for autograd: so long forward, so long backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.backward_milliseconds = backward
        return slept(x, forward)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return slept(grad, ctx.backward_milliseconds), None, None


class Half(nn.Module):
    """The same layer for autograd: the sleep of the weight gradient stands on the parameter's path alone."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(WIDTH)) if first else None
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        half = MILLISECONDS / 2
        nap: Callable[..., Tensor] = Nap.apply  # pyright: ignore[reportAssignmentType]
        return nap(x if self.bias is None else x + self.bias, half, half) * nap(self.scale, 0.0, half)


def torch_rank(rank: int, which: str, microbatches: int, port: int, commands: Any, told: Any) -> None:
    """One rank of torch.distributed.pipelining: a step per command, until there are no more."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=DEVICES)
    device, count = torch.device("cpu"), 2 * DEVICES
    stages: list[Any] = []
    for index in (rank, count - 1 - rank):
        example = torch.randn(1, WIDTH, requires_grad=index > 0)
        output = torch.randn(1, WIDTH, requires_grad=True)
        stages.append(
            PipelineStage(Half(index == 0), index, count, device, input_args=(example,), output_args=(output,))
        )
    schedule: Any = TORCH[which](stages, microbatches, loss_fn=lambda out, _: loss(out))
    x = torch.randn(microbatches, WIDTH)
    if rank == 0:
        told.put(least(schedule.pipeline_order))
    while commands.get():
        dist.barrier()
        begin = time.perf_counter()
        schedule.step(x, target=x) if rank == 0 else schedule.step()
        dist.barrier()
        if rank == 0:
            told.put((time.perf_counter() - begin) * 1000)
    dist.destroy_process_group()


def least(order: Mapping[int, Sequence[Any]]) -> float:
    """The least milliseconds that an order of torch's can take with these sleeps: its tasks by list scheduling."""
    index: dict[tuple[str, int, int], int] = {}
    jobs: list[Job] = []
    edges: list[tuple[int, int, int]] = []
    for rank, actions in order.items():
        before = len(jobs)
        for action in actions:
            for part in _parts(action):
                kind = part.computation_type.value
                for letter in "IW" if kind == "B" else str(kind):
                    index[letter, part.stage_index, part.microbatch_index] = len(jobs)
                    jobs.append(Job(rank, letter, part.stage_index, part.microbatch_index, 1, ((rank, "compute"),)))
        edges += [(a, b, 0) for a, b in pairwise(range(before, len(jobs)))]
    for (kind, stage, j), i in index.items():
        wanted = {"F": [("F", stage - 1, j)], "I": [("I", stage + 1, j), ("F", stage, j)], "W": [("I", stage, j)]}[kind]
        edges += [(index[key], i, 0) for key in wanted if key in index]
    problem = Problem(tuple(jobs), tuple(edges), (None,) * DEVICES)
    return makespan(problem, list_schedule(problem, [0.0] * len(jobs))) * MILLISECONDS / 2


def _parts(action: Any) -> tuple[Any, ...]:
    """The tasks of one place in torch's order: none, one, or a forward and a backward at once."""
    return () if action is None else action.sub_actions or (action,)


@dataclass(frozen=True)
class Pipeline:
    """A running pipeline of torch's: the least that its order can take, and a function that makes one step and returns
    its milliseconds. Between steps its processes are stopped, so that they take nothing from anybody."""

    least: float
    step: Callable[[], float]


@contextmanager
def torch_pipeline(which: str, microbatches: int, port: int) -> Generator[Pipeline]:
    """One of torch's schedules, in a process per rank."""
    context = multiprocessing.get_context("spawn")
    commands, told = [context.Queue() for _ in range(DEVICES)], context.Queue()
    ranks = [
        context.Process(target=torch_rank, args=(rank, which, microbatches, port, commands[rank], told), daemon=True)
        for rank in range(DEVICES)
    ]
    for process in ranks:
        process.start()

    def send(number: int) -> None:
        for process in ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def step() -> float:
        send(signal.SIGCONT)
        for queue in commands:
            queue.put(True)
        took = told.get(timeout=120)
        send(signal.SIGSTOP)
        return took

    try:
        found = Pipeline(told.get(timeout=120), step)
        for _ in range(3):
            step()
        yield found
    finally:
        send(signal.SIGCONT)
        for queue in commands:
            queue.put(False)
        for process in ranks:
            process.join(10)
            process.kill()


@contextmanager
def torchs(microbatches: int) -> Generator[dict[str, Pipeline]]:
    """torch's two."""
    port = 29600 + os.getpid() % 1000
    with ExitStack() as stack:
        yield {
            which: stack.enter_context(torch_pipeline(which, microbatches, port + i)) for i, which in enumerate(TORCH)
        }


def torchs_run(which: str, microbatches: int, least: float, times: list[float]) -> Ran:
    """What torch took; it predicts nothing, so the least that its order can take stands for that."""
    return Ran(which, microbatches, least, least, [least] * len(times), times, times)


# --- both ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One schedule of ours with torch's two of the same run."""

    ran: Ran
    torch: dict[str, Ran]

    @property
    def beside(self) -> float:
        """torch's overhead: of the same schedule, or the smaller one."""
        same = {"zb_v:v": "ZBV", "dualpipe_v:v": "DualPipeV"}.get(self.ran.name)
        return min(other.overhead for other in ([self.torch[same]] if same else self.torch.values()))

    @property
    def share(self) -> float:
        """Our overhead as a share of torch's."""
        return self.ran.overhead / self.beside

    @property
    def without_network(self) -> float:
        """The same, but ours counted as torch's is: the network is overhead, too."""
        return (self.ran.measured - self.ran.least) / self.beside


def compare(schedules: Sequence[str], microbatches: Sequence[int], steps: int) -> Iterator[Compared]:
    """Every schedule of ``schedules`` at every number of micro-batches, its steps in turn with torch's."""
    for count in microbatches:
        with torchs(count) as running:
            for name in schedules:
                times: dict[str, list[float]] = {which: [] for which in running}

                def beside(times: dict[str, list[float]] = times, running: dict[str, Pipeline] = running) -> None:
                    for which, pipeline in running.items():
                        times[which].append(pipeline.step())

                ran = ours(name, count, steps, beside)
                others = {which: torchs_run(which, count, running[which].least, times[which]) for which in running}
                yield Compared(ran, others)


def lines(schedules: Sequence[str], microbatches: Sequence[int], steps: int) -> Iterator[Line]:
    """The figures beside their bars."""
    for found in compare(schedules, microbatches, steps):
        ran, count = found.ran, found.ran.microbatches
        yield Line("runs", f"{ran.name} m={count}: median step", str(ran), "within 1 %", abs(ran.off) <= 0.01)
        beside = ", ".join(f"{name} {other.overhead:.1f}" for name, other in found.torch.items())
        counted = f"its network counted in {found.without_network:.2f}, {ran.measured - ran.least:.1f} ms"
        measured = f"{found.share:.2f} ({ran.overhead:.1f} ms; {beside}; {counted})"
        yield Line("runs", f"{ran.name} m={count}: overhead, share of torch's", measured, "0.25", found.share <= 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedules", default=",".join(SCHEDULES), help="NAME:PLACEMENT, by comma")
    parser.add_argument("--microbatches", default="8,16", help="numbers of micro-batches, by comma")
    parser.add_argument("--steps", type=int, default=21, help="timed steps of each")
    options = parser.parse_args()
    counts = [int(count) for count in options.microbatches.split(",")]
    for line in lines(options.schedules.split(","), counts, options.steps):
        print(line, flush=True)
        write([line])


if __name__ == "__main__":
    main()
