"""How the results of parts make the whole: along which dims an op can be cut, and in what it is linear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice, pairwise, product

import torch
from torch import Tensor

from superscaler.transforms.discover.trial import FAILURES, Trial

Cut = dict[int, int]  # input -> the dim of it that is cut
Way = tuple[str | int, ...]  # per output: the dim along which parts concatenate, or the kind of reduction
Named = tuple[Cut, Way]
_MOST = 2000  # sets of dims that are tried
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(0),
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
}


def named_dims(trial: Trial) -> list[Named]:
    """Disjoint sets of input dims, smallest first, that can be cut at once, and what becomes of each output.

    A set of input dims is one dim of the op if, however it is cut, the parts' results concatenate to the whole or
    reduce to it.
    """
    found: list[Named] = []
    used: set[tuple[int, int]] = set()
    for cut, size in islice(_candidates(trial), _MOST):
        if used & set(cut.items()) or not trial.attempts.may(f"cut {cut}"):
            continue
        way = _way(trial, cut, size)
        if way is not None:
            found.append((cut, way))
            used |= set(cut.items())
    return _of_one_kind(found)


def _candidates(trial: Trial) -> Iterator[tuple[Cut, int]]:
    """Sets of input dims of one size, at most one of each input: single dims first, then pairs …"""
    sizes = sorted({n for shape in trial.shapes for n in shape if n > 1}, reverse=True)
    holds = {n: [i for i, shape in enumerate(trial.shapes) if n in shape] for n in sizes}
    for count in range(1, len(trial.shapes) + 1):
        for size in sizes:
            for inputs in combinations(holds[size], count):
                dims = ([d for d, n in enumerate(trial.shapes[i]) if n == size] for i in inputs)
                for chosen in product(*dims):
                    yield dict(zip(inputs, chosen, strict=True)), size


def _of_one_kind(found: list[Named]) -> list[Named]:
    """Without the dims that reduce by a rarer kind: a maximum over sums may not be taken before the sums are whole."""
    kinds = [kinds_of(way) for _, way in found]
    counted = Counter(kind for each in kinds for kind in each)
    common = max(counted, key=lambda kind: (counted[kind], kind), default="sum")
    return [named for named, each in zip(found, kinds, strict=True) if each <= {common}]


def kinds_of(way: Way) -> set[str]:
    """The kinds of reduction by which parts make the outputs."""
    return {w for w in way if isinstance(w, str)}


def _way(trial: Trial, cut: Cut, size: int) -> Way | None:
    """How the results of parts make the whole, the same for every place of the cuts and all inputs tried."""
    ways: set[Way] | None = None
    for seed, at in product(range(4), sorted({(1,), (size - 1,), (size // 2,), (1, size - 1), (size // 3, size // 2)})):
        bounds = [0, *sorted({a for a in at if 0 < a < size}), size]
        inputs = trial.inputs(seed)
        try:
            whole = trial.run(inputs)
            parts = [trial.run(_cut(inputs, cut, a, b)) for a, b in pairwise(bounds)]
        except FAILURES:
            return None
        if any(len(part) != len(whole) for part in parts):
            return None
        here = set(product(*(_recombine(trial, w, [p[k] for p in parts], bounds) for k, w in enumerate(whole))))
        ways = here if ways is None else ways & here
        if not ways:
            return None
    ways = {way for way in ways or () if len(kinds_of(way)) <= 1}
    return min(ways, key=str) if ways else None


def _cut(inputs: Sequence[Tensor], cut: Cut, start: int, stop: int) -> list[Tensor]:
    return [x.narrow(cut[i], start, stop - start).contiguous() if i in cut else x for i, x in enumerate(inputs)]


def _recombine(trial: Trial, whole: Tensor, parts: list[Tensor], bounds: list[int]) -> set[str | int]:
    """All ways in which the parts of one output make the whole."""
    lengths = [b - a for a, b in pairwise(bounds)]
    found: set[str | int] = set()
    for dim in range(whole.ndim):
        fits = all(p.ndim == whole.ndim and p.shape[dim] == n for p, n in zip(parts, lengths, strict=True))
        rest = [p.shape[:dim] + p.shape[dim + 1 :] for p in parts] if fits else []
        if fits and len(set(rest)) == 1 and trial.same(torch.cat(parts, dim), whole):
            found.add(dim)
    if all(p.shape == whole.shape for p in parts) and not all(trial.same(p, whole) for p in parts):
        stacked = torch.stack(parts)
        numeric = stacked.dtype != torch.bool
        found |= {
            kind for kind, fn in _REDUCTIONS.items() if numeric and trial.same(fn(stacked).to(whole.dtype), whole)
        }
    return found


def linear_groups(trial: Trial) -> tuple[tuple[int, ...], ...]:
    """Groups of float inputs in which the op is jointly linear; supersets of a smaller group are left out."""
    floats = [i for i, dtype in enumerate(trial.dtypes) if dtype.is_floating_point]
    groups: list[tuple[int, ...]] = []
    for count in range(1, min(len(floats), 8) + 1):
        for group in combinations(floats, count):
            if any(set(g) <= set(group) for g in groups) or not trial.attempts.may(f"linear {group}"):
                continue
            if _is_linear(trial, group):
                groups.append(group)
    return tuple(groups)


def _is_linear(trial: Trial, group: tuple[int, ...]) -> bool:
    for seed in range(trial.tries):
        left, right = trial.inputs(seed), trial.inputs(seed + 10)
        right = [r if i in group else a for i, (a, r) in enumerate(zip(left, right, strict=True))]
        total = [a + r if i in group else a for i, (a, r) in enumerate(zip(left, right, strict=True))]
        scaled = [a * -3 if i in group else a for i, a in enumerate(left)]
        try:
            of_left, of_right, of_total, of_scaled = (trial.run(x) for x in (left, right, total, scaled))
        except FAILURES:
            return False
        for a, r, t, s in zip(of_left, of_right, of_total, of_scaled, strict=True):
            if not a.is_floating_point() or not trial.same(a + r, t) or not trial.same(a * -3, s):
                return False
    return True
