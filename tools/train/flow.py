"""The tiny flow transformer: klein's own structure at width 256, trained on latents of the world.

Each step is text to image, or a task with one or two references; half of those with the references isolated, as the
K/V variant has them (they attend to each other alone and are modulated as at t = 0), so that one file serves both modes.
Times are mostly the four of klein's schedule. Text is a sample of the tokens and of the padding, whose keys count for all
they stand for, and near the end all tokens and a sample of the padding: at inference all 512 positions are there.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from klein.model_loaders.flow.model import Flow
from klein.model_loaders.flow.sizes import FlowSizes
from klein.samplers.schedule import sigmas

from . import vae, world
from .data import Data, Reader, Text
from .judge import judge
from .parts import SEED, Average, Run, descend, optimisers

SIZES = FlowSizes(
    in_channels=128, context_in_dim=192, hidden_size=256, num_heads=2, mlp_hidden=768, depth=2, depth_single_blocks=4
)
INPUTS = ("encoder", "vae")
STEPS, RATE, OUTSIDE_RATE = 8000, 3e-3, 1e-3
SMALL = 3000  # of the steps, the first, see pictures of 64x64 and no edits
WHOLE = 0.1  # of the steps, the last, read all tokens of each prompt
SHARES = (0.15, 0.2, 0.25, 0.4)  # of klein's four sigmas among those drawn
SHIFT = 7.0  # exp(mu) of klein's schedule at this size and 4 steps, for the times between


def build() -> Flow:
    """Starts as a copy: what img_in writes into 128 of the 256 directions, final_layer reads back, so that v = x. To learn
    to pass the noise on takes a thousand steps otherwise."""
    torch.manual_seed(SEED)
    flow = Flow(SIZES, device="cpu")
    for name, p in flow.named_parameters():
        if p.ndim == 1:
            torch.nn.init.ones_(p)
        elif "modulation" in name:
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    torch.nn.init.orthogonal_(flow.img_in.weight)
    with torch.no_grad():  # the layer norm before it divides by the root mean square over all directions
        flow.final_layer.linear.weight.copy_(flow.img_in.weight.T * (SIZES.in_channels / SIZES.hidden_size) ** 0.5)
    return flow


def velocity(flow: Flow, x: Tensor, sigma: Tensor, found: Text, references=(), controls=(), isolated=False) -> Tensor:
    """Velocity at x and sigma (B,)."""
    features, positions, counts = found

    def place(args: dict) -> dict:
        args["txt_ids"][..., 3] = positions
        return args

    tokens, kept = x[0, 0].numel(), [sum(control.keep) for control in controls] or [r[0, 0].numel() for r in references]
    bias = F.pad(counts.log(), (0, tokens + sum(kept)))[:, None, None, :]
    if isolated and references:
        others = features.shape[1] + tokens
        alone = torch.zeros(others + sum(kept), others + sum(kept))
        alone[others:, :others] = float("-inf")
        bias = bias + alone
    method = "index_timestep_zero" if isolated else "index"
    options = {"patches": {"post_input": [place]}}
    return flow(
        x, sigma, features, list(references), method, attention_mask=bias, controls=controls, transformer_options=options
    )


def times(batch: int, tokens: int, generator: torch.Generator) -> Tensor:
    """(B,) sigmas: mostly klein's four, the last of them the most, whose one step paints all that is seen."""
    four = sigmas(4, tokens)[:-1]
    fixed = four[torch.multinomial(torch.tensor(SHARES), batch, replacement=True, generator=generator)]
    t = torch.rand(batch, generator=generator).clamp_min(1e-3)
    between = SHIFT / (SHIFT + 1 / t - 1)
    return torch.where(torch.rand(batch, generator=generator) < 0.8, fixed, between)


def train(minutes: float) -> bool:
    data, flow = Data(), build()
    read, autoencoder = Reader(), vae.finish()
    steps = optimisers(flow, RATE, OUTSIDE_RATE)
    average = Average(flow, 0.998)
    run = Run("flow", STEPS, {"flow": flow, "average": average}, steps, INPUTS)

    def step(rng, generator) -> dict:
        found, target, references, controls = data.batch(
            rng, generator, run.step < SMALL, whole=run.step >= (1 - WHOLE) * STEPS
        )
        sigma = times(len(target), target[0, 0].numel(), generator)
        noise = torch.randn(target.shape, generator=generator)
        x = torch.lerp(target, noise, sigma.view(-1, 1, 1, 1))
        v = velocity(flow, x, sigma, found, references, controls, isolated=rng.random() < 0.5)
        loss = F.mse_loss(v, noise - target)
        descend(loss, flow, steps, average)
        return {f"loss {len(references)}": loss.item()}

    def report() -> dict:
        with average.applied():
            found = {f"right {name}": judged(flow, read, autoencoder, make) for name, make in CURVE.items()}
            return found | {f"right text {h}x{w}": judged(flow, read, autoencoder, CURVE["text"], (h, w), 32) for h, w in LARGE}

    return run.go(minutes, step, report, every=200)


CURVE = {  # held-out tasks, of which a few are judged while it is trained
    "text": world.unseen_text, "one": lambda rng: world.unseen_task(rng, 1), "two": lambda rng: world.unseen_task(rng, 2),
    "without": lambda rng: world.unseen_edit(rng, "without"), "repaint": lambda rng: world.unseen_edit(rng, "repaint"),
    "recolor both": lambda rng: world.unseen_edit(rng, "recolor both"),
}  # fmt: skip
LARGE = ((128, 128),)


@torch.no_grad()
def judged(flow, read, autoencoder, make, size=(world.SIZE, world.SIZE), count: int = 64) -> float:
    """Share of pictures of unseen combinations in which everything is judged right; a quick figure for the curve."""
    rng, generator = random.Random(7), torch.Generator().manual_seed(7)
    tasks = [replace(make(rng), size=size) for _ in range(count)]
    columns = list(zip(*(task.pictures() for task in tasks)))[1:]
    latents = [vae.encode(autoencoder, vae.tensor(column)) for column in columns]
    x = torch.randn(count, 128, *(side // 16 for side in size), generator=generator)
    found = read([task.prompt for task in tasks], generator)
    schedule = sigmas(4, x[0, 0].numel())
    for now, following in zip(schedule[:-1], schedule[1:]):
        x = x + (following - now) * velocity(flow, x, now.expand(count), found, latents)
    return sum(judge(image, task.result).all for image, task in zip(vae.decode(autoencoder, x), tasks)) / count
