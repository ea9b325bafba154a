"""From an alignment of a protein family to the inputs of :mod:`superscaler.models.alphafold2`.

Source: Jumper et al. 2021, "Highly accurate protein structure prediction with AlphaFold", supplement §1.2.7
(masking, clusters), §1.2.9 and table 1 (features).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from superscaler.errors import UsageError
from superscaler.models.alphafold2 import IGNORE, RESIDUES, TOKENS, Config
from superscaler.models.config import require_positive

# Amino acids by their three-letter names, as in the paper; then unknown and gap. What is masked comes after these.
LETTERS = "ARNDCQEGHILKMFPSTWYVX-"
AMINO_ACIDS = 20
GAP = LETTERS.index("-")
MASKED = TOKENS - 1
# Letters for two or for rare amino acids.
_AMBIGUOUS = {"B": "D", "Z": "E", "U": "C", "J": "X", "O": "X"}


@dataclass(frozen=True)
class Alignment:
    """Aligned sequences, the first one the query, which has no gaps.

    ``tokens`` [rows, columns] int64 indexes ``LETTERS``; ``deletions``, alike, counts the residues of the row that lie
    between a column and the one before it.
    """

    names: tuple[str, ...]
    tokens: Tensor
    deletions: Tensor

    @property
    def columns(self) -> int:
        """The width of the alignment: residues of the query."""
        return self.tokens.shape[1]


def read_a3m(path: str | Path) -> Alignment:
    """Read an alignment in A3M format: FASTA whose lower-case letters are insertions relative to the query.

    Raises :class:`UsageError` when the file is no A3M, or not there, with the name of the sequence at fault.
    """
    names: list[str] = []
    texts: list[str] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read the alignment {path}", str(e), hint="a text file in A3M format") from e
    for line in lines:
        if line.startswith(">"):
            names.append(line[1:].strip())
            texts.append("")
        elif line.strip():
            if not names:
                raise UsageError(f"{path}: the first line is no '>' and a name", hint="an alignment in A3M format")
            texts[-1] += line.strip()
    if not names:
        raise UsageError(f"{path}: no sequence in it", hint="an alignment in A3M format")
    rows = [_row(f"{path}, sequence {name!r}", text) for name, text in zip(names, texts, strict=True)]
    columns = len(rows[0][0])
    if not columns or GAP in rows[0][0]:
        raise UsageError(f"{path}, sequence {names[0]!r}: the query is empty or has gaps",
                         hint="first the query, in full; gaps only in the others")  # fmt: skip
    for name, (tokens, _) in zip(names, rows, strict=True):
        if len(tokens) != columns:
            raise UsageError(f"{path}, sequence {name!r}: {len(tokens)} columns, but the first has {columns}",
                             hint="a column for each residue of the first; insertions in lower case")  # fmt: skip
    return Alignment(tuple(names), torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]))


def _row(where: str, text: str) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    deletions: list[int] = []
    inserted = 0
    for letter in text:
        if letter.islower():
            inserted += 1
            continue
        token = LETTERS.find(_AMBIGUOUS.get(letter, letter))
        if token < 0:
            raise UsageError(f"{where}: {letter!r} is no amino acid", hint=f"{LETTERS}, or X for an unknown one")
        tokens.append(token)
        deletions.append(inserted)
        inserted = 0
    return tokens, deletions


def distance_bins(distance: Tensor, bins: int = 64) -> Tensor:
    """The bin of each distance in Ångström, int64 of the same shape: equal bins, 2.3 to 21.7 (§1.9.8)."""
    return torch.bucketize(distance, torch.linspace(2.3125, 21.6875, bins - 1))


def known_distances(columns: int, known: Iterable[tuple[int, int, float]], bins: int = 64) -> Tensor:
    """Labels of a distogram, [columns, columns] int64, from the pairs (i, j, distance in Ångström) that are known.

    All others are ignored by the loss, but a residue's distance from itself. Raises :class:`UsageError` for a pair that
    is not of ``columns``.
    """
    labels = torch.full((columns, columns), IGNORE)
    labels.fill_diagonal_(0)
    for i, j, distance in known:
        if not (0 <= i < columns and 0 <= j < columns):
            raise UsageError(f"no residues {i} and {j} in {columns} columns", hint=f"0 to {columns - 1}")
        labels[i, j] = labels[j, i] = distance_bins(torch.tensor(distance), bins)
    return labels


def batch_inputs(
    alignment: Alignment, distances: Tensor, config: Config, batch: int, *, seed: int = 0
) -> tuple[Tensor, ...]:
    """A batch of ``alphafold2``'s inputs, each example with sequences drawn and letters masked anew.

    ``distances`` [columns, columns] int64 are the labels of the distogram. Raises :class:`UsageError` when the
    alignment is not as wide as the crop.
    """
    require_positive("alphafold2", batch=batch)
    if alignment.columns != config.residues or distances.shape != (config.residues, config.residues):
        raise UsageError(
            f"an alignment of {alignment.columns} columns does not fit a crop of {config.residues} residues",
            f"distances are given for {tuple(distances.shape)}",
            hint=f"residues={alignment.columns}",
        )
    generator = torch.Generator().manual_seed(seed)
    examples = [(*_example(alignment, config, generator), distances) for _ in range(batch)]
    return tuple(torch.stack(parts) for parts in zip(*examples, strict=True))


def _example(alignment: Alignment, config: Config, generator: torch.Generator) -> tuple[Tensor, ...]:
    """One example's inputs but the last: target, index, msa, features, extra, extra features, true msa."""
    rows = alignment.tokens.shape[0]
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(rows - 1, generator=generator)])
    # A family smaller than the depth asked for is repeated.
    chosen = order[torch.arange(config.sequences) % rows]
    others = order[config.sequences :] if rows > config.sequences else order
    others = others[torch.arange(config.extra_sequences) % len(others)]
    true, extra = alignment.tokens[chosen], alignment.tokens[others]
    msa, masked = _mask(true, generator)
    deletions, extra_deletions = alignment.deletions[chosen], alignment.deletions[others]
    profile, mean_deletion = _clusters(msa, deletions, extra, extra_deletions)
    features = torch.cat([_deletion_features(deletions), _deletion_value(mean_deletion)[..., None], profile], -1)
    target = alignment.tokens[0].clamp(max=RESIDUES - 1)
    return (
        target,
        torch.arange(alignment.columns),
        msa,
        features,
        extra,
        _deletion_features(extra_deletions),
        torch.where(masked, true, IGNORE),
    )


