"""The pictures in web/pictures/, where the frontend finds them too, drawn by tools/pictures.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

FOLDER = Path(__file__).parents[2] / "web/pictures"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.png"))


def load_picture(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE (1, h, w, 3) and MASK (1, h, w), white where the file is transparent, as the host's Load Image has it."""
    pixels = torch.from_numpy(np.array(Image.open(FOLDER / f"{name}.png").convert("RGBA"))).float() / 255
    return pixels[None, ..., :3], 1 - pixels[None, ..., 3]
