"""Which activations of one device to keep, to swap out and in, or to make again, its compute schedule being given.

One exact model per device: swaps take the device's two transfer lanes (out and in), a second forward takes a gap of its
compute lane, and at no time more than ``capacity`` activations are held. The least traffic wins.
"""

from __future__ import annotations

from collections.abc import Sequence

from ortools.sat.python import cp_model

from superscaler.scheduler.cpsat import solver_of
from superscaler.scheduler.relief import Life, Relief


def relieve(
    lives: Sequence[Life],
    busy: Sequence[tuple[int, int]],
    capacity: int,
    transfer: int | None,
    *,
    recompute: bool = True,
    effort: float = 0.7,
    seed: int = 0,
    time_limit: float | None = None,
) -> list[Relief] | None:
    """What to do with each of ``lives`` so that ``capacity`` is enough, or None if nothing was found.

    ``busy`` are the ``(start, end)`` of the compute lane; ``transfer`` the ticks to move one activation either way
    (``None``: no swapping); ``recompute`` allows second forwards in gaps.
    """
    model = _Relief(lives, busy, capacity, transfer, recompute)
    solver = solver_of(effort, seed, time_limit, workers=1)
    if solver.solve(model.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return model.result(solver)


class _Relief:
    def __init__(
        self,
        lives: Sequence[Life],
        busy: Sequence[tuple[int, int]],
        capacity: int,
        transfer: int | None,
        recompute: bool,
    ) -> None:
        self.lives, self.model = lives, cp_model.CpModel()
        self.swaps: dict[int, tuple[cp_model.IntVar, cp_model.IntVar, cp_model.IntVar]] = {}
        self.again: dict[int, tuple[cp_model.IntVar, cp_model.IntVar]] = {}
        self.held: list[cp_model.IntervalVar] = []
        self.lanes: dict[str, list[cp_model.IntervalVar]] = {"out": [], "in": [], "compute": []}
        for number, life in enumerate(lives):
            options: list[cp_model.IntVar] = [self.keep(life)]
            if transfer is not None and life.needed - life.made >= 2 * transfer:
                options.append(self.swap(number, life, transfer))
            if recompute and life.needed - life.made >= life.made - life.begin:
                options.append(self.make_again(number, life))
            self.model.add_exactly_one(options)
        for start, end in busy:
            self.lanes["compute"].append(self.model.new_fixed_size_interval_var(start, end - start, ""))
        for intervals in self.lanes.values():
            self.model.add_no_overlap(intervals)
        self.model.add_cumulative(self.held, [1] * len(self.held), capacity)
        traffic = sum(chosen for chosen, _, _ in self.swaps.values()) + sum(chosen for chosen, _ in self.again.values())
        self.model.minimize(traffic)

    def keep(self, life: Life) -> cp_model.IntVar:
        kept = self.model.new_bool_var("")
        self.hold(life.begin, life.end, kept)
        return kept

    def swap(self, number: int, life: Life, transfer: int) -> cp_model.IntVar:
        chosen = self.model.new_bool_var("")
        out = self.model.new_int_var(life.made, life.needed - 2 * transfer, "")
        back = self.model.new_int_var(life.made + transfer, life.needed - transfer, "")
        self.model.add(back >= out + transfer)
        for lane, start in (("out", out), ("in", back)):
            interval = self.model.new_optional_fixed_size_interval_var(start, transfer, chosen, "")
            self.lanes[lane].append(interval)
        self.hold(life.begin, out + transfer, chosen)
        self.hold(back, life.end, chosen)
        self.swaps[number] = chosen, out, back
        return chosen

    def make_again(self, number: int, life: Life) -> cp_model.IntVar:
        chosen, size = self.model.new_bool_var(""), life.made - life.begin
        back = self.model.new_int_var(life.made, life.needed - size, "")
        self.lanes["compute"].append(self.model.new_optional_fixed_size_interval_var(back, size, chosen, ""))
        self.hold(life.begin, life.made, chosen)
        self.hold(back, life.end, chosen)
        self.again[number] = chosen, back
        return chosen

    def hold(self, begin: cp_model.LinearExprT, end: cp_model.LinearExprT, chosen: cp_model.IntVar) -> None:
        size = self.model.new_int_var(0, max(life.end for life in self.lives), "")
        self.held.append(self.model.new_optional_interval_var(begin, size, end, chosen, ""))

    def result(self, solver: cp_model.CpSolver) -> list[Relief]:
        found: list[Relief] = []
        for number in range(len(self.lives)):
            swap, again = self.swaps.get(number), self.again.get(number)
            if swap is not None and solver.value(swap[0]):
                found.append(Relief("swap", solver.value(swap[1]), solver.value(swap[2])))
            elif again is not None and solver.value(again[0]):
                found.append(Relief("recompute", back=solver.value(again[1])))
            else:
                found.append(Relief("keep"))
        return found
