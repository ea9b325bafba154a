"""Modules of all sorts: loss, every gradient and every buffer are those of plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trace_running import assert_same_as_torch

from superscaler.errors import TraceError
from superscaler.runtime.ops import sleep
from superscaler.trace import trace


class Doubled(torch.autograd.Function):
    """A function whose backward is not its derivative: the trace must take what it says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3 * ctx.saved_tensors[0].cos()


class Module(nn.Module):
    """A module from a function of (self, inputs) and its parts."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def batch_norm(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m.head(F.relu(m.norm(m.conv(x))).mean((2, 3))), y)


def resnet(m: Any, x: Tensor, y: Tensor) -> Tensor:
    h = F.max_pool2d(F.relu(m.norm(m.stem(x))), 3, 2, 1)
    return F.cross_entropy(m.head(F.adaptive_avg_pool2d(h + m.grouped(h), 1).flatten(1)), y)


def norms(m: Any, x: Tensor) -> Tensor:
    h = m.rms(m.instance(m.group(x)))
    return (m.two_dims(m.plain(h)) * torch.arange(8)).square().mean()


def images(m: Any, x: Tensor) -> Tensor:
    h = F.avg_pool2d(m.up(m.transposed(x)), 2)
    return m.patches(h).cos().sum() + F.pixel_shuffle(h[:, :1].expand(-1, 4, -1, -1), 2).sin().sum()


def activations(m: Any, x: Tensor) -> Tensor:
    y = m.linear(x)
    total = F.silu(y) * F.softplus(y) + F.elu(y) + F.leaky_relu(y) + F.hardswish(y) + F.mish(y) + F.glu(y, -1).sum()
    total = total + F.logsigmoid(y) + F.hardtanh(y) + F.gelu(y, approximate="tanh") + m.prelu(y)
    return total.square().mean() + m.bilinear(x, y).sum() + F.normalize(y).sum() + F.cosine_similarity(x, y).sum()


def losses(m: Any, x: Tensor, y: Tensor) -> Tensor:
    z = m.linear(x)
    total = F.mse_loss(z, x) + F.smooth_l1_loss(z, x, beta=0.3) + F.huber_loss(z, x) + F.l1_loss(z, x)
    total = total + F.binary_cross_entropy_with_logits(z, x.sigmoid()) + F.cross_entropy(z, x.softmax(1))
    total = total + F.kl_div(z.log_softmax(1), x.softmax(1), reduction="batchmean")
    total = total + F.cross_entropy(z, y, label_smoothing=0.1, weight=m.weights)
    total = total + F.cross_entropy(z.view(2, 5, 2), y.view(2, 2) % 5, reduction="none").square().sum()
    return total + F.nll_loss(F.log_softmax(z, 1), y) + F.nll_loss(torch.log(z.softmax(1)), y, reduction="sum")


def encoder(m: Any, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(x.dtype)
    y = m.layer(x, src_mask=mask, is_causal=True)
    return (m.attention(y, y, y, need_weights=False)[0] * m.attention(y, x, x)[0]).square().mean()


def recurrent(m: Any, x: Tensor) -> Tensor:
    return m.lstm(m.gru(x)[0])[0].square().sum()


def lookups(m: Any, ids: Tensor, x: Tensor) -> Tensor:
    h = m.embedding(ids) + m.table[ids % 3] + m.weight[ids % 7]
    h = h.index_select(1, torch.tensor([1, 0, 2]))
    picked = torch.gather(h, 2, torch.tensor([0, 2]).expand(*h.shape[:2], 2))
    total = torch.einsum("bij,jk->bik", picked, torch.tensor([[1.0, 3.0], [2.0, -1.0]])).sum()
    total = total + h.topk(2, dim=-1).values.square().sum() + h.max(-1).values.exp().mean() + h.amax((1, 2)).sum()
    total = total + h.unfold(1, 2, 1).cos().sum() + (h @ h.transpose(1, 2)).diagonal(dim1=1, dim2=2).exp().sum()
    return total + h.sort(-1).values[..., 0].sum() + torch.tril(x).square().mean() + x.trace()


def reshapes(m: Any, x: Tensor) -> Tensor:
    h = m.linear(x)
    total = torch.cat([h[..., ::2], h[..., 1::2]], -1).tanh().sum() + h.chunk(2, 1)[1].sum()
    total = total + torch.stack(h.unbind(0)).cumsum(1).tanh().sum() + F.pad(h, (1, 2)).roll(1, -1).flip(0).pow(3).sum()
    total = total + h.repeat(1, 2).repeat_interleave(2, 1).abs().mean() + (h.view(4, 3, 2).transpose(0, 2) ** 3).mean()
    total = total + torch.where(x > 0, h, 0.5).sigmoid().prod(-1).sum() + (h > 0).float().mean() * h.sum()
    return total + h.std() + h.var(1).sum() + h.norm() + h.logsumexp(-1).sum() + h.masked_fill(x > 1, 2.0).exp().mean()


def in_place(m: Any, x: Tensor) -> Tensor:
    h = m.linear(x).clone()
    h[:, 0] = 1.0
    h[1:, 2:4] *= 2
    h.relu_()
    with torch.no_grad():
        m.average.mul_(0.9).add_(h.mean(0), alpha=0.1)
        m.steps += 1
    return (h * m.average).sum()


def replaced_buffer(m: Any, x: Tensor) -> Tensor:
    h = m.linear(x)
    m.average = 0.9 * m.average + 0.1 * h.detach().mean(0)
    return (h * m.average).sum()


def attentions(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    five = x[:, None].expand(2, 3, 2, 4, 5) * 1
    sdpa = F.scaled_dot_product_attention
    outs = [
        sdpa(five, five, five),
        sdpa(x, x, x, attn_mask=m.bias),
        sdpa(x[:, 0], x[:, 0], x[:, 0], is_causal=True),
        sdpa(x, x[:, :1], x[:, :1], attn_mask=mask, enable_gqa=True, scale=0.3),
        sdpa(five, five, five, attn_mask=m.bias),
        sdpa(x, x, x, attn_mask=mask[0, 0]),
        sdpa(x[0, 0], x[0, 0], x[0, 0]),
    ]
    return sum((out.square().sum() for out in outs), m.bias.sum())


def shared(m: Any, x: Tensor) -> Tensor:
    return m.third(torch.tanh(m.second(torch.relu(m.first(x))))).square().mean()


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return Module(shared, first=first, second=second, third=first)


def checkpointed(m: Any, x: Tensor) -> Tensor:
    def part(y: Tensor) -> Tensor:
        return torch.tanh(m.linear(y)).relu()

    return (checkpoint(part, m.linear(x), use_reentrant=True) + checkpoint(part, x, use_reentrant=False)).mean()


def penalty(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(m.linear(x))
    (gradient,) = torch.autograd.grad(h.sum(), m.linear.weight, create_graph=True)
    return gradient.square().sum() + h.mean()


def partly_trained(m: Any, x: Tensor) -> Tensor:
    return (m.linear(x) + m.frozen).square().mean()


def linear(n: int = 6) -> nn.Module:
    return nn.Linear(n, n)


def mask() -> Tensor:
    found = torch.rand(2, 1, 4, 4) > 0.3
    found[..., 0] = True
    return found


LABELS = torch.tensor([0, -100, 4, 2])
CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "batch norm": lambda: (
        Module(
            batch_norm, conv=nn.Conv2d(3, 4, 3, padding=1, bias=False), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 2)
        ),
        (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])),
    ),
    "resnet": lambda: (
        Module(
            resnet,
            stem=nn.Conv2d(3, 4, 7, stride=2, padding=3),
            norm=nn.BatchNorm2d(4, track_running_stats=False),
            grouped=nn.Conv2d(4, 4, 3, padding=1, groups=2),
            head=nn.Linear(4, 2),
        ),
        (torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])),
    ),
    "norms": lambda: (
        Module(
            norms,
            group=nn.GroupNorm(2, 4),
            instance=nn.InstanceNorm1d(4),
            rms=nn.RMSNorm(8),
            plain=nn.LayerNorm(8, elementwise_affine=False),
            two_dims=nn.LayerNorm((4, 8), bias=False),
        ),
        (torch.randn(3, 4, 8),),
    ),
    "images": lambda: (
        Module(
            images,
            transposed=nn.ConvTranspose2d(1, 2, 3, 2),
            up=nn.Upsample(scale_factor=2),
            patches=nn.Conv2d(2, 3, 3, 3),
        ),
        (torch.randn(2, 1, 4, 4),),
    ),
    "activations": lambda: (
        Module(activations, linear=linear(), prelu=nn.PReLU(), bilinear=nn.Bilinear(6, 6, 3)),
        (torch.randn(4, 6),),
    ),
    "losses": lambda: (Module(losses, linear=linear(5), weights=torch.arange(1.0, 6.0)), (torch.randn(4, 5), LABELS)),
    "encoder": lambda: (
        Module(
            encoder,
            layer=nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True),
            attention=nn.MultiheadAttention(16, 4, batch_first=True),
        ),
        (torch.randn(2, 5, 16),),
    ),
    "recurrent": lambda: (
        Module(recurrent, gru=nn.GRU(6, 5, batch_first=True), lstm=nn.LSTM(5, 4, batch_first=True)),
        (torch.randn(2, 3, 6),),
    ),
    "lookups": lambda: (
        Module(
            lookups,
            embedding=nn.Embedding(9, 4, padding_idx=0),
            table=torch.arange(12.0).reshape(3, 4),
            weight=nn.Parameter(torch.randn(7, 4)),
        ),
        (torch.randint(9, (5, 3)), torch.randn(4, 4)),
    ),
    "reshapes": lambda: (Module(reshapes, linear=linear()), (torch.randn(4, 6),)),
    "in place": lambda: (
        Module(in_place, linear=linear(), average=torch.zeros(6), steps=torch.zeros((), dtype=torch.long)),
        (torch.randn(3, 6),),
    ),
    "replaced buffer": lambda: (Module(replaced_buffer, linear=linear(), average=torch.ones(6)), (torch.randn(3, 6),)),
    "attentions": lambda: (
        Module(attentions, bias=nn.Parameter(torch.randn(1, 2, 4, 4))),
        (torch.randn(2, 2, 4, 5), mask()),
    ),
    "shared weights": lambda: (tied(), (torch.randn(3, 6),)),
    "custom backward": lambda: (
        Module(lambda m, x: Doubled.apply(m.linear(x)).square().mean(), linear=linear()),
        (torch.randn(3, 6),),
    ),
    "checkpointed": lambda: (Module(checkpointed, linear=linear()), (torch.randn(3, 6),)),
    "gradient penalty": lambda: (Module(penalty, linear=linear()), (torch.randn(3, 6),)),
    "partly trained": lambda: (
        Module(
            partly_trained,
            linear=linear(),
            frozen=nn.Parameter(torch.randn(6), requires_grad=False),
            unused=nn.Parameter(torch.randn(2)),
        ),
        (torch.randn(3, 6),),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_exact(case: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[case]()
    assert_same_as_torch(model, inputs)


def test_shared_weights_are_one_tensor() -> None:
    traced = assert_same_as_torch(tied(), (torch.randn(3, 6),))
    assert traced.state["first.weight"] == ("first.weight", "second.weight", "third.weight")
    names = [t.name for t in traced.graph.tensors if t.kind == "parameter"]
    assert names == ["first.weight", "first.bias", "second.bias"]


def test_an_op_of_ones_own_keeps_its_name() -> None:
    model = Module(lambda m, x: sleep(m.linear(x), 1, 2).sum(), linear=linear())
    traced = assert_same_as_torch(model, (torch.randn(3, 6),))
    assert {"superscaler.sleep", "superscaler.sleep_backward"} <= {op.target for op in traced.graph.ops}


def test_an_embedding_scaled_by_frequency_would_depend_on_the_split() -> None:
    model = nn.Embedding(4, 4, scale_grad_by_freq=True)
    with pytest.raises(TraceError, match="frequency"):
        trace(model, (torch.zeros(3, dtype=torch.long),), loss=lambda output: output.sum())
