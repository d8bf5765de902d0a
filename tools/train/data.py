"""What the flow is trained on: prompts as the text encoder reads them, and latents of the pictures they ask for."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from klein.model_loaders.flow.controls import Control
from klein.model_loaders.qwen3.prompt import LENGTH, PAD, tokenize

from . import text, vae, world
from .parts import SEED, WORK, made_from

SCENES, TASKS, MASKED = 12000, 6000, 1000
EDITS = {"without": 8000, "repaint": 1200, "outpaint": 1200, "recolor both": 3000}  # 1200 are learned by heart
CAPTIONS = 2  # of each scene
REAL = 6  # tokens of a prompt that stand for all of them, where not all are taken
BATCH = 2200  # tokens of text and pictures
FIRST = {"text": 0.56, "one": 0.11, "two": 0.26, "masked": 0.07}  # while pictures are small
SHARES = {
    "text": 0.4, "one": 0.06, "two": 0.08, "masked": 0.03,
    "without": 0.25, "repaint": 0.06, "outpaint": 0.04, "recolor both": 0.08,
}  # fmt: skip


class Text(NamedTuple):
    """Features (B, T, 192), positions (B, T) in 0..511, and how many of the 512 positions each stands for (B, T)."""

    features: Tensor
    positions: Tensor
    counts: Tensor


class Batch(NamedTuple):
    """Text, latents (B, 128, H/16, W/16) of what it asks for, and references, each like those, with their controls."""

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
    """Tasks, made from the seed; their latents and features are computed once and kept in out/training/. A batch is of one
    group: the same kind, size, and cut or mask; of a kind's groups the rare ones come more often than they are large."""

    def __init__(self):
        tasks = drawn()
        path, made_by = (
            WORK / "data.safetensors",
            {"models": made_from("encoder", "vae"), "drawn": hashlib.sha256(repr(tasks).encode()).hexdigest()},
        )
        self.groups: dict[str, dict[str, list[int]]] = {kind: {} for kind in SHARES}
        for i, task in enumerate(tasks):
            self.groups[kind(task)].setdefault(f"{kind(task)} {task.size} {task.cut or task.keep}", []).append(i)
        if not path.exists() or safe_open(path, "pt").metadata() != made_by:
            save_file(self._latents(tasks) | _features([task.prompt for task in tasks]), path, made_by)
        self.kept, self.keep = load_file(path), {i: task.keep for i, task in enumerate(tasks)}
        self.real, self.lengths, self.pads, self.pad_positions = (
            self.kept.pop(name) for name in ("real", "lengths", "pads", "pad_positions")
        )

    def batch(self, rng: random.Random, generator: torch.Generator, small: bool, whole: bool) -> Batch:
        """small: of the FIRST kinds, 64x64; whole: with all tokens of each prompt, not some that stand for all."""
        shares = FIRST if small else SHARES
        groups = self.groups[rng.choices(list(shares), list(shares.values()))[0]]
        if small:
            groups = {name: members for name, members in groups.items() if str((world.SIZE, world.SIZE)) in name}
        name = rng.choices(list(groups), [len(members) ** 0.3 for members in groups.values()])[0]
        pictures = [self.kept[f"{name} {i}"] for i in range(3) if f"{name} {i}" in self.kept]
        tokens = REAL + self.pads.shape[1] + sum(latents[0, 0].numel() for latents in pictures)
        chosen = [rng.randrange(len(groups[name])) for _ in range(BATCH // tokens)]
        target, *references = (latents[chosen] for latents in pictures)
        keep = self.keep[groups[name][0]]
        controls = (Control(keep=world.kept_tokens(keep)),) if keep else ()
        found = self.text([groups[name][i] for i in chosen], generator, whole)
        return Batch(found, target, references, controls)

    def _latents(self, tasks: list[world.Task]) -> dict[str, Tensor]:
        """Of each group, its pictures' latents: the results (N, 128, H/16, W/16), then each reference's."""
        autoencoder, found = vae.finish(), {}
        for groups in self.groups.values():
            for name, members in groups.items():
                columns = zip(*(tasks[i].pictures() for i in members))
                found |= {f"{name} {i}": _encode(autoencoder, pictures) for i, pictures in enumerate(columns)}
        return found

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


def drawn() -> list[world.Task]:
    """All tasks; first the scenes, CAPTIONS of each, as tasks without references."""
    rng = random.Random(100 + SEED)
    scenes = [(world.training_scene(rng), world.any_size(rng)) for _ in range(SCENES)]
    tasks = [replace(world.captioned(scene, rng), size=size) for scene, size in scenes for _ in range(CAPTIONS)]
    tasks += [replace(world.training_task(rng), size=world.any_size(rng)) for _ in range(TASKS)]
    tasks += [world.draw(world.masked_task, world.trainable_task, rng) for _ in range(MASKED)]
    edits = [world.training_edit(rng, kind) for kind, count in EDITS.items() for _ in range(count)]
    return tasks + [task if task.cut else replace(task, size=world.any_size(rng)) for task in edits]


def kind(task: world.Task) -> str:
    """Of SHARES."""
    return task.kind if task.kind in SHARES else "masked" if task.keep else ("one", "two")[len(task.references) - 1]


def prepare(minutes: float) -> bool:
    """Not in parts: it takes a few minutes."""
    Data()
    return True


@torch.no_grad()
def _encode(autoencoder, pictures: list[np.ndarray]) -> Tensor:
    """(N, 128, H/16, W/16); what is drawn twice, for two captions, is encoded once."""
    different = list({picture.tobytes(): picture for picture in pictures}.values())
    parts = [vae.encode(autoencoder, vae.tensor(different[i : i + 16])) for i in range(0, len(different), 16)]
    places = {picture.tobytes(): i for i, picture in enumerate(different)}
    return torch.cat(parts)[[places[picture.tobytes()] for picture in pictures]].contiguous()


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
