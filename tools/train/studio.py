"""The tiny Klein at work in a real ComfyUI over HTTP: prompts and reference pictures in, pictures out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

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
    graph = {
        "flow": node("KleinFlowLoader", flow_name=flow, weight_dtype="default", variant="auto"),
        "cached": node("KleinReferenceCache", model=["flow", 0], mode=cache, device="gpu", dtype="model"),
        "clip": node("KleinQwen3EncoderLoader", encoder_name=ENCODER, device="default"),
        "vae": node("KleinVAELoader", vae_name=VAE),
        "empty": node("EmptyFlux2LatentImage", width=world.SIZE, height=world.SIZE, batch_size=1),
    }
    saves = []
    for i, job in enumerate(jobs):
        graph[f"prompt{i}"] = node("KleinPrompt", clip=["clip", 0], text=job.prompt)
        positive, latent = [f"prompt{i}", 0], ["empty", 0]
        if job.references:
            strengths, chain = job.strengths or (1.0,) * len(job.references), {}
            for k, (scene, strength) in enumerate(zip(job.references, strengths)):
                graph[f"image{i}_{k}"] = node("LoadImage", image=upload(comfy, scene, job.keep))
                mask = {"mask": [f"image{i}_{k}", 1]} if job.keep else {}
                graph[f"reference{i}_{k}"] = node(
                    "KleinReference", image=[f"image{i}_{k}", 0], strength=strength, start_percent=0.0, end_percent=1.0,
                    **mask, **chain,
                )  # fmt: skip
                chain = {"references": [f"reference{i}_{k}", 0]}
            graph[f"references{i}"] = node(
                "KleinMultiReference", positive=positive, vae=["vae", 0], sizing="exact", max_megapixels=1.0,
                width=world.SIZE, height=world.SIZE, batch_size=1, **chain,
            )  # fmt: skip
            positive, latent = [f"references{i}", 0], [f"references{i}", 2]
        graph[f"sampler{i}"] = node(
            "KleinDistilledSampler", model=["cached", 0], positive=positive, latent_image=latent, seed=seed + i, steps=steps,
            cfg=1.0, denoise=1.0, schedule="official",
        )  # fmt: skip
        graph[f"decode{i}"] = node("VAEDecode", samples=[f"sampler{i}", 0], vae=["vae", 0])
        graph[f"save{i}"] = node("SaveImage", images=[f"decode{i}", 0], filename_prefix=f"tiny{next(numbers)}")
        saves.append(f"save{i}")
    return graph, saves


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def upload(comfy, scene: world.Scene, keep: str = "") -> str:
    """A picture in the server's input folder, whose mask (transparent in the file) is the half to keep."""
    picture = (world.render(scene) * 255).round().astype(np.uint8)
    if keep:
        tokens = np.frombuffer(world.kept_tokens(keep), dtype=np.uint8).reshape(world.SIZE // 16, -1)
        picture = np.dstack([picture, 255 * (1 - tokens.repeat(16, 0).repeat(16, 1))])
    name = f"scene{next(numbers)}.png"
    Image.fromarray(picture).save(comfy.base / "input" / name)
    return name
