"""Decoding piece by piece is the model, or is refused: whatever looks at other tokens, or at how many there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.decoding import compile_decoder
from superscaler.errors import PlanError
from superscaler.ir.cluster import Cluster
from superscaler.runtime.launch import launch
from superscaler.runtime.serving.generate import generate

WIDTH, VOCAB = 16, 48
Piece = Callable[["Toy", Tensor, Tensor], Tensor]


def attend(model: Toy, x: Tensor, positions: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in model.qkv(model.norm(x)).chunk(3, -1))
    return x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def attend_in_float32(model: Toy, x: Tensor, positions: Tensor) -> Tensor:
    return attend(model, x.float().to(x.dtype), positions)


TOKENWISE: dict[str, Piece] = {
    "a network of each token": lambda m, x, p: x + m.linear(F.gelu(m.norm(x))),
    "a weight by its position": lambda m, x, p: x * (1 + 0.1 * p[..., None]),
    "a rotation by its position": lambda m, x, p: (
        torch.cat((x[..., 8:], x[..., :8]), -1) * torch.cos(p[..., None] * 0.3)
    ),
    "a choice by its position": lambda m, x, p: torch.where((p > 4)[..., None], x, -x),
    "its features sorted": lambda m, x, p: x + x.softmax(-1).sort(-1).values,
    "other views of it": lambda m, x, p: x.unflatten(-1, (4, 4)).transpose(2, 3).flatten(2).squeeze(0)[None],
    "another dtype for a while": attend_in_float32,
}
OTHERS: dict[str, Piece] = {
    "a running sum": lambda m, x, p: x + x.cumsum(1),
    "the mean": lambda m, x, p: x - x.mean(1, keepdim=True),
    "the sum": lambda m, x, p: x + x.sum(1, keepdim=True),
    "the largest position": lambda m, x, p: x * (p.amax() + 1),
    "the token before": lambda m, x, p: x + F.pad(x, (0, 0, 1, 0))[:, :-1],
    "a convolution": lambda m, x, p: x + m.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2),
    "a softmax over tokens": lambda m, x, p: x.softmax(1),
    "tokens turned round": lambda m, x, p: x + x.flip(1),
    "attention by hand": lambda m, x, p: x + (x @ x.transpose(1, 2)).tril() @ x,
    "keys of another": lambda m, x, p: x + F.scaled_dot_product_attention(x, x.flip(1), x, is_causal=True),
    "places among those at hand": lambda m, x, p: x + m.positions(torch.arange(x.shape[1])),
    "one bias for each place at hand": lambda m, x, p: x + m.positions.weight[: x.shape[1]],
}
COUNTED: dict[str, Piece] = {
    "many": lambda m, x, p: x * 0.5 if x.shape[1] > 12 else x,
    "many, another op": lambda m, x, p: x.tanh() if x.shape[1] > 12 else x,
    "one": lambda m, x, p: x.tanh() if x.shape[1] == 1 else x,
    "how many": lambda m, x, p: x * (1 / x.shape[1]),
}


class Toy(nn.Module):
    def __init__(self, *pieces: Piece) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.qkv, self.linear, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.norm, self.conv = nn.LayerNorm(WIDTH), nn.Conv1d(WIDTH, WIDTH, 3)
        self.pieces = pieces

    def logits(self, ids: Tensor, positions: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(ids.shape[1])[None]
        x = self.embedding(ids) + self.positions(positions)
        for piece in (*self.pieces, attend):
            x = piece(self, x, positions)
        return self.head(x if keep is None else x[:, keep])


class AllLogits(Toy):
    def logits(self, ids: Tensor, positions: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        return super().logits(ids, positions)


def compiled(model: nn.Module, prompt: int = 4, tokens: int = 20):
    return compile_decoder(model.double(), cluster=Cluster.local(1), prompt=prompt, tokens=tokens, dtype="f64")


@torch.no_grad()
def expected(model: Toy, prompt: list[int], new: int) -> list[int]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_what_is_of_each_token_decodes_as_the_model() -> None:
    model = Toy(attend, *TOKENWISE.values())
    plan = compiled(model)
    with launch(plan, model, backend="inline") as job:
        for prompt in ([3], [5, 9, 1, 33, 7, 2, 8]):
            assert generate(job, prompt, 12) == expected(model, prompt, 12)


@pytest.mark.parametrize("what", OTHERS)
def test_what_looks_at_other_tokens_is_refused(what: str) -> None:
    with pytest.raises(PlanError, match="token") as error:
        compiled(Toy(attend, OTHERS[what]))
    assert "test_tokenwise.py" in str(error.value), "where in the model"


@pytest.mark.parametrize("what", COUNTED)
def test_what_depends_on_the_number_of_tokens_is_refused(what: str) -> None:
    with pytest.raises(PlanError, match=r"something else over 20 tokens than over [14]\b"):
        compiled(Toy(COUNTED[what]))


def test_a_model_that_gives_all_logits_is_refused() -> None:
    with pytest.raises(PlanError, match="those of all tokens"):
        compiled(AllLogits())


def test_a_sequence_of_one_token_needs_nothing_of_others() -> None:
    model = Toy(OTHERS["the mean"])
    with launch(compiled(model, 1, 1), model, backend="inline") as job:
        assert job.plan.settings["decoder"]["tokens"] == 1
