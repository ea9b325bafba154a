"""Checkpoints: safetensors shards with a JSON index, in the layout of Hugging Face's ``save_pretrained``.

    model.safetensors.index.json        name -> file, of parameters and buffers
    model-00001-of-00002.safetensors    whole tensors by the model's names, tied ones under each name
    optimizer.safetensors.index.json    likewise for moments and master weights, if there are any
    job.json                            step count and seed, and how the model was asked for, if the plan says

A checkpoint knows nothing of the plan that wrote it: each worker reads its own regions. It is written beside its place
and exchanged with what is there when it is whole, so a crash, or a full disk, leaves the old one as it was.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from superscaler.errors import CheckpointError
from superscaler.ir.graph import ITEMSIZE
from superscaler.ir.plan import Plan, StateTensor
from superscaler.runtime import files
from superscaler.runtime.crew import Crew
from superscaler.runtime.initial import aliases
from superscaler.runtime.packing import assemble
from superscaler.runtime.replacing import replace_directory

SHARD = 1 << 30  # bytes of one file, unless a tensor is larger
WEIGHTS, OPTIMIZER, PROGRESS = "model", "optimizer", "job.json"
_OWN = re.compile(rf"({WEIGHTS}|{OPTIMIZER})(-\d+-of-\d+)?\.safetensors(\.index\.json)?|{PROGRESS}")
_ANOTHER = "another directory, which may be written"
DAMAGED = "copy it again, or an earlier checkpoint"


@dataclass(frozen=True)
class Progress:
    """How far a job was."""

    steps: int
    seed: int


@dataclass(frozen=True)
class _Row:
    """One tensor of a file: under ``name``, the content of ``tensor``."""

    name: str
    tensor: StateTensor

    @property
    def size(self) -> int:
        count = 1
        for length in self.tensor.shape:
            count *= length
        return count * ITEMSIZE[self.tensor.dtype]


def source_of_model(path: Path) -> dict[str, Any] | None:
    """How the model of the checkpoint ``path`` was asked for on the command line; None if it does not say.

    Raises :class:`CheckpointError` for a checkpoint that cannot be read.
    """
    try:
        found = json.loads((path / PROGRESS).read_text()).get("source")
    except (OSError, ValueError, AttributeError) as e:
        raise CheckpointError(f"{path}: {PROGRESS} is damaged", str(e), hint=DAMAGED) from e
    return found if isinstance(found, dict) else None


def save(plan: Plan, crew: Crew, path: Path, *, steps: int, seed: int) -> None:
    """Write a checkpoint. Raises :class:`CheckpointError`; what was at ``path`` is then still there, whole."""
    path = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    refuse_place(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.part-", dir=path.parent))
        about = {"model": plan.model.get("name", ""), "source": plan.model.get("source")}
        _write(plan, crew, temporary, {"steps": steps, "seed": seed, **about})
        replace_directory(temporary, path)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            f"the checkpoint {path} could not be written: {'the disk is full' if full else e.strerror or e}",
            "what was there before is unchanged",
            hint="free some space, or another directory" if full else _ANOTHER,
        ) from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_place(path: Path) -> None:
    """Raise :class:`CheckpointError` if none can be made at ``path``, or what stands there must not be replaced."""
    try:
        above = next((place for place in path.absolute().parents if place.exists()), path)
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise CheckpointError(f"{above} is no directory that may be written", f"for {path}", hint=_ANOTHER)
        if not path.exists():
            return
        names = [each.name for each in path.iterdir()]
    except OSError as e:
        raise CheckpointError(f"{path} cannot be a checkpoint", e.strerror or str(e), hint=_ANOTHER) from e
    foreign = next((name for name in names if not _OWN.fullmatch(name)), None)
    if foreign is not None or (names and PROGRESS not in names):
        why = f"it has {foreign!r}" if foreign is not None else f"it has no {PROGRESS}"
        raise CheckpointError(f"{path} exists and is no checkpoint", why, hint=_ANOTHER)


def _sweep(path: Path) -> None:
    """Remove what a crash while writing this checkpoint left."""
    for left in path.parent.glob(f".{escape(path.name)}.part-*"):
        shutil.rmtree(left, ignore_errors=True)


def _write(plan: Plan, crew: Crew, directory: Path, progress: Mapping[str, Any]) -> None:
    directory.chmod(0o755)
    weights, rest = _rows(plan)
    _write_files(crew, directory, WEIGHTS, weights)
    if rest:
        _write_files(crew, directory, OPTIMIZER, rest)
    (directory / PROGRESS).write_text(json.dumps({"version": 1, **progress}, indent=2) + "\n")
    for file in directory.iterdir():
        _flush(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rows(plan: Plan) -> tuple[list[_Row], list[_Row]]:
    tied = aliases(plan)
    weights: list[_Row] = []
    rest: list[_Row] = []
    for tensor in plan.state:
        if tensor.kind in ("parameter", "buffer"):
            names = [tensor.name, *(alias for alias, name in tied.items() if name == tensor.name)]
            weights += [_Row(name, tensor) for name in names]
        elif tensor.kind != "cache":
            rest.append(_Row(tensor.name, tensor))
    return weights, rest


def _write_files(crew: Crew, directory: Path, stem: str, rows: list[_Row]) -> None:
    shards = list(_shards(rows))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {row.name: row.tensor for row in shard}
        described = [(row.name, row.tensor.shape, row.tensor.dtype, row.size) for row in shard]
        files.write(directory / name, described, lambda key, t=tensors: [_gather(crew, t[key])])
        weight_map.update(dict.fromkeys(tensors, name))
    index = {"metadata": {"total_size": sum(row.size for row in rows)}, "weight_map": weight_map}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    shard: list[_Row] = []
    for row in rows:
        if shard and sum(r.size for r in shard) + row.size > SHARD:
            yield shard
            shard = []
        shard.append(row)
    if shard:
        yield shard


def _gather(crew: Crew, tensor: StateTensor) -> Tensor:
    held = crew.call("parts", [([tensor.name],)] * crew.size)
    parts = [parts[tensor.name] for parts in held if tensor.name in parts]
    return assemble(tensor.shape, [(region, part.cpu()) for region, part in parts])
