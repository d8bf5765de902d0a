"""The example graph over HTTP against diffusers' Flux2KleinPipeline: same weights, prompt, size and noise, float32.

Tolerance 1e-4 for latents after four steps: each step is below 1e-5 and feeds the next.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures.graph import picture
from tools.small import comfy_noise, relative

PROMPT = "A red fox asleep on a mossy stone, 狐狸 🦊 (word:1.3)"


@torch.no_grad()
def run_oracle(oracle, prompt=PROMPT, seed=7, width=256, height=192, steps=4, batch=1, cfg=1.0, distilled=True, images=None):
    """(normalised latents (B, 128, H/16, W/16), images as uint8 (B, H, W, 3)) of the pipeline."""
    seen = {}

    def keep(pipe, step, t, tensors):
        seen["latents"] = tensors["latents"]
        return tensors

    oracle.register_to_config(is_distilled=distilled)
    images = oracle(
        image=images, prompt=[prompt] * batch, width=width, height=height, num_inference_steps=steps, guidance_scale=cfg,
        latents=comfy_noise(seed, batch, height, width), output_type="np", callback_on_step_end=keep,
    ).images  # fmt: skip
    latents = seen["latents"].transpose(1, 2).reshape(batch, 128, height // 16, width // 16)
    return latents, (images * 255).round().astype(int)


@pytest.mark.parametrize(("width", "height", "batch"), [(256, 192, 1), (128, 320, 2)])
def test_the_example_graph_gives_the_latents_and_image_of_diffusers(graph, comfy, oracle, width, height, batch):
    graph.prompt["text"] = PROMPT
    graph.canvas.update(width=width, height=height, batch_size=batch)
    latents = graph.latents(graph.sampled)[0]
    saved = comfy.run(graph)[graph.save]["images"]
    want_latents, want_images = run_oracle(oracle, width=width, height=height, batch=batch)
    assert relative(latents, want_latents) < 1e-4
    for image, want in zip(saved, want_images, strict=True):
        got = np.asarray(Image.open(comfy.file(image)).convert("RGB")).astype(int)
        assert (np.abs(got - want).max(axis=-1) <= 1).mean() >= 0.999


@pytest.mark.parametrize("steps", [1, 8])
def test_other_numbers_of_steps_are_those_of_diffusers(graph, oracle, steps):
    graph.without_image().prompt["text"] = PROMPT
    graph.sampler["steps"] = steps
    assert relative(graph.latents(), run_oracle(oracle, steps=steps)[0]) < 1e-4


def test_a_base_model_with_cfg_and_an_empty_negative_is_that_of_diffusers(graph, oracle):
    graph.without_image().prompt["text"] = PROMPT
    graph.flow["variant"] = "base"
    graph.sampler.update(cfg=4.0, steps=6, negative=graph.new("KleinPrompt", clip=graph.clip_out, text=""))
    # guidance multiplies the difference of two nearly equal velocities: one digit fewer than without
    assert relative(graph.latents(), run_oracle(oracle, steps=6, cfg=4.0, distilled=False)[0]) < 1e-3


def test_a_600_token_prompt_is_cut_as_in_diffusers_and_the_report_says_so(graph, comfy, oracle):
    graph.without_image().prompt["text"] = "cat " * 600
    preview = graph.new("PreviewAny", source=[graph.positive[0], 1])[0]
    assert relative(graph.latents(), run_oracle(oracle, prompt="cat " * 600)[0]) < 1e-4
    text = comfy.run(graph)[preview]["text"][0]
    assert text == "613 tokens: the last 101 lie beyond the 512 that klein reads and were cut off"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a (small:1.3) cat", "Warning: (small:1.3) is read as text: klein knows no weights of words"),
        (" ", "the text is empty: right for a negative, and as a prompt it asks for nothing"),
    ],
)
def test_the_report_of_a_prompt_names_weights_of_words_and_an_empty_text(graph, comfy, text, said):
    preview = graph.new("PreviewAny", source=[graph.new("KleinPrompt", clip=graph.clip_out, text=text)[0], 1])[0]
    graph.without_image()
    assert said in comfy.run(graph)[preview]["text"][0].split("\n")


def test_at_cfg_1_the_negative_changes_nothing(graph, comfy):
    plain = graph.without_image().latents()
    graph.sampler["negative"] = graph.new("KleinPrompt", clip=graph.clip_out, text="blurry")
    with_negative = graph.latents()
    assert torch.equal(plain, with_negative)


def test_denoise_runs_the_last_steps_on_the_latent_given(graph):
    """Step by step by hand: noise at the schedule's sigma 2 of 4, then sigmas 2..4 given as SIGMAS."""
    first = graph.new("KleinDistilledSampler", **{**graph.sampler, "seed": 1})
    graph.without_image().sampler.update(denoise=0.5, latent_image=first)
    schedule = graph.new("KleinSchedule", steps=4, schedule="official", denoise=0.5, latent=graph.empty)
    by_hand = graph.new("KleinDistilledSampler", **{**graph.sampler, "denoise": 1.0, "sigmas": schedule})
    start, got, want = graph.latents(first, graph.sampled, by_hand)
    assert torch.equal(got, want)
    assert not torch.equal(got, start)


def test_denoise_0_returns_the_latent_as_it_was(graph):
    first = graph.new("KleinDistilledSampler", **{**graph.sampler, "seed": 1})
    graph.without_image().sampler.update(denoise=0.0, latent_image=first)
    start, got = graph.latents(first, graph.sampled)
    assert torch.equal(got, start)


def test_a_noise_mask_keeps_the_latent_outside_it(graph):
    first = graph.new("KleinDistilledSampler", **{**graph.sampler, "seed": 1})
    mask = graph.new("SolidMask", value=1.0, width=128, height=192)
    mask = graph.new(
        "MaskComposite", destination=graph.new("SolidMask", value=0.0, width=256, height=192), source=mask, x=0, y=0,
        operation="add",
    )  # fmt: skip
    graph.without_image().sampler["latent_image"] = graph.new("SetLatentNoiseMask", samples=first, mask=mask)
    start, got = graph.latents(first, graph.sampled)
    assert relative(got[..., 8:], start[..., 8:]) < 1e-6
    assert relative(got[..., :8], start[..., :8]) > 0.1


def test_fp8_files_give_an_image(graph, comfy):
    graph.flow["flow_name"], graph.clip["encoder_name"] = "flux-2-klein-9b-fp8.safetensors", "qwen_3_8b_fp8mixed.safetensors"
    image = comfy.run(graph)[graph.save]["images"][0]
    assert Image.open(comfy.file(image)).size == (256, 192)


@pytest.mark.parametrize("count", [1, 3])
def test_a_base_model_with_cfg_and_references_is_that_of_diffusers(graph, comfy, combined, oracle, count):
    """The whole of Flux2KleinPipeline with pictures: its own resizing, encoding, positions and guidance."""
    graph.prompt["text"] = PROMPT
    graph.flow["variant"] = "base"
    names = [picture(comfy, f"base{i}.png", *size, i) for i, size in enumerate([(96, 64), (64, 160), (112, 80)][:count])]
    images = {f"image_{i}": graph.new("LoadImage", image=name) for i, name in enumerate(names, start=1)}
    number = combined(**images, negative=graph.new("KleinPrompt", clip=graph.clip_out, text=""))
    graph.sampler.update(cfg=4.0, steps=6, negative=[number, 1])
    files = [Image.open(comfy.base / "input" / name) for name in names]
    want, _ = run_oracle(oracle, steps=6, cfg=4.0, distilled=False, images=files)
    assert relative(graph.latents(), want) < 1e-3  # as without references
