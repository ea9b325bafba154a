from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superscaler import models
from superscaler.errors import UsageError
from superscaler.models.alignment import (
    GAP,
    LETTERS,
    MASKED,
    Alignment,
    batch_inputs,
    distance_bins,
    known_distances,
    read_a3m,
)

KUNITZ = Path(__file__).parents[2] / "examples" / "kunitz.a3m"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "family.a3m"
    path.write_text(text)
    return path


def letters(alignment: Alignment, row: int) -> str:
    return "".join(LETTERS[token] for token in alignment.tokens[row])


def test_lower_case_letters_are_counted_as_deletions_before_the_next_column(tmp_path: Path):
    alignment = read_a3m(write(tmp_path, ">query\nMKV\nLA\n>other\nM-vvVLaA\n>third\nMKUBJ\n"))
    assert alignment.names == ("query", "other", "third")
    assert [letters(alignment, row) for row in range(3)] == ["MKVLA", "M-VLA", "MKCDX"]
    assert alignment.deletions.tolist() == [[0] * 5, [0, 0, 2, 0, 1], [0] * 5]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no sequence in it"),
        ("MKV\n", "first line is no '>'"),
        (">query\nMKV\n>short one\nMK\n", "'short one': 2 columns, but the first has 3"),
        (">query\nMK7\n", "'query': '7' is no amino acid"),
        (">query\nMK-\n", "'query': the query is empty or has gaps"),
        (">query\n\n>other\n\n", "'query': the query is empty or has gaps"),
    ],
)
def test_what_is_no_alignment_is_refused(tmp_path: Path, text: str, complaint: str):
    with pytest.raises(UsageError, match=complaint):
        read_a3m(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    (tmp_path / "binary.a3m").write_bytes(b"\xff\xfe>")
    for name in ("binary.a3m", "missing.a3m", "."):
        with pytest.raises(UsageError, match="cannot read the alignment"):
            read_a3m(tmp_path / name)


def test_the_example_family_is_the_one_of_bpti():
    family = read_a3m(KUNITZ)
    cysteines = (family.tokens == LETTERS.index("C")).all(0).nonzero().flatten()
    # The six that make the family's three bridges, 5-55, 14-38 and 30-51 of BPTI, whose residue 4 is the first column.
    assert (cysteines + 4).tolist() == [5, 14, 30, 38, 51, 55]


def test_batches_fit_the_model_and_training_on_them_learns():
    family = read_a3m(KUNITZ)
    torch.manual_seed(0)
    sizes = {"residues": family.columns, "blocks": 1, "cycles": 1}
    network, inputs = models.build("alphafold2", "tiny", **sizes)
    config = models.config("alphafold2", "tiny", **sizes)
    distances = known_distances(family.columns, [(1, 51, 3.8)])
    batch = batch_inputs(family, distances, config, 2)
    assert [(part.shape, part.dtype) for part in batch] == [(part.shape, part.dtype) for part in inputs(2)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(network(*batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@given(seed=st.integers(0, 1000))
def test_the_query_comes_first_and_only_masked_letters_are_asked_for(seed: int):
    family = read_a3m(KUNITZ)
    config = models.config("alphafold2", "tiny", residues=family.columns)
    target, index, msa, _, _, _, true_msa, _ = batch_inputs(family, known_distances(53, []), config, 1, seed=seed)
    assert target[0].equal(family.tokens[0])
    assert index[0].equal(torch.arange(53))
    asked = true_msa != -100
    shown = torch.where(asked, true_msa, msa)
    assert shown[0, 0].equal(family.tokens[0])
    assert all(any(row.equal(known) for known in family.tokens) for row in shown[0])
    assert 0.05 < asked.float().mean() < 0.3
    assert (msa[~asked] != MASKED).all()


@given(seed=st.integers(0, 1000))
def test_cluster_profiles_are_distributions(seed: int):
    family = read_a3m(KUNITZ)
    config = models.config("alphafold2", "tiny", residues=family.columns)
    features = batch_inputs(family, known_distances(53, []), config, 1, seed=seed)[3]
    torch.testing.assert_close(features[..., 3:].sum(-1), torch.ones(features.shape[:-1]))
    assert ((features >= 0) & (features <= 1)).all()


def test_an_extra_sequence_joins_the_cluster_it_resembles():
    tokens = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, GAP]])
    family = Alignment(("a", "b", "c"), tokens, torch.tensor([[0] * 4, [0] * 4, [0, 0, 0, 6]]))
    config = models.config("alphafold2", "tiny", residues=4, sequences=2, extra_sequences=1)
    for seed in range(20):
        _, _, msa, features, extra, *_ = batch_inputs(family, known_distances(4, []), config, 1, seed=seed)
        if msa[0, 1].equal(tokens[1]):
            assert extra[0, 0].equal(tokens[2])
            assert features[0, 1, 3, 3 + 7] == features[0, 1, 3, 3 + GAP] == 0.5
            assert features[0, 1, 3, 2] == pytest.approx(0.5)  # mean deletion 3: 2/π · atan(3 / 3)
            return
    pytest.fail("no seed left the second sequence unmasked")


def test_a_batch_is_the_same_for_the_same_seed():
    family = read_a3m(KUNITZ)
    config = models.config("alphafold2", "tiny", residues=family.columns)
    first, again, other = (batch_inputs(family, known_distances(53, []), config, 2, seed=s) for s in (0, 0, 1))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not first[2].equal(other[2])
    assert not first[2][0].equal(first[2][1])


def test_an_alignment_of_another_width_than_the_crop_is_refused():
    family = read_a3m(KUNITZ)
    with pytest.raises(UsageError, match="53 columns does not fit a crop of 12 residues") as refused:
        batch_inputs(family, known_distances(53, []), models.config("alphafold2", "tiny"), 1)
    assert "residues=53" in str(refused.value)


def test_distances_fall_into_equal_bins_with_open_ends():
    bins = distance_bins(torch.tensor([0.0, 2.3, 2.4, 21.6, 21.7, 500.0]))
    assert bins.tolist() == [0, 0, 1, 62, 63, 63]
    assert distance_bins(torch.tensor([2.0, 12.1]), bins=2).tolist() == [0, 1]


def test_only_known_distances_count():
    labels = known_distances(4, [(0, 3, 3.8)])
    assert labels[0, 3] == labels[3, 0] == distance_bins(torch.tensor(3.8))
    assert (labels.diagonal() == 0).all()
    assert (labels != -100).sum() == 6


@pytest.mark.parametrize("pair", [(0, 4), (-1, 2), (4, 4)])
def test_a_distance_of_residues_that_are_not_there_is_refused(pair: tuple[int, int]):
    with pytest.raises(UsageError, match="in 4 columns"):
        known_distances(4, [(*pair, 3.8)])
