import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from superscaler import models
from superscaler.errors import UsageError
from superscaler.models import t5


def build(**overrides: object) -> tuple[t5.T5, models.ExampleInputs]:
    torch.manual_seed(0)
    network, inputs = models.build("t5", "tiny", **overrides)
    assert isinstance(network, t5.T5)
    return network, inputs


# 40 tokens reach beyond the distance of 16 at which the buckets end.
@pytest.mark.parametrize("length", [5, 16, 40])
def test_it_agrees_with_the_t5_of_transformers(length: int):
    transformers = pytest.importorskip("transformers")
    network, inputs = build()
    reference = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
            relative_attention_num_buckets=8, relative_attention_max_distance=16,
        )
    )  # fmt: skip
    reference.load_state_dict(to_hf(network), strict=False)
    source, target, labels = inputs(2, length)
    expected = reference(input_ids=source, decoder_input_ids=target, labels=labels)
    torch.testing.assert_close(network.logits(source, target), expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(source, target, labels), expected.loss, atol=1e-5, rtol=1e-5)


_HF_PARTS = {
    "norm1": "layer.0.layer_norm", "attention": "layer.0.SelfAttention", "query": "q", "key": "k", "value": "v",
    "project": "o", "up": "wi", "down": "wo",
}  # fmt: skip
_HF_LAYERS = {
    "encoder": {"norm2": "layer.1.layer_norm", "mlp": "layer.1.DenseReluDense"},
    "decoder": {
        "norm2": "layer.1.layer_norm", "cross": "layer.1.EncDecAttention",
        "norm3": "layer.2.layer_norm", "mlp": "layer.2.DenseReluDense",
    },
}  # fmt: skip


def to_hf(network: t5.T5) -> dict[str, torch.Tensor]:
    state = {"shared.weight": network.embedding.weight, "lm_head.weight": network.head.weight}
    for side in ("encoder", "decoder"):
        state[f"{side}.embed_tokens.weight"] = network.embedding.weight
        state[f"{side}.final_layer_norm.weight"] = network.get_parameter(f"{side}_norm.weight")
        bias = network.get_parameter(f"{side}_bias.weight")
        state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = bias
        for name, value in network.get_submodule(side).state_dict().items():
            number, *path = name.split(".")
            named = _HF_PARTS | _HF_LAYERS[side]
            state[".".join([side, "block", number, *(named.get(part, part) for part in path)])] = value
    return state


def test_the_loss_of_a_fresh_model_is_near_that_of_guessing():
    network, inputs = build()
    # Scores start with unit variance, which costs half a nat.
    assert network(*inputs(8)).item() == pytest.approx(math.log(256) + 0.5, abs=0.4)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_gets_a_gradient(tied: bool):
    network, inputs = build(tied=tied)
    network(*inputs(2)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_the_tied_head_is_the_embedding_scaled_to_unit_scores():
    tied, inputs = build()
    untied, _ = build(tied=False)
    untied.load_state_dict(tied.state_dict())
    with torch.no_grad():
        untied.head.weight *= 32**-0.5
    torch.testing.assert_close(tied(*inputs(2)), untied(*inputs(2)))


def test_a_target_token_changes_no_earlier_score_but_a_source_token_may():
    network, inputs = build()
    source, target, _ = inputs(1)
    before = network.logits(source, target)
    later = target.clone()
    later[0, 9] += 1
    torch.testing.assert_close(network.logits(source, later)[:, :9], before[:, :9])
    other = source.clone()
    other[0, 15] = (other[0, 15] + 1) % 256
    assert not torch.allclose(network.logits(other, target)[:, 0], before[:, 0])


def test_ignored_labels_do_not_count():
    network, inputs = build()
    source, target, labels = inputs(2)
    scores = network.logits(source, target).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    labels[0, 3:] = t5.IGNORE
    kept = torch.cat([scores[0, :3], scores[1]])
    torch.testing.assert_close(network(source, target, labels), -kept.mean())


def test_the_target_is_the_labels_behind_a_start_token():
    _, inputs = build()
    _, target, labels = inputs(2)
    assert target[:, 1:].equal(labels[:, :-1])
    assert (target[:, 0] == t5.START).all()


@given(buckets=st.integers(2, 16).map(lambda n: 2 * n), limit=st.integers(40, 200))
def test_near_distances_have_their_own_bucket_and_far_ones_share(buckets: int, limit: int):
    numbers = t5.bucket_of(torch.arange(2 * limit), buckets, limit)
    assert numbers[: buckets // 2].equal(torch.arange(buckets // 2))
    assert (numbers.diff() >= 0).all()
    assert (numbers[limit + 1 :] == buckets - 1).all()


# Millions of parameters: table 14 of the T5 paper's sizes, as counted in the released weights.
@pytest.mark.parametrize(
    ("preset", "millions"),
    [("t5-small", 60.5), ("t5-base", 222.9), ("t5-large", 737.7), ("t5-3b", 2852), ("t5-11b", 11307)],
)
def test_presets_have_the_published_number_of_parameters(preset: str, millions: float):
    with FakeTensorMode():
        network, _ = models.build("t5", preset)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_vocabulary_presets_are_those_of_the_experiment():
    names = ["vocab-512k", "vocab-1024k", "vocab-1536k", "vocab-2m"]
    sizes = [(t5.PRESETS[name].vocab // 1024, t5.PRESETS[name].hidden) for name in names]
    assert sizes == [(512, 2048), (1024, 3072), (1536, 4096), (2048, 6144)]


def test_it_exports():
    network, inputs = build()
    batch = inputs(2)
    exported = torch.export.export(network, batch, strict=False)
    torch.testing.assert_close(exported.module()(*batch), network(*batch))


def test_bad_sizes_are_refused():
    with pytest.raises(UsageError, match="buckets 7 is no multiple of 4"):
        build(buckets=7)
    with pytest.raises(UsageError, match="distance 4 is within the 4 distances"):
        build(distance=4)
    with pytest.raises(UsageError, match="heads must be at least 1"):
        build(heads="0")
