"""Graphs in API format, built on the example workflow."""

from __future__ import annotations

import copy
import itertools
import json
import time

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from websocket import create_connection

from . import provision
from .server import PromptError

FLOW, ENCODER, VAE = "flux-2-klein-9b.safetensors", "qwen_3_8b.safetensors", "flux2-vae.safetensors"

counter = itertools.count()


class Graph(dict):
    """Nodes by name; `new` adds one, `latent` and `image` run it and read what it saved."""

    def __init__(self, comfy):
        example = json.loads((provision.ROOT / "workflows/api/klein_9b_text_to_image.json").read_text())
        names = {node["class_type"]: number for number, node in example.items()}
        super().__init__(copy.deepcopy(example))
        self.comfy = comfy
        self.flow, self.clip, self.vae = (
            self[names[kind]]["inputs"] for kind in ("KleinFlowLoader", "KleinQwen3EncoderLoader", "KleinVAELoader")
        )
        self.flow["flow_name"], self.clip["encoder_name"], self.vae["vae_name"] = FLOW, ENCODER, VAE
        self.prompt, self.sampler = self[names["KleinPrompt"]]["inputs"], self[names["KleinDistilledSampler"]]["inputs"]
        self.canvas = self[names["EmptyFlux2LatentImage"]]["inputs"]
        self.canvas.update(width=256, height=192)
        self.sampler["seed"] = 7
        self.model, self.positive, self.empty = self.sampler["model"], self.sampler["positive"], self.sampler["latent_image"]
        self.clip_out, self.sampled = self.prompt["clip"], [names["KleinDistilledSampler"], 0]
        self.save = names["SaveImage"]
        self[self.save]["inputs"]["filename_prefix"] = f"image{next(counter)}"

    def new(self, class_type, **inputs):
        number = f"new{next(counter)}"
        self[number] = {"class_type": class_type, "inputs": inputs}
        return [number, 0]

    def reference(self, image, **settings):
        """A link to a chain of references."""
        return self.new("KleinReference", image=image, **{**dict(strength=1.0, start_percent=0.0, end_percent=1.0), **settings})

    def without_image(self):
        """Drop decoding and saving: a test of latents needs neither."""
        decode = self[self.save]["inputs"]["images"][0]
        self.pop(self.save), self.pop(decode)
        return self

    def latents(self, *links):
        """Save the latents at these links (default: the sampler's) and return them, run in one prompt."""
        saves = [
            self.new("SaveLatent", samples=link, filename_prefix=f"l{next(counter)}")[0] for link in links or [self.sampled]
        ]
        try:
            outputs = self.comfy.run(self)
        finally:
            for save in saves:
                del self[save]
        files = [self.comfy.file(outputs[save]["latents"][0]) for save in saves]
        tensors = [load_file(file)["latent_tensor"] for file in files]
        return tensors if links else tensors[0]

    def interrupt_after(self, step: int) -> None:
        """Run with a new seed, interrupt when the sampler has done this step, and wait for the end."""
        events = create_connection(f"ws://127.0.0.1:{self.comfy.port}/ws?clientId={self.comfy.client}", timeout=60)
        kept = self.sampler["seed"]
        self.sampler["seed"] = time.time_ns() % 2**53
        save = self.new("SaveLatent", samples=self.sampled, filename_prefix="interrupted")[0]
        prompt = self.comfy.queue(self)
        self.sampler["seed"] = kept
        del self[save]
        while True:
            message = events.recv()
            event = json.loads(message) if isinstance(message, str) else {"type": "preview"}
            if event["type"] == "progress" and event["data"]["max"] == self.sampler["steps"] and event["data"]["value"] >= step:
                break
        events.close()
        self.comfy.post("/interrupt")
        try:
            self.comfy.wait(prompt)
        except PromptError as error:
            if error.kind == "interrupted":
                return
            raise
        raise AssertionError("the prompt ended before it was interrupted")


def picture(comfy, name, width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(comfy.base / "input" / name)
    return name
