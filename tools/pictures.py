"""python3 -m tools.pictures : draws the example pictures that come with the pack, web/pictures/*.png.

What a mask paints is transparent in the file, its colours still there.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .provision import ROOT
from .train.world import Scene, Thing, render

FOLDER = ROOT / "web/pictures"
RIGHT, MIDDLE = np.s_[:, 32:], np.s_[16:48, 16:48]


def one(shape: str, colour: str, ground: str, x: float = 32, y: float = 32, radius: float = 16) -> Scene:
    return Scene(ground, (Thing(shape, colour, x, y, radius),), "")


PAIR = Scene("white", (Thing("circle", "blue", 16, 32, 12), Thing("square", "red", 48, 32, 12)), "left of")
PICTURES = {  # name -> scene, what of it is cut out, what its mask paints
    "red_circle": (one("circle", "red", "white"), np.s_[:], MIDDLE),
    "blue_cross": (one("cross", "blue", "yellow"), np.s_[:], None),
    "green_square": (one("square", "green", "black", 32, 20, 12), np.s_[:], None),
    "white_triangle": (one("triangle", "white", "purple", 44, 32), np.s_[:], None),
    "circle_and_square": (PAIR, np.s_[:], RIGHT),
    "small_circle": (one("circle", "red", "white", 20, 32, 6), np.s_[:], np.s_[24:40, 12:28]),
    "circle_at_an_edge": (one("circle", "blue", "white", 20, 32), np.s_[:, :48], None),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (scene, cut, painted) in PICTURES.items():
        pixels = (render(scene)[cut] * 255).round().astype(np.uint8)
        alpha = np.full(pixels.shape[:2], 255, dtype=np.uint8)
        if painted is not None:
            alpha[painted] = 0
        Image.fromarray(np.dstack([pixels, alpha])).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
