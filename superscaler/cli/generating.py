"""``superscaler generate``: a model continues a prompt, on as many workers as are asked for.

A directory is one of ``transformers``, with its weights, or a checkpoint that ``superscaler run`` wrote of a model that
comes with superscaler. A model of 256 tokens is one of bytes: it needs no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from superscaler.cli.compiling import Number
from superscaler.cli.console import Progress, clean_stdout, print_json
from superscaler.errors import CheckpointError, UsageError
from superscaler.ir.cluster import GIB

if TYPE_CHECKING:
    from torch import nn

    from superscaler.ir.plan import Plan

BYTES = 256
BUCKET = 128  # tokens of a prompt that go through the model at once, at most


def generate(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model of transformers with its weights, or a checkpoint.")
    ],
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Its tokens instead: 1,2,3.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens follow at most.")] = 32,
    devices: Annotated[int, typer.Option(help="Workers: heads are split, then layers.")] = 1,
    pipeline: Annotated[int | None, typer.Option(help="Stages (by default as few as the heads allow).")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end of the text.")] = False,
    dtype: Annotated[
        Number | None, typer.Option(help="Of parameters and cache. By default as the weights were saved (f16: f32).")
    ] = None,
    backend: Annotated[
        Literal["ray", "inline"] | None, typer.Option(help="By default inline for one worker, else ray.")
    ] = None,
    memory: Annotated[float | None, typer.Option(help="GiB that a worker may take, with its cache when full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Continue a prompt greedily, with keys and values in a cache on virtual memory."""
    if (prompt is None) == (prompt_ids is None):
        raise UsageError("--prompt and --prompt-ids: one of them is the prompt", hint="state one of them")
    if max_new_tokens < 1 or devices < 1 or (pipeline is not None and pipeline < 1):
        raise UsageError("--max-new-tokens, --devices and --pipeline are 1 or more", hint="1 or more of each")
    if memory is not None and not 0 < memory < inf:
        raise UsageError(f"--memory {memory} GiB", hint="a positive number")
    from superscaler.api import launch
    from superscaler.runtime.serving.generate import stream
    from superscaler.trace.hf_scores import adjustment
    from superscaler.trace.hf_text import end_tokens

    with Progress() as progress, clean_stdout(as_json):
        progress(f"reading {directory}")
        found = _read(directory)
        tokenizer = None if prompt is None else _tokenizer(directory, found)
        ids = _ids(prompt_ids) if tokenizer is None else [int(t) for t in tokenizer(prompt)["input_ids"]]
        end = frozenset[int]() if ignore_eos else end_tokens(found.model)
        adjust = adjustment(found.model, len(ids), max_new_tokens, end)
        progress("compiling")
        plan = _plan(found.model, ids, max_new_tokens, devices, pipeline, dtype or found.dtype)
        progress(f"starting {plan.workers} workers")
        limit = None if memory is None else int(memory * GIB)
        backend = backend or ("inline" if plan.workers == 1 else "ray")
        job = launch(plan, found.source, weights=found.weights, backend=backend, memory=limit)
    with clean_stdout(as_json), job:
        began = perf_counter()
        tokens = list(stream(job, ids, max_new_tokens, end=end, adjust=adjust))
        seconds = perf_counter() - began
        used = job.memory()
    text = None if tokenizer is None else tokenizer.decode(tokens, skip_special_tokens=True)
    if as_json:
        print_json({"prompt_tokens": ids, "tokens": tokens, "text": text, "seconds": seconds, "memory": used})
        return
    print(",".join(map(str, tokens)) if text is None else text)


@dataclass(frozen=True)
class Found:
    """A model to compile, and where its parameters come from: the model itself, or files."""

    model: nn.Module
    source: nn.Module | None
    weights: Path | None
    dtype: Number


def _read(directory: Path) -> Found:
    from superscaler.runtime.checkpoint import PROGRESS

    if (directory / PROGRESS).exists():
        return _checkpoint(directory)
    from superscaler.trace.hf import has_weights, load_hf, precision_of

    model, _ = load_hf(directory)
    if not has_weights(directory if directory.is_dir() else directory.parent):
        raise UsageError(f"{directory} has no weights: there is no *.safetensors", hint="model.save_pretrained(DIR)")
    return Found(model, model, None, precision_of(directory))


def _checkpoint(directory: Path) -> Found:
    """Only a model that comes with superscaler is made from what a checkpoint says: no code is run at its word."""
    from superscaler import models
    from superscaler.cli.subject import Request, without_memory
    from superscaler.runtime.checkpoint import DAMAGED, PROGRESS, source_of_model

    told = source_of_model(directory)
    if told is None or told.get("name") not in models.MODELS:
        raise UsageError(
            f"checkpoint {directory} does not name a model that comes with superscaler",
            f"it names {told.get('name') if told else 'none'}; these are {', '.join(models.MODELS)}",
            hint="`superscaler run` of a plan that compile-plan made, or a directory of transformers",
        )
    try:
        request = Request.of(told)
    except UsageError as e:
        raise CheckpointError(f"{directory}: {PROGRESS} is damaged", "its source:", *e.details, hint=DAMAGED) from e
    return Found(without_memory(request).model, None, directory, "f32")


class ByteTokenizer:
    """Bytes of UTF-8 as tokens, as ``superscaler run --data`` reads text."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(tokens).decode(errors="replace")


def _tokenizer(directory: Path, found: Found) -> Any:
    from superscaler.trace.hf_text import load_tokenizer

    if found.weights is None:
        return load_tokenizer(directory)
    if getattr(getattr(found.model, "config", None), "vocab", None) == BYTES:
        return ByteTokenizer()
    raise UsageError(f"checkpoint {directory} has no tokenizer", hint="--prompt-ids 1,2,3")


def _ids(given: str | None) -> list[int]:
    try:
        return [int(part) for part in (given or "").split(",")]
    except ValueError:
        raise UsageError(f"--prompt-ids {given!r} are no tokens", hint="--prompt-ids 1,2,3") from None


def _plan(model: Any, ids: list[int], new: int, devices: int, pipeline: int | None, dtype: Number) -> Plan:
    from superscaler.decoding import compile_decoder
    from superscaler.ir.cluster import Cluster
    from superscaler.plans.decoding import decoding
    from superscaler.trace.hf_text import key_heads

    tensor = gcd(devices, key_heads(model)) if pipeline is None else devices // pipeline
    stages = devices // tensor if tensor else 0
    if tensor * stages != devices or (pipeline or stages) != stages:
        raise UsageError(
            f"--pipeline {pipeline} does not divide --devices {devices}", hint="a number that divides the devices"
        )
    if not ids:
        raise UsageError("the prompt is empty", hint="one token or more")
    return compile_decoder(
        model,
        cluster=Cluster.local(devices),
        prompt=min(len(ids), BUCKET),
        tokens=len(ids) + new,
        plan=decoding(tensor, stages),
        dtype=dtype,
    )
