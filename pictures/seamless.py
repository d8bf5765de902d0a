"""Pasting without a seam: the colours of what was made move until they meet the source at the mask's border.

Poisson image editing (Perez, Gangnet, Blake 2003): inside the mask the gradients are those of what was made, on its border
the values are the source's. So only a correction is unknown: harmonic inside, source - made on the pixels just outside,
free (no slope) at the edges of the picture, where nothing lies beyond.

The correction is solved for by conjugate gradients, preconditioned by one V-cycle of multigrid by smoothed aggregation
(Vanek, Mandel, Brezina 1996): cells of 3 x 3 pixels become one, whatever of them lies inside.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from scipy.sparse import csr_array, diags_array  # type: ignore[import-untyped]
from torch import Tensor

from ..errors import KleinError

CELL = 3  # pixels a side that become one on the next level; smoothed aggregation's own choice
DIRECT = 96  # unknowns that are solved for by the inverse itself: few enough for BLAS to start no threads beside ours
ERROR = 1e-4  # in colours of [0, 1], see `solved`; an 8-bit step is 4e-3
AT_ONCE = 3  # planes, each in a thread of its own with about 60 bytes a pixel
MOST_STEPS = 200  # conjugate gradients take about 10; rounding could keep numbers far beyond [0, 1] from ever meeting ERROR


@dataclass(frozen=True)
class Level:
    """One level of multigrid: the matrix (n, n), its smoother's step (n,), the ways up from the next level (n, m) and down."""

    matrix: csr_array
    step: np.ndarray
    up: csr_array
    down: csr_array


@dataclass(frozen=True)
class Levels:
    """Multigrid, from fine to coarse; on the coarsest level, the inverse (n, n) of the matrix instead."""

    fine: list[Level]
    inverse: np.ndarray


def seamless(made: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Pictures `made` (B, h, w, C) in the source (1 or B, h, w, C) where the mask (h, w) bool is true: (B, h, w, C).

    Outside the mask it is the source, bit for bit. Inside, what was made plus a correction that lets both meet at the
    mask's border, cut to [0, 1]; a mask of the whole picture has no border, and needs no correction. A KleinError when
    either holds NaN or infinity where it counts.
    """
    pasted = source.expand(made.shape).clone()
    if not mask.any():
        return pasted
    down, across = (around(mask.any(dim=axis)) for axis in (1, 0))
    made, source, mask = made[:, down, across], pasted[:, down, across], mask[down, across]
    inside = mask.cpu().numpy()
    offsets = rearrange((source - made).cpu().numpy(), "b h w c -> (b c) h w")
    offsets = np.where(inside, 0, offsets)
    if not (np.isfinite(offsets).all() and made[:, mask].isfinite().all()):
        raise KleinError(
            "The image to paste, or the one below it, holds values that are no finite numbers (NaN or infinity), "
            "expected colours from 0 to 1: look for the first node whose image is black or broken."
        )
    if not inside.all():
        offsets = harmonic(offsets, inside)
    correction = torch.from_numpy(rearrange(offsets, "(b c) h w -> b h w c", b=len(made))).to(made)
    pasted[:, down, across] = torch.where(mask[..., None], (made + correction).clamp(0, 1), source)
    return pasted


def around(line: Tensor) -> slice:
    """From one pixel before the first that is true to one after the last, as far as there are any."""
    at = line.nonzero()
    return slice(max(int(at[0]) - 1, 0), int(at[-1]) + 2)


def harmonic(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Planes of values (N, h, w) whose pixels `inside` (h, w) become the mean of their neighbours (4, at edges 3 or 2).

    Not all pixels are inside, so that each of them is tied, over its neighbours, to one that is not.
    """
    matrix, tied, to = equations(inside)
    levels = hierarchy(matrix, *inside.nonzero())
    filled = values.copy()

    def fill(plane: np.ndarray) -> None:
        right = np.bincount(tied, weights=plane.ravel()[to], minlength=matrix.shape[0])
        plane[inside] = solved(matrix, levels, right, sum(inside.shape))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fill, filled))
    return filled


