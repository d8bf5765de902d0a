"""What the flow is trained on: prompts as the text encoder reads them, and latents of the pictures they ask for."""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from klein.model_loaders.flow.controls import Control
from klein.model_loaders.qwen3.prompt import LENGTH, PAD, tokenize

from . import text, vae, world
from .parts import SEED, WORK, made_from

SCENES, TASKS, MASKED = 8000, 6000, 1200
CAPTIONS = 2  # of each scene
REAL = 6  # tokens of a prompt that stand for all of them, where not all are taken
SIZES = {"text": 96, "one": 72, "two": 56, "masked": 72}  # of batches: about the same cost
SHARES = {"text": 0.56, "one": 0.11, "two": 0.26, "masked": 0.07}


class Text(NamedTuple):
    """Features (B, T, 192), positions (B, T) in 0..511, and how many of the 512 positions each stands for (B, T)."""

    features: Tensor
    positions: Tensor
    counts: Tensor


class Batch(NamedTuple):
    """Text, latents (B, 128, 4, 4) of what it asks for, and references, each like those, with their controls."""

    text: Text
    target: Tensor
    references: list[Tensor]
    controls: tuple[Control, ...] = ()


class Reader:
    """The trained text encoder: prompts to `Text`."""

    def __init__(self):
        self.tokenizer, self.encoder = text.finish()

    def tokens(self, prompts: list[str]) -> list[list[int]]:
        return [tokenize(self.tokenizer, prompt) for prompt in prompts]

    @torch.no_grad()
    def __call__(self, prompts: list[str], generator: torch.Generator) -> Text:
        return Text(*text.features(self.encoder, self.tokens(prompts), self.tokenizer.token_to_id(PAD), generator))


class Data:
    """Scenes and tasks, made from the seed; their latents and features are computed once and kept in out/training/."""

    def __init__(self):
        scenes, tasks, prompts = drawn()
        path, made_by = (
            WORK / "data.safetensors",
            {"models": made_from("encoder", "vae"), "drawn": _digest(scenes, tasks, prompts)},
        )
        if not path.exists() or safe_open(path, "pt").metadata() != made_by:
            pictures = [*scenes, *(s for task in tasks for s in (task.result, task.references[0], task.references[-1]))]
            save_file({"latents": _latents(pictures), **_features(prompts)}, path, made_by)
        kept = load_file(path)
        self.real, self.lengths, self.pads, self.pad_positions = (
            kept[name] for name in ("real", "lengths", "pads", "pad_positions")
        )
        self.of_scenes, self.of_tasks = kept["latents"][:SCENES], kept["latents"][SCENES:].unflatten(0, (-1, 3))
        self.groups = {}
        for i, task in enumerate(tasks):
            self.groups.setdefault(task.keep or ("one", "two")[len(task.references) - 1], []).append(i)

    def batch(self, rng: random.Random, generator: torch.Generator, whole: bool) -> Batch:
        """whole: with all tokens of each prompt, not some that stand for all."""
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "text":
            chosen = rng.sample(range(SCENES), SIZES[kind])
            prompts = [CAPTIONS * i + rng.randrange(CAPTIONS) for i in chosen]
            return Batch(self.text(prompts, generator, whole), self.of_scenes[chosen], [])
        group = rng.choice(list(world.SIDES)) if kind == "masked" else kind
        chosen = rng.sample(self.groups[group], SIZES[kind])
        result, *references = self.of_tasks[chosen].unbind(1)
        controls = (Control(keep=world.kept_tokens(group)),) if kind == "masked" else ()
        found = self.text([CAPTIONS * SCENES + i for i in chosen], generator, whole)
        return Batch(found, result, references[: 2 if kind == "two" else 1], controls)

    def text(self, prompts: list[int], generator: torch.Generator, whole: bool) -> Text:
        """Each prompt's tokens, or REAL of them spread over it, and a sample of the padding after them."""
        lengths, pads = self.lengths[prompts][:, None], self.pads[prompts].float()
        if whole:
            index = torch.arange(int(lengths.max())).expand(len(prompts), -1)
            counts = (index < lengths).float()
        else:
            spread = (torch.arange(REAL) + torch.rand(len(prompts), REAL, generator=generator)) / REAL
            index = (spread * lengths).long()
            counts = (lengths / REAL).expand(-1, REAL)
        real = self.real[torch.tensor(prompts)[:, None], index].float()
        standing = ((LENGTH - lengths) / pads.shape[1]).expand(-1, pads.shape[1])
        positions = torch.cat([index, self.pad_positions[prompts]], dim=1)
        return Text(torch.cat([real, pads], dim=1), positions, torch.cat([counts, standing], dim=1))


def drawn() -> tuple[list[world.Scene], list[world.Task], list[str]]:
    """The scenes, the tasks, and the prompts: CAPTIONS of each scene, then one of each task."""
    rng = random.Random(100 + SEED)
    scenes = [world.training_scene(rng) for _ in range(SCENES)]
    tasks = [world.training_task(rng) for _ in range(TASKS)]
    tasks += [world.draw(world.masked_task, world.trainable_task, rng) for _ in range(MASKED)]
    prompts = [world.caption(scene, rng) for scene in scenes for _ in range(CAPTIONS)]
    return scenes, tasks, [*prompts, *(task.prompt for task in tasks)]


def prepare(minutes: float) -> bool:
    """Not in parts: it takes a few minutes."""
    Data()
    return True


def _digest(*drawn: list) -> str:
    return hashlib.sha256(repr(drawn).encode()).hexdigest()


def _latents(pictures: list[world.Scene]) -> Tensor:
    autoencoder, different = vae.finish(), list(dict.fromkeys(pictures))
    with torch.no_grad():
        parts = [vae.encode(autoencoder, vae.pictures(different[i : i + 16])) for i in range(0, len(different), 16)]
    places = {scene: i for i, scene in enumerate(different)}
    return torch.cat(parts)[[places[scene] for scene in pictures]].contiguous()


def _features(prompts: list[str]) -> dict[str, Tensor]:
    """real (P, L, 192) and their number, lengths (P,); pads (P, PADS, 192) at pad_positions (P, PADS)."""
    read, generator, parts = Reader(), torch.Generator().manual_seed(100), {"real": [], "pads": [], "pad_positions": []}
    lengths = torch.tensor([len(ids) for ids in read.tokens(prompts)])
    for start in range(0, len(prompts), 250):
        features, positions, _ = read(prompts[start : start + 250], generator)
        parts["real"].extend(features[:, : -text.PADS].half())
        parts["pads"].append(features[:, -text.PADS :].half())
        parts["pad_positions"].append(positions[:, -text.PADS :])
    parts["real"] = [torch.nn.utils.rnn.pad_sequence(parts["real"], batch_first=True)]
    return {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()} | {"lengths": lengths}
