"""How far apart colours are (CIEDE2000), and a map that takes the colours of a generated picture back to its source's.

Sources: IEC 61966-2-1 (sRGB: transfer function and primaries); CIE 15 (L*a*b*); Sharma, Wu, Dalal 2005, "The CIEDE2000
color-difference formula: implementation notes, supplementary test data, and mathematical observations" (the names below).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..errors import KleinError

# IEC 61966-2-1: linear red, green, blue -> X, Y, Z under D65, for the 2 degree observer.
XYZ = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], dtype=torch.float64)
WHITE = XYZ.sum(dim=1)  # D65 as these primaries add up to it, so that greys have no chroma
STRIP = 2**15  # pixels worked on at a time

SAMPLES = 4_999  # pixels a fit looks at: a prime, so that steps through the picture do not fall in with its rows
FEWEST = 16  # pixels that a fit needs, all the way
KNOTS = 17  # of a channel's curve: steps of 1/16 hold a power of 0.8 within 0.009 near black, 0.001 elsewhere
# Tukey's biweight: pixels further off than its width, as a distance in RGB, count nothing. It shrinks from what no drift
# exceeds to three times the median distance of those within: for normal noise that is his 4.685 standard deviations.
WIDEST, NARROWEST, SHRINK, ROUNDS = 0.5, 0.02, 0.6, 12
# What holds the map to the identity: shares of a noise squared, which starts at the widest, so that at first only what most
# pixels agree on is followed, and shrinks each round, to half the median distance. Mixing of channels is held more, so that
# a grey picture with more contrast teaches contrast and not saturation.
HELD, HELD_MIXING = 0.3, 3.0
ALIKE = 0.05  # a spread of values that noise alone may have: too little to see a contrast by


def lab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3), clamped to [0, 1] -> CIE L*a*b* (..., 3): L* from 0 to 100, under D65 for the 2 degree observer."""
    rgb = rgb.clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ (XYZ / WHITE[:, None]).T.to(rgb)
    delta = 6 / 29  # CIE 15: below its cube the cube root is a line
    x, y, z = torch.where(ratio > delta**3, ratio.clamp(min=delta**3) ** (1 / 3), ratio / (3 * delta**2) + 4 / 29).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def ciede2000(a: Tensor, b: Tensor) -> Tensor:
    """Differences between L*a*b* colours (..., 3) and (..., 3): (...), where 1 is just seen. The weights kL, kC, kH are 1."""
    (l1, a1, b1), (l2, a2, b2) = a.unbind(-1), b.unbind(-1)
    mean_chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * seventh(mean_chroma)  # 1 + G
    c1, c2 = torch.hypot(stretch * a1, b1), torch.hypot(stretch * a2, b2)
    h1, h2 = (torch.atan2(y, stretch * x) % math.tau for x, y in ((a1, b1), (a2, b2)))  # 0 for grey
    grey = c1 * c2 == 0

    # Hues apart by the shorter way round; of a grey one there is none, and the mean is the other's (greys have hue 0).
    apart = h2 - h1
    far = apart.abs() > math.pi
    apart = torch.where(grey, 0.0, torch.where(far, apart - math.tau * apart.sign(), apart))
    hue = torch.where(grey, h1 + h2, (h1 + h2) / 2 + torch.where(far, torch.where(h1 + h2 < math.tau, math.pi, -math.pi), 0.0))

    d_l, d_c, d_h = l2 - l1, c2 - c1, 2 * (c1 * c2).sqrt() * torch.sin(apart / 2)
    light, chroma = ((l1 + l2) / 2 - 50) ** 2, (c1 + c2) / 2
    t = 1 - 0.17 * torch.cos(hue - math.radians(30)) + 0.24 * torch.cos(2 * hue)
    t = t + 0.32 * torch.cos(3 * hue + math.radians(6)) - 0.20 * torch.cos(4 * hue - math.radians(63))
    turn = torch.exp(-(((hue - math.radians(275)) / math.radians(25)) ** 2)) * math.radians(30)  # delta theta
    r_t = -2 * seventh(chroma) * torch.sin(2 * turn)
    d_l = d_l / (1 + 0.015 * light / (20 + light).sqrt())
    d_c, d_h = d_c / (1 + 0.045 * chroma), d_h / (1 + 0.015 * chroma * t)
    return (d_l**2 + d_c**2 + d_h**2 + r_t * d_c * d_h).clamp(min=0).sqrt()


