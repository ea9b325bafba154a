"""Images of handwritten digits, 8 × 8 pixels, for the ``digits`` preset of Swin: scikit-learn's 1,797 of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from superscaler.errors import UsageError

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
