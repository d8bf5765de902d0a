"""A job as a graph of the pack's own nodes, one for each seed."""

from __future__ import annotations

from ..workflows.graph import Graph, Link, out
from .job import Job


def graph(job: Job, seed: int, prefix: str) -> Graph:
    """prefix: of the saved file; one of its own each time, as a host that finds a graph wholly unchanged saves nothing."""
    graph = Graph("klein_http", job.model.id)
    model, clip, vae = loaders(graph, job)
    prompts = {"positive": graph.put("KleinPrompt", clip=clip, text=job.prompt)}
    if job.guidance > 1:
        prompts["negative"] = graph.put("KleinPrompt", clip=clip, text="")
    images = [graph.put("LoadImage", image=name) for name in job.references]
    if not images:
        width, height = job.size
        latent, canvas = graph.put("EmptyFlux2LatentImage", width=width, height=height), None
    elif job.mask:
        mask = graph.put("LoadImageMask", image=job.mask, channel="red")
        node = graph.add(
            "KleinEdit", **prompts, vae=vae, image=images[0], mask=mask, mode="repaint", **job.model.edit, **chain(graph, images[1:])
        )  # fmt: skip
        prompts, latent, canvas = combined(graph, node, prompts)
    else:
        width, height = job.size or (0, 0)
        node = graph.add("KleinMultiReference", **prompts, vae=vae, width=width, height=height, **chain(graph, images))
        prompts, latent, _ = combined(graph, node, prompts)
        canvas = None
    sampled = graph.put(
        "KleinDistilledSampler", model=model, **prompts, latent_image=latent, seed=seed, steps=job.steps, cfg=job.guidance
    )
    image = graph.put("VAEDecode", samples=sampled, vae=vae)
    if canvas:
        image = graph.put("KleinCanvasRestore", image=image, canvas=canvas)
    graph.add("SaveImage", images=image, filename_prefix=prefix)
    return graph


def look(job: Job) -> Graph:
    """What Klein Preflight says of a job, which is not run."""
    graph = Graph("klein_http_preflight", job.model.id)
    model, clip, vae = loaders(graph, job)
    latent = {}
    if job.size:
        latent["latent_image"] = graph.put("EmptyFlux2LatentImage", width=job.size[0], height=job.size[1])
    references = chain(graph, [graph.put("LoadImage", image=name) for name in job.references])
    graph.add(
        "KleinPreflight", model=model, clip=clip, vae=vae, **latent, **references, steps=job.steps, cfg=job.guidance, text=job.prompt
    )  # fmt: skip
    return graph


def loaders(graph: Graph, job: Job) -> tuple[Link, Link, Link]:
    model = graph.put("KleinFlowLoader", flow_name=job.model.flow)
    clip = graph.put("KleinQwen3EncoderLoader", encoder_name=job.model.encoder)
    vae = graph.put("KleinVAELoader", vae_name=job.model.vae)
    if job.model.keeps and job.references:
        model = graph.put("KleinReferenceCache", model=model, mode="across_runs")
    return model, clip, vae


def chain(graph: Graph, images: list[Link]) -> dict[str, Link]:
    """References in order; sockets would end at four."""
    linked: dict[str, Link] = {}
    for image in images:
        linked = {"references": graph.put("KleinReference", image=image, **linked)}
    return linked


def combined(graph: Graph, node: int, prompts: dict) -> tuple[dict[str, Link], Link, Link]:
    """The prompts with their references, the latent and the canvas of a node that combines them."""
    return {name: out(graph, node, place) for place, name in enumerate(prompts)}, out(graph, node, 2), out(graph, node, 3)
