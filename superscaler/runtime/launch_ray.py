"""Workers as Ray actors: one process each, one call per step. The only file that imports ray.

The plan is sent once, inputs go by the object store (equal parts once), everything else by ``torch.distributed``. When
a worker dies the others are ended too, and nothing is left: no process, no shared memory, no file.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from torch import Tensor

from superscaler.errors import ClusterError, RunError, WorkerError
from superscaler.ir.plan import Plan
from superscaler.runtime.binding import program_of
from superscaler.runtime.crew import Inputs
from superscaler.runtime.custom import users_ops
from superscaler.runtime.execution import task_name
from superscaler.runtime.fault_handlers import FaultHandlers, put_back
from superscaler.runtime.progress import Progress
from superscaler.runtime.signals import deferred, exit_when_terminated
from superscaler.runtime.station import Outcome, Station, pack, unpack
from superscaler.runtime.worker import WorkerOptions

START = 180.0  # seconds for all workers to come up
LOOK = 1.0  # seconds between two looks at which workers have failed
COMPILING = 3600.0  # seconds for all bodies to be compiled
AGAIN = "launch the plan again; load_checkpoint(...) goes on from the last checkpoint"
GRACE = 4.0  # seconds in which the cause of a failure may show up behind its consequences
INLINE = 64 << 10  # bytes of an input that go with the call itself
STORE = 128 << 20  # bytes of the object store of a Ray that we start
SHUTDOWN = 30.0  # seconds for Ray to end by itself
PLACE = "/tmp"  # of its files: sockets are among them, whose paths are limited to about a hundred characters


class Cluster:
    """The Ray that a job runs on: the one there is, or one of our own, which ends with the last job on it.

    ``alone``: it is on this machine and for jobs of this process only, so that no CPU of it has to be waited for.
    """

    _lock = threading.Lock()
    _jobs: ClassVar[list[Cluster]] = []  # those on a Ray of our own
    _directory: ClassVar[Path | None] = None  # where that Ray keeps its files
    _lock_of_directory: ClassVar[int] = -1
    _process: ClassVar[int] = -1  # which started it: forks do not end it
    _handlers: ClassVar[FaultHandlers]

    def __init__(self, workers: int) -> None:
        with self._lock:
            self.alone = False
            if ray.is_initialized() and not self._jobs and self._directory is None:
                return
            if not ray.is_initialized():
                self._start(workers)
            self._jobs.append(self)
            self.alone = self._directory is not None

    @classmethod
    def _start(cls, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
            return
        _sweep()
        try:
            with deferred():
                cls._directory, cls._lock_of_directory = _own_directory()
                cls._process = os.getpid()
                cls._handlers = FaultHandlers()
            cpus, place = max(workers, os.cpu_count() or 1), str(cls._directory)
            with exit_when_terminated():
                ray.init(num_cpus=cpus, object_store_memory=STORE, include_dashboard=False, _temp_dir=place, **quiet)
            cls._handlers.begun()
        except BaseException:
            cls._stop()
            raise

    @classmethod
    def _stop(cls) -> None:
        _no_alarm()
        with deferred() as defer:
            directory, cls._directory = cls._directory, None
            family = [] if directory is None else _family(directory)
            handlers = {} if directory is None else cls._handlers.kept()
            _shut_down(defer)
            put_back(handlers)
            if directory is not None:
                _end(family + _family(directory))
                shutil.rmtree(directory, ignore_errors=True)
                os.close(cls._lock_of_directory)

    @classmethod
    def leave(cls) -> None:
        """As the process exits: end a Ray of our own that signals kept its jobs from ending."""
        if cls._directory is not None and cls._process == os.getpid():
            cls._jobs.clear()
            cls._stop()

    def close(self) -> None:
        """End what was started, unless another job uses it."""
        with self._lock:
            if self in self._jobs:
                self._jobs.remove(self)
                if not self._jobs:
                    self._stop()


atexit.register(Cluster.leave)


def _shut_down(defer: Callable[[], None]) -> None:
    """Ray's core takes the handler of SIGTERM away as it ends, with its processes still there: set it again.

    A Ray that does not answer is left alone: ending its processes is what comes next.
    """
    ending = threading.Thread(target=ray.shutdown, daemon=True)
    try:
        ending.start()
    except RuntimeError:  # Python 3.12 has no new threads while it exits
        ray.shutdown()
        return
    limit = time.monotonic() + SHUTDOWN
    while ending.is_alive() and time.monotonic() < limit:
        defer()
        ending.join(0.005)


def _own_directory() -> tuple[Path, int]:
    """A directory for the files of a Ray, and the descriptor that locks it for as long as this process lives."""
    directory = Path(tempfile.mkdtemp(prefix="ss-ray-", dir=PLACE))
    lock = os.open(directory / ".owner", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (directory / ".owner").rename(directory / "owner")  # only now, or somebody's sweep might be the first to lock it
    return directory, lock


def _sweep() -> None:
    """Remove what processes left that were killed, directories and agents of their Ray: their locks are gone."""
    for owner in Path(PLACE).glob("ss-ray-*/owner"):
        with contextlib.suppress(OSError), owner.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for process in filter(_rays, _users_of(owner.parent)):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            shutil.rmtree(owner.parent, ignore_errors=True)


def _users_of(directory: Path) -> list[psutil.Process]:
    """The processes, but for this one, that have files in a directory open."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(directory in Path(f.path).parents for f in process.open_files()):
                found.append(process)
    return found


