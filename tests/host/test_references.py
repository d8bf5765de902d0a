"""Klein Multi Reference and its neighbours in the real host, against diffusers' transformer on the same weights.

Tolerance 1e-4: four steps of 1e-5 each. What must change nothing is compared bit for bit.
"""

import pytest
import torch
from PIL import Image

from fixtures.graph import picture
from klein.samplers.schedule import sigmas
from tools import small
from tools.server import PromptError
from tools.small import comfy_noise, embed, relative

TOLERANCE = 1e-4


def encoded(graph, combined, images):
    return graph.latents(*(graph.new("VAEEncode", pixels=image, vae=combined.vae) for image in images))


def report(graph, comfy, number) -> list[str]:
    show = graph.new("PreviewAny", source=[number, 4])[0]
    outputs = comfy.run(graph)
    assert outputs[show]["text"] == outputs[number]["text"]
    return outputs[show]["text"][0].split("\n")


def test_neutral_references_are_bit_equal_to_reference_latent_and_match_diffusers(graph, combined, pictures, oracle):
    combined(image_1=pictures[0], image_2=pictures[1], references=graph.reference(pictures[2]))
    got = graph.latents()
    latents = encoded(graph, combined, pictures)
    positive = graph.positive
    for image in pictures:
        latent = graph.new("VAEEncode", pixels=image, vae=combined.vae)
        positive = graph.new("ReferenceLatent", conditioning=positive, latent=latent)
    graph.sampler.update(positive=positive, latent_image=graph.empty)
    assert torch.equal(got, graph.latents())
    text = embed(oracle, graph.prompt["text"])
    want = small.euler(oracle.transformer, comfy_noise(7), sigmas(4, 192), text, latents)
    assert relative(got, want) < TOLERANCE


def test_references_of_the_conditioning_come_first_and_a_batch_is_several(graph, combined, pictures):
    combined(image_1=pictures[0], image_2=pictures[2], image_3=pictures[2])
    want = graph.latents()
    latent = graph.new("VAEEncode", pixels=pictures[0], vae=combined.vae)
    before = graph.new("ReferenceLatent", conditioning=graph.positive, latent=latent)
    batch = graph.new("ImageBatch", image1=pictures[2], image2=pictures[2])
    combined(positive=before, image_2=batch)
    assert torch.equal(graph.latents(), want)


@pytest.mark.parametrize("gone", ["strength", "mask"])
def test_a_last_reference_that_is_gone_equals_the_graph_without_it_bit_for_bit(graph, combined, pictures, gone):
    """Painted too little for any token is gone; an unpainted mask is none."""
    combined(image_1=pictures[0])
    want = graph.latents()
    dot = graph.new(
        "MaskComposite", destination=graph.new("SolidMask", value=0.0, width=64, height=160),
        source=graph.new("SolidMask", value=1.0, width=4, height=4), x=0, y=0, operation="add",
    )  # fmt: skip
    settings = {"strength": 0.0} if gone == "strength" else {"mask": dot}
    combined(image_1=pictures[0], references=graph.reference(pictures[1], **settings))
    assert torch.equal(graph.latents(), want)


def test_a_mask_on_which_nothing_is_painted_is_none_bit_for_bit(graph, combined, pictures):
    combined(image_1=pictures[0], references=graph.reference(pictures[1]))
    want = graph.latents()
    empty = graph.new("SolidMask", value=0.0, width=64, height=64)
    combined(image_1=pictures[0], references=graph.reference(pictures[1], mask=empty))
    assert torch.equal(graph.latents(), want)


def test_a_mask_leaves_out_its_tokens_and_keeps_the_places_of_the_others(graph, combined, pictures, oracle):
    half = graph.new(
        "MaskComposite", destination=graph.new("SolidMask", value=0.0, width=96, height=64),
        source=graph.new("SolidMask", value=1.0, width=40, height=64), x=0, y=0, operation="add",
    )  # fmt: skip
    combined(references=graph.reference(pictures[1], references=graph.reference(pictures[0], mask=half)))
    got = graph.latents()
    latents = encoded(graph, combined, pictures[:2])
    keep = torch.zeros(4, 6, dtype=torch.bool)
    keep[:, :3] = True  # 40 of 48 pixels: two whole columns and half of the third
    text = embed(oracle, graph.prompt["text"])
    want = small.euler(oracle.transformer, comfy_noise(7), sigmas(4, 192), text, latents, keep=[keep.flatten(), None])
    assert relative(got, want) < TOLERANCE


