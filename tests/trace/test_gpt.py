"""Our GPT, traced: loss and every gradient are those of plain torch."""

from __future__ import annotations

import torch
from trace_running import assert_same_as_torch

from superscaler import models


def test_gpt_is_exact() -> None:
    torch.manual_seed(0)
    model, inputs = models.build("gpt", "tiny")
    assert_same_as_torch(model, inputs(2))


def test_uneven_ignored_labels_are_exact() -> None:
    torch.manual_seed(0)
    model, inputs = models.build("gpt", "tiny", tied=False)
    ids, labels = inputs(3, 7)
    labels[0, 2:] = -100
    labels[2] = -100
    assert_same_as_torch(model, (ids, labels))
