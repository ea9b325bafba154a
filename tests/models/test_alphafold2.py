import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from superscaler import models
from superscaler.errors import UsageError
from superscaler.models import alphafold2


def build(**overrides: object) -> tuple[alphafold2.AlphaFold2, models.ExampleInputs]:
    torch.manual_seed(0)
    network, inputs = models.build("alphafold2", "tiny", **overrides)
    assert isinstance(network, alphafold2.AlphaFold2)
    return network, inputs


def test_the_loss_of_a_fresh_model_is_that_of_guessing():
    network, inputs = build()
    assert network(*inputs(2)).item() == pytest.approx(0.3 * math.log(64) + 2 * math.log(23), rel=0.05)


def test_every_parameter_gets_a_gradient():
    network, inputs = build()
    network(*inputs(2)).backward()
    missing = {name for name, p in network.named_parameters() if p.grad is None or p.grad.norm() < 1e-12}
    # What all keys have in common changes no attention: the gradient of this bias is zero in truth.
    assert all(name.endswith("row.pair_norm.bias") for name in missing)


def test_the_gradient_is_that_of_the_last_forward():
    """As if the earlier forwards had run without autograd at all."""
    network, inputs = build(cycles=3)
    target, index, msa, features, extra, extra_features, true_msa, distances = inputs(2)
    network(target, index, msa, features, extra, extra_features, true_msa, distances).backward()
    got = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    one, _ = build(cycles=2)
    one.load_state_dict(network.state_dict())
    with torch.no_grad():
        end, last = one.representations(target, index, msa, features, extra, extra_features)
    first, pair = network.embed.msa(target, msa, features), network.embed.pair(target, index)
    end, pair = network.trunk(first, network.embed.extra(extra, extra_features), pair, end[:, 0], last)
    letters, scores = network.masked_msa(end), network.distogram(pair + pair.transpose(1, 2))
    cross_entropy = torch.nn.functional.cross_entropy
    loss = 0.3 * cross_entropy(scores.flatten(0, 2), distances.flatten()) + 2 * cross_entropy(
        letters.flatten(0, 2), true_msa.flatten()
    )
    loss.backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=name)


def test_recycling_changes_what_is_computed():
    once, inputs = build(cycles=1)
    thrice, _ = build(cycles=3)
    thrice.load_state_dict(once.state_dict())
    assert not torch.allclose(once(*inputs(1)), thrice(*inputs(1)), atol=1e-6)


def test_examples_of_a_batch_do_not_meet():
    network, inputs = build()
    batch = inputs(3)[:6]
    together, _ = network.representations(*batch)
    alone, _ = network.representations(*(part[1:2] for part in batch))
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_the_order_of_the_alignments_does_not_matter_but_for_the_first():
    network, inputs = build()
    target, index, msa, features, extra, extra_features = inputs(1)[:6]
    end, pair = network.representations(target, index, msa, features, extra, extra_features)
    order, others = torch.tensor([0, 4, 1, 5, 3, 2]), torch.randperm(8)
    shuffled = network.representations(
        target, index, msa[:, order], features[:, order], extra[:, others], extra_features[:, others]
    )
    torch.testing.assert_close(shuffled[0], end[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shuffled[1], pair, atol=1e-5, rtol=1e-5)


def test_positions_are_relative_and_clipped():
    network, inputs = build(reach=3)
    target, index = inputs(1)[:2]
    pair = network.embed.pair(target, index)
    torch.testing.assert_close(network.embed.pair(target, index + 100), pair)
    apart = network.embed.pair(target * 0, index)[0]
    torch.testing.assert_close(apart[0, 3], apart[0, 11])
    assert not torch.allclose(apart[0, 2], apart[0, 3])


def test_unmasked_letters_and_unknown_distances_do_not_count():
    network, inputs = build()
    *known, true_msa, distances = inputs(2)
    distances[0] = alphafold2.IGNORE
    end, pair = network.representations(*known)
    letters = network.masked_msa(end).log_softmax(-1)
    asked = (true_msa != alphafold2.IGNORE).nonzero(as_tuple=True)
    bins = network.distogram(pair + pair.transpose(1, 2))[1].log_softmax(-1).gather(-1, distances[1, :, :, None])
    expected = -0.3 * bins.mean() - 2 * letters[(*asked, true_msa[asked])].mean()
    torch.testing.assert_close(network(*known, true_msa, distances), expected)


def test_dropout_acts_in_training_only():
    network, inputs = build(dropout=0.15, pair_dropout=0.25)
    batch = inputs(1)
    assert network(*batch) != network(*batch)
    network.eval()
    assert network(*batch) == network(*batch)


def test_the_published_size_has_the_published_number_of_parameters():
    # Of the 93 million of the whole model the structure module and the heads left out here have about 3.
    with FakeTensorMode():
        network, _ = models.build("alphafold2", "published")
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(90.5, rel=0.01)


def test_it_exports():
    network, inputs = build()
    batch = inputs(2)
    exported = torch.export.export(network, batch, strict=False)
    torch.testing.assert_close(exported.module()(*batch), network(*batch))


def test_bad_sizes_are_refused():
    with pytest.raises(UsageError, match="cycles must be at least 1, not 0"):
        build(cycles="0")
    with pytest.raises(UsageError, match="seq 13 is not the crop of 12 residues"):
        build()[1](1, 13)
