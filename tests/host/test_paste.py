"""Untouched pixels over HTTP: what Save Image writes beside what Load Image read."""

import random

import numpy as np
import pytest
from PIL import Image

from workflows.graph import Graph, out


def hard_cases(count: int):
    """(picture as PIL saves it, mask (h, w) bool, Klein Edit's settings): odd sizes, 1 pixel masks, masks at the border, full
    ones, 8 to 1, 12 megapixels, grey and alpha."""
    rng, pixels = random.Random(21), np.random.default_rng(21)
    for number in range(count):
        width, height = rng.randint(17, 300), rng.randint(17, 300)
        if number % 10 == 1:
            width, height = rng.choice([(320, 40), (40, 320)])
        if number == 7:
            width, height = 4000, 3000
        mode = ("RGB", "L", "RGB", "RGBA")[number % 4]
        picture = pixels.integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
        mask = np.zeros((height, width), dtype=bool)
        left, top = rng.randrange(width), rng.randrange(height)
        if number % 5 == 0:
            mask[top, left] = True
        elif number % 5 == 1:
            mask[: height // 3, width // 2 :] = True
        elif number % 5 == 2:
            mask[top : top + height // 4 + 1, left : left + width // 4 + 1] = True
        elif number % 5 == 3:
            mask[top] = True
        else:
            mask[:] = True
        context = rng.choice([0.0, 0.5, -1.0])
        settings = dict(context=context, grow=rng.choice([0, 2, 16]), feather=rng.choice([0, 8]), max_megapixels=0.05)
        yield Image.fromarray(picture.squeeze(), mode), mask, settings


@pytest.mark.parametrize("part", range(2))
def test_outside_the_grown_mask_a_saved_picture_is_the_source_in_every_bit(comfy, request, part):
    """All three blends of each; 12 pictures, with --long 100. Decoded are the region's own latents, so that all drifts."""
    count = 50 if request.config.getoption("--long") else 6
    cases = list(hard_cases(2 * count))[part * count : (part + 1) * count]
    for number, (picture, mask, settings) in enumerate(cases):
        picture.save(comfy.base / "input" / "untouched.png")
        Image.fromarray((255 * mask).astype(np.uint8)).save(comfy.base / "input" / "touched.png")
        graph = Graph("untouched", "untouched")

        def add(kind: str, output: int = 0, **inputs):
            return out(graph, graph.add(kind, **inputs), output)

        vae = add("KleinVAELoader", vae_name="flux2-vae.safetensors")
        clip = add("KleinQwen3EncoderLoader", encoder_name="klein-tiny")
        edit = graph.add(
            "KleinEdit", positive=add("KleinPrompt", clip=clip, text=str(number)), vae=vae, mode="repaint",
            image=add("LoadImage", image="untouched.png"), mask=add("LoadImageMask", image="touched.png", channel="red"),
            **settings,
        )  # fmt: skip
        decoded, canvas = add("VAEDecode", samples=out(graph, edit, 2), vae=vae), out(graph, edit, 3)
        blends = ("feather", "seamless", "none")
        backs = [graph.add("KleinCanvasRestore", image=decoded, canvas=canvas, blend=blend) for blend in blends]
        saves = [graph.add("SaveImage", images=out(graph, back)) for back in backs]
        saves.append(graph.add("SaveImage", images=add("MaskToImage", mask=out(graph, backs[0], 1))))
        outputs = comfy.run(graph.api())
        *images, changed = (np.asarray(Image.open(comfy.file(outputs[str(save)]["images"][0]))) for save in saves)
        source, outside = np.asarray(picture.convert("RGB")), changed[..., 0] == 0
        assert not (outside & mask).any()
        for image in images:
            assert image.shape == source.shape and np.array_equal(image[outside], source[outside])
            assert not np.array_equal(image[mask], source[mask])
