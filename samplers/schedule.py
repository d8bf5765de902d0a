"""The noise schedule of FLUX.2: time shifted by an empirical mu of image tokens and steps.

sigma(t) = exp(mu) / (exp(mu) + 1/t - 1) at t = 1, (n-1)/n, ..., 0.
Source: Black Forest Labs' flux2, sampling.py (`compute_empirical_mu`, `get_schedule`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCHEDULES = ("official", "continuous", "constant")
CLIFF = 4300  # image tokens above which the official mu leaves out the dependence on steps
REFERENCE_TOKENS = 4096  # 1024x1024 pixels


def empirical_mu(tokens: int, steps: int, schedule: str = "official") -> float:
    """Shift for an image of `tokens` tokens (of 16x16 pixels) in `steps` steps.

    `official` jumps at 4300 tokens; `continuous` keeps the rule below the jump for every size; `constant` is the mu of
    1024x1024 at every size.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if schedule == "constant":
        tokens = REFERENCE_TOKENS
    at_200_steps = 0.00016927 * tokens + 0.45666666
    if schedule == "official" and tokens > CLIFF:
        return at_200_steps
    at_10_steps = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200_steps - at_10_steps) / 190
    return slope * steps + at_200_steps - 200 * slope


def sigmas(steps: int, tokens: int, schedule: str = "official") -> Tensor:
    """(steps + 1,) float32 from 1 down to 0."""
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected 1 or more")
    shift = math.exp(empirical_mu(tokens, steps, schedule))
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    return torch.cat([shift / (shift + 1 / t - 1), t.new_zeros(1)]).float()


def last_part(schedule: Tensor, denoise: float) -> Tensor:
    """The last `denoise` of a schedule of n steps: from step int(n - n*denoise) on, as diffusers' get_timesteps does
    (Flux2KleinInpaintPipeline). The sigmas stay those the model was distilled to; 0 leaves no step."""
    steps = len(schedule) - 1
    return schedule[int(max(steps - min(steps * denoise, steps), 0)) :]
