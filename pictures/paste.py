"""The way back: what was painted on a canvas, in its picture again, and in figures what that did to the rest of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import KleinError
from .changes import changed
from .colour import delta_e, fit_colours
from .masks import ramp
from .region import Region
from .seamless import seamless
from .sizing import Canvas, colours, keeps_aspect, resize, restore

BLENDS = ("feather", "seamless", "none")
COLOURS = ("off", "match")
KEEPS = ("off", "unchanged")
LOOKED_AT = 2**20  # pixels: of larger pictures every second, third, ... row and column is measured
ANOTHER = 15.0  # delta E on the mean: of 91 pairs of different photographs (scikit-image's) 85 are further apart
BESIDE = 8  # pixels beyond a seam that count as its neighbourhood


@dataclass(frozen=True)
class Figures:
    """Of one picture. drift: mean and 99th percentile of CIEDE2000 between the picture and what was painted, outside the
    mask, before the way back; matched: the same after the colours are matched; identical: share of all pixels that are
    those of the picture; seam: mean step, in 8-bit levels, across the mask's border and beside it."""

    drift: tuple[float, float] | None
    matched: tuple[float, float] | None
    identical: float
    seam: tuple[float, float] | None
    threshold: float | None


def bring_back(image: Tensor, canvas: Canvas | Region, blend: str, colour: str, keep: str) -> tuple[Tensor, Tensor, str]:
    """(pictures (B, h, w, C), masks (B, h, w) of what may have changed, report) of what was made on a canvas (B, H, W, C)."""
    if isinstance(canvas, Region):
        return from_region(image, canvas, blend, colour, keep)
    if (colour, keep) != ("off", "off"):
        raise KleinError(
            "colour and keep need the picture that was edited, which only Klein Edit's canvas has: set them to off."
        )
    size = "x".join(map(str, canvas.size))
    if keeps_aspect(canvas):
        out, line = restore(image, canvas), f"canvas {size}, brought back to {canvas.source[0]}x{canvas.source[1]}"
    else:
        out, line = image, f"canvas {size} was given with another aspect than image 1's, so it is not brought back to its size"
    return out, torch.ones(out.shape[:3]), line


def from_region(image: Tensor, region: Region, blend: str, colour: str, keep: str) -> tuple[Tensor, Tensor, str]:
    image = image.cpu().float()  # as the region is: hosts may decode to the GPU, or in float16
    height, width = image.shape[1:3]
    if width * region.size[1] != height * region.size[0] or width < region.size[0]:
        raise KleinError(
            f"The image is {width}x{height}, but the canvas {region.size[0]}x{region.size[1]}: connect what was made on this "
            f"canvas, whole."
        )
    if not image.isfinite().all():
        raise KleinError("The image holds NaN or infinity, expected colours: change the node that made it.")
    done = [paste(each, region, blend, colour, keep) for each in image.split(1)]
    lines = [described(region)]
    for number, (_, mask, figures) in enumerate(done, start=1):
        of = f"image {number}: " if len(done) > 1 else ""
        lines += [of + line for line in figured(figures, mask)]
    far = [figures.drift[0] for _, _, figures in done if figures.drift and figures.drift[0] > ANOTHER]
    if far:
        lines.append(
            f"Warning: outside the mask the image differs by delta E {max(far):.0f} on the mean, as another picture would: see "
            f"that it was made on this canvas"
        )
    return torch.cat([out for out, _, _ in done]), torch.stack([mask for _, mask, _ in done]).float(), "\n".join(lines)