def _family(directory: Path) -> list[psutil.Process]:
    """The processes of our own Ray: agents whose raylet has died are nobody's children, but write their logs."""
    return [p for p in {*psutil.Process().children(recursive=True), *_users_of(directory)} if _rays(p)]


def _rays(process: psutil.Process) -> bool:
    """Whether a process of ours is one that Ray started: its agents outlive a Ray that is ended while it starts."""
    with contextlib.suppress(psutil.Error):
        return any(word.startswith("ray::") or "/ray/" in word for word in process.cmdline())
    return False


def _no_alarm() -> None:
    """Ray's handler of SIGTERM (Abseil's) has the process abort three seconds later: to end a job may take longer."""
    if signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        signal.alarm(0)


def _end(processes: list[psutil.Process]) -> None:
    """Wait a little for processes to end, then end them."""
    alive = _await(processes)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _await(alive)


def _await(processes: list[psutil.Process], seconds: float = 5.0) -> list[psutil.Process]:
    """Those that still run after so long; a process that has ended unseen by a raylet that ends, too, does not."""
    end = time.monotonic() + seconds
    while processes and time.monotonic() < end:
        _, processes = psutil.wait_procs(processes, timeout=0.05)
        processes = [p for p in processes if not _zombie(p)]
    return processes


def _zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Where:
    """Where an actor runs."""

    node: str
    host: str
    process: int
    cpus: int


class _Actor(Station):
    """A station that Ray can place."""

    def where(self) -> Outcome:
        """Where this process runs."""
        node = ray.get_runtime_context().get_node_id()
        cpus = len(psutil.Process().cpu_affinity() or [0])
        return Outcome(Where(node, ray.util.get_node_ip_address(), os.getpid(), cpus))