def seventh(chroma: Tensor) -> Tensor:
    power = chroma**7
    return (power / (power + 25.0**7)).sqrt()


def delta_e(a: Tensor, b: Tensor) -> Tensor:
    """CIEDE2000 between two sRGB pictures (h, w, 3), clamped to [0, 1]: (h, w) float32.

    By strips of rows of about 2^15 pixels: 12 megapixels were measured to need 20 MB beside the pictures and the result.
    KleinError where a picture holds NaN, or their sizes differ.
    """
    a, b = pair(a, b)
    apart = torch.empty(a.shape[:2], device=a.device)
    for rows in strips(a.shape[0], a.shape[1]):
        apart[rows] = ciede2000(lab(a[rows]), lab(b[rows]))
    return apart


def strips(height: int, width: int) -> Iterator[slice]:
    """Rows of a picture, as many at a time as hold about STRIP pixels."""
    rows = max(STRIP // width, 1)
    for top in range(0, height, rows):
        yield slice(top, top + rows)


@dataclass(frozen=True)
class ColourMap:
    """A map of sRGB colours: each is moved by the mix of its channels, and by a curve of each channel.

    What leaves the range of the fitted pixels is moved as the nearest colour within it is, so nothing runs away.
    mix: (3, 3), moves of red, green and blue by channel; curves: (3, knots), moves from 0 to 1 in even steps;
    low, high: (3,), the range of the fitted pixels. All float64.
    """

    mix: Tensor
    curves: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, rgb: Tensor) -> Tensor:
        """Colours (..., 3), clamped to [0, 1] -> colours (..., 3) in [0, 1], float32. A strip at a time."""
        colours = rgb.reshape(-1, 3)
        made = torch.empty_like(colours, dtype=torch.float32)
        for at in range(0, len(colours), STRIP):
            made[at : at + STRIP] = self.moved(colours[at : at + STRIP].float().clamp(0, 1))
        return made.view(rgb.shape)

    def moved(self, rgb: Tensor) -> Tensor:
        """(n, 3) in [0, 1] -> (n, 3) in [0, 1], of the same type."""
        inside = rgb.clamp(self.low.to(rgb), self.high.to(rgb))
        move = inside @ self.mix.to(rgb)
        for channel, curve in enumerate(self.curves.to(rgb)):
            at = inside[:, channel] * (KNOTS - 1)
            below = at.long().clamp(max=KNOTS - 2)
            move[:, channel] += torch.lerp(curve[below], curve[below + 1], at - below)
        return (rgb + move).clamp(0, 1)


def identity() -> ColourMap:
    """Every colour in [0, 1] comes back bit-equal."""
    zeros = torch.zeros(3, 3 + KNOTS, dtype=torch.float64)
    return ColourMap(zeros[:, :3], zeros[:, 3:], zeros[:, 0], zeros[:, 0] + 1)


def uncut(picture: Tensor) -> Tensor:
    """(h, w) bool: the pixels of a picture (h, w, 3) with no channel at 0 or 1. Where a drift cut colours off there, what it
    made says nothing of its curve."""
    return ((picture > 0) & (picture < 1)).all(dim=-1)


