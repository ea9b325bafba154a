"""Swin learns to read handwritten digits: scikit-learn's 1,797 images of 8 × 8 pixels, on four workers.

python examples/swin_digits.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import superscaler as ss
from superscaler import models
from superscaler.errors import UsageError
from superscaler.models.swin import Swin

# A fifth of them, the last, is kept for testing.
HELD_OUT = 360


def digits() -> tuple[Tensor, Tensor]:
    """All images [1797, 1, 8, 8], scaled to mean 0 and deviation 1, and their labels [1797] int64.

    Raises :class:`UsageError` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("the digits come with scikit-learn", hint="pip install scikit-learn") from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.tensor(data.target, dtype=torch.int64)


def batches(size: int, *, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random batches (images [size, 1, 8, 8], labels [size]) of all but the held out digits."""
    images, labels = (part[:-HELD_OUT] for part in digits())
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(images), (size,), generator=generator)
        yield images[chosen], labels[chosen]


def held_out() -> tuple[Tensor, Tensor]:
    """The digits that :func:`batches` never draws: images [360, 1, 8, 8], labels [360]."""
    images, labels = digits()
    return images[-HELD_OUT:], labels[-HELD_OUT:]


def accuracy(network: Swin) -> float:
    """The share of the held out digits that ``network`` reads right."""
    images, labels = held_out()
    with torch.no_grad():
        return (network.eval().logits(images).argmax(1) == labels).float().mean().item()


def main(steps: int = 200, size: int = 64, backend: str = "ray") -> float:
    """Train with data parallelism over four workers; returns the accuracy on the held out digits."""
    torch.manual_seed(0)
    network, example = models.build("swin", "digits")
    optimizer = ss.AdamW(lr=5e-3)
    plan = ss.compile(
        network, example(size), cluster=ss.Cluster.local(4), plan="data_parallel:ways=4", optimizer=optimizer
    )
    with ss.launch(plan, network, backend=backend) as job:
        for step, batch in zip(range(steps), batches(size), strict=False):
            loss = job.step(*batch)
            if step % 20 == 0:
                print(f"step {step:4d}  loss {loss:.4f}")
        network.load_state_dict(job.state_dict())
    share = accuracy(network)
    print(f"held out digits read right: {share:.1%}")
    return share


if __name__ == "__main__":
    main()
