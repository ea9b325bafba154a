import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from superscaler import models
from superscaler.errors import UsageError
from superscaler.models import gpt


def build(**overrides: object) -> tuple[gpt.GPT, models.ExampleInputs]:
    torch.manual_seed(0)
    network, inputs = models.build("gpt", "tiny", **overrides)
    assert isinstance(network, gpt.GPT)
    return network, inputs


def test_the_loss_of_a_fresh_model_is_that_of_guessing():
    network, inputs = build()
    assert network(*inputs(4)).item() == pytest.approx(math.log(256), rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_gets_a_gradient(tied: bool):
    network, inputs = build(tied=tied)
    network(*inputs(2)).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "key.bias" not in n
    )
    assert (network.head.weight is network.embedding.weight) == tied


@settings(max_examples=10, deadline=None)
@given(place=st.integers(1, 15), seed=st.integers(0, 100))
def test_a_token_changes_no_earlier_score(place: int, seed: int):
    network, inputs = build()
    ids, _ = inputs(1, 16, seed=seed)
    changed = ids.clone()
    changed[0, place] = (changed[0, place] + 1) % 256
    before, after = network.logits(ids), network.logits(changed)
    torch.testing.assert_close(before[:, :place], after[:, :place])
    assert not torch.allclose(before[:, place], after[:, place])


def test_ignored_labels_do_not_count():
    network, inputs = build()
    ids, labels = inputs(2, 8)
    scores = network.logits(ids).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    labels[0, 3:] = gpt.IGNORE
    kept = torch.cat([scores[0, :3], scores[1]])
    torch.testing.assert_close(network(ids, labels), -kept.mean())


def test_it_learns_a_batch_by_heart():
    network, inputs = build()
    batch = inputs(2, 16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        network(*batch).backward()
        optimizer.step()
    assert network(*batch).item() < 1.0


def test_dropout_acts_in_training_only():
    network, inputs = build(dropout=0.5)
    batch = inputs(2)
    assert network(*batch) != network(*batch)
    network.eval()
    assert network(*batch) == network(*batch)


def test_it_agrees_with_the_gpt2_of_transformers():
    transformers = pytest.importorskip("transformers")
    network, inputs = build()
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=256, n_positions=32, n_embd=32, n_layer=2, n_head=4, activation_function="gelu",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    reference.load_state_dict(to_hf(network))
    ids, _ = inputs(2)
    torch.testing.assert_close(network.logits(ids), reference(ids).logits, atol=1e-5, rtol=1e-5)


def to_hf(network: gpt.GPT) -> dict[str, torch.Tensor]:
    """The weights under GPT-2's names: its linear weights are transposed, and query, key and value are one."""
    state = {"transformer.wte.weight": network.embedding.weight, "lm_head.weight": network.head.weight}
    state["transformer.wpe.weight"] = network.positions.weight
    state |= {f"transformer.ln_f.{kind}": value for kind, value in network.norm.state_dict().items()}
    for index, block in enumerate(network.blocks):
        assert isinstance(block, gpt.Block)
        at = block.attention
        fused = {
            kind: torch.cat([getattr(at.query, kind), getattr(at.key, kind), getattr(at.value, kind)])
            for kind in ("weight", "bias")
        }
        parts = {
            "ln_1": block.norm1.state_dict(), "ln_2": block.norm2.state_dict(), "attn.c_attn": fused,
            "attn.c_proj": at.project.state_dict(), "mlp.c_fc": block.mlp.up.state_dict(),
            "mlp.c_proj": block.mlp.down.state_dict(),
        }  # fmt: skip
        for part, values in parts.items():
            for kind, value in values.items():
                state[f"transformer.h.{index}.{part}.{kind}"] = value.t() if value.dim() == 2 else value
    return state


# Millions of parameters: the names of GPT-2's and GPT-3's sizes (GPT-2's papers count 117 for 124).
@pytest.mark.parametrize(
    ("preset", "millions"),
    [("gpt2-small", 124), ("gpt2-xl", 1558), ("gpt3-small", 125), ("gpt3-medium", 355), ("gpt3-large", 760),
     ("gpt3-xl", 1316), ("gpt3-2.7b", 2650), ("gpt3-6.7b", 6660), ("gpt3-13b", 12850), ("gpt3-175b", 174600)],
)  # fmt: skip
def test_presets_have_the_published_number_of_parameters(preset: str, millions: int):
    with FakeTensorMode():
        network, _ = models.build("gpt", preset)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_it_exports():
    network, inputs = build()
    batch = inputs(2, 8)
    exported = torch.export.export(network, batch, strict=False)
    torch.testing.assert_close(exported.module()(*batch), network(*batch))


def test_bad_sizes_are_refused():
    with pytest.raises(UsageError, match="heads 5 does not divide hidden 32"):
        build(heads=5)
    with pytest.raises(UsageError, match="seq 33 exceeds context 32"):
        build()[1](2, 33)
    with pytest.raises(UsageError, match="batch must be at least 1"):
        build()[1](0)
    with pytest.raises(UsageError, match="dropout"):
        build(dropout="1.5")