def _mask(true: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """15 % of the places are masked: 70 % become the mask, 10 % any amino acid, 10 % one of their column, 10 % stay."""
    masked = torch.rand(true.shape, generator=generator) < 0.15
    fate = torch.rand(true.shape, generator=generator)
    anything = torch.randint(AMINO_ACIDS, true.shape, generator=generator)
    same_column = true.gather(0, torch.randint(true.shape[0], true.shape, generator=generator))
    shown = torch.where(fate < 0.7, MASKED, torch.where(fate < 0.8, anything, same_column))
    return torch.where(masked & (fate < 0.9), shown, true), masked


def _clusters(msa: Tensor, deletions: Tensor, extra: Tensor, extra_deletions: Tensor) -> tuple[Tensor, Tensor]:
    """Each extra sequence joins the one it agrees with most; of each cluster, the profile and the mean deletion.

    Gaps and masked places do not count as agreement. Returns [rows, columns, 23] and [rows, columns].
    """
    agree = (msa[:, None] == extra) & (msa[:, None] < GAP)
    member = F.one_hot(agree.sum(-1).argmax(0), msa.shape[0]).T.float()
    size = 1 + member.sum(1)[:, None]
    profile = F.one_hot(msa, TOKENS) + torch.einsum("re,ect->rct", member, F.one_hot(extra, TOKENS).float())
    return profile / size[..., None], (deletions + member @ extra_deletions.float()) / size


def _deletion_value(deletions: Tensor) -> Tensor:
    return torch.atan(deletions / 3) * (2 / math.pi)


def _deletion_features(deletions: Tensor) -> Tensor:
    """Whether residues are missing here, and how many, scaled to [0, 1): [..., 2]."""
    return torch.stack([(deletions > 0).float(), _deletion_value(deletions)], -1)
