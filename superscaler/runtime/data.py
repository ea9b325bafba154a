"""Batches of text for plans of language models: bytes as tokens, drawn the same way for the same seed."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from superscaler.errors import InputError
from superscaler.ir.plan import Entry
from superscaler.runtime.inputs import input_names
from superscaler.runtime.ops import DTYPES

BYTES = 256  # tokens
LIMIT = 64 << 20  # bytes of text that are read at most
NEXT = ("labels", "targets")  # inputs that hold, at each position, the token after it


def standard_library() -> Path:
    """Where the source of Python's standard library lies: real text that every machine has."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_text(path: Path) -> Tensor:
    """The bytes of a file, or of all ``.py``, ``.txt`` and ``.md`` files below a directory: uint8 [length].

    Raises :class:`InputError` if there is nothing to read.
    """
    try:
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".py", ".txt", ".md"))
        content = bytearray()
        for file in files:
            if "site-packages" not in file.parts and len(content) < LIMIT:
                content += file.read_bytes()[: LIMIT - len(content)]
    except OSError as e:
        raise InputError(
            f"cannot read {e.filename}: {e.strerror}", hint="a file or a directory that can be read"
        ) from e
    if not content:
        raise InputError(f"there is no text in {path}", hint="a file, or a directory of .py, .txt or .md files")
    return torch.frombuffer(content, dtype=torch.uint8)


def text_batches(entry: Entry, text: Tensor, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Endless batches of random windows of ``text`` (uint8), for an entry whose inputs are tokens [batch, seq].

    ``labels`` or ``targets`` are the tokens that follow, unless the model shifts them itself (``input_ids``, as in
    transformers); an ``attention_mask`` is all ones. Raises :class:`InputError` if the inputs are something else.
    """
    names = input_names(entry)
    shapes = {name: entry.graph.tensor[name].shape for name in names}
    tokens = next((name for name in names if name in ("ids", "input_ids", "tokens")), None)
    strange = [name for name in names if name not in (tokens, *NEXT, "attention_mask")]
    if tokens is None or strange or len(shapes[tokens]) != 2:
        raise InputError(
            f"text does not fit the plan's inputs: {', '.join(names)}",
            hint="--data script.py:function, a generator of batches",
        )
    batch, seq = shapes[tokens]
    if len(text) <= seq:
        raise InputError(
            f"{len(text)} bytes of text are too few for sequences of {seq}", hint="a longer text, or shorter sequences"
        )
    shift = 0 if tokens == "input_ids" else 1
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - seq, (batch,), generator=generator)
        window = text[starts[:, None] + torch.arange(seq + 1)].long()
        given = {tokens: window[:, :seq], **{n: window[:, shift : seq + shift] for n in names if n in NEXT}}
        given |= {n: torch.ones(batch, seq, dtype=torch.long) for n in names if n == "attention_mask"}
        yield {name: given[name].to(DTYPES[entry.graph.tensor[name].dtype]).contiguous() for name in names}
