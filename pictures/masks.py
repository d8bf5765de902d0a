"""Which tokens of a canvas a mask keeps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .sizing import GRID, Canvas


def kept_tokens(mask: Tensor, canvas: Canvas) -> Tensor:
    """Which tokens of a canvas a mask (1, h, w) keeps: (tokens,) bool, row by row. The mask, 1 = keep, covers the whole
    source whatever its own size; a token is kept when at least half of its cell is masked."""
    share = mask[0].double()
    for axis in (0, 1):  # across, then down, each time turned over
        steps = torch.arange(canvas.size[axis] // GRID + 1, dtype=torch.float64) * GRID + canvas.offset[axis]
        edges = steps * share.shape[1] / canvas.scaled[axis]
        share = (area_left_of(edges, share).diff(dim=1) / edges.diff()).T
    return share.flatten() >= 0.5 - 1e-9


def area_left_of(edges: Tensor, rows: Tensor) -> Tensor:
    """Sums of rows (N, width), pixel i from i to i + 1, up to each of the edges (E,): (N, E)."""
    whole = edges.floor().clamp(max=rows.shape[1] - 1).long()
    return F.pad(rows.cumsum(dim=1), (1, 0))[:, whole] + (edges - whole) * rows[:, whole]
