"""The tiny Klein at work in a real ComfyUI over HTTP: prompts and reference pictures in, pictures out."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

from workflows.graph import Graph, out

from . import world
from .judge import Verdict, judge

FLOW, ENCODER, VAE = "klein-tiny.safetensors", "klein-tiny", "klein-tiny-vae.safetensors"
TOGETHER = 25  # jobs in one queued graph
numbers = itertools.count()


def paint(
    comfy, tasks: list[world.Task], steps: int = 4, seed: int = 0, cache: str = "off", flow: str = FLOW, strength: float = 1.0
) -> list[np.ndarray]:
    """Pictures (rows, columns, 3) in [0, 1] of the tasks; cache: mode of Klein Reference Cache; strength: of references."""
    images = []
    for start in range(0, len(tasks), TOGETHER):
        some = tasks[start : start + TOGETHER]
        graph, saves = _graph(comfy, some, steps, seed + 1000 * start, cache, flow, strength)
        outputs = comfy.run(graph)
        for save in saves:
            file = comfy.file(outputs[save]["images"][0])
            images.append(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255)
    return images


def verdicts(images: list[np.ndarray], tasks: list[world.Task]) -> list[Verdict]:
    return [judge(image, task.result) for image, task in zip(images, tasks, strict=True)]


def _graph(
    comfy, tasks: list[world.Task], steps: int, seed: int, cache: str, flow: str, strength: float
) -> tuple[dict, list[str]]:
    graph = Graph("studio", "studio")

    model = graph.put("KleinReferenceCache", model=graph.put("KleinFlowLoader", flow_name=flow), mode=cache)
    clip, vae = graph.put("KleinQwen3EncoderLoader", encoder_name=ENCODER), graph.put("KleinVAELoader", vae_name=VAE)
    saves = []
    for i, task in enumerate(tasks):
        side = dict(width=task.size[1], height=task.size[0])
        positive, chain = graph.put("KleinPrompt", clip=clip, text=task.prompt), {}
        for picture in task.pictures()[1:]:
            image = graph.add("LoadImage", image=upload(comfy, picture, task.keep))
            mask = {"mask": out(graph, image, 1)} if task.keep else {}
            chain = {"references": graph.put("KleinReference", image=out(graph, image), strength=strength, **mask, **chain)}
        if chain:
            both = graph.add("KleinMultiReference", positive=positive, vae=vae, **side, **chain)
            positive, latent = out(graph, both), out(graph, both, 2)
        else:
            latent = graph.put("EmptyFlux2LatentImage", **side)
        sampled = graph.put(
            "KleinDistilledSampler", model=model, positive=positive, latent_image=latent, seed=seed + i, steps=steps
        )
        image = graph.put("VAEDecode", samples=sampled, vae=vae)
        saves.append(str(graph.add("SaveImage", images=image, filename_prefix=f"tiny{next(numbers)}")))
    return graph.api(), saves


def upload(comfy, picture: np.ndarray, keep: str = "") -> str:
    """A picture in the server's input folder, whose mask (transparent in the file) is the half to keep."""
    picture = (picture * 255).round().astype(np.uint8)
    if keep:
        tokens = np.frombuffer(world.kept_tokens(keep), dtype=np.uint8).reshape(world.SIZE // 16, -1)
        picture = np.dstack([picture, 255 * (1 - tokens.repeat(16, 0).repeat(16, 1))])
    name = f"scene{next(numbers)}.png"
    Image.fromarray(picture).save(comfy.base / "input" / name)
    return name
