"""Square windows of tokens: cutting an image into them, and which of their tokens are neighbours.

Source: Liu et al. 2021, §3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_index(window: int, device: torch.device) -> Tensor:
    """The row of the bias table for each pair of tokens of a window: [window², window²] int64.

    With the code r·(2w−1) + c of the token at row r and column c, it is the difference of the two codes, from 0 up.
    """
    side = torch.arange(window, device=device)
    code = (side[:, None] * (2 * window - 1) + side).flatten()
    return code[:, None] - code + 2 * window * (window - 1)


def shift_mask(resolution: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which pairs of tokens of a shifted window were no neighbours before the shift: [windows, window², window²] bool.

    Along an axis the shift joins three ranges: up to the last window, the rest up to ``shift`` from the end, and what
    came round from the other side.
    """
    place = torch.arange(resolution, device=device)
    along = (place >= resolution - window).long() + (place >= resolution - shift).long()
    region = partition((along[:, None] * 3 + along)[None, :, :, None], window)[0, :, :, 0]
    return region[:, :, None] != region[:, None, :]


def partition(x: Tensor, window: int) -> Tensor:
    """[batch, height, width, hidden] -> [batch, windows, window², hidden], windows in row-major order."""
    batch, height, width, hidden = x.shape
    x = x.view(batch, height // window, window, width // window, window, hidden)
    return x.transpose(2, 3).reshape(batch, -1, window * window, hidden)


def unpartition(x: Tensor, window: int, resolution: int) -> Tensor:
    """[batch, windows, window², hidden] -> [batch, resolution, resolution, hidden]: undoes :func:`partition`."""
    batch, side = x.shape[0], resolution // window
    x = x.view(batch, side, side, window, window, -1)
    return x.transpose(2, 3).reshape(batch, resolution, resolution, -1)
