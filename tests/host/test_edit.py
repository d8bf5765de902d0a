"""Klein Edit and the masked step in the real host, against diffusers' Flux2KleinInpaintPipeline on the same weights, float32.

Tolerance 1e-4: four steps of 1e-5 each. What must change nothing is compared bit for bit.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures.graph import picture
from tools import small
from tools.server import PromptError
from tools.small import relative

TOLERANCE = 1e-4
WIDTH, HEIGHT = 256, 192


@pytest.fixture
def edit(graph, comfy):
    """edit(mask array (h, w), a box of ones, or a link, ...) puts a Klein Edit before the sampler, on a random picture of
    256x192, or on a batch of it."""

    def edit(mask=None, size=(WIDTH, HEIGHT), batch=1, **settings):
        graph.without_image().prompt["text"] = "A red fox asleep on a mossy stone"
        source = graph.new("LoadImage", image=picture(comfy, f"source{size[0]}x{size[1]}.png", *size, 8))
        if isinstance(mask, list):
            settings["mask"] = mask
        elif mask is not None:  # by nodes: newer hosts read 255 of a file as 254
            (top, bottom), (left, right) = ((at.min(), at.max() + 1) for at in mask.nonzero())
            settings["mask"] = graph.new(
                "MaskComposite", x=int(left), y=int(top), operation="add",
                destination=graph.new("SolidMask", value=0.0, width=mask.shape[1], height=mask.shape[0]),
                source=graph.new("SolidMask", value=1.0, width=int(right - left), height=int(bottom - top)),
            )  # fmt: skip
        if batch > 1:
            source = graph.new("RepeatImageBatch", image=source, amount=batch)
        vae = graph.new("KleinVAELoader", **graph.vae)
        values = {"mode": "repaint", "context": -1.0, "grow": 0, "feather": 0, **settings}
        number = graph.new("KleinEdit", positive=graph.positive, vae=vae, image=source, **values)[0]
        edit.vae, edit.source, edit.mask = vae, source, settings.get("mask")
        graph.sampler.update(positive=[number, 0], latent_image=[number, 2])
        return number

    return edit


def lines(graph, comfy, number, output=4) -> list[str]:
    show = graph.new("PreviewAny", source=[number, output])[0]
    return comfy.run(graph)[show]["text"][0].split("\n")


def box(left, top, right, bottom, size=(WIDTH, HEIGHT)):
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


@torch.no_grad()
def inpainted(oracle, comfy, graph, mask, strength=1.0, reference=None, batch=1):
    """The normalised latents of the pipeline, and those of its source."""
    pipe = small.pipeline(oracle.transformer, oracle.text_encoder, oracle.tokenizer, oracle.vae, "Flux2KleinInpaintPipeline")
    pipe.register_to_config(is_distilled=True)
    seen = {}

    def keep(pipe, step, t, tensors):
        seen["latents"] = tensors["latents"]
        return tensors

    pipe(
        prompt=[graph.prompt["text"]] * batch, image=Image.open(comfy.base / "input" / f"source{WIDTH}x{HEIGHT}.png"),
        image_reference=reference, mask_image=Image.fromarray(255 * mask), strength=strength, num_inference_steps=4,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(7), output_type="latent", callback_on_step_end=keep,
    )  # fmt: skip
    return seen["latents"].transpose(1, 2).reshape(batch, 128, HEIGHT // 16, WIDTH // 16)


MASKS = {"hard": box(64, 48, 160, 144), "soft": box(61, 43, 171, 150)}  # on token edges, and off them: fractions at the border


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    ("strength", "reference", "batch"),
    [(1.0, False, 1), (0.75, True, 1), (0.6, False, 2), (0.5, True, 2), (1.0, True, 1)],
)
def test_a_masked_edit_is_that_of_the_inpainting_pipeline(graph, comfy, edit, oracle, kind, strength, reference, batch):
    others, name = {}, None
    if reference:
        name = picture(comfy, "edit_reference.png", 96, 64, 9)
        others["image_2"] = graph.new("LoadImage", image=name)
    number = edit(MASKS[kind], batch_size=batch, **others)
    # the pipeline's own reduction of the mask is bilinear: the host's, of a mask in pixels
    graph.sampler["latent_image"] = graph.new("SetLatentNoiseMask", samples=[number, 2], mask=edit.mask)
    graph.sampler["denoise"] = strength
    got = graph.latents()
    image = Image.open(comfy.base / "input" / name) if name else None
    assert relative(got, inpainted(oracle, comfy, graph, MASKS[kind], strength, image, batch)) < TOLERANCE


def test_a_mask_on_token_edges_needs_no_other_reduction(graph, comfy, edit, oracle):
    edit(MASKS["hard"])
    got = graph.latents()
    assert relative(got, inpainted(oracle, comfy, graph, MASKS["hard"])) < TOLERANCE


@pytest.mark.parametrize("mode", ["repaint", "replace"])
@pytest.mark.parametrize("cache", ["off", "within_run", "across_runs"])
def test_what_is_not_painted_stays_beside_kept_keys_strengths_windows_and_batches(graph, edit, pictures, mode, cache):
    """In latent space: bit for bit the encoded source."""
    chain = graph.reference(pictures[0], strength=0.5, end_percent=0.5)
    number = edit(MASKS["hard"], mode=mode, batch_size=2, image_2=pictures[1], references=chain)
    graph.sampler["model"] = graph.new("KleinReferenceCache", model=graph.model, mode=cache, device="cpu", dtype="model")
    source, got = graph.latents([number, 2], graph.sampled)
    outside = ~torch.from_numpy(MASKS["hard"][8::16, 8::16].astype(bool))
    assert got.shape[0] == 2 and torch.equal(got[..., outside], source[..., outside])
    assert all(relative(each[..., ~outside], source[0][..., ~outside]) > 0.1 for each in got)


def test_a_mask_of_everything_is_no_mask_bit_for_bit(graph, edit):
    edit(np.ones((HEIGHT, WIDTH)))
    everything = graph.latents()
    edit(mode="edit")
    assert torch.equal(everything, graph.latents())


def test_edit_is_multi_reference_with_the_picture_as_image_1_bit_for_bit(graph, edit, combined, pictures):
    edit(mode="edit", image_2=pictures[0])
    got = graph.latents()
    combined(image_1=edit.source, image_2=pictures[0])
    assert torch.equal(got, graph.latents())


def test_a_mask_in_mode_edit_changes_nothing_of_what_is_painted_and_holds_nothing(graph, comfy, edit):
    """It limits the way back alone; one on which nothing is painted is none, whatever its size."""
    number = edit(mode="edit")
    whole, source = graph.latents(graph.sampled, [number, 2])
    number = edit(MASKS["hard"], mode="edit", context=0.5)
    assert torch.equal(graph.latents(), whole)
    text = lines(graph, comfy, number)
    assert text[:2] == ["edit: the whole picture, 256x192, painted at 256x192", "the mask limits what comes back"]
    image = graph.new("VAEDecode", samples=graph.sampled, vae=edit.vae)
    back = graph.new("KleinCanvasRestore", image=image, canvas=[number, 3], blend="none")
    saved = graph.new("SaveImage", images=back, filename_prefix="back")[0]
    came_back = np.asarray(Image.open(comfy.file(comfy.run(graph)[saved]["images"][0])))
    original = np.asarray(Image.open(comfy.base / "input" / f"source{WIDTH}x{HEIGHT}.png"))
    outside = MASKS["hard"] == 0
    assert np.array_equal(came_back[outside], original[outside]) and not np.array_equal(came_back, original)
    number = edit(graph.new("SolidMask", value=0.0, width=64, height=64), mode="edit")
    assert lines(graph, comfy, number)[1] == "nothing is painted on the mask, so it is none"
    assert torch.equal(graph.latents(), whole)


def test_outpaint_holds_the_picture_in_every_step_and_paints_what_is_added(graph, edit):
    number = edit(mode="outpaint", right=64, top=32)
    source, got = graph.latents([number, 2], graph.sampled)
    inside = torch.zeros(source.shape[-2:], dtype=torch.bool)
    inside[2:, :16] = True
    assert source.shape[-2:] == (14, 20) and torch.equal(got[..., inside], source[..., inside])
    assert relative(got[..., ~inside], source[..., ~inside]) > 0.1


def test_the_negative_gets_the_same_references_each_within_the_same_limit(graph, comfy, edit, pictures):
    negative = graph.new("KleinPrompt", clip=graph.clip_out, text="blurry")
    large = graph.new("LoadImage", image=picture(comfy, "large.png", 640, 320, 10))
    settings = dict(mode="edit", image_2=large, negative=negative, max_megapixels=0.03)
    number = edit(**settings)
    assert "image 2: 640x320 to 256x128" in "\n".join(lines(graph, comfy, number))
    graph.sampler.update(negative=[number, 1], cfg=4.0)
    both = graph.latents()
    number = edit(**settings)
    graph.sampler.update(negative=negative, cfg=4.0)
    assert relative(graph.latents(), both) > 1e-3  # the negative as it was, without references


@pytest.mark.parametrize("mode", ["within_run", "across_runs"])
def test_kept_keys_of_a_reference_are_those_of_a_fresh_cache_after_another_mask_and_an_interrupt(graph, edit, pictures, mode):
    def masked(name):
        edit(MASKS[name], mode="replace", image_2=pictures[0])
        graph.sampler["model"] = graph.new("KleinReferenceCache", model=graph.model, mode=mode, device="cpu", dtype="model")
        return graph.latents()

    fresh = masked("hard")
    other = masked("soft")
    assert not torch.equal(fresh, other)
    graph.interrupt_after(2)
    assert torch.equal(masked("hard"), fresh) and torch.equal(masked("soft"), other)


def test_differential_diffusion_keeps_the_hosts_own_path(graph, edit):
    """With the same mask given to the host's own sampler."""
    mask = np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))
    number = edit(np.ones((HEIGHT, WIDTH)))
    Image.fromarray((255 * mask).astype(np.uint8)).save(graph.comfy.base / "input" / "slope.png")
    slope = graph.new("LoadImageMask", image="slope.png", channel="red")
    latent = graph.new("SetLatentNoiseMask", samples=[number, 2], mask=slope)
    model = graph.new("DifferentialDiffusion", model=graph.model)
    graph.sampler.update(model=model, latent_image=latent)
    sigmas = graph.new("KleinSchedule", steps=4, schedule="official", denoise=1.0, latent=[number, 2])
    core = graph.new(
        "SamplerCustom", model=model, add_noise=True, noise_seed=7, cfg=1.0, positive=[number, 0], negative=[number, 0],
        sampler=graph.new("KSamplerSelect", sampler_name="euler"), sigmas=sigmas, latent_image=latent,
    )  # fmt: skip
    ours, theirs = graph.latents(graph.sampled, core)
    assert relative(ours, theirs) < 1e-6


