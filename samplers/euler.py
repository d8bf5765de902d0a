"""Euler's method for x' = (x - denoised) / sigma.  Source: k-diffusion, sampling.py (`sample_euler`)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def sample_euler(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], object] | None = None,
    disable: bool | None = None,
    after: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Follow `sigmas` (steps + 1,) from x (B, ...) down.

    model(x, sigma (B,), **extra_args) returns the denoised x; callback gets {"i", "x", "sigma", "sigma_hat",
    "denoised"} before each step, as in k-diffusion; after(x, sigma) may change what a step ended with.
    """
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma * x.new_ones([x.shape[0]]), **(extra_args or {}))
        velocity = (x - denoised) / sigma
        if callback is not None:
            callback({"i": i, "x": x, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (following - sigma) * velocity
        if after is not None:
            x = after(x, following)
    return x
