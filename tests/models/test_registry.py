"""``superscaler.models``: names to models, and settings from the command line."""

import subprocess
import sys

import pytest
from torch._subclasses import FakeTensor, FakeTensorMode

from superscaler import models
from superscaler.errors import UsageError


def test_importing_the_package_does_not_import_torch():
    code = "import sys, superscaler.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_given_as_text_take_the_type_of_their_field():
    config = models.config("gpt", "tiny", layers="3", dropout="0.25", tied="false", ffn="48")
    assert (config.layers, config.dropout, config.tied, config.ffn) == (3, 0.25, False, 48)
    assert models.config("gpt", "tiny", ffn="none").ffn is None
    assert models.config("gpt", "tiny", dropout=0).dropout == 0.0


@pytest.mark.parametrize(
    "bad", [{"layers": "three"}, {"layers": 2.5}, {"layers": True}, {"tied": "maybe"}, {"tied": 1}]
)
def test_values_of_another_type_are_refused(bad: dict[str, object]):
    with pytest.raises(UsageError, match="is no value for"):
        models.config("gpt", "tiny", **bad)


@pytest.mark.parametrize(("model", "preset"), [(m, p) for m in models.MODELS for p in models.preset_names(m)])
def test_every_preset_builds_and_draws_a_batch_without_allocating(model: str, preset: str):
    with FakeTensorMode(allow_non_fake_inputs=True):
        network, inputs = models.build(model, preset)
        batch = inputs(2)
    assert all(isinstance(parameter, FakeTensor) for parameter in network.parameters())
    assert all(isinstance(part, FakeTensor) and part.shape[0] == 2 for part in batch)


@pytest.mark.parametrize("model", models.MODELS)
def test_every_model_has_a_tiny_preset_that_returns_a_scalar_loss(model: str):
    assert models.preset_names(model)[0] == "tiny"
    network, inputs = models.build(model, "tiny")
    loss = network(*inputs(1))
    assert loss.shape == ()
    assert loss.isfinite()


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'gpt'"):
        models.build("gtp", "tiny")
    with pytest.raises(UsageError, match="did you mean 'gpt3-175b'"):
        models.build("gpt", "gpt-175b")
    with pytest.raises(UsageError, match="did you mean 'layers'"):
        models.build("gpt", "tiny", layer=3)


def test_example_batches_are_deterministic():
    _, inputs = models.build("gpt", "tiny")
    (first, _), (again, _), (other, _) = inputs(2, 8), inputs(2, 8), inputs(2, 8, seed=1)
    assert first.shape == (2, 8)
    assert first.equal(again)
    assert not first.equal(other)