def test_the_report_says_what_is_painted_and_which_picture_has_which_number(graph, comfy, edit, pictures):
    two = graph.new("ImageBatch", image1=pictures[0], image2=pictures[0])
    chain = graph.reference(pictures[1])
    number = edit(box(100, 80, 120, 100), mode="replace", context=0.5, image_2=pictures[2], image_3=two, references=chain)
    text = lines(graph, comfy, number)
    assert text[0].startswith("replace: region ") and text[0].endswith("times larger")
    assert text[1] == "the picture is no reference, so that what was there does not come back"
    assert text[2:4] == ["image_2 is image 1", "image_3 is images 2 to 3"]
    sizes = [line.split(",")[0] for line in text[4:8]]
    assert sizes == ["image 1: 48x48", "image 2: 96x64", "image 3: 96x64", "image 4: 64x160"]
    assert not any("so thin" in line for line in text)
    number = edit(box(100, 80, 101, 81), mode="repaint", left=16)
    assert lines(graph, comfy, number)[-2:] == [
        "Warning: left, top, right and bottom count in outpaint only, not in repaint",
        "Warning: the mask is so thin here that at most 0.39 % of the new shows in any token of 16x16: raise grow or lower context",
    ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(), "repaint needs a mask of what to paint, and none is painted: paint one, or use mode edit."),
        (dict(mask=box(0, 0, 9, 9, (64, 64))), "The mask is 64x64 and the picture 256x192, expected the same size"),
        (dict(mode="outpaint"), "outpaint has 0 pixels at all four sides"),
        (dict(mode="outpaint", left=8192, right=8192), "The picture would be larger than 16384 pixels a side"),
        (dict(mode="edit", context=-0.5), "context is -0.5, expected 0 or more, or -1 for the whole picture"),
        (dict(mode="edit", batch=2), "The image is a batch of 2 pictures, expected one: choose one"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_one_sentence_and_the_queue_goes_on(graph, comfy, edit, settings, sentence):
    edit(**settings)
    with pytest.raises(PromptError) as error:
        graph.latents()
    assert sentence in error.value.text and "\n" not in error.value.text
    edit(MASKS["hard"])
    assert graph.latents().isfinite().all()


def test_what_was_made_on_another_canvas_is_refused_in_one_sentence_and_the_queue_goes_on(graph, comfy, edit):
    number = edit(MASKS["hard"])
    graph.canvas.update(width=128, height=128)
    other = graph.new("VAEDecode", samples=graph.empty, vae=edit.vae)
    back = graph.new("KleinCanvasRestore", image=other, canvas=[number, 3])
    saved = graph.new("SaveImage", images=back, filename_prefix="back")[0]
    with pytest.raises(PromptError) as error:
        comfy.run(graph)
    assert error.value.text == "The image is 128x128, but the canvas 256x192: connect what was made on this canvas, whole."
    graph[back[0]]["inputs"]["image"] = graph.new("VAEDecode", samples=graph.sampled, vae=edit.vae)
    image = Image.open(comfy.file(comfy.run(graph)[saved]["images"][0]))
    assert image.size == (WIDTH, HEIGHT)