def paste(image: Tensor, region: Region, blend: str, colour: str, keep: str) -> tuple[Tensor, Tensor, Figures]:
    """One picture (1, h, w, C), the mask (h, w) bool of what may have changed, and figures."""
    source = region.crop(region.picture)[..., :3]
    made = resize(colours(image), (source.shape[2], source.shape[1]))
    mask = torch.ones(made.shape[1:3], dtype=torch.bool) if region.mask is None else region.crop(region.mask[None])[0]
    drift = differences(source, made, ~mask)
    matched = threshold = None
    if keep == "unchanged":
        found, threshold, colours_of = changed(made[0], source[0])
        mask = mask & found
    elif colour == "match":
        # without a mask it is not known what has not changed: the fit leaves out what fits least
        colours_of = fit_colours(made[0], source[0], mask if mask.all() else ~mask)
    if colour == "match":
        made = colours_of(made)
        matched = differences(source, made, ~mask)
    if blend == "seamless":
        made = seamless(made, source, mask)
    elif blend == "feather":
        made = torch.lerp(source, made, ramp(mask, region.feather)[..., None])
    out, whole = region.picture.clone(), torch.zeros(region.picture.shape[1:3], dtype=torch.bool)
    region.crop(out)[..., :3] = torch.where(mask[..., None], made, source)
    region.crop(whole[None])[0].copy_(mask)
    identical = float((out == region.picture).all(dim=-1).double().mean())
    return out, whole, Figures(drift, matched, identical, seam(region.crop(out)[0, ..., :3], mask), threshold)


def differences(source: Tensor, made: Tensor, where: Tensor) -> tuple[float, float] | None:
    """Mean and 99th percentile of CIEDE2000 between two pictures (1, h, w, 3) where a mask (h, w) says; None for nowhere."""
    step = math.ceil(math.sqrt(where.numel() / LOOKED_AT))
    seen = where[::step, ::step]
    if not seen.any():
        return None
    found = delta_e(source[0, ::step, ::step], made[0, ::step, ::step])[seen]
    rank = max(math.ceil(0.99 * len(found)), 1)
    return float(found.mean()), float(found.kthvalue(rank).values)


def seam(picture: Tensor, mask: Tensor) -> tuple[float, float] | None:
    """Mean step between neighbouring pixels of a picture (h, w, 3), in levels of 255: across the border of a mask (h, w),
    and beside it, on the same lines up to BESIDE pixels outside. None where there is no border."""
    (height, width), framed = mask.shape, F.pad(mask, (1, 1, 1, 1), value=True)  # an edge of the picture is no border
    across: list[Tensor] = []
    beside: list[Tensor] = []
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        next_to = framed[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        y, x = (mask & ~next_to).nonzero(as_tuple=True)
        for k in range(BESIDE):
            v, u = (y + dy).clamp(0, height - 1), (x + dx).clamp(0, width - 1)
            outside = ~mask[v, u] & ((v != y) | (u != x))
            y, x, v, u = y[outside], x[outside], v[outside], u[outside]
            (beside if k else across).append((picture[v, u] - picture[y, x]).abs().mean(dim=-1))
            y, x = v, u
    steps, others = torch.cat(across), torch.cat(beside)
    return (255 * float(steps.mean()), 255 * float(others.mean()) if len(others) else 0.0) if len(steps) else None


def described(region: Region) -> str:
    left, top, right, bottom = region.box
    height, width = region.picture.shape[1:3]
    scale = f"{region.size[0]}x{region.size[1]}"
    if (left, top, right, bottom) == (0, 0, width, height):
        return f"the whole picture, {width}x{height}, painted at {scale}"
    return f"region {right - left}x{bottom - top} at {left}, {top} of {width}x{height}, painted at {scale}"


def figured(figures: Figures, mask: Tensor) -> list[str]:
    """Lines of the report on one picture."""
    lines = [f"may have changed: {percent(float(mask.double().mean()))} of the picture"]
    if figures.threshold is not None:
        lines[0] += f", which differs by more than delta E {figures.threshold:.1f}"
    lines.append(f"identical to the source: {percent(figures.identical)} of the pixels")
    if figures.drift:
        mean, most = figures.drift
        lines.append(f"outside the mask the model itself drifted by delta E {mean:.2f} (99th percentile {most:.2f})")
    if figures.matched:
        lines.append(f"after the colours were matched: {figures.matched[0]:.2f} ({figures.matched[1]:.2f})")
    if figures.seam:
        lines.append(f"seam: steps of {figures.seam[0]:.1f} levels across it, {figures.seam[1]:.1f} beside it")
    return lines


def percent(share: float) -> str:
    """Of which only all is 100 and only nothing 0."""
    return f"{min(max(100 * share, 0.01), 99.99):.2f} %" if 0 < share < 1 else f"{100 * share:.0f} %"
