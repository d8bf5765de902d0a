"""Untouched pixels over HTTP: what Save Image writes beside what Load Image read."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt
from skimage import data

from klein.pictures.colour import delta_e
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
    """All three blends of each, colours matched or not, and what changed alone; 12 pictures, with --long 100. Decoded are the region's own latents, so that all drifts."""
    count = 50 if request.config.getoption("--long") else 6
    cases = list(hard_cases(2 * count))[part * count : (part + 1) * count]
    for number, (picture, mask, settings) in enumerate(cases):
        picture.save(comfy.base / "input" / "untouched.png")
        Image.fromarray((255 * mask).astype(np.uint8)).save(comfy.base / "input" / "touched.png")
        graph = Graph("untouched", "untouched")

        vae = graph.put("KleinVAELoader", vae_name="flux2-vae.safetensors")
        clip = graph.put("KleinQwen3EncoderLoader", encoder_name="klein-tiny")
        edit = graph.add(
            "KleinEdit", positive=graph.put("KleinPrompt", clip=clip, text=str(number)), vae=vae, mode="repaint",
            image=graph.put("LoadImage", image="untouched.png"), mask=graph.put("LoadImageMask", image="touched.png", channel="red"),
            **settings,
        )  # fmt: skip
        decoded, canvas = graph.put("VAEDecode", samples=out(graph, edit, 2), vae=vae), out(graph, edit, 3)
        ways = [dict(blend=blend, colour=("off", "match")[number % 2]) for blend in ("feather", "seamless", "none")]
        ways.append(dict(blend="feather", colour="match", keep="unchanged"))
        backs = [graph.add("KleinCanvasRestore", image=decoded, canvas=canvas, **way) for way in ways]
        saves = [graph.add("SaveImage", images=out(graph, back)) for back in backs]
        saves.append(graph.add("SaveImage", images=graph.put("MaskToImage", mask=out(graph, backs[0], 1))))
        outputs = comfy.run(graph.api())
        *images, changed = (np.asarray(Image.open(comfy.file(outputs[str(save)]["images"][0]))) for save in saves)
        source, outside = np.asarray(picture.convert("RGB")), distance_transform_edt(~mask) > settings["grow"]
        assert np.array_equal(changed[..., 0] == 0, outside)
        for image in images:
            assert image.shape == source.shape and np.array_equal(image[outside], source[outside])
        assert not any(np.array_equal(image[mask], source[mask]) for image in images[:3])


def test_ten_edits_in_a_row_leave_all_else_as_it_was_and_cores_chain_does_not(comfy):
    """On a photograph, each edit at a place of its own. Core's chain (as its template: the whole picture encoded as the
    reference, sampled, decoded) stands beside it; what it does to the same pixels is measured."""
    photograph = data.chelsea()[:200, :304]
    Image.fromarray(photograph).save(comfy.base / "input" / "photograph.png")
    graph = Graph("ten", "ten")

    model, vae = (
        graph.put("KleinFlowLoader", flow_name="klein-tiny.safetensors"),
        graph.put("KleinVAELoader", vae_name="klein-tiny-vae.safetensors"),
    )
    clip = graph.put("KleinQwen3EncoderLoader", encoder_name="klein-tiny")
    prompt = graph.put("KleinPrompt", clip=clip, text="image 1 but green")
    ours = theirs = graph.put("LoadImage", image="photograph.png")
    masks, saves = [], []
    for number in range(10):
        left, top = 6 + 27 * number, 14 + 47 * number % 130
        masks.append(np.s_[top - 6 : top + 24, left - 6 : left + 30])  # with grow
        placed = graph.put(
            "MaskComposite",
            destination=graph.put("SolidMask", value=0.0, width=304, height=200),
            source=graph.put("SolidMask", value=1.0, width=24, height=18),
            x=left,
            y=top,
        )
        edit = graph.add(
            "KleinEdit",
            positive=prompt,
            vae=vae,
            image=ours,
            mask=placed,
            mode="repaint",
            grow=6,
            feather=4,
            max_megapixels=0.01,
        )
        sampled = graph.put(
            "KleinDistilledSampler", model=model, positive=out(graph, edit), latent_image=out(graph, edit, 2), seed=number
        )
        ours = graph.put(
            "KleinCanvasRestore", image=graph.put("VAEDecode", samples=sampled, vae=vae), canvas=out(graph, edit, 3)
        )
        saves.append(str(graph.add("SaveImage", images=ours)))
        latent = graph.put("VAEEncode", pixels=theirs, vae=vae)
        positive = graph.put("ReferenceLatent", conditioning=prompt, latent=latent)
        empty = graph.put("EmptyFlux2LatentImage", width=304, height=192)
        theirs = graph.put(
            "VAEDecode",
            samples=graph.put("KleinDistilledSampler", model=model, positive=positive, latent_image=empty, seed=number),
            vae=vae,
        )
    saves.append(str(graph.add("SaveImage", images=theirs)))
    outputs = comfy.run(graph.api())
    *edited, last = (np.asarray(Image.open(comfy.file(outputs[save]["images"][0]))) for save in saves)
    untouched, before = np.ones((200, 304), dtype=bool), photograph
    for place, image in zip(masks, edited):
        untouched[place] = False
        elsewhere = np.ones((200, 304), dtype=bool)
        elsewhere[place] = False
        assert np.array_equal(image[elsewhere], before[elsewhere]) and not np.array_equal(image[place], before[place])
        before = image
    assert np.array_equal(before[untouched], photograph[untouched])
    apart = delta_e(torch.from_numpy(last[:192] / 255), torch.from_numpy(photograph[:192] / 255))
    print(f"after ten edits, outside all of them, mean delta E: ours 0, core's chain {apart[untouched[:192]].mean():.1f}")
    assert apart[untouched[:192]].mean() > 1
