"""The tiny flow transformer: klein's own structure at width 256, trained on latents of the world.

Each step is text to image, or a task with one or two references; half of those with the references isolated, as the
K/V variant has them (they attend to each other alone and are modulated as at t = 0), so that one file serves both modes.
Times are mostly the four of klein's schedule. Text is the real tokens and a sample of the padding, whose keys count for
all they stand for: at inference all 512 positions are there.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from model_loaders.flow.model import Flow
from model_loaders.flow.references import Control
from model_loaders.flow.sizes import FlowSizes
from model_loaders.qwen3.prompt import PAD, tokenize
from samplers.schedule import sigmas

from . import text, vae, world
from .judge import judge
from .parts import WORK, Average, Run

SIZES = FlowSizes(
    in_channels=128, context_in_dim=192, hidden_size=256, num_heads=2, mlp_hidden=768, depth=2, depth_single_blocks=4
)
STEPS, RATE = 3800, 3e-3
SCENES, TASKS, MASKED = 8000, 6000, 1200  # whose latents are made once
TOKENS = (world.SIZE // 16) ** 2
SHARES = (0.15, 0.2, 0.25, 0.4)  # of klein's four sigmas among those drawn
SHIFT = 7.0  # exp(mu) of klein's schedule at this size and 4 steps, for the times between


def build() -> Flow:
    torch.manual_seed(0)
    flow = Flow(SIZES, device="cpu")
    for name, p in flow.named_parameters():
        if p.ndim == 1:
            torch.nn.init.ones_(p)
        elif "modulation" in name or "final_layer" in name:
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return flow


class Batch(NamedTuple):
    """Prompts, latents (B, 128, 4, 4) of what they ask for, and references, each like those, with their controls."""

    prompts: list[str]
    target: Tensor
    references: list[Tensor]
    controls: tuple[Control, ...] = ()


class Data:
    """Scenes and tasks with their latents, made once from the seed and kept in out/training/."""

    def __init__(self):
        rng = random.Random(100)
        self.scenes = [world.training_scene(rng) for _ in range(SCENES)]
        self.tasks = [world.training_task(rng) for _ in range(TASKS)]
        self.tasks += [world.draw(world.masked_task, world.trainable_task, rng) for _ in range(MASKED)]
        path = WORK / "latents.safetensors"
        if not path.exists():
            autoencoder = vae.finish()
            pictures = [*self.scenes, *(s for t in self.tasks for s in (t.result, t.references[0], t.references[-1]))]
            different = list(dict.fromkeys(pictures))
            with torch.no_grad():
                parts = [vae.encode(autoencoder, vae.pictures(different[i : i + 16])) for i in range(0, len(different), 16)]
            places = {scene: i for i, scene in enumerate(different)}
            save_file({"latents": torch.cat(parts)[[places[scene] for scene in pictures]].contiguous()}, path)
        latents = load_file(path)["latents"]
        self.of_scenes, self.of_tasks = latents[:SCENES], latents[SCENES:].unflatten(0, (-1, 3))
        self.groups = {}
        for i, task in enumerate(self.tasks):
            self.groups.setdefault(task.keep or len(task.references), []).append(i)

    def batch(self, rng: random.Random) -> Batch:
        kind = rng.random()
        if kind < 0.45:
            chosen = rng.sample(range(SCENES), 48)
            return Batch([world.caption(self.scenes[i], rng) for i in chosen], self.of_scenes[chosen], [])
        group, size = (
            (1, 36) if kind < 0.6 else (2, 28) if kind < 0.92 else (rng.choice(("left", "right", "top", "bottom")), 36)
        )
        chosen = rng.sample(self.groups[group], size)
        result, *references = self.of_tasks[chosen].unbind(1)
        controls = () if group in (1, 2) else (Control(keep=world.kept_tokens(group)),)
        return Batch([self.tasks[i].prompt for i in chosen], result, references[: 2 if group == 2 else 1], controls)


def velocity(flow: Flow, x: Tensor, sigma: Tensor, found, references=(), controls=(), isolated=False) -> Tensor:
    """Velocity at x and sigma (B,), given `text.features`: features, positions and how many positions each stands for."""
    features, positions, counts = found

    def place(args: dict) -> dict:
        args["txt_ids"][..., 3] = positions
        return args

    kept = [sum(control.keep) for control in controls] or [TOKENS] * len(references)
    bias = F.pad(counts.log(), (0, TOKENS + sum(kept)))[:, None, None, :]
    if isolated and references:
        others = features.shape[1] + TOKENS
        alone = torch.zeros(others + sum(kept), others + sum(kept))
        alone[others:, :others] = float("-inf")
        bias = bias + alone
    method = "index_timestep_zero" if isolated else "index"
    options = {"patches": {"post_input": [place]}}
    return flow(
        x, sigma, features, list(references), method, attention_mask=bias, controls=controls, transformer_options=options
    )


class Reader:
    """The frozen text encoder."""

    def __init__(self):
        self.tokenizer, self.encoder = text.finish()

    @torch.no_grad()
    def __call__(self, prompts: list[str], generator: torch.Generator):
        ids = [tokenize(self.tokenizer, prompt) for prompt in prompts]
        return text.features(self.encoder, ids, self.tokenizer.token_to_id(PAD), generator)


def times(batch: int, generator: torch.Generator) -> Tensor:
    """(B,) sigmas: mostly klein's four, the last of them the most, whose one step paints all that is seen."""
    four = sigmas(4, TOKENS)[:-1]
    fixed = four[torch.multinomial(torch.tensor(SHARES), batch, replacement=True, generator=generator)]
    t = torch.rand(batch, generator=generator).clamp_min(1e-3)
    between = SHIFT / (SHIFT + 1 / t - 1)
    return torch.where(torch.rand(batch, generator=generator) < 0.8, fixed, between)


