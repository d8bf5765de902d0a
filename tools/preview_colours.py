"""python3 -m tools.preview_colours : fits the colours of klein-tiny's previews to its VAE, tiny/preview.json.

The host's preview is a linear map from channels to red, green and blue: here, for each quarter of a token (1/8 of the
picture), the one of least squares over pictures of the world that klein-tiny is trained on. After a change of its VAE.
"""

from __future__ import annotations

import json
import random

import numpy as np
import torch
from torch import Tensor

from .inprocess import import_adapter
from .train import world

SCENES = 600


def latents_and_colours(vae, unfold, scenes) -> tuple[Tensor, Tensor]:
    """((N, channels), (N, 3) in [-1, 1]): the latent of each place as a preview unfolds it, and the picture's mean there."""
    pictures = torch.from_numpy(np.stack([world.render(scene) for scene in scenes]))
    latents = unfold(vae.encode(pictures).float())
    means = torch.nn.functional.adaptive_avg_pool2d(pictures.movedim(-1, 1), latents.shape[-2:])
    return latents.movedim(1, -1).flatten(0, 2), means.movedim(1, -1).flatten(0, 2) * 2 - 1


def fit(latents: Tensor, colours: Tensor) -> dict[str, list]:
    """The factors (channels, 3) and bias (3,) of least squares."""
    with_bias = torch.cat([latents, torch.ones(len(latents), 1)], dim=1).double()
    found = torch.linalg.lstsq(with_bias, colours.double()).solution
    *factors, bias = [[round(value, 3) for value in row] for row in found.tolist()]
    return {"factors": factors, "bias": bias}


def main() -> None:
    vae, tiny = import_adapter("vae"), import_adapter("tiny")
    rng = random.Random(0)
    scenes = [world.training_scene(rng) for _ in range(SCENES)]
    loaded = vae.load_vae(tiny.TINY / "vae/klein-tiny-vae.safetensors")
    table = fit(*latents_and_colours(loaded, tiny.quarters, scenes))
    rows = ",\n  ".join(map(json.dumps, table["factors"]))
    tiny.COLOURS.write_text(f'{{\n "factors": [\n  {rows}\n ],\n "bias": {json.dumps(table["bias"])}\n}}\n', encoding="utf-8")
    print(f"tiny/preview.json: {len(table['factors'])} channels")


if __name__ == "__main__":
    main()
