"""The agents' HTTP against the same graph through the host's own /prompt, with klein-tiny; and an agent loop whose two
references stay the same; the host's memory; and three hosts behind nginx (fleet.py)."""

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
from tools.server import Server, anonymous_bytes
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
WARM, LAST = 100, 400  # requests between which memory is looked at
KNOWN = 10  # prompts and references that come again and again
seeds = itertools.count(2)


def measure(folder, rounds: int) -> list[Row]:
    server = Server(folder / "serving", "--use-pytorch-cross-attention")
    put(server)
    server.start()
    try:
        rows = [*overhead(server, rounds), *loop(server, rounds), *growth(server)]
    finally:
        server.stop()
    return [*rows, *fleet.measure(folder, rounds, put)]


def put(server: Server) -> None:
    for category, (tiny, names) in FILES.items():
        for name in names:
            server.put(ROOT / "tiny" / category / tiny, category, name)


class Plain:
    """The graph of the last request through the host's own /prompt, as its web page runs graphs."""

    def __init__(self, server: Server):
        self.server = server
        self.graph = list(server.get("/history").values())[-1]["prompt"][2]
        (self.save,) = [number for number, node in self.graph.items() if node["class_type"] == "SaveImage"]
        self.events = create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId={server.client}", timeout=600)

    def run(self, new_seed: bool) -> None:
        self.graph[self.save]["inputs"]["filename_prefix"] = f"plain{next(seeds)}"
        for node in self.graph.values():
            if new_seed and "seed" in node["inputs"]:
                node["inputs"]["seed"] = next(seeds)
        queued = self.server.queue(self.graph)
        while True:
            message = self.events.recv()
            event = json.loads(message) if isinstance(message, str) else {"type": "preview"}
            if event["type"] == "executing" and event["data"]["node"] is None and event["data"]["prompt_id"] == queued:
                break
        (image,) = self.server.get(f"/history/{queued}")[queued]["outputs"][self.save]["images"]
        with urllib.request.urlopen(f"{self.server.url}/view?filename={image['filename']}&type=output") as answer:
            answer.read()


def overhead(server: Server, rounds: int) -> list[Row]:
    """The same seed again and again, so that only saving runs, in both under a new name each time."""
    server.post("/v1/images/generations", ASKED)
    plain = Plain(server)
    ways = {
        "graph through /prompt, events, /history and /view": lambda: [plain.run(new_seed=False) for _ in range(RUNS)],
        "the same through /v1/images/generations": lambda: [server.post("/v1/images/generations", ASKED) for _ in range(RUNS)],
    }
    times = {name: seconds / RUNS for name, seconds in interleaved(ways, rounds).items()}
    theirs, ours = times.values()
    rows = [Row(f"{name}, nothing to paint", seconds) for name, seconds in times.items()]
    return [*rows, Row("what a request costs more", 1000 * (ours - theirs), (ours - theirs) / 0.02, "at most 1 (20 ms)", "ms")]


def loop(server: Server, rounds: int) -> list[Row]:
    """A new seed each, with the references new each time, as in a loop's first call, or the same, as in its later calls, and
    these through /prompt; with the K/V model, which keeps what it computed of them, and without."""
    kept = [picture(0), picture(1)]
    fields = {"prompt": "the object of image 1 on the background of image 2", "size": f"{world.SIZE}x{world.SIZE}"}

    def edit(model: str, pictures: list[str]) -> None:
        server.post("/v1/images/edits", {**fields, "model": model, "seed": next(seeds), "image": pictures})

    rows = []
    for model in ("flux-2-klein-9b", "flux-2-klein-9b-kv"):
        edit(model, kept)
        ways = {
            "first call": partial(lambda model: edit(model, [picture(next(seeds)), picture(next(seeds))]), model),
            "back to the kept ones": partial(edit, model, kept),
            "later calls": partial(edit, model, kept),
            "the graph through /prompt": partial(Plain(server).run, new_seed=True),
        }
        times = interleaved(ways, rounds)
        del times["back to the kept ones"]
        what = f"two references of {LARGE}x{LARGE} through {model} (klein-tiny's weights)"
        rows += [Row(f"{what}, {name}", 60 / each, times["first call"] / each, unit="a minute") for name, each in times.items()]
    return rows


def growth(server: Server) -> list[Row]:
    """Of the host's memory over some hundred requests: with prompts and references that it knows already, so that nothing has
    to grow; and with new ones each time, of which the pack's store may keep 256 MB."""

    def ask(count: int, known: int) -> None:
        for number in range(count):
            which = number % known if known else next(seeds)
            body = {**ASKED, "prompt": f"a large red circle, {which}", "seed": next(seeds), "steps": 1, "size": "64x64"}
            server.post("/v1/images/edits", {**body, "image": [picture(which, world.SIZE)]})

    def memory(clear: bool) -> int:
        if clear:
            server.post("/history", {"clear": True})
        return anonymous_bytes(server.process.pid)

    rows = []
    for known, what in ((KNOWN, "known"), (0, "new")):
        ask(WARM, known)
        start = memory(clear=True)
        ask(LAST - WARM, known)
        for clear, how in ((False, "kept"), (True, "cleared")):
            end = memory(clear)
            name = f"memory from request {WARM} to {LAST}, prompts and references {what}, ComfyUI's history {how}"
            bound = "at most 0.01" if clear and known else ""
            rows.append(Row(name, (end - start) / 1e6, end / start - 1, bound, "MB"))
    return rows


def picture(number: int, side: int = LARGE) -> str:
    colour = (number * 37 % 256, number // 256 % 256, number * 11 % 256)
    file = BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
