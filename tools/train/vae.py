"""The tiny VAE: diffusers' FLUX.2 autoencoder with narrow widths, trained to draw the world.

Loss: L1 + MSE of pixels and a weak KL term. Outlines weigh more, and the error of each picture is divided by its
contrast: else outlines between blue and purple are learned last. Latents get noise, so that what is seen survives a flow's
errors.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import world
from .judge import judge
from .parts import SEED, Average, Run, descend, optimisers, trained

WIDTHS = (32, 64, 64, 64)
STEPS, RATE, OUTSIDE_RATE, KL = 5000, 2e-2, 2e-3, 1e-4
CROPS = 2200  # of the steps, the first, see a quarter of each picture, around a thing, at a quarter of the cost
SIZED = 1200  # of the steps, the last, see pictures of all sizes
NOISE = 0.15  # of the latents' standard deviation, at most


def build():
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(SEED)
    return AutoencoderKLFlux2(block_out_channels=WIDTHS)


def tensor(pictures) -> Tensor:
    """Pictures (H, W, 3) in [0, 1] -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


def pictures(scenes, size: tuple[int, int] = (world.SIZE, world.SIZE)) -> Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    return tensor([world.render(scene, size) for scene in scenes])


def crop(picture: Tensor, thing: world.Thing, rng: random.Random) -> Tensor:
    """A quarter of a picture (3, 64, 64), with a thing somewhere in it."""
    left, top = (min(max(round(middle - 16 + rng.uniform(-8, 8)), 0), 32) for middle in (thing.x, thing.y))
    return picture[:, top : top + 32, left : left + 32]


def edges(x: Tensor) -> Tensor:
    """(B, 1, H, W): weights of pixels, 5 where the colour changes within two pixels and 1 elsewhere. Outlines are a
    small part of a picture, and all that tells shapes apart."""
    high = F.max_pool2d(x, 5, 1, 2)
    low = -F.max_pool2d(-x, 5, 1, 2)
    return 1 + 4 * (high - low > 0.1).any(1, keepdim=True)


def train(minutes: float) -> bool:
    vae = build().train()
    steps = optimisers(vae, RATE, OUTSIDE_RATE)
    average = Average(vae, 0.995)
    run = Run("vae", STEPS, {"vae": vae, "average": average}, steps)

    def step(rng, generator) -> dict:
        small = run.step < CROPS
        size = world.any_size(rng) if run.step >= STEPS - SIZED else (world.SIZE, world.SIZE)
        scenes = [world.training_scene(rng) for _ in range(16 if small else round(8 * world.SIZE**2 / math.prod(size)))]
        x = pictures(scenes, size)
        if small:
            x = torch.stack([crop(picture, rng.choice(scene.things), rng) for picture, scene in zip(x, scenes)])
        mean, logvar = vae.quant_conv(vae.encoder(x)).clamp(-30, 20).chunk(2, dim=1)
        std = torch.exp(0.5 * logvar)
        spread = NOISE * mean.detach().std() * torch.rand(len(x), 1, 1, 1, generator=generator)
        z = mean + (std + spread) * torch.randn(mean.shape, generator=generator)
        y = vae.decoder(vae.post_quant_conv(z))
        contrast = torch.tensor([world.contrast(scene) for scene in scenes]).view(-1, 1, 1, 1) / 255
        error, kl = (y - x) ** 2, 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = (edges(x) * ((y - x).abs() + error) / contrast).mean() + KL * kl
        descend(loss, vae, steps, average)
        return {"loss": loss.item(), "mse": error.mean().item(), "kl": kl.item(), "std": std.mean().item()}

    def report() -> dict:
        rng = random.Random(2)
        with average.applied():
            sizes = ((world.SIZE, world.SIZE), world.SIZES[-1])
            return {f"right {h}x{w}": judged(vae, [world.unseen_scene(rng, 2) for _ in range(32)], (h, w)) for h, w in sizes}

    return run.go(minutes, step, report, every=200)


def finish():
    """The trained autoencoder; its latents have mean 0 and variance 1 in each channel."""
    vae, rng = trained("vae", STEPS, build()), random.Random(1)
    latents = torch.cat([raw_latents(vae, pictures(world.training_scene(rng) for _ in range(64))) for _ in range(16)])
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    vae.bn.running_var.copy_(latents.var((0, 2, 3)))
    return vae


def raw_latents(vae, x: Tensor) -> Tensor:
    """(B, 128, H/16, W/16): means of the posterior, 2x2 pixels into channels."""
    return F.pixel_unshuffle(vae.encode(x).latent_dist.mode(), 2)


def encode(vae, x: Tensor) -> Tensor:
    """Normalised latents (B, 128, H/16, W/16), as ComfyUI's."""
    mean, variance = (part.view(1, -1, 1, 1) for part in (vae.bn.running_mean, vae.bn.running_var))
    return (raw_latents(vae, x) - mean) / torch.sqrt(variance + vae.config.batch_norm_eps)


def decode(vae, latents: Tensor) -> np.ndarray:
    """(B, H, W, 3) in [0, 1]."""
    mean, variance = (part.view(1, -1, 1, 1) for part in (vae.bn.running_mean, vae.bn.running_var))
    y = vae.decode(F.pixel_shuffle(latents * torch.sqrt(variance + vae.config.batch_norm_eps) + mean, 2)).sample
    return (y / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def judged(vae, scenes, size: tuple[int, int]) -> float:
    """Share of pictures that are judged right after encoding and decoding."""
    images = decode(vae, encode(vae, pictures(scenes, size)))
    return sum(judge(image, scene).all for image, scene in zip(images, scenes)) / len(scenes)
