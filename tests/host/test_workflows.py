"""Every example graph of the 9B in API format, run in the real host, with small weights in the released formats (the tiny
ones: test_meaning.py)."""

import json

import pytest
from PIL import Image

from fixtures.graph import picture
from tools import provision

NAMES = sorted(path.stem for path in (provision.ROOT / "workflows/api").glob("klein_9b_*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_and_leaves_an_image(comfy, name):
    picture(comfy, "example.png", 96, 64, 3)
    graph = json.loads((provision.ROOT / f"workflows/api/{name}.json").read_text())
    kinds = [node["class_type"] for node in graph.values()]
    size = (256, 192) if "EmptyFlux2LatentImage" in kinds else (96, 64)
    for node in graph.values():
        if node["class_type"] == "EmptyFlux2LatentImage":
            node["inputs"].update(width=256, height=192)
    (save,) = [number for number, node in graph.items() if node["class_type"] == "SaveImage"]
    (image,) = comfy.run(graph)[save]["images"]
    assert Image.open(comfy.file(image)).size == size
