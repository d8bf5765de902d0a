"""Sizes of references and the way back: from a picture of any size to a canvas on the 16-pixel grid of tokens.

A picture is scaled as a whole, once, then cropped around its middle: `exact` and pictures that fit need no crop.
Rules: `bfl`, Black Forest Labs' flux2, sampling.py (caps of 2024^2 pixels for one reference and 1024^2 for several,
downscaling only); `one_megapixel`, ComfyUI's template for klein.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

GRID = 16  # pixels a side of a token
MEGAPIXEL = 1024 * 1024
SIZINGS = ("exact", "bfl", "one_megapixel", "keep")
BFL_ALONE, BFL_SEVERAL = 2024**2, 1024**2

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Canvas:
    """How a picture lies on its canvas: scaled from `source` to `scaled`, then cut to `size` from `offset` on."""

    source: Size
    scaled: Size
    offset: tuple[int, int]
    size: Size

    @property
    def tokens(self) -> int:
        return self.size[0] * self.size[1] // GRID**2

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """The place in the source of a place on the canvas; pixel i covers i to i + 1."""
        across, down = (
            (at + cut) * whole / scaled for at, cut, whole, scaled in zip((x, y), self.offset, self.source, self.scaled)
        )
        return across, down


def fit(source: Size, sizing: str = "exact", max_megapixels: float = 1.0, several: bool = False) -> Canvas:
    """The canvas of a picture (width, height).

    exact: the size of max_megapixels, never larger than the source, each side rounded to the grid (16 at least, so up to
    half a step of it above) and the whole picture scaled straight to it: nothing is cut, and the aspect keeps within half
    a grid step. bfl, one_megapixel, keep: scaled by one factor for both sides, then the edges beyond the grid are cut off.
    """
    area = source[0] * source[1]
    if sizing == "exact":
        factor = min(1.0, math.sqrt(max_megapixels * MEGAPIXEL / area))
        size = on_grid(source[0] * factor), on_grid(source[1] * factor)
        return Canvas(source, size, (0, 0), size)
    rounding: Callable[[float], int] = round
    if sizing == "bfl":
        factor, rounding = min(1.0, math.sqrt((BFL_SEVERAL if several else BFL_ALONE) / area)), int
    elif sizing == "one_megapixel":
        factor = math.sqrt(MEGAPIXEL / area)
    elif sizing == "keep":
        factor = 1.0
    else:
        raise ValueError(f"sizing is {sizing!r}, expected one of {', '.join(SIZINGS)}")
    width, height = (max(rounding(side * factor), GRID) for side in source)
    size = width // GRID * GRID, height // GRID * GRID
    return Canvas(source, (width, height), ((width - size[0]) // 2, (height - size[1]) // 2), size)


def on_grid(side: float) -> int:
    """The nearest multiple of 16, 16 at least."""
    return max(math.floor(side / GRID + 0.5), 1) * GRID


def colours(image: Tensor) -> Tensor:
    """(B, H, W, 1 to 4) -> (B, H, W, 3): grey becomes three equal colours, alpha is left out (as ComfyUI's Load Image)."""
    return image[..., :1].expand(-1, -1, -1, 3) if image.shape[-1] < 3 else image[..., :3]


def keeps_aspect(canvas: Canvas) -> bool:
    """Whether a canvas shows its source in the source's own aspect, but for half a grid step a side."""
    low = max((side - GRID / 2) / whole if side > GRID else 0.0 for side, whole in zip(canvas.scaled, canvas.source))
    high = min((side + GRID / 2) / whole for side, whole in zip(canvas.scaled, canvas.source))
    return low <= high


def resize(image: Tensor, size: Size) -> Tensor:
    """(B, h, w, C) in [0, 1] -> (B, H, W, C): bicubic, antialiased where it gets smaller; itself when the size fits."""
    if tuple(image.shape[2:0:-1]) == tuple(size):
        return image
    planes = rearrange(image, "b h w c -> b c h w")
    planes = F.interpolate(planes, (size[1], size[0]), mode="bicubic", align_corners=False, antialias=True)
    return rearrange(planes, "b c h w -> b h w c").clamp(0, 1)


def place(image: Tensor, canvas: Canvas) -> Tensor:
    """A picture (B, h, w, C) of the canvas' source size on its canvas: (B, H, W, 3)."""
    (left, top), (width, height) = canvas.offset, canvas.size
    return resize(colours(image), canvas.scaled)[:, top : top + height, left : left + width]


def restore(image: Tensor, canvas: Canvas) -> Tensor:
    """What was made on a canvas (B, H, W, C), at the source's size and place: (B, h, w, C).

    An image larger or smaller than the canvas (upscaled, say) is taken to show the whole of it, and is scaled once.
    Edges that were cut off are filled with the nearest pixels.
    """
    cut = []
    for made, scaled, kept, offset in zip(image.shape[2:0:-1], canvas.scaled, canvas.size, canvas.offset):
        cut += [round(edge * made / kept) for edge in (offset, scaled - kept - offset)]
    if any(cut):
        image = rearrange(F.pad(rearrange(image, "b h w c -> b c h w"), cut, mode="replicate"), "b c h w -> b h w c")
    return resize(image, canvas.source)
