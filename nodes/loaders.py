"""Loaders: files to MODEL, CLIP and VAE."""

from comfy_api.latest import io

from .checks import check
from .host import files
from .host.compat import aliases
from .host.encoder import load_clip
from .host.flow import VARIANTS, WEIGHT_DTYPES, load_model, offered
from .host.vae import load_vae

CATEGORY = "Klein"
LICENCES = "klein 9B, base 9B and 9B KV: FLUX Non-Commercial License, gated download. klein 4B and base 4B: Apache 2.0, free for any use."


class KleinFlowLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinFlowLoader",
            display_name="Klein Flow Loader",
            category=CATEGORY,
            description=f"Loads a FLUX.2 [klein] flow model, 9B or 4B, from a file or a diffusers folder. {LICENCES}",
            inputs=[
                io.Combo.Input(
                    "flow_name",
                    options=files.choices("diffusion_models", "transformer"),
                    tooltip="From models/diffusion_models (files and folders) and models/diffusers. "
                    "flux-2-klein-9b-fp8.safetensors needs half the memory of flux-2-klein-9b.safetensors.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=offered(WEIGHT_DTYPES),
                    default="default",
                    tooltip="default keeps the file's own. fp8_e4m3fn halves a bf16 file's memory: the matrices of the "
                    "blocks are rounded to 8 bits, each with its own scale. Layers that the file has quantised stay so.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="auto",
                    tooltip="What the model was trained for; auto goes by the file name. distilled: 4 steps, cfg 1. "
                    "base: 20 to 50 steps, cfg 4 to 5. kv: distilled, and trained for the reference cache.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The flow model, for samplers, LoRA loaders and patches.")],
            **aliases("klein", "flux2", "flux.2", "unet loader", "load diffusion model", "checkpoint", "fp8", "9b", "4b"),
        )

    @classmethod
    def validate_inputs(cls, flow_name):
        return files.known("diffusion_models", "transformer", flow_name)

    @classmethod
    def execute(cls, flow_name, weight_dtype, variant) -> io.NodeOutput:
        check(cls, weight_dtype=weight_dtype, variant=variant)
        return io.NodeOutput(load_model(files.resolve("diffusion_models", "transformer", flow_name), weight_dtype, variant))


class KleinQwen3EncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinQwen3EncoderLoader",
            display_name="Klein Qwen3 Encoder Loader",
            category=CATEGORY,
            description="Loads the Qwen3 text encoder, as far as klein reads it (27 of 36 layers, no head). Qwen3-8B for "
            "klein 9B, Qwen3-4B for klein 4B.",
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=files.choices("text_encoders", "text_encoder"),
                    tooltip="From models/text_encoders (files and folders) and models/diffusers. "
                    "qwen_3_8b_fp8mixed.safetensors for klein 9B, qwen_3_4b.safetensors for klein 4B.",
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    tooltip="cpu keeps the encoder out of the GPU's memory; a prompt then takes longer.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The text encoder, for Klein Prompt and CLIP Text Encode.")],
            **aliases("klein clip", "clip loader", "text encoder", "qwen", "qwen3", "flux2"),
        )

    @classmethod
    def validate_inputs(cls, encoder_name):
        return files.known("text_encoders", "text_encoder", encoder_name)

    @classmethod
    def execute(cls, encoder_name, device) -> io.NodeOutput:
        check(cls, device=device)
        return io.NodeOutput(load_clip(files.resolve("text_encoders", "text_encoder", encoder_name), device))


class KleinVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinVAELoader",
            display_name="Klein VAE Loader",
            category=CATEGORY,
            description="Loads the FLUX.2 VAE in any width: flux2-vae, the small decoder, or a diffusers folder.",
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=files.choices("vae", "vae"),
                    tooltip="From models/vae (files and folders) and models/diffusers: flux2-vae.safetensors.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="The VAE, for references, VAE Encode and VAE Decode.")],
            **aliases("klein vae", "load vae", "flux2 vae", "autoencoder", "small decoder"),
        )

    @classmethod
    def validate_inputs(cls, vae_name):
        return files.known("vae", "vae", vae_name)

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(load_vae(files.resolve("vae", "vae", vae_name)))
