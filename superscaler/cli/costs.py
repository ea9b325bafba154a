"""``--profile``: which measured costs a command uses, and how it says so. Without torch."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superscaler.errors import UsageError
from superscaler.scheduler.machine import this_machine
from superscaler.scheduler.profile import Profile, load_profile, profile_path

if TYPE_CHECKING:
    from superscaler.ir.cluster import Cluster
    from superscaler.ir.plan import Plan

HELP = "Measured costs: auto (what `superscaler profile` kept of this machine, if anything), none, or a profile's file."


@dataclass(frozen=True)
class Costs:
    """``profile``: None where costs are estimated from the cluster's figures. ``foreign``: of another machine."""

    profile: Profile | None
    path: Path | None = None
    foreign: bool = False

    def figures(self, plan: Plan) -> dict[str, Any] | None:
        """As data: the profile, and for how many of the tasks that compute it has measured all that they do."""
        if self.profile is None:
            return None
        measured, tasks = self._known(plan)
        where = {"profile": str(self.path), "machine": str(self.profile.machine), "foreign": self.foreign}
        return {**where, "measured_tasks": measured, "tasks": tasks}

    def text(self, plan: Plan) -> str:
        """As a line."""
        if self.profile is None:
            return "costs: estimated from the cluster's figures (measure them here: superscaler profile)"
        measured, tasks = self._known(plan)
        where = "on another machine" if self.foreign else "on this machine"
        rest = "" if measured == tasks else ", estimated for the others: superscaler profile measures them"
        return f"costs: measured {where} for {measured} of {tasks} tasks{rest}"

    def _known(self, plan: Plan) -> tuple[int, int]:
        from superscaler.scheduler.profiled import known

        assert self.profile is not None
        counts = [known(plan, name, self.profile) for name in plan.entries]
        return sum(a for a, _ in counts), sum(b for _, b in counts)


def costs_of(option: str, cluster: Cluster, workers: int) -> Costs:
    """What ``--profile`` means for so many workers of a cluster.

    ``auto`` takes this machine's only, and for devices of its kind. A file of another machine is used, and said to be.
    Raises :class:`ProfileError` for a file that is missing or no profile.
    """
    if option == "none":
        return Costs(None)
    here = this_machine(workers)
    if option == "auto":
        path = profile_path(here)
        if not path.exists() or all(kind.name != here.kind for kind in cluster.kinds):
            return Costs(None)
        return Costs(load_profile(path, here), path)
    path = Path(option)
    if not path.exists() and path.suffix != ".json":
        raise UsageError(f"--profile {option}: there is no such file", hint="auto, none, or a file")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_profile(path, here, foreign="warn")
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return Costs(found, path, found.machine != here)
