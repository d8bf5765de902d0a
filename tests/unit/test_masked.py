"""Sampling under a mask, as diffusers' inpainting pipeline does it."""

import torch

from klein.samplers.euler import sample_euler
from klein.samplers.masked import hold
from klein.samplers.schedule import sigmas


def run(mask, steps=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source, noise, target = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(3))
    seen = []

    def model(x, sigma):
        seen.append(x)
        return target + 0.1 * x

    after = None if mask is None else hold(mask, source, noise)
    return sample_euler(model, noise, sigmas(steps, 20), after=after), seen, source, noise


def test_what_a_mask_does_not_paint_is_the_source_noised_to_each_step_and_at_the_end_the_source_itself():
    mask = (torch.arange(5) < 2).float()
    out, seen, source, noise = run(mask)
    for x, sigma in zip(seen, sigmas(4, 20)):
        assert torch.allclose(x[..., 2:], ((1 - sigma) * source + sigma * noise)[..., 2:], atol=1e-6)
    assert torch.equal(out[..., 2:], source[..., 2:])


def test_a_mask_of_ones_is_no_mask_bit_for_bit():
    assert torch.equal(run(torch.ones(5))[0], run(None)[0])


def test_a_fraction_mixes_once_a_step():
    """Written out for one step: x1 = x0 + (0 - 1)(x0 - denoised), then m x1 + (1 - m) source."""
    out, (x,), source, _ = run(torch.tensor(0.25), steps=1)
    generator = torch.Generator().manual_seed(0)
    target = [torch.randn(2, 3, 4, 5, generator=generator) for _ in range(3)][2]
    assert torch.allclose(out, 0.25 * (target + 0.1 * x) + 0.75 * source, atol=1e-6)
