"""What a file holds, told from tensor names and shapes in its header, and the sentence that refuses the wrong one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import KleinError
from .files import Checkpoint
from .gguf import ARCHITECTURE
from .names import block_count, encoder_prefix, flow_prefix


@dataclass(frozen=True)
class Kind:
    """role: flow, encoder, vae, lora or other; text: what it is, with its article; advice: how to load it instead."""

    role: str
    text: str
    advice: str


LOAD_FLOW = "load it with the Klein Flow Loader and "
LOAD_ENCODER = "load it with the Klein Qwen3 Encoder Loader and "
LOAD_VAE = "load it with the Klein VAE Loader and "
LOAD_LORA = "apply it with the Klein LoRA Loader and "
LOAD_CORE = "load it with ComfyUI's own loaders and "

EXPECTED = {
    "flow": "a FLUX.2 [klein] flow model such as flux-2-klein-9b.safetensors",
    "encoder": "a Qwen3 text encoder such as qwen_3_8b_fp8mixed.safetensors",
    "vae": "the FLUX.2 VAE, flux2-vae.safetensors",
    "lora": "a LoRA for FLUX.2 [klein]",
}

# Hidden sizes of the released models: klein-facts, model cards of the Klein family. For names only, never for shapes.
FLOW_NAMES = {4096: "9B", 3072: "4B"}
ENCODER_NAMES = {4096: "Qwen3-8B", 2560: "Qwen3-4B"}
ENCODER_FILES = {4096: "qwen_3_8b_fp8mixed.safetensors", 2560: "qwen_3_4b.safetensors"}


# flux-3-klein, FLUX.3 [klein] anywhere; flux3.safetensors, flux-3-9b where the name begins so; not flux-3d-style-klein,
# flux-30steps-klein, flux-3-steps, portrait_flux_3, klein_flux3_9b.
FLUX3 = re.compile(
    r"(?<![a-z0-9])flux[-_. ]?3(\.\d+)?[-_. \[]+(klein|dev|pro|max|base|schnell)(?![a-z])"
    r"|^flux[-_. ]?3(\.\d+)?([-_. \[]+\d+b(?![a-z])|\.(safetensors|gguf)$|$)"
)


def identify(checkpoint: Checkpoint) -> Kind:
    """The kind of a checkpoint, from names and shapes alone."""
    names = checkpoint.shapes
    for kind in (_named, _lora, _flux2, _language_model, _vae, _others):
        found = kind(checkpoint, names)
        if found:
            return found
    return Kind("other", f"an unknown model (its first tensor is {min(names)})", "")


def require(checkpoint: Checkpoint, role: str) -> Kind:
    """The kind of a checkpoint that has the wanted role; KleinError in one sentence for any other."""
    kind = identify(checkpoint)
    if kind.role != role:
        raise KleinError(
            f"{checkpoint.path.name} is {kind.text}, expected {EXPECTED[role]}: {kind.advice}choose another file here."
        )
    return kind


def encoder_for(width: int) -> str:
    """The encoder whose conditioning has this width (three taps of its hidden size), in words."""
    size = width // 3
    if size in ENCODER_NAMES:
        return f"{ENCODER_NAMES[size]} ({ENCODER_FILES[size]})"
    if size == 5120:
        return "Mistral 24B (the encoder of FLUX.2 [dev])"
    return f"a Qwen3 encoder of hidden size {size}"


def _named(checkpoint, names):
    # The tensor names of FLUX 3 are not published: its files are known by name only.
    if FLUX3.search(checkpoint.path.name.lower()):
        return Kind("other", "a FLUX 3 model by its name, another architecture", LOAD_CORE)


def _lora(checkpoint, names):
    marks = (
        "lora_A",
        "lora_B",
        "lora_up",
        "lora_down",
        "lora.up",
        "lora_linear",
        "lokr_",
        "loha_",
        "hada_w",
        "oft_blocks",
        "oft_R",
    )
    if any(mark in name or name.endswith((".diff", ".diff_b", ".w_norm")) for name in names for mark in marks):
        return Kind("lora", "a LoRA", LOAD_LORA)


def _flux2(checkpoint, names):
    prefix = flow_prefix(names)
    if prefix is None:
        return None
    if any(name.startswith(f"{prefix}guidance_in.") or ".guidance_embedder." in name for name in names):
        return Kind("other", "FLUX.2 [dev], which is not a klein model", LOAD_CORE)
    shapes = [names.get(f"{prefix}{layer}.weight") for layer in ("img_in", "x_embedder")]
    hidden = next((shape[0] for shape in shapes if shape), 0)
    size = FLOW_NAMES.get(hidden, f"flow model of hidden size {hidden}")
    return Kind("flow", f"a FLUX.2 [klein] {size}", LOAD_FLOW)


def _language_model(checkpoint, names):
    prefix = encoder_prefix(names)
    if prefix is None:
        return None
    hidden = (names[f"{prefix}embed_tokens.weight"] or (0,))[-1]
    layers = block_count((name.removeprefix(prefix) for name in names), "layers")
    if any(".visual." in f".{name}" or "vision" in name for name in names) or "vl" in checkpoint.metadata.get(ARCHITECTURE, ""):
        return Kind("other", "a vision-language model", LOAD_CORE)
    if not any(name.endswith("self_attn.q_norm.weight") for name in names):
        family = (
            "Qwen2.5 text encoder" if any(name.endswith("q_proj.bias") for name in names) else "Mistral or Llama text encoder"
        )
        return Kind("other", f"a {family} (hidden size {hidden})", LOAD_CORE)
    name = ENCODER_NAMES.get(hidden, "Qwen3")
    return Kind("encoder", f"the text encoder {name} ({layers} layers, hidden size {hidden})", LOAD_ENCODER)


def _vae(checkpoint, names):
    bare = {name.removeprefix("vae.").removeprefix("first_stage_model.") for name in names}
    if "decoder.conv_in.weight" not in bare:
        return None
    if "bn.running_mean" in bare:
        return Kind("vae", "the FLUX.2 VAE", LOAD_VAE)
    return Kind("other", "the VAE of another model", LOAD_CORE)


OTHERS = (
    (("double_blocks.0.img_mod.lin.weight", "transformer_blocks.0.norm1_context.linear.weight"), "a FLUX.1 flow model"),
    (("input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight"), "a Stable Diffusion U-Net or checkpoint"),
    (("joint_blocks.0.context_block.attn.qkv.weight",), "a Stable Diffusion 3 model"),
    (("encoder.block.0.layer.0.SelfAttention.q.weight",), "a T5 text encoder"),
    (("text_model.encoder.layers.0.self_attn.q_proj.weight",), "a CLIP text encoder"),
)


def _others(checkpoint, names):
    for ends, text in OTHERS:
        if any(name.endswith(ends) for name in names):
            return Kind("other", text, LOAD_CORE)
