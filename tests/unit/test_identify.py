"""What a file is told to be, from names and shapes alone: checkpoints here are headers, without a file."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from fixtures.bad_files import ENCODER, FLOW, VAE
from klein.errors import KleinError
from klein.model_loaders.formats.files import Checkpoint
from klein.model_loaders.formats.identify import encoder_for, identify, require

QWEN = "the text encoder Qwen3 (1 layers, hidden size 8)"
CORE = "load it with ComfyUI's own loaders and "


def header(*names: str, file: str = "model.safetensors", **shapes) -> Checkpoint:
    """A checkpoint of tensors of these names, 8x8 unless a shape is given."""
    every = {**dict.fromkeys(names, (8, 8)), **shapes}
    return Checkpoint(Path(file), every, dict.fromkeys(every, torch.float32), {}, {}, {})


def said(*names: str, **shapes) -> tuple[str, str]:
    kind = identify(header(*names, **shapes))
    return kind.role, kind.text


BFL, DIFFUSERS = "double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
@pytest.mark.parametrize(("mark", "first"), [(BFL, "img_in.weight"), (DIFFUSERS, "x_embedder.weight")])
@pytest.mark.parametrize(
    ("hidden", "name"), [(4096, "9B"), (3072, "4B"), (64, "flow model of hidden size 64"), (0, "flow model of hidden size 0")]
)
def test_a_flow_model_is_named_by_its_hidden_size_under_every_prefix(prefix, mark, first, hidden, name):
    shapes = {f"{prefix}{mark}": (1, 2), f"{prefix}{first}": (hidden, 128)}
    if not hidden:  # none is known where neither layer is there, or has no shape
        shapes.pop(f"{prefix}{first}")
    assert said(**shapes) == ("flow", f"a FLUX.2 [klein] {name}")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("mark", "guidance"),
    [(BFL, "guidance_in.in_layer.weight"), (DIFFUSERS, "time_guidance_embed.guidance_embedder.linear_1.weight")],
)
def test_what_takes_guidance_is_flux2_dev(prefix, mark, guidance):
    assert said(f"{prefix}{mark}", f"{prefix}{guidance}") == ("other", "FLUX.2 [dev], which is not a klein model")
    assert said(f"{prefix}{mark}", f"{prefix}other.{guidance.replace('guidance_embedder', 'x')}")[0] == "flow"


@pytest.mark.parametrize("mark", "lora_A lora_B lora_up lora_down lokr_w1 loha_w1 hada_w1_a x.diff_b oft_blocks".split())
def test_a_lora_is_known_by_any_of_its_tensors(mark):
    assert said(f"double_blocks.0.img_attn.qkv.{mark}", BFL) == ("lora", "a LoRA")


AUTOENCODER = ("decoder.conv_in.weight", "bn.running_mean")
EMBEDDING, NORM = "embed_tokens.weight", "layers.0.self_attn.q_norm.weight"


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model."])
@pytest.mark.parametrize(("hidden", "name"), [(4096, "Qwen3-8B"), (2560, "Qwen3-4B"), (1024, "Qwen3")])
def test_an_encoder_is_named_by_its_hidden_size_and_its_layers_are_counted(prefix, hidden, name):
    shapes = {f"{prefix}{EMBEDDING}": (64, hidden), f"{prefix}layers.1.mlp.up_proj.weight": (8, 8)}
    text = f"the text encoder {name} (2 layers, hidden size {hidden})"
    assert said(f"{prefix}{NORM}", **shapes) == ("encoder", text)


def test_an_embedding_without_a_shape_is_of_hidden_size_0():
    assert said(NORM, **{EMBEDDING: ()}) == ("encoder", "the text encoder Qwen3 (1 layers, hidden size 0)")


@pytest.mark.parametrize("sight", ["visual.patch_embed.weight", "model.visual.patch_embed.weight", "vision_tower.weight"])
def test_an_encoder_that_sees_is_another_model(sight):
    assert said(EMBEDDING, NORM, sight) == ("other", "a vision-language model")
    assert said(EMBEDDING, NORM, "previsual.weight", "visuals.weight")[0] == "encoder"


def test_a_language_model_without_norms_of_queries_is_of_another_family():
    assert said(EMBEDDING) == ("other", "a Mistral or Llama text encoder (hidden size 8)")
    assert said(EMBEDDING, "layers.0.self_attn.q_proj.bias") == ("other", "a Qwen2.5 text encoder (hidden size 8)")


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_an_autoencoder_with_the_statistics_of_its_latents_is_that_of_flux2(prefix):
    decoder, statistics = f"{prefix}decoder.conv_in.weight", f"{prefix}bn.running_mean"
    assert said(decoder, statistics) == ("vae", "the FLUX.2 VAE")
    assert said(decoder) == ("other", "the VAE of another model")
    assert said(statistics)[1].startswith("an unknown model")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("double_blocks.0.img_mod.lin.weight", "a FLUX.1 flow model"),
        ("transformer_blocks.0.norm1_context.linear.weight", "a FLUX.1 flow model"),
        ("input_blocks.0.0.weight", "a Stable Diffusion U-Net or checkpoint"),
        ("down_blocks.0.resnets.0.conv1.weight", "a Stable Diffusion U-Net or checkpoint"),
        ("joint_blocks.0.context_block.attn.qkv.weight", "a Stable Diffusion 3 model"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "a CLIP text encoder"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_other_models_are_named_under_any_prefix(prefix, name, text):
    assert said(f"{prefix}{name}") == ("other", text)


def test_a_model_of_no_known_kind_is_told_by_its_first_tensor():
    assert said("b.weight", "a.weight") == ("other", "an unknown model (its first tensor is a.weight)")


@pytest.mark.parametrize(
    ("names", "role", "what", "expected", "advice"),
    [
        ([BFL], "vae", "a FLUX.2 [klein] flow model of hidden size 0", VAE, "load it with the Klein Flow Loader and "),
        ([EMBEDDING, NORM], "flow", QWEN, FLOW, "load it with the Klein Qwen3 Encoder Loader and "),
        (AUTOENCODER, "encoder", "the FLUX.2 VAE", ENCODER, "load it with the Klein VAE Loader and "),
        (["x.lora_A"], "vae", "a LoRA", VAE, "apply it with the Klein LoRA Loader and "),
        ([EMBEDDING], "vae", "a Mistral or Llama text encoder (hidden size 8)", VAE, CORE),
        (["x"], "vae", "an unknown model (its first tensor is x)", VAE, ""),
    ],
)  # fmt: skip
def test_a_file_of_another_role_is_refused_with_what_it_is_and_where_it_belongs(names, role, what, expected, advice):
    with pytest.raises(KleinError) as refused:
        require(header(*names), role)
    assert str(refused.value) == f"model.safetensors is {what}, expected {expected}: {advice}choose another file here."


def test_a_file_of_the_wanted_role_is_what_it_is_and_stays_it():
    kind = require(header(*AUTOENCODER), "vae")
    assert kind.text == "the FLUX.2 VAE"
    with pytest.raises(FrozenInstanceError):
        kind.role = "flow"


@pytest.mark.parametrize(
    "file", ["flux-3-klein.safetensors", "FLUX.3 [klein].safetensors", "flux3.safetensors", "flux-3.1-dev"]
)
def test_flux_3_is_known_by_its_name_whatever_it_holds(file):
    kind = identify(header(BFL, file=file))
    assert (kind.role, kind.text) == ("other", "a FLUX 3 model by its name, another architecture")


@pytest.mark.parametrize(
    ("name", "role"), [(BFL, "flow"), ("x.lora_A", "lora"), (EMBEDDING, "encoder"), (AUTOENCODER[0], "vae")]
)
@pytest.mark.parametrize("file", ["portrait_flux_3", "style-flux-3", "klein_flux3_9b_lora"])
def test_a_name_with_flux_and_3_in_it_says_nothing_of_what_it_holds(name, role, file):
    assert require(header(name, NORM, AUTOENCODER[1], file=f"{file}.safetensors"), role)


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (3 * 4096, "Qwen3-8B (qwen_3_8b_fp8mixed.safetensors)"),
        (3 * 2560, "Qwen3-4B (qwen_3_4b.safetensors)"),
        (3 * 5120, "Mistral 24B (the encoder of FLUX.2 [dev])"),
        (3 * 64, "a Qwen3 encoder of hidden size 64"),
        (3 * 64 + 2, "a Qwen3 encoder of hidden size 64"),
    ],
)
def test_a_conditioning_is_told_by_the_encoder_that_makes_its_width(width, text):
    assert encoder_for(width) == text
