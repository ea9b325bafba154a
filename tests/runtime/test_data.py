"""Text as batches: shifted labels, the same windows for the same seed, and what does not fit."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from superscaler.errors import InputError
from superscaler.ir.entry import Certificate, Entry
from superscaler.ir.graph import Graph, Tensor
from superscaler.runtime.data import read_text, standard_library, text_batches


def entry(**inputs: tuple[int, ...]) -> Entry:
    tensors = tuple(Tensor(name, shape, "int64", "input") for name, shape in inputs.items())
    graph = Graph(tensors, (), tuple(inputs), {})
    return Entry(graph, (), (), (), (), Certificate("optimal", 0, 0, 0.0, 0, "", "", 0, 0.0))


TEXT = torch.arange(200, dtype=torch.uint8)


def test_labels_are_the_tokens_that_follow() -> None:
    batch = next(text_batches(entry(ids=(3, 8), labels=(3, 8)), TEXT))
    assert batch["ids"].shape == (3, 8)
    assert torch.equal(batch["labels"], batch["ids"] + 1)


def test_models_of_transformers_shift_themselves() -> None:
    batch = next(text_batches(entry(input_ids=(3, 8), attention_mask=(3, 8), labels=(3, 8)), TEXT))
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["attention_mask"].all()


def test_the_same_seed_draws_the_same_windows() -> None:
    one, again, other = (
        [b["ids"] for b in islice(text_batches(entry(ids=(3, 8)), TEXT, seed=seed), 3)] for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_window_is_within_the_text() -> None:
    found = torch.cat([b["ids"].flatten() for b in islice(text_batches(entry(ids=(64, 8)), TEXT[:10]), 20)])
    assert set(found.tolist()) == set(range(9))


def test_the_standard_library_is_text() -> None:
    text = read_text(standard_library())
    assert len(text) > 1_000_000
    assert text.dtype == torch.uint8


def test_a_directory_is_read_in_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.py").write_text("first ")
    (tmp_path / "c.bin").write_bytes(b"no text")
    assert bytes(read_text(tmp_path).tolist()) == b"first second"


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no text"):
        read_text(tmp_path)
    with pytest.raises(InputError, match="too few"):
        next(text_batches(entry(ids=(2, 300)), TEXT))
    with pytest.raises(InputError, match="text does not fit the plan's inputs: pixels"):
        next(text_batches(entry(pixels=(2, 3)), TEXT))
