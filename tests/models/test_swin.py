import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from superscaler import models
from superscaler.errors import UsageError
from superscaler.models import swin
from superscaler.models.windows import partition, relative_index, shift_mask, unpartition


def build(preset: str = "tiny", **overrides: object) -> tuple[swin.Swin, models.ExampleInputs]:
    torch.manual_seed(0)
    network, inputs = models.build("swin", preset, **overrides)
    assert isinstance(network, swin.Swin)
    return network, inputs


def hf_swin(image: int, window: int, depths: tuple[int, ...], heads: tuple[int, ...]):
    """A transformers Swin with random weights, biases and norms (fresh ones have many zeros)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    reference = transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=image, patch_size=4, embed_dim=16, depths=list(depths), num_heads=list(heads),
            window_size=window, num_labels=10,
        )
    ).eval()  # fmt: skip
    for parameter in reference.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return reference


# 36 and 20 pixels are 9 and 5 patches: windows are padded, and merging meets an odd side.
@settings(max_examples=8, deadline=None)
@given(
    image=st.sampled_from([32, 36, 40]),
    window=st.sampled_from([2, 3, 4]),
    stages=st.sampled_from([((2, 2), (2, 4)), ((3,), (4,)), ((1, 2), (1, 2))]),
)
def test_it_agrees_with_the_swin_of_transformers(
    image: int, window: int, stages: tuple[tuple[int, ...], tuple[int, ...]]
):
    depths, heads = stages
    reference = hf_swin(image, window, depths, heads)
    network, inputs = build(image=image, window=window, depths=depths, heads=heads)
    network.load_state_dict(swin.from_hf(reference.state_dict()))
    images, labels = inputs(2)
    expected = reference(images, labels=labels)
    torch.testing.assert_close(network.logits(images), expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(images, labels), expected.loss, atol=1e-5, rtol=1e-5)


def test_it_reads_weights_as_transformers_saves_them(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    reference = hf_swin(32, 4, (2, 2), (2, 4))
    reference.save_pretrained(tmp_path)
    network, inputs = build()
    network.load_state_dict(swin.from_hf(safetensors.load_file(tmp_path / "model.safetensors")))
    images, _ = inputs(2)
    torch.testing.assert_close(network.logits(images), reference(images).logits, atol=1e-5, rtol=1e-5)


def test_weights_without_a_place_are_refused():
    with pytest.raises(UsageError, match="position_embeddings"):
        swin.from_hf({"swin.embeddings.position_embeddings": torch.zeros(1, 64, 16)})


def test_the_loss_of_a_fresh_model_is_that_of_guessing():
    network, inputs = build()
    assert network(*inputs(8)).item() == pytest.approx(math.log(10), rel=0.05)


def test_every_parameter_gets_a_gradient():
    network, inputs = build()
    network(*inputs(2)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_dropout_and_stochastic_depth_act_in_training_only():
    network, inputs = build(dropout=0.1, drop_path=0.5)
    batch = inputs(4)
    assert network(*batch) != network(*batch)
    network.eval()
    assert network(*batch) == network(*batch)


def test_stochastic_depth_keeps_the_mean_of_a_block():
    network, _ = build(drop_path=0.5)
    last = network.stages[1].blocks[1]
    kept = last._keep(torch.ones(4000, 1, 1, 1))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert kept.mean().item() == pytest.approx(1.0, abs=0.1)


@given(window=st.integers(1, 5), windows=st.integers(1, 4))
def test_partition_cuts_and_unpartition_mends(window: int, windows: int):
    side = window * windows
    image = torch.arange(2 * side * side * 3).view(2, side, side, 3)
    parts = partition(image, window)
    assert parts.shape == (2, windows**2, window**2, 3)
    assert parts[0, 0].equal(image[0, :window, :window].flatten(0, 1))
    assert unpartition(parts, window, side).equal(image)


@given(window=st.integers(1, 6))
def test_relative_index_numbers_the_offsets(window: int):
    index = relative_index(window, torch.device("cpu"))
    span = 2 * window - 1
    for i, j in [(0, 0), (0, window**2 - 1), (window**2 - 1, 0), (window - 1, 0)]:
        rows, columns = i // window - j // window, i % window - j % window
        assert index[i, j] == (rows + window - 1) * span + columns + window - 1
    assert index.min() == 0
    assert index.max() == span**2 - 1


@given(window=st.integers(2, 5), windows=st.integers(2, 4))
def test_shift_mask_keeps_apart_what_the_shift_joined(window: int, windows: int):
    side, shift = window * windows, window // 2
    mask = shift_mask(side, window, shift, torch.device("cpu"))
    # Places as they were before the shift: two tokens of a window are neighbours if they were within a window's reach.
    rows = torch.arange(side).roll(-shift)
    places = partition(torch.stack(torch.meshgrid(rows, rows, indexing="ij"), -1)[None], window)[0]
    apart = (places[:, :, None] - places[:, None, :]).abs().amax(-1) >= window
    assert mask.equal(apart)


# Millions of parameters: table 7 of the Swin paper (T to L).
@pytest.mark.parametrize(
    ("preset", "millions"), [("swin-t", 28.3), ("swin-s", 49.6), ("swin-b", 87.8), ("swin-l", 196.5)]
)
def test_presets_have_the_published_number_of_parameters(preset: str, millions: float):
    with FakeTensorMode():
        network, _ = models.build("swin", preset)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("preset", [name for name in swin.PRESETS if name.startswith("coshard")])
def test_coshard_presets_are_those_of_the_experiment(preset: str):
    sizes = {"coshard-32": 512, "coshard-40": 768, "coshard-48": 1024, "coshard-56": 1536}
    config = swin.PRESETS[preset]
    assert (config.image, config.window, config.hidden) == (1536, 48, sizes[preset])
    assert sum(config.depths) == int(preset.removeprefix("coshard-"))


def test_it_exports():
    network, inputs = build()
    batch = inputs(2)
    exported = torch.export.export(network, batch, strict=False)
    torch.testing.assert_close(exported.module()(*batch), network(*batch))


def test_bad_sizes_are_refused():
    with pytest.raises(UsageError, match="patch 4 does not divide image 30"):
        build(image=30)
    with pytest.raises(UsageError, match="different length"):
        build(depths=(2, 2, 2))
    with pytest.raises(UsageError, match="heads 3 does not divide the width of stage 1"):
        build(heads="2,3")
    with pytest.raises(UsageError, match="it has no seq"):
        build()[1](2, 8)
