"""The data of the examples, and that the presets meant for it learn from it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from superscaler import models

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_swin_learns_to_read_digits():
    pytest.importorskip("sklearn")
    data = load("swin_digits")
    torch.manual_seed(0)
    network, _ = models.build("swin", "digits")
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _, (images, labels) in zip(range(60), data.batches(64), strict=False):
        optimizer.zero_grad()
        network(images, labels).backward()
        optimizer.step()
    images, labels = data.held_out()
    assert (network.logits(images).argmax(1) == labels).float().mean() > 0.7


def test_the_same_digits_are_drawn_for_the_same_seed_and_none_that_is_held_out():
    pytest.importorskip("sklearn")
    data = load("swin_digits")
    (images, _), (again, _), (other, _) = (next(data.batches(8, seed=seed)) for seed in (1, 1, 2))
    assert images.equal(again)
    assert not images.equal(other)
    held_out = data.held_out()[0].flatten(1).unique(dim=0)
    drawn = torch.cat([next(data.batches(512, seed=seed))[0] for seed in range(4)]).flatten(1).unique(dim=0)
    assert len(torch.cat([held_out, drawn]).unique(dim=0)) == len(held_out) + len(drawn)


def test_the_bridges_of_the_kunitz_family_join_cysteines():
    data = load("alphafold2_kunitz")
    family, distances = data.family()
    letters = (family.tokens == 4).all(0)  # cysteine
    i, j = (distances == distances[1, 51]).nonzero(as_tuple=True)
    assert letters[i].all()
    assert letters[j].all()
    assert len(i) == 6


def test_alphafold2_learns_the_kunitz_family():
    data = load("alphafold2_kunitz")
    torch.manual_seed(0)
    network, _ = models.build("alphafold2", "tiny", residues=53, blocks=1, cycles=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses: list[float] = []
    for _, batch in zip(range(20), data.batches(network.config, 2), strict=False):
        optimizer.zero_grad()
        loss = network(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.75 * losses[0]
