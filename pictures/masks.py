"""Which tokens of a canvas a mask keeps or paints, and how masks grow."""

from __future__ import annotations

import torch
from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from .sizing import GRID, Canvas

Box = tuple[int, int, int, int]  # left, top, right and bottom edge in pixels


def kept_tokens(mask: Tensor, canvas: Canvas) -> Tensor:
    """Which tokens of a canvas a mask (1, h, w) keeps: (tokens,) bool, row by row. The mask, 1 = keep, covers the whole
    source whatever its own size; a token is kept when at least half of its cell is masked."""
    share, edges = mask[0], []
    for axis in (0, 1):
        steps = torch.arange(canvas.size[axis] // GRID + 1, dtype=torch.float64) * GRID + canvas.offset[axis]
        edges.append(steps * share.shape[1 - axis] / canvas.scaled[axis])
    return shares(share, *edges).flatten() >= 0.5 - 1e-9


def shares(mask: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Of each cell between the edges (columns + 1,) and (rows + 1,) of a mask (h, w), the share that is masked: (rows,
    columns) float64. Pixel i lies from i to i + 1."""
    share = mask.double()
    for edges in (across, down):  # each time turned over
        share = (area_left_of(edges.double(), share).diff(dim=1) / edges.double().diff()).T
    return share


def area_left_of(edges: Tensor, rows: Tensor) -> Tensor:
    """Sums of rows (N, width), pixel i from i to i + 1, up to each of the edges (E,): (N, E)."""
    whole = edges.floor().clamp(max=rows.shape[1] - 1).long()
    return F.pad(rows.cumsum(dim=1), (1, 0))[:, whole] + (edges - whole) * rows[:, whole]


def bounds(mask: Tensor) -> Box:
    """The smallest box around what is True in a mask (h, w), of which something is."""
    across, down = mask.any(dim=0).nonzero().flatten(), mask.any(dim=1).nonzero().flatten()
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def widened(box: Box, margin: int, mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a box with a margin about it, inside a mask (h, w)."""
    height, width = mask.shape
    left, top, right, bottom = box
    return slice(max(top - margin, 0), min(bottom + margin, height)), slice(max(left - margin, 0), min(right + margin, width))


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask (h, w) bool with all that lies within so many pixels of it, from middle to middle."""
    if not pixels or not mask.any() or mask.all():
        return mask
    out, near = mask.clone(), widened(bounds(mask), pixels, mask)
    out[near] = torch.from_numpy(distance_transform_edt(~mask[near].numpy()) <= pixels)
    return out


def ramp(mask: Tensor, feather: int) -> Tensor:
    """How much of the new shows in each pixel of a mask (h, w) bool: 0 outside, rising inside over `feather` pixels to 1,
    over fewer where the mask is nowhere that thick. An edge of the picture is no edge of the mask."""
    out = torch.zeros(mask.shape)
    if feather and mask.any() and not mask.all():
        near = widened(bounds(mask), 1, mask)
        depth = torch.from_numpy(distance_transform_edt(mask[near].numpy())).float()
        out[near] = (depth / min(float(feather + 1), float(depth.max()))).clamp(max=1)
        return out
    return mask.float()
