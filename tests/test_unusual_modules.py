"""Modules as users bring them, each of which some plan once got wrong or refused: exact, under that plan and others."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.transforms.discover import discover_missing
from superscaler.transforms.optimize import AdamW
from tests.exact import Subject

BATCH = 7
Case = tuple[nn.Module, tuple[Tensor, ...]]
CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


@case
def pyramid() -> Case:
    """The same convolutions at two scales: with two stages, each has gradients for parameters of the other."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            losses = [
                F.cross_entropy(self.head(F.relu(self.features(F.avg_pool2d(x, k)))), labels[:, ::k, ::k]) / k
                for k in (1, 2)
            ]
            return torch.stack(losses).sum()

    labels = torch.randint(0, 2, (BATCH, 4, 4))
    labels[1] = -100
    return Pyramid(), (torch.randn(BATCH, 2, 4, 4), labels)


@case
def moving_average() -> Case:
    """A buffer that is read in the last stage, and whose new content comes from another."""

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.register_buffer("average", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            loss = (y - self.average).square().mean()
            self.average = 0.9 * self.average + 0.1 * y.detach().mean(0)
            return loss

    return Centered(), (torch.randn(BATCH, 6),)


@case
def noise_schedule() -> Case:
    """Much is computed from buffers before the first parameter: it belongs to no stage."""

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(10, 16), nn.Linear(16, 6)
            self.register_buffer("kept", torch.linspace(0.99, 0.1, 10))

        def forward(self, x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
            kept = self.kept[time][:, None]
            noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
            angle = torch.exp(-torch.arange(2, dtype=x.dtype)) * time[:, None]
            hidden = self.up(torch.cat([noisy, angle.sin(), angle.cos()], -1))
            return F.mse_loss(self.down(F.silu(hidden)), noise)

    return Denoiser(), (torch.randn(BATCH, 6), torch.randint(0, 10, (BATCH,)), torch.randn(BATCH, 6))


@case
def translator() -> Case:
    """``nn.Transformer`` looks whether its masks are causal; and its layers hold one weight for three projections."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Transformer(6, 2, 1, 1, 10, dropout=0.0, batch_first=True)
            self.head = nn.Linear(6, 9)

        def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
            return F.cross_entropy(self.head(self.both(source, target, tgt_mask=mask)).flatten(0, 1), labels.flatten())

    return Translator(), (torch.randn(BATCH, 4, 6), torch.randn(BATCH, 5, 6), torch.randint(0, 9, (BATCH, 5)))


@case
def whitening() -> Case:
    """Inverses and Cholesky factors, at which torch looks whether they exist."""

    class Whitening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.mix = nn.Linear(6, 6), nn.Parameter(torch.eye(6) + 0.1 * torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x) @ torch.linalg.inv(self.mix)
            factor = torch.linalg.cholesky(y @ y.mT + 3 * torch.eye(4, dtype=y.dtype))
            return factor.square().mean()

    return Whitening(), (torch.randn(BATCH, 4, 6),)


@case
def bags() -> Case:
    """Sums and means of embeddings, some of them padding."""

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.EmbeddingBag(11, 4, mode="mean", padding_idx=2)
            self.total = nn.EmbeddingBag(11, 4, mode="sum")
            self.head = nn.Linear(8, 1)

        def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
            joined = torch.cat([self.mean(ids), self.total(ids, per_sample_weights=weights)], -1)
            return F.softplus(self.head(joined)).mean()

    ids = torch.randint(0, 11, (BATCH, 5))
    ids[0] = 2
    return Bags(), (ids, torch.rand(BATCH, 5))


@case
def cells() -> Case:
    """Recurrent cells in a loop: gates are parts of one tensor."""

    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTMCell(6, 5), nn.GRUCell(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            h, c, g = x.new_zeros(len(x), 5), x.new_zeros(len(x), 5), x.new_zeros(len(x), 4)
            for t in range(2):
                h, c = self.lstm(x[:, t], (h, c))
                g = self.gru(h, g)
            return g.square().mean() + c.mean()

    return Cells(), (torch.randn(BATCH, 2, 6),)


@case
def chained() -> Case:
    """A parameter that is computed from another: the gradient of the one is a term, and read for that of the other."""

    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.shift = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            common = self.shift.weight.mean()
            return F.linear(x, self.base.weight + common, self.base.bias + common).square().mean()

    return Chained(), (torch.randn(BATCH, 6),)


@case
def normed_weight() -> Case:
    """An op of torch's that no rule names, and that misreads gradients which are not contiguous."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 4, 5, groups=2, padding=2), dim=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).square().mean()

    return Normed(), (torch.randn(BATCH, 6, 5),)


@case
def margins() -> Case:
    """Losses that torch checks by looking at numbers, or traces as another loss than it computes."""

    class Margins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores, self.spread = nn.Linear(6, 5), nn.Linear(6, 5)

        def forward(self, x: Tensor, labels: Tensor, y: Tensor) -> Tensor:
            scores = self.scores(x)
            likelihood = F.gaussian_nll_loss(scores, y, F.softplus(self.spread(x)), full=True, eps=0.6)
            each = F.multilabel_margin_loss(scores, labels, reduction="none")
            return likelihood + F.multilabel_margin_loss(-scores, labels) + each.square().sum()

    labels = torch.tensor([[3, 0, -1, 1, 2]]).repeat(BATCH, 1)
    labels[1] = -1
    labels[2] = torch.arange(5)
    return Margins(), (torch.randn(BATCH, 6), labels, torch.randn(BATCH, 5))


@case
def masked_tokens() -> Case:
    """A learned token in the place of masked ones, and the largest of each bag, some of which are all padding."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.any = nn.EmbeddingBag(11, 6, mode="max", padding_idx=3), nn.EmbeddingBag(11, 6, mode="max")
            self.token, self.head = nn.Parameter(torch.randn(6)), nn.Linear(6, 4)

        def forward(self, x: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
            hidden = self.head.weight.new_zeros(x.shape) + x * self.token
            hidden[mask] = self.token
            hidden[:, 0][mask[:, 1]] = 0.5
            return self.head(hidden + (self.bag(ids) + self.any(ids)).unsqueeze(1)).square().mean()

    ids = torch.randint(0, 11, (BATCH, 5))
    ids[2], ids[1, 2] = 3, 3
    return Masked(), (torch.randn(BATCH, 4, 6), torch.rand(BATCH, 4) > 0.6, ids)


@case
def picked_tokens() -> Case:
    """A token of each sequence by its number in the batch, read and written; the last one counted from the end."""

    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor, last: Tensor, pairs: Tensor) -> Tensor:
            hidden, rows = self.linear(x), torch.arange(len(x))
            several = hidden[rows[:, None], pairs - 4]
            written = torch.tanh(hidden).clone()
            written[rows, last] = hidden[rows, -1] * 0.5
            written[rows[:, None], pairs[:, :1]] += several[:, 1:]
            return self.head(hidden[rows, last] + written.sum(1)).square().mean() + several.exp().mean()

    return Picking(), (torch.randn(BATCH, 4, 6), torch.arange(BATCH) % 4, torch.randint(0, 4, (BATCH, 2)))


@lru_cache
def table(size: int) -> tuple[Tensor, int]:
    return torch.linspace(0, 1, size).square(), size


class Scaled(nn.Module):
    """A layer that keeps what it computed first, on itself and in a function's cache."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(6, 6).triu()
        scale, _ = table(6)
        return x + self.linear(x) @ self.mask.to(x) * scale.to(x)


@case
def remembered_tables() -> Case:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(Scaled() for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).square().mean()

    return Layers(), (torch.randn(BATCH, 6),)


PLANS = [
    ("data_parallel:ways=2,microbatches=3", 2),
    ("pipeline:stages=3,microbatches=2", 3),
    ("megatron:data=2,tensor=2,pipeline=2,microbatches=3", 8),
    ("zero:level=3,data=3", 3),
]


@case
def namesakes() -> Case:
    """Inputs called as parameters and buffers are, and these as what the optimizer adds."""

    class Namesakes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.lr, self.clip = (nn.Parameter(torch.randn(6, 6)) for _ in range(3))
            self.register_buffer("step", torch.zeros(()))

        def forward(self, x: Tensor, weight: Tensor, clip: Tensor) -> Tensor:
            self.step += 1
            return ((x @ self.weight * weight + clip) @ self.lr @ self.clip * self.step).square().mean()

    return Namesakes(), (torch.randn(BATCH, 6), torch.randn(BATCH, 6), torch.randn(BATCH, 6))


@pytest.mark.parametrize("name", CASES)
def test_unusual_modules_are_exact(name: str) -> None:
    torch.manual_seed(0)
    subject = Subject(*CASES[name]())
    discover_missing(subject.traced.graph)
    for plan, devices in PLANS:
        subject.assert_exact(plan, devices)


@pytest.mark.parametrize("plan", [("data_parallel:ways=3", 3), ("zero:level=2,data=2", 2)])
def test_an_op_that_is_asked_for_some_of_its_results_only(plan: tuple[str, int]) -> None:
    """The gradient of a grid but not of the image; no rule names the op."""

    class Warped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.conv = nn.Linear(4, 6), nn.Conv2d(1, 2, 3)

        def forward(self, image: Tensor, z: Tensor) -> Tensor:
            grid = F.affine_grid(self.place(z).view(-1, 2, 3), list(image.shape), align_corners=False)
            return self.conv(F.grid_sample(image, grid, align_corners=False)).square().mean()

    torch.manual_seed(0)
    subject = Subject(Warped(), (torch.randn(BATCH, 1, 5, 5), torch.randn(BATCH, 4)))
    discover_missing(subject.traced.graph)
    subject.assert_exact(*plan)


@pytest.mark.parametrize("schedule", ["zb_v", "dualpipe_v"])
def test_what_no_parameter_reaches_is_there_for_the_first_stage_of_a_device_that_reads_it(schedule: str) -> None:
    """A graph's adjacency is transposed in the backward, for several stages of one device."""

    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            near = adjacency / adjacency.sum(-1, keepdim=True)
            for layer in self.layers:
                x = torch.tanh(near @ layer(x))
            return x.square().mean()

    torch.manual_seed(0)
    subject = Subject(Convolutions(), (torch.randn(BATCH, 4, 6), torch.rand(BATCH, 4, 4)))
    subject.assert_exact(f"pipeline:stages=4,microbatches=4,schedule={schedule}", 2)


@pytest.mark.parametrize("schedule", ["chimera", "zb_h1"])
def test_sums_of_gradients_belong_to_the_stage_that_completes_them(schedule: str) -> None:
    """Heads at three depths: what joins their gradients is linked to an op of one branch, of a later stage."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.weight, self.bias = nn.Parameter(torch.randn(6, 6) / 3), nn.Parameter(torch.randn(6))
            self.heads = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor, near: Tensor) -> Tensor:
            y = torch.tanh(self.first(torch.lerp(x, x, 0.3))) * x.detach().abs().mean(-1, keepdim=True)
            z = torch.addmm(self.bias, y.flatten(0, 1), self.weight).view(y.shape)
            losses = [head(t).square().mean() for head, t in zip(self.heads, (near @ z, z, y), strict=True)]
            return losses[0] + losses[1] + losses[2]

    torch.manual_seed(0)
    subject = Subject(Heads(), (torch.randn(8, 4, 6), torch.rand(8, 4, 4)))
    plan = subject.assert_exact(f"pipeline:stages=4,microbatches=4,schedule={schedule}", 4)
    names = {block.name for program in plan.entries["train"].programs for block in program.blocks}
    assert not {name for name in names if name.startswith(("backward", "weight")) and "." in name}


def test_state_is_cut_where_neither_it_nor_its_step_is_split_yet() -> None:
    """A whole parameter whose step follows the gradient, which tensor parallelism splits."""

    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                target = F.normalize(self.teacher(y), dim=-1)
            found = F.normalize(self.head(self.student(x)), dim=-1)
            near = (self.teacher(x) - self.student(y).detach()).square().mean()
            return 2 - 2 * (found * target).sum(-1).mean() + near

    torch.manual_seed(0)
    subject = Subject(Distilled(), (torch.randn(BATCH, 5), torch.randn(BATCH, 5)))
    subject.assert_exact("zero:level=1,data=2,replicas=2,tensor=2", 8, AdamW(lr=0.01))


def test_a_parameter_that_its_own_device_reads_for_each_micro_batch_is_read_once_as_well() -> None:
    """A projection used at both ends: the transpose that the last stage makes of it is read by the first's backward."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.down = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 6) / 2)
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x) @ self.down
            for layer in self.layers:
                hidden = hidden + torch.tanh(layer(hidden))
            return (F.linear(hidden, self.down) - x).square().mean()

    torch.manual_seed(0)
    Subject(Tied(), (torch.randn(5, 3, 4),)).assert_exact("pipeline:stages=2,microbatches=4,schedule=chimera", 2)
