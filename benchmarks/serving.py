"""The agents' HTTP against the same graph through the host's own /prompt, with klein-tiny; and an agent loop whose two
references stay the same."""

from __future__ import annotations

import base64
import itertools
import json
import urllib.request
from functools import partial
from io import BytesIO

from PIL import Image
from websocket import create_connection

from tools.provision import ROOT
from tools.server import Server
from tools.train import world

from . import fleet
from .table import Row, interleaved

ASKED = {"model": "klein-tiny", "prompt": "a large red circle on a white background, in the center", "seed": 1}
FILES = {
    "diffusion_models": ("klein-tiny.safetensors", ["flux-2-klein-9b.safetensors", "flux-2-klein-9b-kv.safetensors"]),
    "text_encoders": ("klein-tiny", ["qwen_3_8b"]),
    "vae": ("klein-tiny-vae.safetensors", ["flux2-vae.safetensors"]),
}
LARGE = 512  # pixels a side of a reference
RUNS = 30  # of the small thing in one round
seeds = itertools.count(2)


def measure(folder, rounds: int) -> list[Row]:
    server = Server(folder / "serving", "--use-pytorch-cross-attention")
    put(server)
    server.start()
    try:
        rows = [*overhead(server, rounds), *loop(server, rounds)]
    finally:
        server.stop()
    return [*rows, *fleet.measure(folder, rounds, put)]


def put(server: Server) -> None:
    for category, (tiny, names) in FILES.items():
        for name in names:
            server.put(ROOT / "tiny" / category / tiny, category, name)


def overhead(server: Server, rounds: int) -> list[Row]:
    """The same seed again and again, so that only saving runs, in both under a new name each time."""
    server.post("/v1/images/generations", ASKED)
    graph = list(server.get("/history").values())[-1]["prompt"][2]
    (save,) = [number for number, node in graph.items() if node["class_type"] == "SaveImage"]
    events = create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId={server.client}", timeout=60)

    def prompt() -> None:
        graph[save]["inputs"]["filename_prefix"] = f"plain{next(seeds)}"
        queued = server.queue(graph)
        while True:
            message = events.recv()
            event = json.loads(message) if isinstance(message, str) else {"type": "preview"}
            if event["type"] == "executing" and event["data"]["node"] is None and event["data"]["prompt_id"] == queued:
                break
        (image,) = server.get(f"/history/{queued}")[queued]["outputs"][save]["images"]
        with urllib.request.urlopen(f"{server.url}/view?filename={image['filename']}&type=output") as answer:
            answer.read()

    ways = {
        "graph through /prompt, events, /history and /view": lambda: [prompt() for _ in range(RUNS)],
        "the same through /v1/images/generations": lambda: [server.post("/v1/images/generations", ASKED) for _ in range(RUNS)],
    }
    times = {name: seconds / RUNS for name, seconds in interleaved(ways, rounds).items()}
    plain, ours = times.values()
    rows = [Row(f"{name}, nothing to paint", seconds) for name, seconds in times.items()]
    return [*rows, Row("what a request costs more", 1000 * (ours - plain), (ours - plain) / 0.02, "at most 1 (20 ms)", "ms")]


def loop(server: Server, rounds: int) -> list[Row]:
    """A new seed each, with the references new each time or the same, with the K/V model, which keeps theirs, and without."""
    kept = [picture(0), picture(1)]
    fields = {"prompt": "the object of image 1 on the background of image 2", "size": f"{world.SIZE}x{world.SIZE}"}

    def edit(model: str, pictures: list[str]) -> None:
        server.post("/v1/images/edits", {**fields, "model": model, "seed": next(seeds), "image": pictures})

    rows = []
    for model in ("flux-2-klein-9b", "flux-2-klein-9b-kv"):
        ways = {
            "new": partial(lambda model: edit(model, [picture(next(seeds)), picture(next(seeds))]), model),
            "the same": partial(edit, model, kept),
        }
        times = interleaved(ways, rounds)
        what = f"two references of {LARGE}x{LARGE} through {model} (klein-tiny's weights)"
        rows += [Row(f"{what}, {name}", seconds, seconds / times["new"]) for name, seconds in times.items()]
    return rows


def picture(number: int) -> str:
    colour = (number * 37 % 256, number * 91 % 256, number * 11 % 256)
    file = BytesIO()
    Image.new("RGB", (LARGE, LARGE), colour).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
