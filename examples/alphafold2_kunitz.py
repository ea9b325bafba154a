"""The Kunitz family of protease inhibitors for the ``tiny`` preset of AlphaFold 2: eight sequences, three distances.

``kunitz.a3m`` beside this file aligns eight domains of the family (Pfam PF00014) without a gap; the first is bovine
pancreatic trypsin inhibitor. The sequences are UniProt's, whose accession numbers the file gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

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
