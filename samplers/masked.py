"""Painting under a mask: after each step, what is not painted is the source again, noised to where the step ended.

Source: diffusers' Flux2KleinInpaintPipeline, and the noise of a rectified flow, x = (1 - sigma) source + sigma noise.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def hold(mask: Tensor, source: Tensor, noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What `sample_euler` does after each step: m x + (1 - m) ((1 - sigma) source + sigma noise), all (B, ...). A mask of 1
    leaves x as it is, bit for bit."""

    def held(x: Tensor, sigma: Tensor) -> Tensor:
        return mask * x + (1 - mask) * ((1 - sigma) * source + sigma * noise)

    return held
