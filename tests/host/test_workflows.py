"""Every example graph of klein in API format, run in the real host, with small weights in the released formats (the tiny
ones: test_meaning.py)."""

import json

import numpy as np
import pytest
from PIL import Image

from fixtures.lora import written
from tools import provision, small

NAMES = sorted(path.stem for path in (provision.ROOT / "workflows/api").glob("klein_[!t]*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_and_leaves_an_image(comfy, name):
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[20:40, 30:60, 3] = 0  # what is painted in the mask editor
    Image.fromarray(pixels).save(comfy.base / "input" / "example.png")
    small.save(written("ai-toolkit", small.flow_state(**small.FLOW))[0], comfy.base / "models/loras/lora.safetensors")
    comfy.get("/object_info")
    graph = json.loads((provision.ROOT / f"workflows/api/{name}.json").read_text())
    size = (96, 64)
    for node in graph.values():
        if node["class_type"] == "EmptyFlux2LatentImage":
            size = (256, 192)
            node["inputs"].update(width=256, height=192)
        elif node["inputs"].get("mode") == "outpaint":
            size = (96 + node["inputs"]["left"] + node["inputs"]["right"], 64)
    (save,) = [number for number, node in graph.items() if node["class_type"] == "SaveImage"]
    (image,) = comfy.run(graph)[save]["images"]
    assert Image.open(comfy.file(image)).size == size