class RayCrew:
    """One actor per worker. See :class:`~superscaler.runtime.crew.Crew`."""

    def __init__(self, plan: Plan, options: WorkerOptions) -> None:
        self.size = plan.workers
        self.shared = False
        self.plan = plan
        self.actors: list[Any] = []
        self.processes: list[psutil.Process] = []
        self.progress = Progress.create(plan.workers)
        self.cluster: Cluster | None = None
        try:
            self.cluster = Cluster(plan.workers)
            self._start(plan, options)
        except BaseException:
            self.close()
            raise

    def _start(self, plan: Plan, options: WorkerOptions) -> None:
        assert self.cluster is not None
        gpus = _gpus(plan, alone=self.cluster.alone)
        cpus = 0 if self.cluster.alone else 1
        kind = ray.remote(_Actor).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self.actors = [kind.remote() for _ in range(plan.workers)]
        where = self._all("where", [()] * plan.workers, limit=START)
        order = sorted(range(plan.workers), key=lambda i: where[i].node)  # neighbours on one node, as plans assume
        self.actors, where = [self.actors[i] for i in order], [where[i] for i in order]
        here = ray.get_runtime_context().get_node_id()
        self.processes = [psutil.Process(w.process) for w in where if w.node == here]
        port = self._all("serve", [(plan.workers, options.limit)], actors=self.actors[:1], limit=START)[0]
        shared, ops = ray.put(plan), ray.put(users_ops(plan))
        calls: list[tuple[Any, ...]] = []
        for index, place in enumerate(where):
            there = sum(w.node == place.node for w in where)
            threads = max(1, place.cpus // there)
            mine = WorkerOptions("cuda:0" if gpus else "cpu", options.compile, options.memory, options.limit, threads)
            progress = self.progress.path if place.node == here else None
            calls.append((shared, ops, index, mine, where[0].host, port, progress))
        self._all("start", calls, limit=COMPILING if options.compile else START + options.limit)
        self.progress.unlink()

    def run(self, entry: str, inputs: Inputs, seed: tuple[int, int]) -> list[dict[str, float]]:
        shared: dict[int, Any] = {}
        calls: list[tuple[Any, ...]] = []
        for part in inputs:
            calls.append((entry, seed, list(part), *(self._deliver(t, shared) for t in part.values())))
        return self._all("run", calls, entry=entry)

    def _deliver(self, tensor: Tensor, shared: dict[int, Any]) -> Any:
        """A tensor as an argument of a call: itself if it is small, else put into the store, once for all workers."""
        if tensor.numel() * tensor.element_size() <= INLINE:
            return pack(tensor)
        if id(tensor) not in shared:
            shared[id(tensor)] = ray.put(pack(tensor))
        return shared[id(tensor)]

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return unpack(self._all("call", [(method, *pack(args)) for args in arguments]))

    def _all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        *,
        actors: Sequence[Any] | None = None,
        limit: float | None = None,
        entry: str = "",
    ) -> list[Any]:
        """A method of all actors at once; what they return, or the error that explains a failure."""
        chosen = self.actors if actors is None else actors
        refs = [getattr(a, method).remote(*args) for a, args in zip(chosen, arguments, strict=True)]
        end = None if limit is None else time.monotonic() + limit
        outcomes: dict[int, Outcome] = {}
        waiting = list(range(len(refs)))
        while waiting:
            # All at once is one call where nothing goes wrong; between looks, a failure has to wait this long.
            done, _ = ray.wait([refs[i] for i in waiting], num_returns=len(waiting), timeout=LOOK)
            for ref in done:
                index = refs.index(ref)
                waiting.remove(index)
                outcomes[index] = self._outcome(index, ref, entry)
            if any(o.error is not None for o in outcomes.values()):
                raise self._cause(refs, waiting, outcomes, entry)
            if waiting and end is not None and time.monotonic() > end:
                raise self._slow(method, waiting, limit)
        return [outcomes[i].value for i in range(len(refs))]

    def _outcome(self, index: int, ref: Any, entry: str) -> Outcome:
        try:
            return ray.get(ref, timeout=60)
        except RayActorError as e:
            return Outcome(None, self._died(index, str(e), entry), 0)
        except (RayError, GetTimeoutError) as e:
            return Outcome(None, RunError(f"worker {index} failed", str(e).strip().splitlines()[-1], hint=AGAIN), 1)

    def _died(self, index: int, reason: str, entry: str) -> WorkerError:
        details = [f"last task: {self.task(index, entry)}"]
        lines = [line.strip() for line in reason.splitlines() if "died" in line or "exit" in line.lower()]
        return WorkerError(
            f"worker {index} died" + (f" in {self.task(index, entry)}" if entry else ""),
            *details,
            *lines[-1:],
            hint=AGAIN,
        )

    def task(self, index: int, entry: str) -> str:
        """The task that a worker last began, as far as this machine can tell."""
        program = program_of(self.plan.entries[entry], index) if entry else None
        return "none" if program is None else task_name(program, self.progress.of(index))

    def _cause(self, refs: list[Any], waiting: list[int], outcomes: dict[int, Outcome], entry: str) -> Exception:
        """Of all errors that follow a failure, the one that explains the others: a death before a failed op before a
        communication that failed because its peer did."""
        end = time.monotonic() + GRACE
        while waiting and min(o.rank for o in outcomes.values()) > 0:
            done, _ = ray.wait([refs[i] for i in waiting], num_returns=1, timeout=max(0.0, end - time.monotonic()))
            if not done:
                break
            index = refs.index(done[0])
            waiting.remove(index)
            outcomes[index] = self._outcome(index, done[0], entry)
        worst = min((o for o in outcomes.values() if o.error is not None), key=lambda o: o.rank)
        assert worst.error is not None
        return worst.error

    def _slow(self, method: str, waiting: list[int], limit: float | None) -> RunError:
        return RunError(
            f"workers {waiting} did not come up within {limit:g} s",
            f"waiting for: {method}",
            hint="`ray status`: is another job holding the CPUs?",
        )

    def close(self) -> None:
        _no_alarm()
        with deferred():
            actors, self.actors = self.actors, []
            for actor in actors:
                with contextlib.suppress(Exception):
                    ray.kill(actor, no_restart=True)
            processes, self.processes = self.processes, []
            _end(processes)
            if self.cluster is not None:
                self.cluster.close()
            self.progress.close()


def _gpus(plan: Plan, *, alone: bool) -> int:
    """GPUs per worker: one if there are enough. Raises :class:`ClusterError` if the machine is too small."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if cpus < plan.workers and not alone:
        raise ClusterError(
            f"the plan needs {plan.workers} workers, and Ray has {cpus} CPUs",
            f"nodes: {len(ray.nodes())}",
            hint=f"ray.init(num_cpus={plan.workers}), or a plan for fewer devices",
        )
    planned = any(kind.name != "cpu" for kind in plan.cluster.kinds)
    if gpus < plan.workers and planned and torch.cuda.is_available():
        raise ClusterError(
            f"the plan needs {plan.workers} GPUs, and Ray has {gpus}",
            hint="a plan for fewer devices, or a Ray with more GPUs",
        )
    return int(torch.cuda.is_available() and gpus >= plan.workers)
