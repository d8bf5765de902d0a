"""The way back: what was painted on a canvas, in its picture again, and in figures what that did to the rest of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..errors import KleinError
from .changes import changed
from .colour import delta_e, fit_colours, strips, uncut
from .masks import Box, ramp, widened
from .region import Region
from .seamless import seamless
from .sizing import Canvas, colours, keeps_aspect, resize, restore

BLENDS = ("feather", "seamless", "none")
COLOURS = ("off", "match")
KEEPS = ("off", "unchanged")
LOOKED_AT = 2**20  # pixels: of larger pictures every second, third, ... row and column is measured
ANOTHER = 15.0  # delta E on the mean: of 91 pairs of different photographs (scikit-image's) 85 are further apart
CROSSED = 2**18  # pixels of a border in each direction: of longer ones every second, third, ... is measured
BESIDE = 8  # pixels beyond a seam that count as its neighbourhood


@dataclass(frozen=True)
class Figures:
    """Of one picture. drift: mean and 99th percentile of CIEDE2000 between the picture and what was painted, outside of what
    may have changed, before the way back; matched: the same after the colours are matched, or drift where no map brings them nearer; identical: share of the picture's
    own pixels that are as they were; seam: mean step, in 8-bit levels, across the mask's border and beside it."""

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
    across, down = region.size
    if abs(width * down - height * across) > max(region.size) or width < across:  # an upscaled side may be rounded
        raise KleinError(
            f"The image is {width}x{height}, but the canvas {across}x{down}: connect what was made on this canvas, whole."
        )
    if not image.isfinite().all():
        raise KleinError("The image holds NaN or infinity, expected colours: change the node that made it.")
    done = [paste(each, region, blend, colour, keep) for each in image.split(1)]
    lines = [described(region)]
    for number, (_, mask, figures) in enumerate(done, start=1):
        of = f"image {number}: " if len(done) > 1 else ""
        lines += [of + line for line in figured(figures, mask)]
    if colour == "match" and region.mask is not None and not any(figures.drift for _, _, figures in done):
        lines.append("Warning: nothing about the mask was made, so that its colours cannot be matched: raise context")
    far = [figures.drift[0] for _, _, figures in done if figures.drift and figures.drift[0] > ANOTHER]
    if far:
        lines.append(
            f"Warning: outside the mask the image differs by delta E {max(far):.0f} on the mean, as another picture would: see "
            f"that it was made on this canvas"
        )
    return torch.cat([out for out, _, _ in done]), torch.stack([mask for _, mask, _ in done]).float(), "\n".join(lines)


def paste(image: Tensor, region: Region, blend: str, colour: str, keep: str) -> tuple[Tensor, Tensor, Figures]:
    """One picture (1, h, w, C), the mask (h, w) bool of what may have changed, and figures."""
    picture, box = region.picture[..., :3], region.box
    source = region.crop(picture)
    made = resize(colours(image), (source.shape[2], source.shape[1]))
    whole = torch.ones(picture.shape[1:3], dtype=torch.bool) if region.mask is None else region.mask
    added = torch.ones_like(whole)
    region.own(added)[:] = False
    limit, added = region.crop(whole[None])[0], region.crop(added[None])[0]
    mask, threshold = limit, None
    if keep == "unchanged":
        found, threshold, colours_of = changed(made[0], source[0])
        mask = limit & (found | added)  # what was added has no pixels of its own to go back to
    elif colour == "match":
        # without a mask it is not known what has not changed: the fit leaves out what fits least
        colours_of = fit_colours(made[0], source[0], uncut(made[0]) & (~mask if region.mask is not None else mask))
    drift, matched = differences(source, made, ~mask), None
    if colour == "match":
        moved = colours_of(made)
        nearer = differences(source, moved, ~mask)
        if drift and nearer and nearer[0] >= drift[0]:
            matched = drift
        else:
            made, matched = moved, nearer
    changing = torch.zeros_like(whole)
    region.crop(changing[None])[0].copy_(mask)
    if blend == "seamless":
        made = met(made, picture, box, changing)
    soft = mask.float()
    if blend == "feather":  # at the edge of the mask alone: what `changed` finds is cut at its own edge
        soft = region.crop(ramp(whole, region.feather)[None])[0].masked_fill(added, 1)
    out = region.picture.clone()
    for rows in strips(*mask.shape):
        blended = torch.lerp(source[:, rows], made[:, rows], soft[rows, :, None])
        region.crop(out)[:, rows, :, :3] = torch.where(mask[rows, :, None], blended, source[:, rows])
    identical = float(region.own((out == region.picture).all(dim=-1)[0]).double().mean())
    near = widened(box, BESIDE, whole)
    return out, changing, Figures(drift, matched, identical, seam(out[0, ..., :3][near], changing[near]), threshold)


def met(made: Tensor, picture: Tensor, box: Box, mask: Tensor) -> Tensor:
    """What was made of a box of the picture, with its colours moved to meet those about the mask (h, w): beyond the box they
    are the picture's, and what would have been made there is as what lies next to it."""
    rows, columns = widened(box, 1, mask)
    sides = box[0] - columns.start, columns.stop - box[2], box[1] - rows.start, rows.stop - box[3]
    planes = F.pad(rearrange(made, "b h w c -> b c h w"), sides, mode="replicate")
    beyond = seamless(rearrange(planes, "b c h w -> b h w c"), picture[:, rows, columns], mask[rows, columns])
    return beyond[:, sides[2] : sides[2] + made.shape[1], sides[0] : sides[0] + made.shape[2]]


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
        border = (mask & ~next_to).nonzero()
        y, x = border[:: math.ceil(max(len(border), 1) / CROSSED)].T
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
        outside = "the mask" if figures.threshold is None else "what changed"
        lines.append(f"outside {outside} the model itself drifted by delta E {mean:.2f} (99th percentile {most:.2f})")
    if figures.matched and figures.matched == figures.drift:
        lines.append("the colours are left as they were made: no map of them brings what lies outside nearer")
    elif figures.matched:
        lines.append(f"after the colours were matched: {figures.matched[0]:.2f} ({figures.matched[1]:.2f})")
    if figures.seam:
        lines.append(f"seam: steps of {figures.seam[0]:.1f} levels across it, {figures.seam[1]:.1f} beside it")
    return lines


def percent(share: float) -> str:
    """Of which only all is 100 and only nothing 0."""
    return f"{min(max(100 * share, 0.01), 99.99):.2f} %" if 0 < share < 1 else f"{100 * share:.0f} %"
