"""What klein-tiny, the small model that comes with the pack, has of its own: the sizes that it paints, and the colours of its
previews, as tools/preview_colours.py fits them to its VAE."""

from __future__ import annotations

import json

from torch import Tensor

from ...model_loaders.flow.sizes import FlowSizes
from .files import TINY

SIZES = FlowSizes(
    in_channels=128, context_in_dim=192, hidden_size=256, num_heads=2, mlp_hidden=768, depth=2, depth_single_blocks=4
)
LARGEST = 128  # pixels along a side of a picture
COLOURS = TINY / "preview.json"


def too_large(model, width: int, height: int) -> list[str]:
    """A sentence where a model is klein-tiny, and a picture of a size that it was not trained for."""
    if max(width, height) <= LARGEST or getattr(model.diffusion_model, "sizes", None) != SIZES:
        return []
    return [
        f"klein-tiny was trained for pictures of 64x64 to {LARGEST}x{LARGEST}, this is {width}x{height}: take a smaller one"
    ]


def colour_previews(latent_format) -> None:
    """Give a FLUX.2 latent format of the host the colours of klein-tiny's latents."""
    table = json.loads(COLOURS.read_text(encoding="utf-8"))
    latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = table["factors"], table["bias"]
    latent_format.latent_rgb_factors_reshape = quarters


def quarters(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 4 C, 2 h, 2 w): each quarter of a token in channels of its own, so that it has its own factors."""
    batch, channels, height, width = latents.shape
    apart = latents.new_zeros(batch, 4, channels, height, 2, width, 2)
    for quarter in range(4):
        apart[:, quarter, :, :, quarter // 2, :, quarter % 2] = latents
    return apart.reshape(batch, 4 * channels, 2 * height, 2 * width)
