"""python3 dev.py train evaluate : the figures of the model card and the contact sheet, over HTTP in a real ComfyUI.

Held-out prompts and tasks, 64x64 unless said, all 512 text positions. Each share has its 95 % interval (Wilson).
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tools import small
from tools.server import Server

from . import world
from .export import TINY
from .flow import SIZES
from .parts import WORK
from .studio import paint, verdicts

RANDOM = "klein-random.safetensors"
COUNT = 100
SEED = 20261124  # of prompts and tasks; not looked at while the recipe was made


def interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, square = right / count, z * z
    middle, half = share + square / (2 * count), z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return (middle - half) / (1 + square / count), (middle + half) / (1 + square / count)


def shares(found: list) -> dict[str, str | int]:
    """Of how many pictures; the percent in which each is right, with its interval."""
    out = {"pictures": len(found)}
    for name in ("shape", "colour", "place", "all"):
        right = sum(getattr(verdict, name) for verdict in found)
        low, high = interval(right, len(found))
        out[name] = f"{100 * right / len(found):.1f} ({100 * low:.0f}-{100 * high:.0f})"
    return out


def figures(comfy) -> dict:
    rng, found = random.Random(SEED), {}
    text = [world.unseen_text(rng) for _ in range(COUNT)]
    one = [world.unseen_task(rng, 1) for _ in range(COUNT)]
    two = [world.unseen_task(rng, 2) for _ in range(COUNT)]
    masked = [world.unseen_masked_task(rng) for _ in range(COUNT // 2)]
    swapped, other_half = list(map(world.swapped, two[: COUNT // 2])), list(map(world.other_half, masked))

    def judged(name: str, images: list, tasks: list[world.Task]) -> None:
        found[name] = shares(verdicts(images, tasks))
        print(name, found[name], flush=True)

    def measure(name: str, tasks: list[world.Task], **settings) -> list:
        images = paint(comfy, tasks, **settings)
        judged(name, images, tasks)
        return images

    images = measure("text, 4 steps", text)
    judged("floor: text, each picture of the prompt before", images[-1:] + images[:-1], text)
    measure("text, 4 steps, another seed", text, seed=77)
    for steps in (1, 2, 8):
        measure(f"text, {steps} steps", text[: COUNT // 2], steps=steps)
    for mode, cache in (("plain", "off"), ("cached", "within_run")):
        images = measure(f"one reference, 4 steps, {mode}", one, cache=cache)
        judged(f"floor: one reference, each picture of the task before, {mode}", images[-1:] + images[:-1], one)
        images = measure(f"two references, 4 steps, {mode}", two, cache=cache)
        judged(f"floor: two references, each picture of the task before, {mode}", images[-1:] + images[:-1], two)
        measure(f"two references, 4 steps, {mode}, another seed", two, cache=cache, seed=77)
        images = measure(f"two references swapped, 4 steps, {mode}", swapped, cache=cache)
        judged(f"floor: two references swapped, judged as if they were not, {mode}", images, two[: COUNT // 2])
        measure(f"one thing of two, by a mask, 4 steps, {mode}", masked, cache=cache)
        measure(f"the other thing, by the other mask, 4 steps, {mode}", other_half, cache=cache)
        for steps in (1, 2, 8):
            measure(f"two references, {steps} steps, {mode}", two[: COUNT // 4], steps=steps, cache=cache)
    measure("floor: text, random flow", text[: COUNT // 4], flow=RANDOM)
    measure("floor: two references, random flow", two[: COUNT // 4], flow=RANDOM)
    measure("floor: two references of strength 0", two[: COUNT // 2], strength=0.0)
    judged("floor: image 1 as it is", [world.render(task.references[0]) for task in two], two)
    judged("floor: image 2 as it is", [world.render(task.references[1]) for task in two], two)
    edits = {kind: [world.unseen_edit(rng, kind) for _ in range(COUNT // 2)] for kind in world.EDITS}
    for mode, cache in (("plain", "off"), ("cached", "within_run")):
        for kind, tasks in edits.items():
            measure(f"{kind}, 4 steps, {mode}", tasks, cache=cache)
    for kind in ("without", "repaint", "recolor both"):
        judged(f"floor: {kind}, image 1 as it is", [world.render(task.references[0]) for task in edits[kind]], edits[kind])
    for size in ((64, 128), (96, 96), (128, 128)):
        for name, tasks in (("text", text), ("one reference", one), ("two references", two), ("without", edits["without"])):
            measure(f"{name}, 4 steps, {size[1]}x{size[0]}", [replace(task, size=size) for task in tasks[: COUNT // 2]])
    return found


def sheet(comfy, scale: int = 2) -> Image.Image:
    """Prompts, references and results, four steps."""
    rng = random.Random(5)
    tasks = [world.unseen_text(rng) for _ in range(8)] + [world.unseen_task(rng, count) for count in 4 * [1] + 8 * [2]]
    tasks += [world.unseen_edit(rng, kind) for kind in ("without", "repaint") for _ in range(4)]
    images = paint(comfy, tasks, seed=3)
    side, line = world.SIZE * scale, 30
    width, rows = 3 * side + 24, (len(tasks) + 1) // 2
    page = Image.new("RGB", (2 * width, rows * (side + line)), "white")
    pen = ImageDraw.Draw(page)
    for i, (task, image) in enumerate(zip(tasks, images)):
        left, top = i % 2 * width + 6, i // 2 * (side + line)
        for k, picture in enumerate([*task.pictures()[1:], image]):
            tile = Image.fromarray((np.asarray(picture) * 255).round().astype(np.uint8)).resize((side, side), 0)
            page.paste(tile, (left + k * (side + 4), top))
        pen.text((left, top + side + 3), task.prompt, fill="black")
    return page


def curve() -> dict[str, dict[str, float]]:
    """Of held-out scenes and tasks, the percent judged right while the flow was trained, by step; as it is known, where
    the training was not done here."""
    if not (WORK / "flow.jsonl").exists():
        return json.loads((TINY / "figures.json").read_text())["learning curve"]
    lines = [json.loads(line) for line in (WORK / "flow.jsonl").read_text().splitlines()]
    return {
        f"step {line['step']}, {line['seconds'] / 60:.0f} min": {
            name.removeprefix("right "): round(100 * share) for name, share in line.items() if name.startswith("right ")
        }
        for line in lines
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        sizes = dict(hidden=SIZES.hidden_size, heads=SIZES.num_heads, context=SIZES.context_in_dim, mlp=SIZES.mlp_hidden)
        state = small.flow_state(**sizes, depth=SIZES.depth, single=SIZES.depth_single_blocks, peak=1.0)
        small.save(state, base / "models/diffusion_models" / RANDOM)
        comfy = Server(base, "--use-pytorch-cross-attention").start()
        try:
            page, found = sheet(comfy), figures(comfy)
        finally:
            comfy.stop()
    page.save(TINY / "contact_sheet.png", optimize=True)
    text = json.dumps({"judged right": found, "learning curve": curve()}, indent=1)
    (TINY / "figures.json").write_text(text + "\n")
