"""Sampling through the host's guider, so that previews, progress, interrupts, hooks and masks are the host's own."""

from __future__ import annotations

import logging

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...errors import KleinError
from ...samplers.euler import sample_euler
from ...samplers.masked import hold
from ...samplers.schedule import last_part
from ...samplers.schedule import sigmas as official_sigmas
from .conditioning import controls_of
from .flow import KleinModel, check_conditioning
from .tiny import too_large

CHANNELS, SCALE = 128, 16  # of FLUX.2's latents, and pixels of the image along a side of one
SCALES = {4: 8, 16: 8}  # the same of other models by their channels, for hosts whose empty latents do not tell


def sample(
    model, positive, negative, latent: dict, seed: int, steps: int, cfg: float, denoise: float, schedule: str, sigmas=None
) -> tuple[dict, str]:
    """LATENT from noise and conditioning, and the report; `noise_mask` and `batch_index` of the latent are honoured.
    KleinError for a latent, conditioning or cfg that cannot be sampled, before anything is moved to the GPU."""
    latent, notes = fitted(latent)
    samples = latent["samples"]
    tokens = latent_tokens(latent)
    if not samples.isfinite().all():
        raise KleinError("The latent holds NaN or infinity, expected numbers: change the node that made it.")
    if sigmas is not None and not (sigmas.ndim == 1 and sigmas.isfinite().all()):
        raise KleinError("The sigmas are not a row of finite numbers: connect those of a scheduler, or none.")
    if sigmas is not None and not (sigmas[:-1] > 0).all():
        raise KleinError("The sigmas hold 0 or less before their end, where no step can begin: end them with one 0.")
    mask = latent.get("noise_mask")
    if mask is not None and not mask.isfinite().all():
        raise KleinError("The noise mask holds NaN or infinity, expected shares from 0 to 1: change the node that made it.")
    check_guidance(cfg, negative is not None)
    for conditioning in (positive, negative or []):
        for text, values in conditioning:
            _check(model, text, values)
    if sigmas is None:
        sigmas = make_sigmas(steps, tokens, schedule, denoise)
    ran = max(len(sigmas) - 1, 0)
    lines = [f"{size_of(samples)}, {ran} step{'s' * (ran != 1)} at cfg {cfg:g}", *notes]
    if not ran:  # nothing is loaded for it
        return latent, "\n".join(lines)
    lines += [f"Warning: {text}" for text in advice(model, ran, cfg, samples)]

    guider = comfy.samplers.CFGGuider(model)
    # At cfg 1 the negative is left out altogether, unless a patch of the MODEL asks for it: nothing of it is computed.
    guided = negative is not None and (cfg > 1 or model.model_options.get("disable_cfg1_optimization", False))
    guider.inner_set_conds({"positive": positive, "negative": negative} if guided else {"positive": positive})
    guider.set_cfg(cfg)
    out = guider.sample(
        comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
        samples,
        comfy.samplers.KSAMPLER(_euler),
        sigmas,
        denoise_mask=None if mask is None else mask.float(),
        callback=latent_preview.prepare_callback(model, ran),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": out.to(samples.device)}, "\n".join(lines)


def check_guidance(cfg: float, connected: bool) -> None:
    """KleinError where cfg asks for a negative conditioning and none is connected."""
    if cfg > 1 and not connected:
        raise KleinError(
            f"cfg is {cfg:g}, which needs a negative conditioning, and none is connected: connect one, or set cfg to 1."
        )


def _euler(model, x, sigmas, extra_args, callback, disable) -> torch.Tensor:
    """Under a noise mask the latents are blended after each step, as the reference does. The host would blend before and
    after each call of the model, which mixes fractional masks twice; it does so where the MODEL changes the mask by the
    step (differential diffusion)."""
    mask = extra_args["denoise_mask"]
    if mask is None or "denoise_mask_function" in extra_args["model_options"]:
        return sample_euler(model, x, sigmas, extra_args, callback, disable)
    after = hold(mask, model.latent_image, model.noise)
    return sample_euler(model, x, sigmas, {**extra_args, "denoise_mask": None}, callback, disable, after)


def make_sigmas(steps: int, tokens: int, schedule: str, denoise: float) -> torch.Tensor:
    """(n + 1,) float32; with denoise below 1 the last part of the schedule of `steps` steps, and a line in the log."""
    sigmas = last_part(official_sigmas(steps, tokens, schedule), denoise)
    if denoise < 1:
        logging.info(f"Klein: denoise {denoise:g} runs the last {len(sigmas) - 1} of {steps} steps")
    return sigmas


def fitted(latent: dict) -> tuple[dict, list[str]]:
    """The latent, and no line; for another model's that is empty, as the host's own samplers do, an empty one of FLUX.2 for
    an image of the same size, and the line that says so."""
    latent = dict(latent)
    samples, told = latent["samples"], latent.pop("downscale_ratio_spacial", None)
    if len(samples.shape) != 4 or samples.shape[1] == CHANNELS or 0 in samples.shape or samples.any():
        return latent, []
    batch, channels, *sides = samples.shape
    scale = told or SCALES.get(channels)
    if not scale:
        return latent, []
    height, width = (max(round(side * scale / SCALE), 1) for side in sides)
    latent["samples"] = samples.new_zeros(batch, CHANNELS, height, width)
    made = f"it was made klein's, for {SCALE * width}x{SCALE * height}"
    return latent, [f"The empty latent had {channels} channels, as another model's: {made}"]


def size_of(samples: torch.Tensor) -> str:
    """The images that latents of FLUX.2 are for, in words."""
    width, height = pixels(samples)
    return f"{width}x{height}" + (f", {len(samples)} at once" if len(samples) > 1 else "")


def pixels(samples: torch.Tensor) -> tuple[int, int]:
    """Width and height of the images."""
    return SCALE * samples.shape[-1], SCALE * samples.shape[-2]


def latent_tokens(latent: dict) -> int:
    """Image tokens of a FLUX.2 latent (B, 128, H/16, W/16), or of one that `fitted` makes so; KleinError for the latent of
    another model."""
    shape = fitted(latent)[0]["samples"].shape
    if len(shape) != 4 or shape[1] != CHANNELS or 0 in shape:
        raise KleinError(
            f"The latent has shape {list(shape)}, expected [batch, {CHANNELS}, height/16, width/16]: use Empty Flux 2 "
            f"Latent, or encode the image with the FLUX.2 VAE."
        )
    return shape[2] * shape[3]


def pixel_tokens(width: int, height: int) -> int:
    """Image tokens of an image of this size in pixels."""
    return (width // SCALE) * (height // SCALE)


def _check(model, text: torch.Tensor, values: dict) -> None:
    if isinstance(model.model, KleinModel):
        check_conditioning(model.model, text, values.get("reference_latents") or ())
    elif controls_of(values):
        raise KleinError(
            "A reference has a strength, mask or window, which needs a model from Klein Flow Loader, and this one is from "
            "another loader: change the loader, or leave those settings out."
        )


def advice(model, steps: int, cfg: float, samples: torch.Tensor | None) -> list[str]:
    """Sentences where steps and cfg do not fit the variant that the model is, or the latents its sizes."""
    return _of_variant(model, steps, cfg) + (too_large(model.model, *pixels(samples)) if samples is not None else [])


def _of_variant(model, steps: int, cfg: float) -> list[str]:
    variant = getattr(model.model, "klein_variant", None)
    if variant == "base" and (steps < 10 or cfg == 1):
        return [f"Klein base was trained for 20 to 50 steps and cfg 4 to 5, this runs {steps} steps at cfg {cfg:g}"]
    if variant in ("distilled", "kv") and cfg > 1:
        return [f"Klein {variant} was trained for cfg 1, this runs at cfg {cfg:g}: twice the time and harsher colours"]
    if variant in ("distilled", "kv") and steps > 8:
        return [f"Klein {variant} was distilled to 4 steps, this runs {steps}: {steps / 4:.3g} times the work"]
    return []