def equations(inside: np.ndarray) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """The equations of the n unknowns inside (h, w), counted row by row: a matrix (n, n) of degrees and -1 for neighbours.

    Then, for all ties to a known neighbour, the unknown and the place of the neighbour in the flat picture.
    """
    one, other = links(inside)
    number = np.cumsum(inside, dtype=np.int32) - 1  # of the unknowns; without meaning outside
    unknown = inside.ravel()[other]
    degree = np.bincount(number[one])
    every = np.arange(len(degree), dtype=np.int32)
    rows, columns = np.concatenate([number[one[unknown]], every]), np.concatenate([number[other[unknown]], every])
    entries = np.concatenate([np.full(len(rows) - len(every), -1.0), degree])
    matrix = csr_array((entries, (rows, columns)), shape=(len(every), len(every)))
    return matrix, number[one[~unknown]], other[~unknown]


def links(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of neighbours of which the first is inside (h, w), as two arrays of places in the flat picture."""
    at = np.arange(inside.size, dtype=np.int32).reshape(inside.shape)
    halves = (at[:-1], at[1:]), (at[:, :-1], at[:, 1:])
    both = [pair for half in halves for pair in (half, half[::-1])]
    kept = [(one[inside.ravel()[one]], other[inside.ravel()[one]]) for one, other in both]
    return np.concatenate([one for one, _ in kept]), np.concatenate([other for _, other in kept])


def hierarchy(matrix: csr_array, y: np.ndarray, x: np.ndarray) -> Levels:
    """The levels of multigrid for a matrix (n, n) whose unknowns lie at (y, x), from fine to coarse.

    In float32, which is half of the memory to read and enough for a step of correction; made in float64, as a mask that is
    tied at a pixel or two is lost in the rounding of all others.
    """
    levels = []
    while matrix.shape[0] > DIRECT:
        # No eigenvalue of the matrix over its diagonal exceeds `bound` (Gershgorin), so steps below 2 / bound converge. It is
        # 2 but for odd pixels alone; less, and the step could smooth a lone pixel's column of `up` to exactly nothing.
        diagonal = matrix.diagonal()
        bound = max((abs(matrix).sum(axis=1) / diagonal).max(), 2)
        step = 4 / 3 / bound / diagonal
        width = int(x.max()) // CELL + 1
        cells, cell = np.unique(y // CELL * width + x // CELL, return_inverse=True)
        gather = csr_array((np.ones(len(cell)), cell.astype(np.int32), np.arange(len(cell) + 1, dtype=np.int32)))
        up = csr_array(gather - diags_array(step) @ (matrix @ gather))
        down = csr_array(up.T)
        levels.append(Level(*(part.astype(np.float32) for part in (matrix, step, up, down))))
        matrix, (y, x) = csr_array(down @ matrix @ up), np.divmod(cells, width)
    return Levels(levels, np.linalg.inv(matrix.toarray()).astype(np.float32))


def cycle(levels: Levels, residual: np.ndarray, depth: int = 0) -> np.ndarray:
    """About the matrix' inverse times a residual (n,): one V-cycle. Symmetric, as conjugate gradients need it."""
    if depth == len(levels.fine):
        return levels.inverse @ residual
    level = levels.fine[depth]
    found = level.step * residual
    found += level.up @ cycle(levels, level.down @ (residual - level.matrix @ found), depth + 1)
    found += level.step * (residual - level.matrix @ found)
    return found


def solved(matrix: csr_array, levels: Levels, right: np.ndarray, reach: int) -> np.ndarray:
    """The x (n,) of matrix x = right, by conjugate gradients, no value of it further than 2.5 * ERROR from the true one.

    A small residual alone promises nothing: of an error e that is smooth it shows little. But its energy e'Ae = r'A^-1 r is
    at most r'Br, B the cycle, over the smallest eigenvalue of BA (0.17 or more measured; none is above 1). And along a path
    of at most `reach` pixels to one outside, where e is 0, it rises by sqrt(reach * e'Ae) at most (Cauchy-Schwarz).
    """
    found, residual = np.zeros_like(right), right.copy()
    direction = corrected = cycle(levels, residual.astype(np.float32)).astype(np.float64)
    energy = dot(residual, corrected)
    for _ in range(MOST_STEPS):
        if energy * reach <= ERROR**2:
            break
        ahead = matrix @ direction
        length = energy / dot(direction, ahead)
        found += length * direction
        residual -= length * ahead
        corrected = cycle(levels, residual.astype(np.float32))
        before, energy = energy, dot(residual, corrected)
        direction = corrected + energy / before * direction
    return found


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product, without the threads that BLAS would start beside ours."""
    return float(np.einsum("i,i", a, b))