def test_a_window_is_counted_in_steps(graph, combined, pictures, oracle):
    combined(references=graph.reference(pictures[0], start_percent=0.5))
    got = graph.latents()
    latents = [encoded(graph, combined, pictures[:1])[0]]
    text, schedule = embed(oracle, graph.prompt["text"]), sigmas(4, 192)
    x = small.euler(oracle.transformer, comfy_noise(7), schedule[:3], text)
    want = small.euler(oracle.transformer, x, schedule[2:], text, latents)
    assert relative(got, want) < TOLERANCE


def test_strength_changes_the_image_and_1_does_not(graph, combined, pictures):
    combined(image_1=pictures[0])
    plain = graph.latents()
    combined(references=graph.reference(pictures[0], strength=1.0))
    assert torch.equal(graph.latents(), plain)
    combined(references=graph.reference(pictures[0], strength=2.0))
    assert relative(graph.latents(), plain) > 1e-3


def test_the_negative_gets_the_same_references(graph, combined, pictures, oracle):
    negative = graph.new("KleinPrompt", clip=graph.clip_out, text="")
    number = combined(image_1=pictures[0], negative=negative)
    graph.sampler.update(cfg=3.0, negative=[number, 1])
    got = graph.latents()
    latents = [encoded(graph, combined, pictures[:1])[0]]
    texts = embed(oracle, graph.prompt["text"]), embed(oracle, "")
    want = small.euler(oracle.transformer, comfy_noise(7), sigmas(4, 192), texts[0], latents, cfg=3.0, negative=texts[1])
    assert relative(got, want) < TOLERANCE


def test_without_any_reference_the_conditioning_is_the_prompts_own(graph, combined):
    want = graph.latents()
    combined()
    assert torch.equal(graph.latents(), want)


def test_the_canvas_is_image_1s_and_the_result_comes_back_at_its_size(graph, combined, comfy):
    image = graph.new("LoadImage", image=picture(comfy, "odd.png", 100, 70, 4))
    number = combined(image_1=image, width=0, height=0)
    assert graph.latents().shape == (1, 128, 4, 6)
    decoded = graph.new("VAEDecode", samples=graph.sampled, vae=combined.vae)
    back = graph.new("KleinCanvasRestore", image=decoded, canvas=[number, 3])
    saved = graph.new("SaveImage", images=back, filename_prefix="restored")[0]
    assert Image.open(comfy.file(comfy.run(graph)[saved]["images"][0])).size == (100, 70)


def test_the_report_numbers_every_image_and_warns(graph, combined, pictures, comfy):
    graph.prompt["text"] = "the fox of image 1 beside the tree of image 4"
    empty = graph.new("SolidMask", value=0.0, width=8, height=8)
    number = combined(
        image_1=pictures[0], image_3=pictures[1], references=graph.reference(pictures[2], strength=0.5, mask=empty),
        width=0, height=0,
    )  # fmt: skip
    assert report(graph, comfy, number) == [
        "image 1: 96x64, 24 tokens, 4 % of the attention's keys",
        "image 2: 64x160, 40 tokens, 7 % of the attention's keys",
        "image 3: 48x48, 9 tokens, 1 % of the attention's keys, strength 0.5",
        "canvas: 96x64, 24 tokens, 609 with text and references",
        "Warning: image_3 is image 2, as a socket before it is empty",
        "Warning: nothing is painted on the mask of image 3, so the whole of it is seen",
        "Warning: the prompt names image 4, but there are 3 references",
        "Warning: the prompt does not name image 2",
        "Warning: the prompt does not name image 3",
    ]


def test_that_controls_need_our_loader_is_said_only_where_a_model_is_of_another(graph, combined, pictures, comfy):
    said = "Strength, mask and window need a model of Klein Flow Loader."
    number = combined(references=graph.reference(pictures[2], strength=0.5))
    graph.sampler["model"] = graph.new("KleinReferenceCache", model=graph.model, mode="off", device="cpu", dtype="model")
    assert said not in report(graph, comfy, number)
    graph.new("UNETLoader", unet_name="other.safetensors", weight_dtype="default")
    graph.prompt["text"] += " again"  # the report of before is kept otherwise
    assert report(graph, comfy, number)[-1] == said


def test_eleven_references_are_refused(graph, combined, pictures, comfy):
    batch = graph.new("RepeatImageBatch", image=pictures[0], amount=11)
    combined(image_1=batch)
    with pytest.raises(PromptError, match="^There are 11 references, expected 10 at most: disconnect some.$"):
        graph.latents()


def test_a_window_without_a_step_is_refused(graph, combined, pictures):
    combined(references=graph.reference(pictures[0], start_percent=0.5, end_percent=0.5))
    with pytest.raises(
        PromptError, match="^start_percent is 0.5 and end_percent 0.5, which leaves no step: set the end above the start.$"
    ):
        graph.latents()
