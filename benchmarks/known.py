"""From a queued prompt to the end of one step, with an encoder of Qwen3-8B's sizes in fp8 (random weights) and a flow model so
small that it counts for nothing: what a prompt costs that nobody knows, and one that the store knows.

Bytes are those that the server's process had from the disk; the encoder's file is put out of the system's memory before each
cold start. The ratio is to the cold prompt.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np

from klein.model_loaders.qwen3.encoder import EncoderSizes, Qwen3Encoder
from tools import small
from tools.server import Server
from workflows.graph import Graph

from .table import Row

SIZES, LAYERS = EncoderSizes(4096, 32, 8, 128, 12288, 151936), 36
ENCODER, FLOW = "qwen_3_8b.safetensors", "flow.safetensors"
BLOCK = 2**24  # bytes of random weights, repeated


def tensors() -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """As small.header takes them: matrices of the layers in fp8, the rest in bf16, as the fp8 files of the field."""
    found = {}
    for name, p in Qwen3Encoder(SIZES, device="meta").model.named_parameters():
        found[name] = (*(("F8_E4M3", 1) if p.ndim == 2 and "layers" in name else ("BF16", 2)), tuple(p.shape))
        if name.startswith("layers.0."):
            found |= {name.replace("layers.0.", f"layers.{n}."): found[name] for n in range(LAYERS)}
    return {f"model.{name}": found[name] for name in sorted(found)}


def write(path: Path) -> Path:
    rng = np.random.default_rng(0)
    small_numbers = (rng.integers(0, 32, BLOCK, dtype=np.uint8) | (rng.integers(0, 2, BLOCK, dtype=np.uint8) << 7)).tobytes()
    ones = np.full(BLOCK // 2, 0x3F80, dtype=np.uint16).tobytes()
    blocks = {1: small_numbers, 2: ones}  # by the bytes of an element
    start, sizes = small.header(found := tensors())
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(start)
        for (_, itemsize, _), size in zip(found.values(), sizes, strict=True):
            for done in range(0, size, BLOCK):
                file.write(blocks[itemsize][: min(BLOCK, size - done)])
        file.flush()
        os.fsync(file.fileno())
    return path


def forget(path: Path) -> None:
    """Out of the system's memory."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def graph(prompt: str) -> dict:
    made = Graph("known", "known")
    clip = made.put("KleinQwen3EncoderLoader", encoder_name=ENCODER)
    sampled = made.put(
        "KleinDistilledSampler", model=made.put("KleinFlowLoader", flow_name=FLOW),
        positive=made.put("KleinPrompt", clip=clip, text=prompt), latent_image=made.put("EmptyFlux2LatentImage", width=64, height=64),
        steps=1,
    )  # fmt: skip
    vae = made.put("KleinVAELoader", vae_name="klein-tiny-vae.safetensors")
    made.add("SaveImage", images=made.put("VAEDecode", samples=sampled, vae=vae), filename_prefix="known")
    return made.api()


def measure(folder: Path, rounds: int) -> list[Row]:
    path, times, read = write(folder / "models/text_encoders" / ENCODER), {}, {}
    small.save(
        small.flow_state(hidden=256, heads=2, context=3 * SIZES.hidden_size, mlp=768), folder / "models/diffusion_models" / FLOW
    )

    def timed(name: str, server: Server, prompt: str) -> None:
        before, start = had(server), time.perf_counter()
        server.run(graph(prompt))
        times.setdefault(name, []).append(time.perf_counter() - start)
        read.setdefault(name, []).append(had(server) - before)

    for number in range(rounds):
        for life in ("first", "second"):
            forget(path)
            server = Server(folder).start()
            try:
                if life == "first":
                    timed("nothing known, fresh server", server, f"a cat {number}")
                    timed("another prompt, same server", server, f"a dog {number}")
                    timed("known prompt, same server", server, f"a cat {number}")
                else:
                    timed("known prompt, fresh server", server, f"a dog {number}")
            finally:
                server.stop()
    cold = statistics.median(times["nothing known, fresh server"])
    return [
        Row(f"prompt to step, {name} ({statistics.median(read[name]) / 1e9:.2g} GB read)", median, median / cold)
        for name, median in ((name, statistics.median(values)) for name, values in times.items())
    ]


def had(server: Server) -> int:
    """Bytes that the server's process has had from the disk."""
    lines = Path(f"/proc/{server.process.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])
