"""The examples of the models, run as a user runs them but for fewer steps and all workers in this process."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from superscaler import api

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


launches = pytest.mark.skipif(not hasattr(api, "launch"), reason="superscaler.launch is not public yet")


@launches
def test_swin_learns_to_read_digits_it_has_not_seen():
    pytest.importorskip("sklearn")
    assert load("swin_digits").main(steps=60, backend="inline") > 0.6


def test_the_same_digits_are_drawn_for_the_same_seed_and_none_that_is_held_out():
    pytest.importorskip("sklearn")
    data = load("swin_digits")
    (images, _), (again, _), (other, _) = (next(data.batches(8, seed=seed)) for seed in (1, 1, 2))
    assert images.equal(again)
    assert not images.equal(other)
    held_out = {tuple(image.flatten().tolist()) for image in data.held_out()[0]}
    drawn = {tuple(image.flatten().tolist()) for seed in range(4) for image in next(data.batches(512, seed=seed))[0]}
    assert not held_out & drawn


def test_the_bridges_of_the_kunitz_family_join_cysteines():
    family, distances = load("alphafold2_kunitz").family()
    cysteine = (family.tokens == 4).all(0)
    i, j = (distances == distances[1, 51]).nonzero(as_tuple=True)
    assert cysteine[i].all()
    assert cysteine[j].all()
    assert len(i) == 6


@pytest.mark.slow
@launches
def test_alphafold2_learns_the_kunitz_family():
    losses = load("alphafold2_kunitz").main(steps=12, backend="inline")
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]
