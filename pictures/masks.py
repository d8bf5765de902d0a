"""Which tokens of a canvas a mask keeps or paints, and how masks grow."""

from __future__ import annotations

import torch
from scipy.ndimage import distance_transform_edt, label  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from .sizing import GRID, Canvas

TILE = 256  # pixels a side
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
    """A mask (h, w) with all that lies within so many pixels of it, from middle to middle."""
    if not pixels or not mask.any() or mask.all():
        return mask
    out, near = mask.clone(), widened(bounds(mask), pixels, mask)
    out[near] = depths(~mask[near], pixels + 1) <= pixels
    return out


def ramp(mask: Tensor, feather: int) -> Tensor:
    """How much of the new shows in each pixel of a mask (h, w) bool: 0 outside, rising inside over `feather` pixels to 1,
    over fewer in a patch of it that is nowhere that thick. An edge of the picture is no edge of the mask."""
    if not feather or not mask.any() or mask.all():
        return mask.float()
    near = widened(bounds(mask), 1, mask)
    depth = depths(mask[near], feather + 1)
    patches, count = label(mask[near].numpy(), structure=torch.ones(3, 3))
    thickest = depth.max()
    if count > 1:
        at = torch.from_numpy(patches).flatten().long()
        thickest = torch.ones(count + 1).scatter_reduce(0, at, depth.flatten(), "amax")[at].view_as(depth)
    out = torch.zeros(mask.shape)
    out[near] = depth / thickest
    return out


def depths(mask: Tensor, most: int) -> Tensor:
    """How far the nearest pixel outside of a mask (h, w) bool is from each of its pixels, from middle to middle, at most
    `most`: (h, w) float32, 0 outside. By tiles, of which those without a border cost nothing."""
    out, tile = torch.where(mask, float(most), 0.0), max(TILE, most)
    for top in range(0, mask.shape[0], tile):
        for left in range(0, mask.shape[1], tile):
            rows, columns = widened((left, top, left + tile, top + tile), most, mask)
            part = mask[rows, columns]
            if part.any() and not part.all():
                found = torch.from_numpy(distance_transform_edt(part.numpy())[top - rows.start :, left - columns.start :])
                out[top : top + tile, left : left + tile] = found[:tile, :tile].clamp(max=most)
    return out
