"""What an edit changed in a picture, when the whole of it may have drifted in colour and tone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from .colour import ColourMap, delta_e, fit_colours, pair, uncut
from .sizing import MEGAPIXEL

SHARPEST = 1.0  # pixels: the least blur, which takes most of a pixel's noise
BLUR = 1 / 600  # of the shorter side: texture finer than this is the VAE's to choose
# In delta E: below the floor a change is not worth a mask; above the cap what is measured is no noise, but an edit of more
# than half of the picture. 6 standard deviations (1.4826 MAD each, for normal noise) leave a megapixel of noise empty.
FLOOR, CAP, DEVIATIONS = 4.0, 10.0, 6.0
EDGE = 0.5  # of the largest difference around: blur spreads a change past its edge, where half of it is left
SPECK, HOLE = 0.0005, 0.005  # of the picture: a smaller patch is dropped, a smaller hole is filled


class Changes(NamedTuple):
    """mask: (h, w) bool, what changed; threshold: the delta E it took; colours: from the made picture to the source."""

    mask: Tensor
    threshold: float
    colours: ColourMap


def changed(made: Tensor, source: Tensor, threshold: float | None = None) -> Changes:
    """What changed between two sRGB pictures (h, w, 3), other than colours and tone as a whole.

    The colours are matched by all pixels (`fit_colours`: what changed is outliers) and both pictures blurred a little. A
    pixel has changed where the difference exceeds the threshold, or half of it next to such pixels; without a threshold
    (in delta E) it is the median and 6 deviations of the differences, from 4 to 10. Above a megapixel a reduced copy
    decides, and edges are as fine as its pixels. KleinError where a picture holds NaN, or their sizes differ.
    """
    made, source = pair(made, source)
    full = made.shape[:2]
    made, source = reduced(made), reduced(source)
    # Source to made: where the drift cut colours off at 0 or 1, the way back does not know them. Blurred thereafter, as
    # what is cut off and then blurred is not what is blurred and then cut off.
    drift = fit_colours(source, made, uncut(made))
    expected, made, source = blurred(drift(source)), blurred(made), blurred(source)
    apart = delta_e(expected, made)
    if threshold is None:
        middle = apart.median()
        deviation = 1.4826 * (apart - middle).abs().median()
        threshold = min(max(float(middle + DEVIATIONS * deviation), FLOOR), CAP)
    mask = torch.from_numpy(patches(apart.numpy(), threshold))
    colours = fit_colours(made, source, ~mask & uncut(made))
    if mask.shape != full:
        mask = F.interpolate(mask[None, None].float(), full, mode="bilinear", align_corners=False)[0, 0] > 0.5
    return Changes(mask, threshold, colours)


def reduced(picture: Tensor) -> Tensor:
    """(h, w, 3), clamped to [0, 1] -> a copy of a megapixel at most, on the CPU."""
    picture = picture.clamp(0, 1)
    height, width = picture.shape[:2]
    scale = min(1.0, (MEGAPIXEL / (height * width)) ** 0.5)
    if scale < 1:
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        planes = rearrange(picture, "h w c -> 1 c h w")
        picture = rearrange(F.interpolate(planes, size, mode="area"), "1 c h w -> h w c")
    return picture.cpu()


def blurred(picture: Tensor) -> Tensor:
    blur = blur_of(picture)
    return torch.from_numpy(ndimage.gaussian_filter(picture.numpy(), (blur, blur, 0), mode="nearest"))


def blur_of(picture: Tensor | np.ndarray) -> float:
    """The standard deviation in pixels."""
    return max(SHARPEST, BLUR * min(picture.shape[:2]))


def patches(apart: np.ndarray, threshold: float) -> np.ndarray:
    """Differences (h, w) -> (h, w) bool: patches that exceed the threshold in more than a speck and half of it all over,
    without small holes."""
    blur = blur_of(apart)
    around = ndimage.maximum_filter(apart, 2 * math.ceil(2 * blur) + 1, mode="nearest")
    labels, count = ndimage.label((apart > threshold / 2) & (apart > EDGE * around))
    strong = np.bincount(labels[apart > threshold], minlength=count + 1)
    large = strong >= max(SPECK * apart.size, min(4 * math.pi * blur**2, apart.size / 4))  # no less than one blurred pixel
    large[0] = False
    return ~without_small(~large[labels], HOLE * apart.size)


def without_small(mask: np.ndarray, area: float) -> np.ndarray:
    """A mask (h, w) without its patches of fewer pixels than the area."""
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= area
    large[0] = False
    return large[labels]
