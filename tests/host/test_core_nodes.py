"""Our MODEL and CLIP in ComfyUI's own nodes, each against Euler steps of diffusers' transformer on the same weights.

Tolerance 1e-4: four steps of 1e-5 each.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures.graph import picture
from klein.samplers.schedule import sigmas as official
from tools import small
from tools.server import PromptError
from tools.small import comfy_noise, embed, relative

TOLERANCE = 1e-4


def simple_sigmas(steps, shift=2.02):
    """ComfyUI's `simple` scheduler on its FLUX.2 sampling (shift 2.02), from the formula."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    return torch.cat([math.exp(shift) / (math.exp(shift) + 1 / t - 1), torch.zeros(1)]).float()


def k_sampler(graph, **changes):
    inputs = dict(
        model=graph.model, positive=graph.positive, negative=graph.positive, latent_image=graph.empty, seed=7, steps=4,
        cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    return graph.new("KSampler", **{**inputs, **changes})


def test_ksampler(graph, oracle):
    got = graph.without_image().latents(k_sampler(graph))[0]
    want = small.euler(oracle.transformer, comfy_noise(7), simple_sigmas(4), embed(oracle, graph.prompt["text"]))
    assert relative(got, want) < TOLERANCE


def test_ksampler_with_cfg(graph, oracle):
    negative = graph.new("CLIPTextEncode", clip=graph.clip_out, text="blurry")
    got = graph.without_image().latents(k_sampler(graph, negative=negative, cfg=3.0))[0]
    texts = embed(oracle, graph.prompt["text"]), embed(oracle, "blurry")
    want = small.euler(oracle.transformer, comfy_noise(7), simple_sigmas(4), texts[0], cfg=3.0, negative=texts[1])
    assert relative(got, want) < TOLERANCE


@pytest.mark.parametrize("guider", ["BasicGuider", "CFGGuider"])
@pytest.mark.parametrize("scheduler", ["Flux2Scheduler", "KleinSchedule"])
def test_sampler_custom_advanced_is_our_sampler(graph, oracle, guider, scheduler):
    conditioning = {"conditioning": graph.positive}
    if guider == "CFGGuider":
        conditioning = {"positive": graph.positive, "negative": graph.positive, "cfg": 1.0}
    sizes = dict(steps=4, width=256, height=192)
    more = dict(schedule="official", denoise=1.0) if scheduler == "KleinSchedule" else {}
    got = graph.new(
        "SamplerCustomAdvanced",
        noise=graph.new("RandomNoise", noise_seed=7),
        guider=graph.new(guider, model=graph.model, **conditioning),
        sampler=graph.new("KSamplerSelect", sampler_name="euler"),
        sigmas=graph.new(scheduler, **sizes, **more),
        latent_image=graph.empty,
    )
    got, ours = graph.without_image().latents(got, graph.sampled)
    want = small.euler(oracle.transformer, comfy_noise(7), official(4, 192), embed(oracle, graph.prompt["text"]))
    assert relative(got, want) < TOLERANCE
    assert relative(ours, want) < TOLERANCE


def test_reference_latents_of_core_nodes(graph, comfy, oracle):
    graph.without_image()
    vae = graph.new("KleinVAELoader", **graph.vae)
    latents, positive = [], graph.positive
    for seed, (width, height) in enumerate([(96, 64), (64, 160)]):
        image = graph.new("LoadImage", image=picture(comfy, f"reference{seed}.png", width, height, seed))
        latents.append(graph.new("VAEEncode", pixels=image, vae=vae))
        positive = graph.new("ReferenceLatent", conditioning=positive, latent=latents[-1])
    graph.sampler["positive"] = positive
    got, *references = graph.latents(graph.sampled, *latents)
    assert [tuple(latent.shape) for latent in references] == [(1, 128, 4, 6), (1, 128, 10, 4)]
    text = embed(oracle, graph.prompt["text"])
    want = small.euler(oracle.transformer, comfy_noise(7), official(4, 192), text, references)
    assert relative(got, want) < TOLERANCE
    swapped = small.euler(oracle.transformer, comfy_noise(7), official(4, 192), text, references[::-1])
    assert relative(swapped, want) > 10 * TOLERANCE


def test_vae_encode_is_that_of_diffusers(graph, comfy, oracle):
    name = picture(comfy, "encode.png", 96, 64, 5)
    image = graph.new("LoadImage", image=name)
    got = graph.without_image().latents(graph.new("VAEEncode", pixels=image, vae=graph.new("KleinVAELoader", **graph.vae)))[0]
    pixels = torch.from_numpy(np.asarray(Image.open(comfy.base / "input" / name)) / 127.5 - 1).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        latent = oracle._patchify_latents(oracle.vae.encode(pixels).latent_dist.mode())
    mean, var = (stat.view(1, -1, 1, 1) for stat in (oracle.vae.bn.running_mean, oracle.vae.bn.running_var))
    assert relative(got, (latent - mean) / (var + oracle.vae.config.batch_norm_eps).sqrt()) < 1e-5


def test_clip_text_encode_on_our_clip_is_klein_prompt(graph):
    core = graph.new("CLIPTextEncode", clip=graph.clip_out, text=graph.prompt["text"])
    got = graph.new("KleinDistilledSampler", **{**graph.sampler, "positive": core})
    got, want = graph.without_image().latents(got, graph.sampled)
    assert torch.equal(got, want)


@pytest.mark.parametrize("loader", ["LoraLoader", "LoraLoaderModelOnly"])
def test_a_lora_with_bfl_names(graph, comfy, oracle, loader):
    """Against diffusers with the product of the LoRA's matrices added to its weights by hand."""
    state = small.flow_state(**small.FLOW)
    generator = torch.Generator().manual_seed(3)
    targets = [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.txt_mlp.2",
        "single_blocks.1.linear1",
        "single_blocks.0.linear2",
    ]
    lora, rank, alpha, strength = {}, 4, 2.0, 0.7
    for layer in targets:
        out, into = state[f"{layer}.weight"].shape
        down, up = torch.randn(rank, into, generator=generator) / 8, torch.randn(out, rank, generator=generator) / 8
        lora[f"diffusion_model.{layer}.lora_A.weight"], lora[f"diffusion_model.{layer}.lora_B.weight"] = down, up
        lora[f"diffusion_model.{layer}.alpha"] = torch.tensor(alpha)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] + strength * alpha / rank * up @ down
    small.save(lora, comfy.base / "models/loras/bfl.safetensors")
    clip = {"clip": graph.clip_out, "strength_clip": 1.0} if loader == "LoraLoader" else {}
    patched = graph.new(loader, model=graph.model, lora_name="bfl.safetensors", strength_model=strength, **clip)
    got = graph.new("KleinDistilledSampler", **{**graph.sampler, "model": patched})
    got, plain = graph.without_image().latents(got, graph.sampled)
    text = embed(oracle, graph.prompt["text"])
    want = small.euler(small.flow_oracle(state), comfy_noise(7), official(4, 192), text)
    assert relative(got, want) < TOLERANCE
    assert relative(plain, want) > 100 * TOLERANCE


@pytest.mark.parametrize("sampler", ["KSampler", "KleinDistilledSampler"])
def test_the_wrong_encoder_is_named_before_sampling_in_any_sampler(graph, comfy, sampler):
    wrong = small.encoder_state(small.encoder_oracle(**{**small.ENCODER, "hidden": 96}))
    small.save(wrong, comfy.base / "models/text_encoders/wrong.safetensors")
    clip = graph.new("KleinQwen3EncoderLoader", encoder_name="wrong.safetensors", device="default")
    positive = graph.new("CLIPTextEncode", clip=clip, text="cat")
    if sampler == "KSampler":
        out = k_sampler(graph, positive=positive, negative=positive)
    else:
        out = graph.new(sampler, **{**graph.sampler, "positive": positive})
    with pytest.raises(PromptError) as refused:
        graph.without_image().latents(out)
    assert refused.value.text == (
        "The conditioning is 288 wide, made by a Qwen3 encoder of hidden size 96, but this flow model expects 192: load a "
        "Qwen3 encoder of hidden size 64 in the encoder loader."
    )
    graph.latents()
