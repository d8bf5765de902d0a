"""From a queued prompt to the end of one step, with an encoder of Qwen3-8B's sizes in fp8 (random weights) and a flow model so
small that it counts for nothing: what a prompt costs that nobody knows, and one that the store knows.

Bytes are those that the server's process had from the disk; the encoder's file is put out of the system's memory before each
cold start. The ratio is to the cold prompt.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from tools import small
from tools.server import Server
from workflows.graph import Graph

from . import synthetic
from .table import Row

ENCODER, FLOW = "qwen_3_8b.safetensors", "flow.safetensors"


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
    path, times, read = folder / "models/text_encoders" / ENCODER, {}, {}
    synthetic.write(path, synthetic.encoder(), lambda name: "layers" in name)
    flow = small.flow_state(hidden=256, heads=2, context=3 * synthetic.ENCODER.hidden_size, mlp=768)
    small.save(flow, folder / "models/diffusion_models" / FLOW)

    def timed(name: str, server: Server, prompt: str) -> None:
        before, start = had(server), time.perf_counter()
        server.run(graph(prompt))
        times.setdefault(name, []).append(time.perf_counter() - start)
        read.setdefault(name, []).append(had(server) - before)

    for number in range(rounds):
        for life in ("first", "second"):
            synthetic.forget(path)
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
