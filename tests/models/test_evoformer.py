from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superscaler.models import evoformer

SIZES = evoformer.Widths(
    msa=12, pair=8, msa_heads=3, msa_head_size=4, pair_heads=2, pair_head_size=4, outer=3, triangle=8, expansion=2
)
SHAPES = {"batch": st.integers(1, 2), "sequences": st.integers(1, 4), "residues": st.integers(1, 5)}


def randomised(module: nn.Module) -> nn.Module:
    """Random weights and biases: norms and gates too, which start as constants."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def renamed(module: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The module's state dict with every submodule's path replaced by its name in ESMFold."""
    state = {}
    for name, value in module.state_dict().items():
        path, _, kind = name.rpartition(".")
        state[f"{names[path]}.{kind}"] = value
    return state


@pytest.mark.parametrize("outgoing", [True, False])
def test_triangle_multiplication_agrees_with_esmfold(outgoing: bool):
    esm = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    ours = randomised(evoformer.TriangleMultiplication(8, 8, outgoing=outgoing))
    theirs = esm.EsmFoldTriangleMultiplicativeUpdate(SimpleNamespace(pairwise_state_dim=8), _outgoing=outgoing)
    names = {
        "norm": "layer_norm_in", "left": "linear_a_p", "left_gate": "linear_a_g", "right": "linear_b_p",
        "right_gate": "linear_b_g", "norm_out": "layer_norm_out", "project": "linear_z", "gate": "linear_g",
    }  # fmt: skip
    theirs.load_state_dict(renamed(ours, names))
    pair = torch.randn(2, 5, 5, 8)
    torch.testing.assert_close(ours(pair), theirs(pair), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("starting", [True, False])
def test_triangle_attention_agrees_with_esmfold(starting: bool):
    esm = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    ours = randomised(evoformer.TriangleAttention(8, 2, 4, starting=starting))
    theirs = esm.EsmFoldTriangleAttention(8, 4, 2, starting=starting)
    names = {
        "norm": "layer_norm", "bias": "linear", "attention.query": "mha.linear_q", "attention.key": "mha.linear_k",
        "attention.value": "mha.linear_v", "attention.gate": "mha.linear_g", "attention.project": "mha.linear_o",
    }  # fmt: skip
    theirs.load_state_dict(renamed(ours, names))
    pair = torch.randn(2, 5, 5, 8)
    torch.testing.assert_close(ours(pair), theirs(pair), atol=1e-5, rtol=1e-5)


def test_the_pair_side_of_a_block_agrees_with_esmfold():
    """Multiplications, attentions and transition with their residuals, in ESMFold's own block."""
    esm = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    config = SimpleNamespace(
        sequence_state_dim=8, pairwise_state_dim=8, sequence_head_width=4, pairwise_head_width=4, dropout=0.0
    )
    theirs = randomised(esm.EsmFoldTriangularSelfAttentionBlock(config))
    sizes = evoformer.Widths(**(vars(SIZES) | {"expansion": 4}))
    ours = evoformer.Block(sizes, 0.0, 0.0, extra=False)
    copy_multiplication(ours.outgoing, theirs.tri_mul_out)
    copy_multiplication(ours.incoming, theirs.tri_mul_in)
    copy_attention(ours.starting, theirs.tri_att_start)
    copy_attention(ours.ending, theirs.tri_att_end)
    norm, up, _, down, _ = theirs.mlp_pair.mlp
    copy(ours.pair_transition, norm=norm, up=up, down=down)
    # What comes from the alignment is left out on both sides.
    nn.init.zeros_(theirs.sequence_to_pair.o_proj.weight)
    nn.init.zeros_(theirs.sequence_to_pair.o_proj.bias)
    nn.init.zeros_(ours.outer.project.weight)
    nn.init.zeros_(ours.outer.project.bias)
    pair = torch.randn(2, 5, 5, 8)
    _, expected = theirs(torch.randn(2, 5, 8), pair)
    _, got = ours(torch.randn(2, 3, 5, 12), pair)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def copy(module: nn.Module, **parts: nn.Module) -> None:
    for name, source in parts.items():
        module.get_submodule(name).load_state_dict(source.state_dict())


def copy_multiplication(ours: nn.Module, theirs: nn.Module) -> None:
    copy(
        ours, norm=theirs.layer_norm_in, left=theirs.linear_a_p, left_gate=theirs.linear_a_g, right=theirs.linear_b_p,
        right_gate=theirs.linear_b_g, norm_out=theirs.layer_norm_out, project=theirs.linear_z, gate=theirs.linear_g,
    )  # fmt: skip


def copy_attention(ours: nn.Module, theirs: nn.Module) -> None:
    mha = theirs.mha
    copy(ours, norm=theirs.layer_norm, bias=theirs.linear)
    copy(ours.attention, query=mha.linear_q, key=mha.linear_k, value=mha.linear_v)
    copy(ours.attention, gate=mha.linear_g, project=mha.linear_o)


@settings(deadline=None, max_examples=20)
@given(**SHAPES)
def test_row_attention_is_algorithm_7(batch: int, sequences: int, residues: int):
    module = randomised(evoformer.RowAttention(SIZES))
    msa, pair = torch.randn(batch, sequences, residues, 12), torch.randn(batch, residues, residues, 8)
    at, x = module.attention, module.norm(msa)
    q, k, v, g = (f(x).unflatten(-1, (3, 4)) for f in (at.query, at.key, at.value, at.gate))
    scores = (
        torch.einsum("bsihc,bsjhc->bhsij", q, k) / 2
        + module.bias(module.pair_norm(pair)).permute(0, 3, 1, 2)[:, :, None]
    )
    mixed = torch.einsum("bhsij,bsjhc->bsihc", scores.softmax(-1), v)
    torch.testing.assert_close(module(msa, pair), at.project((g.sigmoid() * mixed).flatten(3)), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(**SHAPES)
def test_column_attention_is_algorithm_8(batch: int, sequences: int, residues: int):
    module = randomised(evoformer.ColumnAttention(SIZES))
    msa = torch.randn(batch, sequences, residues, 12)
    at, x = module.attention, module.norm(msa)
    q, k, v, g = (f(x).unflatten(-1, (3, 4)) for f in (at.query, at.key, at.value, at.gate))
    scores = torch.einsum("bsihc,btihc->bhist", q, k) / 2
    mixed = torch.einsum("bhist,btihc->bsihc", scores.softmax(-1), v)
    torch.testing.assert_close(module(msa), at.project((g.sigmoid() * mixed).flatten(3)), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(**SHAPES)
def test_global_column_attention_is_algorithm_19(batch: int, sequences: int, residues: int):
    module = randomised(evoformer.GlobalColumnAttention(SIZES))
    msa = torch.randn(batch, sequences, residues, 12)
    x = module.norm(msa)
    q, g = module.query(x).unflatten(-1, (3, 4)).mean(1), module.gate(x).unflatten(-1, (3, 4)).sigmoid()
    weights = (torch.einsum("bihc,btic->bhit", q, module.key(x)) / 2).softmax(-1)
    mixed = g * torch.einsum("bhit,btic->bihc", weights, module.value(x))[:, None]
    torch.testing.assert_close(module(msa), module.project(mixed.flatten(3)), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(**SHAPES)
def test_outer_product_mean_is_algorithm_10(batch: int, sequences: int, residues: int):
    module = randomised(evoformer.OuterProductMean(SIZES))
    msa = torch.randn(batch, sequences, residues, 12)
    x = module.norm(msa)
    outer = torch.einsum("bsic,bsjd->bsijcd", module.left(x), module.right(x)).mean(1)
    torch.testing.assert_close(module(msa), module.project(outer.flatten(3)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dim", [1, 2])
def test_shared_dropout_drops_the_same_everywhere_along_its_dim(dim: int):
    torch.manual_seed(0)
    x = torch.ones(2, 5, 6, 7)
    kept = evoformer.SharedDropout(0.5, dim)(x)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert kept.equal(kept.narrow(dim, 0, 1).expand_as(kept))
    assert evoformer.SharedDropout(0.5, dim).eval()(x).equal(x)
