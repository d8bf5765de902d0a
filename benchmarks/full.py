"""The full sizes in a real host: klein 9B in fp8 and in Q4_K and Qwen3-8B in fp8, random weights. From a file's name to a MODEL,
and one step of 256x256 behind a prompt; the peak of anonymous memory (what is not mapped from files) over that of the host
before, with the bytes that lie in the files against the bytes of the weights that the host keeps and counts: on a CPU it keeps
the plain weights of an fp8 file in float32, of an encoder's file 27 layers. Linux only; it writes 24 GB.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from klein.model_loaders.flow.sizes import expected_shapes
from tools import small_gguf
from tools.server import Server, anonymous_bytes
from tools.small import blocks
from workflows.graph import Graph

from . import synthetic
from .preflight import KLEIN_9B
from .table import Row

ENCODER = "qwen_3_8b.safetensors"


def measure(folder: Path) -> list[Row]:
    models, shapes = folder / "models", expected_shapes(KLEIN_9B)
    encoder = synthetic.write(models / "text_encoders" / ENCODER, synthetic.encoder(), lambda name: "layers" in name)
    flows = {
        "fp8": synthetic.write(models / "diffusion_models/klein-9b-fp8.safetensors", shapes, blocks),
        "Q4_K": q4_k(models / "diffusion_models/klein-9b-q4_k.gguf", shapes),
    }
    rows = []
    for name, path in flows.items():
        for each in (path, encoder):
            synthetic.forget(each)
        server = Server(folder).start()
        try:
            before = anonymous_bytes(server.process.pid)
            looked, stepped = (watched(server, graph(path.name), before) for graph in (look, step))
            (latent,) = (folder / "output/latents").glob(f"{path.stem}*.latent")
            assert torch.isfinite(load_file(latent)["latent_tensor"]).all(), "the latent is not finite"
            text, model = loaded(server)
            lies = path.stat().st_size
            rows += said(f"9B {name}, {lies / 1e9:.2f} GB: from its name to a MODEL", *looked, lies, model, "at most 1.10")
            what = f"9B {name} and 27 layers of 8B fp8, {(lies + text) / 1e9:.1f} GB: a prompt and one step of 256x256, finite"
            rows += said(what, *stepped, lies + text, model + text)
        finally:
            server.stop()
    return rows


def q4_k(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Rows of blocks that ggml wrote, in each matrix the same row."""
    tensors = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 2 and blocks(name):
            row = small_gguf.packed("Q4_K", (1, shape[1]), seed)
            tensors[name] = ("Q4_K", np.broadcast_to(row, (shape[0], row.shape[1])))
        else:
            tensors[name] = (torch.randn(shape) / 64 if len(shape) == 2 else torch.ones(shape)).bfloat16()
    return small_gguf.write(tensors, path)


def look(flow: str) -> dict:
    graph = Graph("full", "full")
    graph.add("KleinPreflight", model=graph.put("KleinFlowLoader", flow_name=flow))
    return graph.api()


def step(flow: str) -> dict:
    """Behind a prompt of its own: one that the store knows from the flow before needs no encoder."""
    graph = Graph("full", "full")
    clip = graph.put("KleinQwen3EncoderLoader", encoder_name=ENCODER)
    latent = graph.put(
        "KleinDistilledSampler", model=graph.put("KleinFlowLoader", flow_name=flow),
        positive=graph.put("KleinPrompt", clip=clip, text=f"a cat beside {flow}"), latent_image=graph.put("EmptyFlux2LatentImage", width=256, height=256),
        steps=1,
    )  # fmt: skip
    save = {
        "class_type": "SaveLatent",
        "inputs": {"samples": [str(latent.node), latent.output], "filename_prefix": f"latents/{Path(flow).stem}"},
    }
    return {**graph.api(), "save": save}


def watched(server: Server, graph: dict, before: int) -> tuple[float, int]:
    """The seconds of a run, and the peak of the host's anonymous memory over that before any model."""
    done, peaks = threading.Event(), [before]

    def watch() -> None:
        while not done.wait(0.2):
            peaks.append(anonymous_bytes(server.process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        server.wait(server.queue(graph), patience=3600)  # a CPU takes minutes for what a card does in a second
        return time.perf_counter() - start, max(peaks) - before
    finally:
        done.set()
        watcher.join()


def loaded(server: Server) -> list[float]:
    """Bytes of the weights of the encoder and the flow, as the host counts what it has loaded."""
    return [float(found) * 2**20 for found in re.findall(r"([\d.]+) MB loaded, full load: True", server.log.read_text())]


def said(what: str, seconds: float, peak: int, lies: float, kept: float, bound: str = "") -> list[Row]:
    return [Row(what, seconds), Row(f"{what}: peak over the host's", peak / 1e9, (lies + peak) / kept, bound, "GB")]
