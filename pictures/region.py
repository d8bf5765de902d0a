"""What is painted anew of a picture: the mask, a box around it, and the canvas that the box is painted on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..errors import KleinError
from .masks import Box, bounds, grown, shares
from .references import LARGEST
from .sizing import GRID, MEGAPIXEL, Size, colours, fit, on_grid, resize

MODES = ("edit", "repaint", "replace", "outpaint")
WHOLE = -1.0  # as context: the whole picture
ENOUGH = 0.25  # megapixels: a smaller region is enlarged to it, as klein paints little well in few tokens
MOST = 8  # times a region is enlarged


@dataclass(frozen=True, eq=False)
class Region:
    """A box of a picture (1, h, w, 3 or 4), scaled to `size` on the grid of tokens. mask (h, w) bool is what may change, grown;
    None: all of it. feather: pixels of its soft edge. margins: how much of the picture, at the left, top, right and bottom,
    was added to it."""

    picture: Tensor
    box: Box
    size: Size
    mask: Tensor | None = None
    feather: int = 0
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def scale(self) -> float:
        return math.sqrt(self.size[0] * self.size[1] / ((self.box[2] - self.box[0]) * (self.box[3] - self.box[1])))

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """The place in the picture of a place on the canvas; pixel i covers i to i + 1."""
        left, top, right, bottom = self.box
        return left + x * (right - left) / self.size[0], top + y * (bottom - top) / self.size[1]

    def crop(self, of: Tensor) -> Tensor:
        """The box of a picture (B, h, w, C) or of a mask (1, h, w)."""
        left, top, right, bottom = self.box
        return of[:, top:bottom, left:right]

    def own(self, of: Tensor) -> Tensor:
        """What of a picture (h, w, ...) was there before something was added."""
        left, top, right, bottom = self.margins
        return of[top : of.shape[0] - bottom, left : of.shape[1] - right]

    def pixels(self) -> Tensor:
        """What lies in the box, on the canvas: (1, H, W, 3)."""
        return resize(colours(self.crop(self.picture)), self.size)

    def painted(self) -> Tensor | None:
        """Of each token the share that the mask paints: (1, 1, H/16, W/16), above 0 wherever the mask touches it."""
        if self.mask is None:
            return None
        left, top, right, bottom = self.box
        across = torch.linspace(left, right, self.size[0] // GRID + 1, dtype=torch.float64)
        down = torch.linspace(top, bottom, self.size[1] // GRID + 1, dtype=torch.float64)
        share = shares(self.mask, across, down).clamp(0, 1)
        return share.where(share > 1e-9, 0).float()[None, None]  # what rounding of an edge leaves beside it is none


def region(
    image: Tensor,
    mask: Tensor | None,
    mode: str,
    context: float,
    grow: int,
    feather: int,
    max_megapixels: float,
    margins: tuple[int, int, int, int],
) -> Region:
    """The region of a picture (1, h, w, C) that a mode of Klein Edit paints. margins: pixels added at the left, top, right
    and bottom. KleinError for what cannot be painted."""
    image = (colours(image) if image.shape[-1] < 3 else image).cpu()  # --gpu-only decodes to the GPU
    height, width = image.shape[1:3]
    mask = chosen(mask, (width, height))
    if mode != "outpaint":
        margins = (0, 0, 0, 0)
        if mask is None and mode != "edit":
            raise KleinError(f"{mode} needs a mask of what to paint, and none is painted: paint one, or use mode edit.")
    elif not any(margins):
        raise KleinError("outpaint has 0 pixels at all four sides: set left, top, right or bottom, or use mode repaint.")
    if max(width + margins[0] + margins[2], height + margins[1] + margins[3]) > LARGEST:
        raise KleinError(f"The picture would be larger than {LARGEST} pixels a side: add less, or scale it down first.")
    image, mask = extended(image, mask, margins)
    height, width = image.shape[1:3]
    if mask is not None:
        mask = grown(mask, grow)
    if mask is None or mode == "edit" or context == WHOLE:
        box, size = (0, 0, width, height), whole_size((width, height), max_megapixels)
    else:
        box, size = layout(bounds(mask), (width, height), context, max_megapixels)
    return Region(image, box, size, mask, feather, margins)


def chosen(mask: Tensor | None, picture: Size) -> Tensor | None:
    """What is painted in any of the masks (N, h, w), at least by half: (h, w) bool; None where nothing is."""
    if mask is None:
        return None
    if mask.ndim < 2 or not mask.numel() or not mask.isfinite().all():
        shape = "x".join(map(str, mask.shape))
        raise KleinError(
            f"The mask is a tensor of {shape} or holds NaN or infinity, expected masks x height x width: connect a MASK."
        )
    painted = (mask.reshape(-1, *mask.shape[-2:]) >= 0.5).any(dim=0).cpu()
    if not painted.any():  # Load Image gives one of 64x64 for a picture without alpha
        return None
    if painted.shape != (picture[1], picture[0]):
        raise KleinError(
            f"The mask is {painted.shape[1]}x{painted.shape[0]} and the picture {picture[0]}x{picture[1]}, expected the same "
            f"size: paint the mask on this picture, or scale it."
        )
    return painted


def extended(image: Tensor, mask: Tensor | None, margins: tuple[int, int, int, int]) -> tuple[Tensor, Tensor | None]:
    """A picture (1, h, w, C) with margins of its nearest pixels, where nothing is transparent, and the mask, which then
    covers them too."""
    if not any(margins):
        return image, mask
    left, top, right, bottom = margins
    sides = (left, right, top, bottom)
    planes = F.pad(rearrange(image, "b h w c -> b c h w"), sides, mode="replicate")
    added = F.pad(torch.zeros(image.shape[1:3], dtype=torch.bool), sides, value=True)
    planes[:, 3:, added] = 1
    return rearrange(planes, "b c h w -> b h w c"), added if mask is None else F.pad(mask, sides, value=True)


def whole_size(picture: Size, max_megapixels: float) -> Size:
    """The size of a whole picture on its canvas: a reference's, but never above the limit, which rounding to the grid may
    pass by 2 % there."""
    limit = max_megapixels
    while True:
        size = fit(picture, "exact", limit).size
        if size[0] * size[1] <= max_megapixels * MEGAPIXEL or max(size) == GRID:
            return size
        limit *= 0.99


def layout(inner: Box, picture: Size, context: float, max_megapixels: float) -> tuple[Box, Size]:
    """The box around another with `context` times its longer side about it, inside the picture, and the size on the grid
    that it is scaled to: one factor for both sides, above 1 (at most MOST) for a box of less than ENOUGH megapixels.

    The box is made larger until it is the canvas scaled back, to the nearest pixel; only where the picture ends before
    that, the two factors differ, by half a grid step at most (by one where half would enlarge it more than MOST times).
    """
    limit = max_megapixels * MEGAPIXEL
    enough = min(ENOUGH * MEGAPIXEL, limit)
    margin = context * max(inner[2] - inner[0], inner[3] - inner[1])
    seen = [(max(inner[axis] - margin, 0), min(inner[axis + 2] + margin, length)) for axis, length in enumerate(picture)]
    sides = [min(max(last - first, math.sqrt(enough) / MOST), length) for (first, last), length in zip(seen, picture)]
    area = sides[0] * sides[1]
    factor = min(math.sqrt(limit / area), 1.0) if area >= enough else min(math.sqrt(enough / area), MOST)
    while True:
        laid = [span(side, length, factor) for side, length in zip(sides, picture)]
        size = laid[0][1], laid[1][1]
        if (size[0] * size[1] <= limit and max(size) <= LARGEST) or max(size) == GRID:
            break
        factor *= 0.99
    left, top = (
        min(max(round((first + last - side) / 2), 0), length - side)
        for (first, last), (side, _), length in zip(seen, laid, picture)
    )
    return (left, top, left + laid[0][0], top + laid[1][0]), size


def span(side: float, length: int, factor: float) -> tuple[int, int]:
    """(pixels of the picture, at least `side`; pixels of the canvas, on the grid) along one axis of a picture that is
    `length` pixels long."""
    made = math.ceil(side * factor / GRID) * GRID
    if made / factor <= length:
        return round(made / factor), made
    most = max(MOST * length // GRID, 1) * GRID
    return length, min(on_grid(length * factor), most)
