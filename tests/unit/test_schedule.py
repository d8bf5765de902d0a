"""The schedule against diffusers' scheduler as its Klein pipeline sets it, and Euler against its step."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from klein.samplers.euler import sample_euler
from klein.samplers.schedule import empirical_mu, last_part, sigmas

# Tokens: a thumbnail, 512x512, 1024x1024, both sides of the cliff at 4300, of real sizes too, and 2048x2048.
TOKENS = [16, 1024, 4096, 4288, 4300, 4301, 4352, 16384]


def oracle(steps, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential", shift_terminal=None)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    return scheduler


def test_sigmas_of_1_to_50_steps_at_every_size_are_those_of_diffusers():
    # diffusers computes in float32, we in float64: one or two units in the last place
    for steps, tokens in itertools.product(range(1, 51), TOKENS):
        got, want = sigmas(steps, tokens), oracle(steps, tokens).sigmas
        assert len(got) == steps + 1 and torch.allclose(got, want, rtol=1e-6, atol=1e-7), (steps, tokens)


def test_the_cliff_is_where_it_is_known_to_be():
    assert sigmas(4, 4288)[1:4].tolist() == pytest.approx([0.968, 0.910, 0.770], abs=6e-4)
    assert sigmas(4, 4352)[1:4].tolist() == pytest.approx([0.908, 0.767, 0.524], abs=6e-4)


def test_continuous_has_no_cliff_and_equals_official_below_it():
    assert torch.equal(sigmas(4, 4300, "continuous"), sigmas(4, 4300))
    assert empirical_mu(4352, 4, "continuous") == pytest.approx(2.313, abs=5e-4)
    assert empirical_mu(4352, 4) == pytest.approx(1.193, abs=5e-4)


def test_constant_is_the_schedule_of_one_megapixel_at_every_size():
    assert torch.equal(sigmas(4, 100, "constant"), sigmas(4, 4096))
    assert torch.equal(sigmas(4, 9999, "constant"), sigmas(4, 4096))


@pytest.mark.parametrize("steps", [1, 4, 7, 50])
def test_denoise_runs_the_same_last_steps_as_diffusers_inpainting(steps):
    from diffusers import Flux2KleinInpaintPipeline

    class Pipeline:
        scheduler = oracle(steps, 1024)

    for denoise in (0.0, 0.1, 0.25, 0.5, 0.74, 0.75, 0.8, 1.0):
        timesteps, count = Flux2KleinInpaintPipeline.get_timesteps(Pipeline(), steps, denoise, "cpu")
        kept = last_part(sigmas(steps, 1024), denoise)
        assert len(kept) - 1 == count, denoise
        torch.testing.assert_close(kept[:-1] * 1000, timesteps, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_follows_the_path_of_diffusers_steps(steps):
    x = torch.randn(2, 128, 3, 5, generator=torch.Generator().manual_seed(0))
    scheduler = oracle(steps, 4096)

    def velocity(x, sigma):
        return torch.sin(3 * x) - sigma * x

    want = x
    for t in scheduler.timesteps:
        want = scheduler.step(velocity(want, t / 1000), t, want, return_dict=False)[0]
    seen = []
    got = sample_euler(
        lambda x, s: x - s[:, None, None, None] * velocity(x, s[:, None, None, None]),
        x,
        sigmas(steps, 4096),
        callback=seen.append,
    )
    # velocity is recovered from the denoised x, which loses digits as sigma falls: 1e-5, not 1e-7
    assert ((got - want).norm() / want.norm()).item() < 1e-5
    assert [step["i"] for step in seen] == list(range(steps))


def test_previews_are_told_the_denoised_picture_of_each_step():
    x, schedule, seen = torch.full((2, 1), 8.0), torch.tensor([1.0, 0.5, 0.0]), []
    out = sample_euler(lambda x, sigma: x - 4, x, schedule, callback=seen.append)
    assert [step["x"].tolist() for step in seen] == [[[8], [8]], [[6], [6]]]
    assert [step["denoised"].tolist() for step in seen] == [[[4], [4]], [[2], [2]]]
    assert [(step["sigma"], step["sigma_hat"]) for step in seen] == [(1.0, 1.0), (0.5, 0.5)]
    assert out.tolist() == [[2], [2]]


def test_extra_arguments_reach_the_model_at_every_step():
    seen = []
    sample_euler(lambda x, sigma, **extra: seen.append((sigma.tolist(), extra)) or x, torch.ones(2, 1), sigmas(2, 16), {"a": 1})
    assert [extra for _, extra in seen] == [{"a": 1}] * 2
    assert [sigma for sigma, _ in seen] == [[float(s)] * 2 for s in sigmas(2, 16)[:2]]


def test_no_step_leaves_x_as_it_is():
    x = torch.ones(1, 128, 2, 2)
    assert sample_euler(None, x, last_part(sigmas(4, 4), 0.0)) is x


def test_an_unknown_schedule_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="expected one of official"):
        sigmas(4, 4096, "karras")
    with pytest.raises(ValueError, match="expected 1 or more"):
        sigmas(0, 4096)
