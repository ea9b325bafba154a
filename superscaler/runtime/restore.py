"""Reading checkpoints: each worker takes its own regions, whatever plan wrote them. The layout: see ``checkpoint``."""

from __future__ import annotations

import json
from pathlib import Path

from superscaler.errors import CheckpointError
from superscaler.ir.entry import MASTER
from superscaler.ir.plan import Plan, StateTensor
from superscaler.runtime import files
from superscaler.runtime.checkpoint import DAMAGED, OPTIMIZER, PROGRESS, WEIGHTS, Progress
from superscaler.runtime.crew import Crew
from superscaler.runtime.initial import aliases, copied, source_of

_WROTE = "a directory that save_checkpoint(...) wrote"

Source = tuple[str, Path, str]
"""A state tensor, a file, and its name in it."""


def load(plan: Plan, crew: Crew, path: Path) -> Progress:
    """Read a checkpoint into any plan of the same model. Raises :class:`CheckpointError` before anything is changed."""
    path = path.absolute()
    progress = _progress(path)
    sources = _sources(plan, path, WEIGHTS, [t for t in plan.state if t.kind in ("parameter", "buffer")])
    rest = [t for t in plan.state if t.kind not in ("parameter", "buffer", "cache")]
    if rest:
        sources = _with_optimizer(plan, path, sources, rest)
    crew.call("load_files", [(sources,)] * crew.size)
    return progress


def _with_optimizer(plan: Plan, path: Path, weights: list[Source], rest: list[StateTensor]) -> list[Source]:
    """``weights`` and the optimizer's state.

    Master weights that only the plan has start as the parameters; those that only the checkpoint has are these.
    """
    parameter_of = {t.name: source_of(t) for t in rest if isinstance(t.init, str)}
    foreign = {name + MASTER: name for name, _, _ in weights if name + MASTER not in parameter_of}
    there = _index(path, OPTIMIZER)
    optional = frozenset(parameter_of if not parameter_of.keys() & there.keys() else ())
    sources = _sources(plan, path, OPTIMIZER, rest, optional=optional, spare=frozenset(foreign))
    of_weight = {name: (name, file, key) for name, file, key in weights}
    made = [(name, *of_weight[parameter_of[name]][1:]) for name in optional]
    of_weight |= {foreign[n]: (foreign[n], file, n) for n, (file, _, _) in there.items() if n in foreign}
    return [*of_weight.values(), *sources, *made]


def load_weights(plan: Plan, crew: Crew, path: Path, *, known: frozenset[str] = frozenset()) -> None:
    """Read only what starts as a copy of the model's: from a checkpoint, or from a Hugging Face directory.

    ``known``: state tensors that have their content already, so that the directory may lack them.
    """
    tensors = copied(plan)
    own = [t for t in tensors if source_of(t) == t.name]
    found = _sources(plan, path.absolute(), WEIGHTS, own, optional=known)
    by_name = {name: (file, key) for name, file, key in found}
    others = [(t.name, *by_name[source_of(t)]) for t in tensors if t not in own and source_of(t) in by_name]
    crew.call("load_files", [([*found, *others],)] * crew.size)


def _progress(path: Path) -> Progress:
    try:
        data = json.loads((path / PROGRESS).read_text())
        return Progress(int(data["steps"]), int(data["seed"]))
    except OSError as e:
        raise CheckpointError(
            f"{path} is no checkpoint: {PROGRESS} cannot be read", str(e.strerror), hint=_WROTE
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: {PROGRESS} is damaged", str(e), hint=DAMAGED) from e


def _sources(
    plan: Plan, path: Path, stem: str, wanted: list[StateTensor], *, optional: frozenset[str] = frozenset(),
    spare: frozenset[str] = frozenset(),
) -> list[Source]:  # fmt: skip
    """Names and shapes agree with the plan's, one for one; the checkpoint may lack ``optional``, and have ``spare``."""
    found = _index(path, stem)
    tied = aliases(plan)
    sources: list[Source] = []
    for tensor in wanted:
        names = [tensor.name, *(a for a, n in tied.items() if n == tensor.name)]
        name = next((n for n in names if n in found), None)
        if name is None and tensor.name in optional:
            continue
        if name is None:
            raise CheckpointError(f"checkpoint {path} has no {tensor.name!r}, which the plan has", hint=_origin(path))
        file, shape, code = found[name]
        if shape != tensor.shape:
            raise CheckpointError(
                f"{tensor.name!r} has shape {shape} in checkpoint {path} and {tensor.shape} in the plan",
                hint=_origin(path),
            )
        if (code[0] in "FB") != (files.CODES[tensor.dtype][0] in "FB") or (code == "BOOL") != (tensor.dtype == "bool"):
            raise CheckpointError(
                f"{tensor.name!r} is {code} in checkpoint {path} and {tensor.dtype} in the plan", hint=_origin(path)
            )
        sources.append((tensor.name, file, name))
    known = {t.name for t in wanted} | set(tied) | spare
    extra = next((name for name in found if name not in known), None)
    if extra is not None:
        raise CheckpointError(f"checkpoint {path} has {extra!r}, which the plan has not", hint=_origin(path))
    return sources


def _origin(path: Path) -> str:
    try:
        name = json.loads((path / PROGRESS).read_text()).get("model")
    except (OSError, ValueError):
        name = None
    return f"a checkpoint of this model (that one is of {name})" if name else "a checkpoint of this model"


Found = dict[str, tuple[Path, tuple[int, ...], str]]


def _index(path: Path, stem: str) -> Found:
    """Name -> (file, shape, dtype code), by the index, or of the single file that small models have."""
    index = path / f"{stem}.safetensors.index.json"
    single = path / f"{stem}.safetensors"
    try:
        if index.exists():
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            files_of = dict.fromkeys(weight_map.values())
            names = {file: [n for n, f in weight_map.items() if f == file] for file in files_of}
        elif single.exists():
            names = {single.name: None}
        else:
            raise CheckpointError(f"{path} has neither {index.name} nor {single.name}", hint=_WROTE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index} is damaged", f"{type(e).__name__}: {e}", hint=DAMAGED) from e
    found: Found = {}
    for file, listed in names.items():
        described = _described(path / Path(file).name)
        for name in described if listed is None else listed:
            if name not in described:
                raise CheckpointError(f"{path / file} has no {name!r}, though the index says so", hint=DAMAGED)
            found[name] = (path / Path(file).name, *described[name])
    return found


def _described(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        return files.describe(file)
    except OSError as e:
        raise CheckpointError(f"{file} cannot be read: {e.strerror}", hint=DAMAGED) from e
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{file} is damaged: {e}", hint=DAMAGED) from e
