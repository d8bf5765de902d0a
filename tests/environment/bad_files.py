"""Files that people choose by mistake or that arrived broken, and the one sentence each must be refused with."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from . import small

DOWNLOAD = "download the .safetensors file."
FLOW = "a FLUX.2 [klein] flow model such as flux-2-klein-9b.safetensors"
ENCODER = "a Qwen3 text encoder such as qwen_3_8b_fp8mixed.safetensors"
VAE = "the FLUX.2 VAE, flux2-vae.safetensors"
OTHER = "load it with ComfyUI's own loaders and choose another file here."


def zeros(*names: str, width: int = 8) -> dict:
    return {name: torch.zeros(width, width) for name in names}


def bad_files() -> dict[str, tuple[str, callable, str]]:
    """name -> (loader role, writer of the file or folder at a path, the sentence)."""
    flow = small.flow_state(**small.FLOW)
    llm = {f"model.layers.{i}.self_attn.q_norm.weight": torch.zeros(8) for i in range(20)}
    llm["model.embed_tokens.weight"] = torch.zeros(16, 8)
    mistral = zeros("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
    vae = small.vae_state(small.vae_oracle())
    lora = zeros("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight")

    def write(state, metadata=None):
        return lambda path: small.save(state, path, metadata)

    def raw(data: bytes):
        return lambda path: path.write_bytes(data)

    def truncated(state):
        def make(path):
            small.save(state, path)
            path.write_bytes(path.read_bytes()[:-1000])

        return make

    def shards(keep):
        def make(path):
            path.mkdir(parents=True)
            (path / "config.json").write_text("{}")
            for number in keep:
                small.save(zeros(f"w{number}"), path / f"model-{number}-of-3.safetensors")
            weight_map = {f"w{number}": f"model-{number}-of-3.safetensors" for number in (1, 2, 3)}
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

        return make

    nvfp4 = {"_quantization_metadata": json.dumps({"layers": {"single_blocks.0.linear1": {"format": "nvfp4"}}})}
    half = {name: tensor for name, tensor in flow.items() if "txt_mlp.2" not in name}
    mixed = {**flow, "double_blocks.0.img_attn.proj.weight": torch.zeros(128, 128)}
    flux1 = zeros("double_blocks.0.img_mod.lin.weight", "double_blocks.0.img_attn.qkv.weight")
    return {
        "truncated.safetensors": ("flow", truncated(flow), r"truncated.safetensors \(\d+ bytes\) is not a complete safetensors file \(.*\): download it again\."),
        "empty.safetensors": ("flow", raw(b""), r"empty.safetensors \(0 bytes\) is not a complete safetensors file \(.*\): download it again\."),
        "noise.safetensors": ("flow", raw(bytes(range(256)) * 8), r"noise.safetensors \(2048 bytes\) is not a complete safetensors file \(.*\): download it again\."),
        "page.safetensors": ("flow", raw(b"<!DOCTYPE html><html>Log in"), f"page.safetensors is a web page (the download asked for a login or was refused), expected a .safetensors model: {DOWNLOAD}"),
        "pointer.safetensors": ("flow", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), f"pointer.safetensors is a Git LFS pointer, not the file itself, expected a .safetensors model: {DOWNLOAD}"),
        "klein-Q4.safetensors": ("flow", raw(b"GGUF\x03\x00\x00\x00"), f"klein-Q4.safetensors is a GGUF file, expected a .safetensors model: {DOWNLOAD}"),
        "klein.ckpt": ("flow", raw(b"PK\x03\x04 anything"), f"klein.ckpt is a zip archive (a PyTorch pickle, or a download that was not unpacked), expected a .safetensors model: {DOWNLOAD}"),
        "klein.pt": ("flow", raw(b"\x80\x02 anything"), f"klein.pt is a PyTorch pickle, expected a .safetensors model: {DOWNLOAD}"),
        "encoder.safetensors": ("flow", write(llm), f"encoder.safetensors is the text encoder Qwen3 (20 layers, hidden size 8), expected {FLOW}: load it with the Klein Qwen3 Encoder Loader and choose another file here."),
        "a-vae.safetensors": ("flow", write(vae), f"a-vae.safetensors is the FLUX.2 VAE, expected {FLOW}: load it with the Klein VAE Loader and choose another file here."),
        "lora.safetensors": ("flow", write(lora), f"lora.safetensors is a LoRA, expected {FLOW}: apply it with a LoRA loader node and choose another file here."),
        "flux2-dev.safetensors": ("flow", write({**flow, **zeros("guidance_in.in_layer.weight")}), f"flux2-dev.safetensors is FLUX.2 [dev], which is not a klein model, expected {FLOW}: {OTHER}"),
        "flux1-dev.safetensors": ("flow", write(flux1), f"flux1-dev.safetensors is a FLUX.1 flow model, expected {FLOW}: {OTHER}"),
        "flux-3-klein.safetensors": ("flow", write(flow), f"flux-3-klein.safetensors is a FLUX 3 model by its name, another architecture, expected {FLOW}: {OTHER}"),
        "sdxl.safetensors": ("flow", write(zeros("model.diffusion_model.input_blocks.0.0.weight")), f"sdxl.safetensors is a Stable Diffusion U-Net or checkpoint, expected {FLOW}: {OTHER}"),
        "unknown.safetensors": ("flow", write(zeros("something.weight")), f"unknown.safetensors is an unknown model (its first tensor is something.weight), expected {FLOW}: choose another file here."),
        "nvfp4.safetensors": ("flow", write(flow, nvfp4), "nvfp4.safetensors holds nvfp4 weights (single_blocks.0.linear1), expected bf16, fp16, fp32 or fp8: load the bf16 or the fp8 file of this model instead."),
        "half.safetensors": ("flow", write(half), "half.safetensors lacks 1 of the 29 tensors of this model (first: double_blocks.0.txt_mlp.2.weight): it is incomplete or was saved by another program, download it again."),
        "mixed.safetensors": ("flow", write(mixed), "double_blocks.0.img_attn.proj.weight in mixed.safetensors has shape [128, 128], expected [256, 256] for hidden size 256 and 2 heads of 128: the file mixes two models, download it again."),
        "shards": ("flow", shards([1, 3]), "The folder shards lacks 1 of its 3 shards (first: model-2-of-3.safetensors): download the missing files into it."),
        "flow.safetensors": ("encoder", write(flow), f"flow.safetensors is a FLUX.2 [klein] flow model of hidden size 256, expected {ENCODER}: load it with the Klein Flow Loader and choose another file here."),
        "shallow.safetensors": ("encoder", write(llm), "shallow.safetensors has 20 layers, expected 27 or more (FLUX.2 [klein] reads layers 9, 18, 27): load the full Qwen3-8B or Qwen3-4B."),
        "mistral.safetensors": ("encoder", write(mistral), f"mistral.safetensors is a Mistral or Llama text encoder (hidden size 8), expected {ENCODER}: {OTHER}"),
        "qwen2.5.safetensors": ("encoder", write({**mistral, **zeros("model.layers.0.self_attn.q_proj.bias")}), f"qwen2.5.safetensors is a Qwen2.5 text encoder (hidden size 8), expected {ENCODER}: {OTHER}"),
        "qwen3vl.safetensors": ("encoder", write({**llm, **zeros("model.visual.patch_embed.weight")}), f"qwen3vl.safetensors is a vision-language model, expected {ENCODER}: {OTHER}"),
        "t5.safetensors": ("encoder", write(zeros("encoder.block.0.layer.0.SelfAttention.q.weight")), f"t5.safetensors is a T5 text encoder, expected {ENCODER}: {OTHER}"),
        "clip.safetensors": ("encoder", write(zeros("text_model.encoder.layers.0.self_attn.q_proj.weight")), f"clip.safetensors is a CLIP text encoder, expected {ENCODER}: {OTHER}"),
        "other-vae.safetensors": ("vae", write(zeros("decoder.conv_in.weight", "encoder.conv_in.weight")), f"other-vae.safetensors is the VAE of another model, expected {VAE}: {OTHER}"),
        "half-vae.safetensors": ("vae", write({n: t for n, t in vae.items() if n != "encoder.norm_out.bias"}), "half-vae.safetensors lacks 1 tensors of the FLUX.2 VAE (first: encoder.norm_out.bias): it is incomplete, download it again."),
    }  # fmt: skip


CATEGORIES = {"flow": "diffusion_models", "encoder": "text_encoders", "vae": "vae"}


def write_all(models: Path) -> dict[str, tuple[str, str]]:
    """Write every bad file into a ComfyUI models folder: name -> (role, sentence)."""
    cases = {}
    for name, (role, make, sentence) in bad_files().items():
        path = models / CATEGORIES[role] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        cases[name] = (role, sentence)
    return cases
