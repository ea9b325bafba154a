"""A job: a plan under way. Steps are runs of its entries; state can be looked at, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from superscaler.errors import InputError, NonFiniteLoss, RunError, UsageError
from superscaler.ir.argument import known, path_of, whole
from superscaler.ir.plan import Plan
from superscaler.ir.region import Region
from superscaler.runtime import checkpoint, restore
from superscaler.runtime.crew import Crew
from superscaler.runtime.initial import aliases
from superscaler.runtime.inputs import Cutter, call_of, driven, gather
from superscaler.runtime.packing import assemble
from superscaler.runtime.timings import Timing, Timings, timeline

_DIRECTORY = 'the name of a directory: "checkpoint"'
Local = list[dict[str, list[tuple[Region, Tensor]]]]


class Job:
    """Made by :func:`superscaler.launch`; a context manager. ``steps``: how many training steps have been made."""

    def __init__(self, plan: Plan, crew: Crew, *, model: nn.Module | None = None, finite: bool = False) -> None:
        self.plan = plan
        self.steps = 0
        self.seed = whole(plan.settings.get("seed", 0), "the plan's seed")
        self._call = call_of(plan)
        self._crew: Crew | None = crew
        self._finite = finite
        self._cutters: dict[str, Cutter] = {}
        self._last = ""
        self._walls: list[int] = []
        self._names = None if model is None else frozenset(model.state_dict())

    # --- running ----------------------------------------------------------------------------------------------------

    def step(self, *inputs: Any, lr: float | None = None, **named: Any) -> float:
        """One training step on the global batch; the loss before it.

        ``inputs``: tensors in the order of the model's, of the shapes and dtypes that the plan was compiled for, and
        any of the settings that it was compiled for.
        ``lr``: the learning rate of this step, instead of the plan's. Raises :class:`InputError` before anything runs,
        :class:`WorkerError` when a worker fails, and, launched with ``nan="raise"``, :class:`NonFiniteLoss` after a
        step whose loss is no number: the job can then still be looked at, and go on from a checkpoint.
        """
        stated = self.plan.settings.get("lr") if lr is None else lr
        rate = None if stated is None else _rate(stated)
        outputs = self._run("train", inputs, named, rate, self.steps + 1)
        self.steps += 1
        loss = next(found["loss"] for found in outputs if "loss" in found)
        if self._finite and not isfinite(loss):
            raise NonFiniteLoss(
                f"the loss of step {self.steps} is {loss}",
                "the parameters have taken this step",
                hint="a smaller lr or clip_norm, from the last load_checkpoint(...); job.gradients() shows where",
            )
        return loss

    def evaluate(self, *inputs: Any, **named: Any) -> dict[str, Any]:
        """The results of the entry ``eval``: numbers as floats, tensors whole."""
        return self.results("eval", *inputs, **named)

    def results(self, entry: str, *inputs: Any, **named: Any) -> dict[str, Any]:
        """The results of a run of an entry that does not train: numbers as floats, tensors whole."""
        scalars = self._run(entry, inputs, named, None, self.steps)
        parts = self._local("outputs", entry)
        shapes = self.plan.entries[entry].graph
        found: dict[str, Any] = {}
        for name, tensor in shapes.outputs.items():
            number = next((s[name] for s in scalars if name in s), None)
            found[name] = number if number is not None else self._whole(parts, name, shapes.tensor[tensor].shape)
        return found

    def _run(
        self, entry: str, args: tuple[Any, ...], named: Mapping[str, Any], lr: float | None, step: int
    ) -> list[dict[str, float]]:
        crew = self._working()
        found = known(entry, self.plan.entries, "the plan has no entry")
        inputs = {**gather(found, args, named, self._call), **driven(found, lr=lr, step=step)}
        cutter = self._cutters.get(entry)
        if cutter is None:
            cutter = self._cutters[entry] = Cutter(self.plan, found)
        start = perf_counter_ns()
        try:
            outputs = crew.run(entry, cutter.cut(inputs), (self.seed, step))
        except BaseException:
            # What the workers hold is no longer of one step, and some may be gone.
            self.close()
            raise
        self._walls.append(perf_counter_ns() - start)
        self._last = entry
        return outputs

    def _working(self) -> Crew:
        if self._crew is None:
            raise RunError("the job has ended", hint="launch the plan again; load_checkpoint(...) goes on from there")
        return self._crew

    # --- looking at it ----------------------------------------------------------------------------------------------

    def gradients(self) -> dict[str, Tensor]:
        """Parameter -> its gradient in the last step, before clipping, whole; tied parameters under one name."""
        parts = self._gradients()
        graph = self.plan.entries["train"].graph
        return {n: self._whole(parts, n, graph.tensor[t].shape) for n, t in graph.gradients.items()}

    def local_gradients(self) -> Local:
        """Per worker: parameter -> the (region, tensor) parts that it holds of its gradient in the last step."""
        return _own(self._gradients())

    def _gradients(self) -> Local:
        if self._last != "train":
            raise UsageError("there are no gradients: the last run was no training step", hint="job.step(...) first")
        return self._local("gradients", "train")

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by the model's names, whole, tied ones under each name: for ``load_state_dict``."""
        names = [t.name for t in self.plan.state if t.kind in ("parameter", "buffer")]
        found = self._state(names)
        for alias, name in aliases(self.plan).items():
            if name in found:
                found[alias] = found[name]
        return found if self._names is None else {n: t for n, t in found.items() if n in self._names}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state tensors (moments, master weights), whole."""
        return self._state([t.name for t in self.plan.state if t.kind not in ("parameter", "buffer", "cache")])

    def empty_caches(self) -> None:
        """Give back the memory of all caches: a sequence has ended."""
        crew = self._working()
        crew.call("empty", [()] * crew.size)

    def local_state(self) -> Local:
        """Per worker: state tensor -> the (region, tensor) part that it holds."""
        names = [t.name for t in self.plan.state]
        found = self._working().call("parts", [(names,)] * self.plan.workers)
        return _own([{name: [part] for name, part in parts.items()} for parts in found])

    def _state(self, names: list[str]) -> dict[str, Tensor]:
        shapes = {t.name: t.shape for t in self.plan.state}
        found = self._working().call("parts", [(names,)] * self.plan.workers)
        parts = [{name: [part] for name, part in held.items()} for held in found]
        return {name: self._whole(parts, name, shapes[name]) for name in names}

    def _local(self, method: str, entry: str) -> Local:
        return self._working().call(method, [(entry,)] * self.plan.workers)

    def _whole(self, parts: Local, name: str, shape: tuple[int, ...]) -> Tensor:
        held = [part for worker in parts for part in worker.get(name, [])]
        return assemble(shape, [(region, tensor.cpu()) for region, tensor in held])

    # --- measurements -----------------------------------------------------------------------------------------------

    def trace(self) -> list[Timing]:
        """Start and end of every task of the last run, planned and measured, in microseconds from its first start."""
        if not self._last:
            return []
        times = self._working().call("times", [(self._last,)] * self.plan.workers)
        return timeline(self.plan.entries[self._last], times)

    def timings(self) -> Timings:
        """Step times so far, and what the workers did in the last one."""
        return Timings.of([wall / 1000 for wall in self._walls], self.trace())

    def memory(self) -> list[dict[str, int]]:
        """Per worker, in bytes: see :meth:`superscaler.runtime.worker.Worker.memory`."""
        return self._working().call("memory", [()] * self.plan.workers)

    def measure_memory(self, *inputs: Any, lr: float | None = None, **named: Any) -> list[dict[str, int]]:
        """One training step, slower than others, in which every worker measures its peak; :meth:`memory` has it then.

        Raises :class:`UsageError` where several workers share this process: their memory cannot be told apart.
        """
        crew = self._working()
        if crew.shared:
            raise UsageError(
                "the memory of workers that share a process cannot be told apart", hint="backend='ray', or one worker"
            )
        crew.call("measure", [(True,)] * crew.size)
        self.step(*inputs, lr=lr, **named)
        crew.call("measure", [(False,)] * crew.size)
        return self.memory()

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, path: str | Path) -> None:
        """Write state and step count into the directory ``path``; one that is there is replaced when it is whole."""
        checkpoint.save(self.plan, self._working(), path_of(path, _DIRECTORY), steps=self.steps, seed=self.seed)

    def load_checkpoint(self, path: str | Path) -> None:
        """Read what :meth:`save_checkpoint` wrote, under this plan or another one of the same model."""
        progress = restore.load(self.plan, self._working(), path_of(path, _DIRECTORY))
        self.steps, self.seed = progress.steps, progress.seed

    # --- ending -----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the job has ended."""
        return self._crew is None

    def close(self) -> None:
        """End the job: nothing that it started is left behind."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rate(lr: Any) -> float:
    """A learning rate as the user gives it."""
    try:
        rate = float(lr)
    except (TypeError, ValueError) as e:
        raise InputError(f"lr is {lr!r}", "a learning rate is one number", hint="lr=1e-3") from e
    if not isfinite(rate) or rate < 0:
        raise InputError(f"lr is {rate}", "a learning rate is finite and not negative", hint="lr=1e-3")
    return rate


def _own(parts: Local) -> Local:
    """Copies: a worker's own memory changes with the next step, and goes with the job."""
    return [{name: [(r, t.clone()) for r, t in held] for name, held in worker.items()} for worker in parts]
