"""AlphaFold 2's trunk learns the Kunitz family of protease inhibitors: eight sequences, three distances, two workers.

    python examples/alphafold2_kunitz.py

``kunitz.a3m`` beside this file aligns eight domains of the family (Pfam PF00014) without a gap; the first is bovine
pancreatic trypsin inhibitor. The sequences are UniProt's, whose accession numbers the file gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import superscaler as ss
from superscaler import models
from superscaler.models.alignment import Alignment, batch_inputs, known_distances, read_a3m
from superscaler.models.alphafold2 import Config

FIRST_RESIDUE = 4
# The family's three disulfide bridges, as residues of the inhibitor; the Cβ atoms of a bridge are about 3.8 Å apart.
BRIDGES = ((5, 55), (14, 38), (30, 51))
BRIDGE = 3.8


def family() -> tuple[Alignment, Tensor]:
    """The alignment, 53 columns wide, and what is known of its distances: [53, 53] int64, see ``known_distances``."""
    alignment = read_a3m(Path(__file__).with_name("kunitz.a3m"))
    known = [(i - FIRST_RESIDUE, j - FIRST_RESIDUE, BRIDGE) for i, j in BRIDGES]
    return alignment, known_distances(alignment.columns, known)


def batches(config: Config, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Endless batches of ``alphafold2``'s inputs; each draws other sequences and masks other letters.

    ``config.residues`` must be the 53 columns of the alignment, and ``config.bins`` 64; raises :class:`UsageError`
    otherwise.
    """
    alignment, distances = family()
    seed = 0
    while True:
        yield batch_inputs(alignment, distances, config, size, seed=seed)
        seed += 1


def main(steps: int = 40, size: int = 2, backend: str = "ray") -> list[float]:
    """Train ``tiny`` with data parallelism over two workers; returns the loss of each step."""
    torch.manual_seed(0)
    columns = family()[0].columns
    config = models.config("alphafold2", "tiny", residues=columns)
    network, example = models.build("alphafold2", "tiny", residues=columns)
    optimizer = ss.AdamW(lr=5e-3)
    plan = ss.compile(
        network, example(size), cluster=ss.Cluster.local(2), plan="data_parallel:ways=2", optimizer=optimizer
    )
    losses: list[float] = []
    with ss.launch(plan, network, backend=backend) as job:
        for step, batch in zip(range(steps), batches(config, size), strict=False):
            losses.append(job.step(*batch))
            if step % 5 == 0:
                print(f"step {step:4d}  loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
