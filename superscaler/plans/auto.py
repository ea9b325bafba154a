"""A plan chosen by its costs: every product of data, tensor and pipeline parallelism that uses the whole cluster, with
recomputation where memory asks for it; the shortest predicted step that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

from superscaler.errors import InfeasiblePlan, PlanError, SuperscalerError
from superscaler.ir.cluster import Cluster
from superscaler.ir.graph import Graph
from superscaler.ir.summary import bytes_text
from superscaler.plans.fit import with_whole_state
from superscaler.plans.megatron import megatron
from superscaler.plans.planner import Planner, PlanScript
from superscaler.plans.recompute import recompute
from superscaler.scheduler.profile import Profile
from superscaler.scheduler.replay import replay
from superscaler.scheduler.tasks import schedule
from superscaler.transforms.assemble import assemble
from superscaler.transforms.lower import lower
from superscaler.transforms.place import place


@dataclass(frozen=True, order=True)
class Trial:
    """One candidate: the degrees and micro-batches, and what came of it. ``seconds``: a predicted step; ``peak``: bytes
    of the fullest worker; ``refused``: why it does not apply or fit, or ""."""

    seconds: float
    data: int = field(compare=False)
    tensor: int = field(compare=False)
    pipeline: int = field(compare=False)
    microbatches: int = field(compare=False)
    recomputes: bool = field(compare=False)
    peak: int = field(default=0, compare=False)
    refused: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The candidate as ``--plan`` takes it."""
        degrees = f"data={self.data},tensor={self.tensor},pipeline={self.pipeline},microbatches={self.microbatches}"
        return f"{'recompute+' if self.recomputes else ''}megatron:{degrees}"


@dataclass
class Auto:
    """A plan script that chooses on the graph with gradients, and repeats its choice on the others of that model.

    ``tried``: all candidates of the last choice, in the order of trial. ``microbatches``: take that many, always.
    ``profile``: measured costs.
    """

    microbatches: int | None = None
    progress: Callable[[str], None] = lambda message: None
    profile: Profile | None = None
    tried: list[Trial] = field(default_factory=list[Trial])
    chosen: Trial | None = None

    def __call__(self, p: Planner) -> None:
        if self.chosen is None or p.graph.gradients:
            self.chosen = self._choose(p.graph, p.cluster, p.batch)
        _script(self.chosen)(p)

    def _choose(self, graph: Graph, cluster: Cluster, batch: int) -> Trial:
        self.tried = []
        for recomputes in (False, True):
            for candidate in self._candidates(cluster, batch, recomputes):
                self.progress(f"trying {candidate.name}")
                self.tried.append(_tried(candidate, graph, cluster, self.profile))
            fitting = [trial for trial in self.tried if not trial.refused]
            if fitting:
                return min(fitting)
        raise self._nothing(cluster)

    def _candidates(self, cluster: Cluster, batch: int, recomputes: bool) -> Iterator[Trial]:
        size = cluster.size
        ways = [n for n in range(1, size + 1) if size % n == 0]
        for tensor, pipeline in product(ways, ways):
            if size % (tensor * pipeline) or tensor > cluster.per_node:
                continue
            data = size // (tensor * pipeline)
            for microbatches in self._counts(pipeline, batch // data, recomputes):
                yield Trial(0.0, data, tensor, pipeline, microbatches, recomputes)

    def _counts(self, pipeline: int, each: int, recomputes: bool) -> list[int]:
        """Micro-batches worth a trial, at most ``each``: few for a single stage, several times the stages for more."""
        if self.microbatches is not None:
            return [self.microbatches]
        if pipeline == 1:
            return [n for n in ((1, 4, 16) if recomputes else (1, 4)) if n <= max(1, each)]
        return [n for n in (pipeline, 2 * pipeline, 4 * pipeline) if n <= each] or [max(1, each)]

    def _nothing(self, cluster: Cluster) -> SuperscalerError:
        short = [t for t in self.tried if t.peak]
        if not short:
            reasons = dict.fromkeys(t.refused for t in self.tried)
            return PlanError(
                f"no plan for {cluster.size} devices applies ({len(self.tried)} tried)",
                *list(reasons)[:3],
                hint="another number of devices, a larger batch, or a plan by name",
            )
        near = min(short, key=lambda t: t.peak)
        return InfeasiblePlan(
            f"no plan for {cluster.size} devices fits ({len(self.tried)} tried)",
            f"nearest: {near.name}, {near.refused}",
            hint="more devices, a smaller batch, or devices with more memory",
        )


def _script(trial: Trial) -> PlanScript:
    plan = megatron(trial.data, trial.tensor, trial.pipeline, trial.microbatches)
    return recompute(plan) if trial.recomputes else plan


def _tried(trial: Trial, graph: Graph, cluster: Cluster, profile: Profile | None = None) -> Trial:
    """The candidate with its predicted time and memory, or why it is refused."""

    def outcome(seconds: float, peak: int, refused: str) -> Trial:
        return Trial(
            seconds, trial.data, trial.tensor, trial.pipeline, trial.microbatches, trial.recomputes, peak, refused
        )

    planner = Planner(graph, cluster)
    try:
        _script(trial)(planner)
        tasks = place(graph, planner.directives())
        lowered = lower(tasks)
        entry = with_whole_state(assemble(lowered, schedule(lowered, cluster, profile=profile)), tasks)
    except PlanError as e:
        return outcome(0.0, 0, e.what)
    seconds = max((end for ends in replay(entry).ends for end in ends), default=0) / 1e6
    peak = max(program.peak for program in entry.programs)
    for program in entry.programs:
        limit = min(cluster.device(worker).memory for worker in program.workers)
        if program.peak > limit:
            return outcome(seconds, peak, f"peak {bytes_text(program.peak)} of {bytes_text(limit)}")
    return outcome(seconds, peak, "")