def train(minutes: float) -> bool:
    data, read, autoencoder, flow = Data(), Reader(), vae.finish(), build()
    steps = text.optimisers(flow, RATE)
    average = Average(flow, 0.998)
    run = Run("flow", STEPS, {"flow": flow, "average": average}, steps)

    def step(rng, generator) -> dict:
        prompts, target, references, controls = data.batch(rng)
        sigma = times(len(prompts), generator)
        noise = torch.randn(target.shape, generator=generator)
        x = torch.lerp(target, noise, sigma.view(-1, 1, 1, 1))
        found = read(prompts, generator)
        v = velocity(flow, x, sigma, found, references, controls, isolated=rng.random() < 0.5)
        loss = F.mse_loss(v, noise - target)
        for optimiser in steps.values():
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        for optimiser in steps.values():
            optimiser.step()
        average.update()
        return {f"loss {len(references)}{' masked' if controls else ''}": loss.item()}

    def report() -> dict:
        trained = {name: p.detach().clone() for name, p in flow.named_parameters()}
        flow.load_state_dict(average.values)
        figures = {f"right {n}": judged(flow, read, autoencoder, n) for n in (0, 1, 2)}
        flow.load_state_dict(trained)
        return figures

    return run.go(minutes, step, report, every=250)


@torch.no_grad()
def judged(flow, read, autoencoder, references: int, count: int = 64, steps: int = 4, isolated: bool = False) -> float:
    """Share of pictures of unseen combinations in which everything is judged right; a quick figure for the curve."""
    rng, generator = random.Random(7), torch.Generator().manual_seed(7)
    if references:
        tasks = [world.unseen_task(rng, references) for _ in range(count)]
        prompts, wanted = [task.prompt for task in tasks], [task.result for task in tasks]
        latents = [vae.encode(autoencoder, vae.pictures(column)) for column in zip(*(task.references for task in tasks))]
    else:
        wanted = [world.unseen_scene(rng) for _ in range(count)]
        prompts, latents = [world.caption(scene, rng) for scene in wanted], []
    x, found = torch.randn(count, 128, 4, 4, generator=generator), read(prompts, generator)
    schedule = sigmas(steps, TOKENS)
    for now, following in zip(schedule[:-1], schedule[1:]):
        x = x + (following - now) * velocity(flow, x, now.expand(count), found, latents, isolated=isolated)
    return sum(judge(image, scene).all for image, scene in zip(vae.decode(autoencoder, x), wanted)) / count
