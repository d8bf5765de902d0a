"""The tiny Klein at work in a real ComfyUI over HTTP: prompts and reference pictures in, pictures out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from workflows.graph import Graph, out

from . import world
from .judge import Verdict, judge

FLOW, ENCODER, VAE = "klein-tiny.safetensors", "klein-tiny", "klein-tiny-vae.safetensors"
TOGETHER = 25  # jobs in one queued graph
numbers = itertools.count()


@dataclass(frozen=True)
class Job:
    """A prompt, the scenes of its reference pictures, and what the picture should show. keep: the half of each reference
    that a mask keeps; strengths: of the references."""

    prompt: str
    references: tuple[world.Scene, ...]
    wanted: world.Scene
    keep: str = ""
    strengths: tuple[float, ...] = ()


def text_jobs(rng, count: int, things: int | None = None) -> list[Job]:
    """Held-out scenes."""
    scenes = [world.unseen_scene(rng, things) for _ in range(count)]
    return [Job(world.caption(scene, rng), (), scene) for scene in scenes]


def asked(tasks: Iterable[world.Task]) -> list[Job]:
    return [Job(task.prompt, task.references, task.result, task.keep) for task in tasks]


def paint(comfy, jobs: list[Job], steps: int = 4, seed: int = 0, cache: str = "off", flow: str = FLOW) -> list[np.ndarray]:
    """Pictures (64, 64, 3) in [0, 1] of the jobs; cache: mode of Klein Reference Cache."""
    images = []
    for start in range(0, len(jobs), TOGETHER):
        some = jobs[start : start + TOGETHER]
        graph, saves = _graph(comfy, some, steps, seed + 1000 * start, cache, flow)
        outputs = comfy.run(graph)
        for save in saves:
            file = comfy.file(outputs[save]["images"][0])
            images.append(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255)
    return images


def verdicts(images: list[np.ndarray], jobs: list[Job]) -> list[Verdict]:
    return [judge(image, job.wanted) for image, job in zip(images, jobs, strict=True)]


def _graph(comfy, jobs: list[Job], steps: int, seed: int, cache: str, flow: str) -> tuple[dict, list[str]]:
    graph = Graph("studio", "studio")

    model = graph.put("KleinReferenceCache", model=graph.put("KleinFlowLoader", flow_name=flow), mode=cache)
    clip, vae = graph.put("KleinQwen3EncoderLoader", encoder_name=ENCODER), graph.put("KleinVAELoader", vae_name=VAE)
    side = dict(width=world.SIZE, height=world.SIZE)
    empty = graph.put("EmptyFlux2LatentImage", **side)
    saves = []
    for i, job in enumerate(jobs):
        positive, latent, chain = graph.put("KleinPrompt", clip=clip, text=job.prompt), empty, {}
        for scene, strength in zip(job.references, job.strengths or (1.0,) * len(job.references), strict=True):
            image = graph.add("LoadImage", image=upload(comfy, scene, job.keep))
            mask = {"mask": out(graph, image, 1)} if job.keep else {}
            chain = {"references": graph.put("KleinReference", image=out(graph, image), strength=strength, **mask, **chain)}
        if chain:
            both = graph.add("KleinMultiReference", positive=positive, vae=vae, **side, **chain)
            positive, latent = out(graph, both), out(graph, both, 2)
        sampled = graph.put(
            "KleinDistilledSampler", model=model, positive=positive, latent_image=latent, seed=seed + i, steps=steps
        )
        image = graph.put("VAEDecode", samples=sampled, vae=vae)
        saves.append(str(graph.add("SaveImage", images=image, filename_prefix=f"tiny{next(numbers)}")))
    return graph.api(), saves


def upload(comfy, scene: world.Scene, keep: str = "") -> str:
    """A picture in the server's input folder, whose mask (transparent in the file) is the half to keep."""
    picture = (world.render(scene) * 255).round().astype(np.uint8)
    if keep:
        tokens = np.frombuffer(world.kept_tokens(keep), dtype=np.uint8).reshape(world.SIZE // 16, -1)
        picture = np.dstack([picture, 255 * (1 - tokens.repeat(16, 0).repeat(16, 1))])
    name = f"scene{next(numbers)}.png"
    Image.fromarray(picture).save(comfy.base / "input" / name)
    return name
