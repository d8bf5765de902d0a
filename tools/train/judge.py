"""Reads colours, shapes and places back from pixels, and says whether they are those that were asked for.

No learned part: the ground is the colour of the border, things are connected regions that differ from it, and a thing's
shape is the one whose drawing, at the same place and area, overlaps it best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .world import COLOURS, PLACES, RELATIONS, SHAPES, SIZE, Scene, coverage

NAMES = list(COLOURS)
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
SMALLEST = 60  # pixels of a thing in a picture of 64x64; the smallest drawn, a small triangle, has 240
CONTRAST = 60  # distance in RGB from the ground at which a pixel belongs to a thing; half an edge pixel's is above it


@dataclass(frozen=True)
class Seen:
    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Verdict:
    """Of one picture: every thing's shape, every colour and the ground, and the place or relation."""

    shape: bool
    colour: bool
    place: bool

    @property
    def all(self) -> bool:
        return self.shape and self.colour and self.place


def nearest(colour: np.ndarray) -> str:
    return NAMES[int(np.linalg.norm(PALETTE - colour, axis=1).argmin())]


def look(image: np.ndarray) -> tuple[str, list[Seen]]:
    """image (rows, columns, 3) in [0, 1] -> (ground, things, the largest first). Places and SMALLEST are measured as in a
    picture of 64x64; shapes in the picture's own pixels."""
    pixels = np.asarray(image, dtype=np.float32) * 255
    border = np.concatenate(
        [pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)]
    )
    ground = np.median(border, axis=0)
    regions, count = ndimage.label(np.linalg.norm(pixels - ground, axis=2) > CONTRAST)
    down, right = (side / SIZE for side in pixels.shape[:2])
    things = []
    for number in range(1, count + 1):
        region = regions == number
        if region.sum() >= SMALLEST * min(down, right) ** 2:
            core = ndimage.binary_erosion(region)
            colour = np.median(pixels[core if core.any() else region], axis=0)
            x, y = middle(region)
            things.append((int(region.sum()), Seen(shape_of(region), nearest(colour), x / right, y / down)))
    return nearest(ground), [seen for _, seen in sorted(things, key=lambda pair: -pair[0])]


def middle(region: np.ndarray) -> tuple[float, float]:
    """x, y of the middle of a region's bounding box, in pixels."""
    rows, columns = np.where(region)
    return (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2


def shape_of(region: np.ndarray) -> str:
    x, y = middle(region)
    overlaps = {}
    for shape in SHAPES:
        unit = coverage(shape, 100, 100, 80, (200, 200)).sum() / 80**2
        drawn = coverage(shape, x, y, float(np.sqrt(region.sum() / unit)), region.shape) > 0.5
        overlaps[shape] = (drawn & region).sum() / (drawn | region).sum()
    return max(overlaps, key=overlaps.get)


def judge(image: np.ndarray, wanted: Scene) -> Verdict:
    """Whether an image shows a scene. A missing or surplus thing makes all three wrong."""
    ground, things = look(image)
    if len(things) != len(wanted.things):
        return Verdict(False, False, False)
    if len(things) == 2:
        things = max((things, things[::-1]), key=lambda pair: agreement(pair, wanted))
    pairs = list(zip(things, wanted.things))
    return Verdict(
        shape=all(seen.shape == thing.shape for seen, thing in pairs),
        colour=ground == wanted.ground and all(seen.colour == thing.colour for seen, thing in pairs),
        place=placed(things, wanted.place),
    )


def agreement(things: list[Seen], wanted: Scene) -> int:
    """How much the things in this order are those wanted: colours first, then shapes, then places."""
    pairs = list(zip(things, wanted.things))
    return sum(4 * (s.colour == t.colour) + 2 * (s.shape == t.shape) for s, t in pairs) + placed(things, wanted.place)


def placed(things: list[Seen], place: str) -> bool:
    if not things:
        return True
    if place in PLACES:
        distance = {name: np.hypot(things[0].x - x, things[0].y - y) for name, (x, y) in PLACES.items()}
        return min(distance, key=distance.get) == place
    dx, dy = things[0].x - things[1].x, things[0].y - things[1].y
    return max(RELATIONS, key=lambda name: RELATIONS[name][0] * dx + RELATIONS[name][1] * dy) == place
