"""Positions of tokens and rotary embedding: four axes (t, h, w, l), theta 2000.

Text token i sits at (0, 0, 0, i), image token at (0, row, column, 0), reference k = 0, 1, ... at (10 (k + 1), row,
column, 0). Source: Black Forest Labs' flux2, sampling.py (`prc_img`, `prc_txt`, scale 10); model.py for theta.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

THETA = 2000
REFERENCE_STEP = 10
ROTATION_BYTES = 8  # of a token for each feature of a head: a 2x2 matrix of float32 a pair

Box = tuple[int, int]  # height and width in tokens


def box_of(latent: Tensor) -> Box:
    """Of a latent (B, channels, h, w)."""
    return latent.shape[-2], latent.shape[-1]


def text_ids(tokens: int, device=None) -> Tensor:
    """(1, tokens, 4) float32."""
    ids = torch.zeros(1, tokens, 4, device=device)
    ids[..., 3] = torch.arange(tokens, device=device)
    return ids


def image_ids(boxes: list[Box], method: str = "index", rope_options: dict | None = None, device=None) -> list[Tensor]:
    """(1, h*w, 4) float32 of each box: the image being made (first box), then its references, each row by row.

    method: ComfyUI's reference_latents_method. `index` (klein's own, a step of t for each reference),
    `index_timestep_zero` (the same places), `offset` (side by side at t = 1) or `uxo` (diagonal).
    rope_options: ComfyUI's scale_x, scale_y, shift_x, shift_y, shift_t, for all images alike.
    """
    canvas, *references = boxes
    ids = [_grid(canvas, 0, (0, 0), rope_options, device)]
    height = width = 0  # of the references placed so far
    for number, (h, w) in enumerate(references, start=1):
        if method in ("index", "index_timestep_zero"):
            t, origin = REFERENCE_STEP * number, (0, 0)
        elif method == "uxo":
            t, origin = 0, (canvas[0] + height, canvas[1] + width)
            height, width = height + h, width + w
        else:
            t, origin = 1, (0, width) if h + height > w + width else (height, 0)
            height, width = max(height, h + origin[0]), max(width, w + origin[1])
        ids.append(_grid((h, w), t, origin, rope_options, device))
    return ids


def _grid(box: Box, t: float, origin: Box, rope_options: dict | None, device) -> Tensor:
    options = rope_options or {}
    ids = torch.zeros(*box, 4, device=device)
    ids[..., 0] = t + options.get("shift_t", 0.0)
    for axis, (name, shape) in enumerate([("y", (-1, 1)), ("x", (1, -1))]):
        steps = torch.arange(box[axis], device=device) * options.get(f"scale_{name}", 1.0)
        ids[..., 1 + axis] = (origin[axis] + options.get(f"shift_{name}", 0.0) + steps).view(shape)
    return rearrange(ids, "h w axes -> 1 (h w) axes")


def rotations(ids: Tensor, axes_dim: tuple[int, ...], theta: int = THETA) -> Tensor:
    """ids (B, N, axes) -> (B, 1, N, sum(axes_dim)/2, 2, 2) float32: one rotation matrix a pair of features.

    Angles are taken in float64 (positions times frequencies lose digits in float32); MPS has no float64, so there
    they are taken on the CPU.
    """
    places = ids.cpu() if ids.device.type in ("mps", "xpu", "privateuseone") else ids
    angles = []
    for axis, dim in enumerate(axes_dim):
        frequency = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=places.device) / dim)
        angles.append(places[..., axis, None].double() * frequency)
    angle = torch.cat(angles, dim=-1)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).float().to(ids.device)
    return rearrange(matrix, "b n pair (row column) -> b 1 n pair row column", row=2)


def rotate(x: Tensor, pe: Tensor) -> Tensor:
    """Rotate interleaved pairs of features: x (B, heads, N, head), pe from `rotations`; returns x's shape and dtype."""
    pairs = rearrange(x.to(pe.dtype), "b heads n (pair column) -> b heads n pair 1 column", column=2)
    turned = (pe[..., 0] * pairs[..., 0]).addcmul_(pe[..., 1], pairs[..., 1])
    return rearrange(turned, "b heads n pair row -> b heads n (pair row)").to(x.dtype)