def fit_colours(made: Tensor, source: Tensor, where: Tensor, weight: Tensor | None = None) -> ColourMap:
    """The map from colours of `made` to those of `source`, both (h, w, 3) sRGB, by the pixels `where` (h, w) bool that
    should be alike; `weight` (h, w), from 0 on, says how much each of them counts.

    Up to 30 % of them may have changed all the same. At most 4999 are looked at, in even steps. Iteratively reweighted least squares with
    Tukey's biweight (Beaton, Tukey 1974), whose width shrinks as in graduated non-convexity (Blake, Zisserman 1987).

    It is the identity with fewer than 16 pixels, when all of those looked at are bit-equal, and when the best map
    would halve or double contrast, or turn it over: that is no drift but an edit of everything. KleinError where a tensor
    holds NaN or has another shape.
    """
    made, source = pair(made, source)
    for name, plane in (("mask", where), ("weight", weight)):
        if plane is not None and plane.shape != made.shape[:2]:
            raise KleinError(
                f"The {name} is a tensor of {tuple(plane.shape)}, expected {tuple(made.shape[:2])} as its picture: resize it."
            )
    if weight is not None and not (weight.min() >= 0 and weight.max() < math.inf):
        raise KleinError("The weight holds NaN, infinity or negative numbers, expected numbers from 0 on: change its mask.")

    at = where.flatten().nonzero()[:, 0]
    if len(at) > SAMPLES:
        at = at[torch.arange(SAMPLES, device=at.device) * len(at) // SAMPLES]
    x, y = (rearrange(picture, "h w c -> (h w) c")[at].double() for picture in (made, source))
    share = torch.ones_like(x[:, 0]) if weight is None else weight.flatten()[at].double()

    tents = torch.arange(KNOTS).to(x)  # a curve is their weighted sum: each is 1 at its own knot and 0 from the next ones on
    features = [torch.cat([x, (1 - (x[:, [c]] * (KNOTS - 1) - tents).abs()).clamp(min=0)], dim=1) for c in range(3)]
    found, width = identity(), WIDEST
    for turn in range(ROUNDS):
        off = (y - found.moved(x)).norm(dim=1)
        counted = share * (1 - (off / width) ** 2).clamp(min=0) ** 2
        if int((counted > 0).sum()) < FEWEST:
            return identity()
        typical = float(off[counted > 0].median())
        found = solve(features, y - x, counted / share.sum(), max(WIDEST * SHRINK**turn, typical / 2))
        width = max(width * SHRINK, min(3 * typical, width), NARROWEST)
    before, after = (colours - colours.mean(dim=0) for colours in (x[counted > 0], found.moved(x[counted > 0])))
    slope = ((before * after).mean() + ALIKE**2) / ((before**2).mean() + ALIKE**2)
    return found if 0.5 < slope < 2 else identity()


def solve(features: list[Tensor], moves: Tensor, weight: Tensor, noise: float) -> ColourMap:
    """The map that makes the moves (n, 3) by weighted least squares, held to the identity by a share of the noise; features
    of each channel: (n, 3 + knots)."""
    inside = features[0][weight > 0, :3]
    steps = torch.eye(KNOTS).to(moves).diff(dim=0) * (KNOTS - 1) ** 0.5  # their squares add up to the integral of slope^2
    solved = []
    for channel, known in enumerate(features):
        mixing = torch.full_like(moves[0], HELD_MIXING)
        mixing[channel] = HELD
        held = torch.block_diag(mixing.diag(), HELD * steps.T @ steps) * noise**2
        held += 1e-12 * torch.eye(len(held)).to(moves)  # without it a curve that no pixel touches has no solution
        weighted = (known * weight[:, None]).T
        solved.append(torch.linalg.solve(weighted @ known + held, weighted @ moves[:, channel]))
    mix, curves = torch.stack(solved).split([3, KNOTS], dim=1)
    return ColourMap(mix.T, curves, inside.amin(0), inside.amax(0))


def pair(made: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Two pictures (h, w, 3) as float32; KleinError where that is not what they are."""
    for name, picture in (("made", made), ("source", source)):
        shape = tuple(picture.shape)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or not picture.is_floating_point():
            raise KleinError(
                f"The {name} picture is a tensor of {shape}, {picture.dtype}, expected height x width x 3, from 0 to 1: "
                "connect an IMAGE."
            )
        if not all(torch.isfinite(extreme) for extreme in picture.aminmax()):
            raise KleinError(
                f"The {name} picture holds NaN or infinity, expected numbers from 0 to 1: change the node that made it."
            )
    if made.shape != source.shape:
        raise KleinError(
            f"The made picture has {made.shape[1]}x{made.shape[0]} pixels and the source {source.shape[1]}x{source.shape[0]}, "
            "expected one size: resize one of them."
        )
    return made.float(), source.float()
