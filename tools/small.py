"""Small random models in exactly the released formats, and the oracles (diffusers, transformers) with the same weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

FP8 = torch.float8_e4m3fn
FLOW = dict(hidden=256, heads=2, context=192, mlp=768, depth=1, single=2)
ENCODER = dict(hidden=64, heads=4, kv_heads=2, head=32, mlp=128, layers=28, vocabulary=151936)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
)


def flow_state(seed: int = 0, hidden=256, heads=2, context=192, mlp=768, depth=1, single=2, channels=128, peak=2.0) -> dict:
    """Random weights under BFL names, as in flux-2-klein-9b.safetensors. `peak` scales q and k, so that attention is
    far from uniform and a wrong position or mask shows."""
    generator = torch.Generator().manual_seed(seed)
    h, head = hidden, hidden // heads

    def linear(out: int, into: int) -> torch.Tensor:
        return torch.randn(out, into, generator=generator) / into**0.5

    def norm() -> torch.Tensor:
        return peak * (0.5 + torch.rand(head, generator=generator))

    state = {
        "img_in.weight": linear(h, channels),
        "txt_in.weight": linear(h, context),
        "time_in.in_layer.weight": linear(h, 256),
        "time_in.out_layer.weight": linear(h, h),
        "double_stream_modulation_img.lin.weight": linear(6 * h, h),
        "double_stream_modulation_txt.lin.weight": linear(6 * h, h),
        "single_stream_modulation.lin.weight": linear(3 * h, h),
        "final_layer.adaLN_modulation.1.weight": linear(2 * h, h),
        "final_layer.linear.weight": linear(channels, h),
    }
    for i in range(depth):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            state[f"{block}_attn.qkv.weight"] = linear(3 * h, h)
            state[f"{block}_attn.norm.query_norm.scale"] = norm()
            state[f"{block}_attn.norm.key_norm.scale"] = norm()
            state[f"{block}_attn.proj.weight"] = linear(h, h)
            state[f"{block}_mlp.0.weight"] = linear(2 * mlp, h)
            state[f"{block}_mlp.2.weight"] = linear(h, mlp)
    for i in range(single):
        state[f"single_blocks.{i}.linear1.weight"] = linear(3 * h + 2 * mlp, h)
        state[f"single_blocks.{i}.linear2.weight"] = linear(h, h + mlp)
        state[f"single_blocks.{i}.norm.query_norm.scale"] = norm()
        state[f"single_blocks.{i}.norm.key_norm.scale"] = norm()
    return state


def flow_oracle(state: dict, heads: int = 2):
    """diffusers' transformer with these weights, converted by diffusers itself."""
    from diffusers import Flux2Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    hidden, channels = state["img_in.weight"].shape
    model = Flux2Transformer2DModel(
        in_channels=channels,
        num_layers=_count(state, "double_blocks"),
        num_single_layers=_count(state, "single_blocks"),
        attention_head_dim=hidden // heads,
        num_attention_heads=heads,
        joint_attention_dim=state["txt_in.weight"].shape[1],
        mlp_ratio=state["double_blocks.0.img_mlp.2.weight"].shape[1] / hidden,
        guidance_embeds=False,
    )
    model.load_state_dict(convert_flux2_transformer_checkpoint_to_diffusers(dict(state)))
    return model.eval()


def encoder_oracle(seed: int = 0, hidden=64, heads=4, kv_heads=2, head=32, mlp=128, layers=28, vocabulary=151936):
    """transformers' whole Qwen3 with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head, intermediate_size=mlp,
        num_hidden_layers=layers, vocab_size=vocabulary, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    return model.eval()


def encoder_state(model) -> dict:
    """Names and tensors of a released single file: Hugging Face's, without the tied head."""
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def tokenizer_oracle(folder: Path):
    """transformers' own Qwen tokenizer over the same byte pairs, with Qwen3's special tokens and chat template."""
    from transformers import AddedToken, AutoTokenizer

    folder = Path(folder)
    names = (
        "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
        "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> "
        "</tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> "
        "</tool_response> <think> </think>"
    ).split()
    added = {str(151643 + i): AddedToken(name, normalized=False, special=i < 14) for i, name in enumerate(names)}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 131072,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            number: {
                "content": token.content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": token.special,
            }
            for number, token in added.items()
        },
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def vae_oracle(seed: int = 0, widths=(32, 64, 64, 64), decoder=None):
    """diffusers' FLUX.2 autoencoder with narrow widths and random weights."""
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(seed)
    vae = AutoencoderKLFlux2(block_out_channels=widths, decoder_block_out_channels=decoder)
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def vae_state(vae) -> dict:
    """The tensors of flux2-vae.safetensors: Black Forest Labs' names (their autoencoder.py) from diffusers' ones."""
    levels = len(vae.config.block_out_channels)
    rules = [
        (r"^quant_conv", "encoder.quant_conv"),
        (r"^post_quant_conv", "decoder.post_quant_conv"),
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.", "mid.attn_1."),
        (r"attn_1\.group_norm", "attn_1.norm"),
        (r"attn_1\.to_([qkv])\b", r"attn_1.\1"),
        (r"attn_1\.to_out\.0", "attn_1.proj_out"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ]
    state = {}
    for name, tensor in vae.state_dict().items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new):
            tensor = tensor[:, :, None, None]
        state[new] = tensor.contiguous().clone()
    return state


def pipeline(flow, encoder, tokenizer, vae, kind: str = "Flux2KleinPipeline"):
    """diffusers' Klein pipeline, or another, of these parts."""
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential", shift_terminal=None)
    pipe = getattr(diffusers, kind)(scheduler, vae, encoder, tokenizer, flow, is_distilled=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def velocity(oracle, x, t, context, references=(), keep=()) -> torch.Tensor:
    """diffusers' transformer on latents (B, channels, H, W), packed and numbered as its Klein pipeline does. keep: for
    each reference which of its tokens are there (h*w,) bool, None for all."""
    out = oracle(**_packed(x, t, context, references, keep), return_dict=False)[0]
    return _unpacked(out, x)


@torch.no_grad()
def kv_velocity(oracle, x, t, context, references, cache, keep=()) -> tuple[torch.Tensor, object]:
    """As `velocity`, as diffusers' K/V pipeline calls its transformer: without a cache the call that makes one, with it a
    cached step. Returns (velocity, cache)."""
    from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor

    for block in oracle.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in oracle.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    t = torch.full((len(x),), float(t))
    if cache is not None:
        given = _packed(x, t, context)
        return _unpacked(oracle(**given, return_dict=False, kv_cache=cache, kv_cache_mode="cached")[0], x), cache
    given = _packed(x, t, context, references, keep)
    own = x.shape[2] * x.shape[3]
    count = given["hidden_states"].shape[1] - own
    for name, dim in (("hidden_states", 1), ("img_ids", 0)):  # its order is [text, references, image]
        given[name] = given[name].roll(count, dim)
    out, cache = oracle(**given, return_dict=False, kv_cache_mode="extract", num_ref_tokens=count)
    return _unpacked(out[:, -own:], x), cache


def _packed(x, t, context, references=(), keep=()) -> dict[str, torch.Tensor]:
    batch = len(x)
    latents = [x, *(reference.expand(batch, -1, -1, -1) for reference in references)]
    zero = torch.tensor([0])
    ids = [
        torch.cartesian_prod(torch.tensor([10 * k]), *(torch.arange(n) for n in latent.shape[-2:]), zero)
        for k, latent in enumerate(latents)
    ]
    tokens = [latent.flatten(2).transpose(1, 2) for latent in latents]
    for number, kept in enumerate(keep, start=1):
        if kept is not None:
            tokens[number], ids[number] = tokens[number][:, kept], ids[number][kept]
    return dict(
        hidden_states=torch.cat(tokens, dim=1),
        timestep=t,
        encoder_hidden_states=context.expand(batch, -1, -1),
        img_ids=torch.cat(ids),
        txt_ids=torch.cartesian_prod(zero, zero, zero, torch.arange(context.shape[1])),
    )


def _unpacked(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return out[:, : x.shape[2] * x.shape[3]].transpose(1, 2).reshape(x.shape)


def euler(oracle, x, sigmas, context, references=(), cfg=1.0, negative=None, keep=()) -> torch.Tensor:
    """Euler's method on diffusers' transformer, with classifier-free guidance when cfg is not 1."""
    for now, following in zip(sigmas[:-1], sigmas[1:]):
        t = torch.full((x.shape[0],), float(now))
        v = velocity(oracle, x, t, context, references, keep)
        if cfg != 1:
            without = velocity(oracle, x, t, negative, references, keep)
            v = without + cfg * (v - without)
        x = x + (following - now) * v
    return x


@torch.no_grad()
def embed(pipe, prompt: str) -> torch.Tensor:
    """The text embeddings of a pipeline's own prompt code."""
    return pipe._get_qwen3_prompt_embeds(pipe.text_encoder, pipe.tokenizer, prompt)


def comfy_noise(seed: int, batch: int = 1, height: int = 192, width: int = 256) -> torch.Tensor:
    """The noise that ComfyUI draws on the CPU for an empty FLUX.2 latent of this size."""
    return torch.randn(batch, 128, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


def blocks(name: str) -> bool:
    """Whether a flow's weight is one of those that files keep quantised."""
    return "_blocks." in name


def fp8_state(state: dict, scheme: str, layers=r"(double|single)_blocks.*|.*_proj") -> tuple[dict, dict, dict]:
    """Quantise the matrices of matching layers in one of the released schemes: `metadata`, `comfy_quant` or
    `scaled_fp8`. Returns the file's tensors, its metadata, and the weights dequantised by hand (float32)."""
    out, by_hand, quantised = {}, {}, {}
    for name, weight in state.items():
        layer, _, leaf = name.rpartition(".")
        by_hand[name] = weight
        out[name] = weight
        if weight.ndim != 2 or leaf != "weight" or not re.fullmatch(layers, layer):
            continue
        scale = weight.float().abs().max() / 448
        out[name] = (weight.float() / scale).to(FP8)
        by_hand[name] = out[name].float() * scale
        quantised[layer] = {"format": "float8_e4m3fn"}
        if scheme == "scaled_fp8":
            out[f"{layer}.scale_weight"] = scale
        else:
            out[f"{layer}.weight_scale"] = scale
        if scheme == "comfy_quant":
            out[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(quantised[layer]).encode()), dtype=torch.uint8)
    if scheme == "scaled_fp8":
        out["scaled_fp8"] = torch.zeros(0, dtype=FP8)
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": quantised})}
    return out, metadata if scheme == "metadata" else {}, by_hand


def save(state: dict, path: Path, metadata: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def header(tensors: dict[str, tuple[str, int, Sequence[int]]]) -> tuple[bytes, list[int]]:
    """The start of a safetensors file, for tensors that are written by hand in this order: name -> (its name of the dtype,
    bytes of an element, shape); and the bytes of each."""
    said, end, sizes = {}, 0, []
    for name, (dtype, itemsize, shape) in tensors.items():
        sizes.append(itemsize * math.prod(shape))
        said[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + sizes[-1]]}
        end += sizes[-1]
    text = json.dumps(said).encode()
    return len(text).to_bytes(8, "little") + text, sizes


def hollow(path: Path, tensors: dict[str, tuple[str, int, Sequence[int]]]) -> Path:
    """A file of this header and a hole, which reads as zeros and takes no disk."""
    start, sizes = header(tensors)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + sum(sizes))
    return path


def released_files(models: Path) -> None:
    """A ComfyUI models folder with small random weights under the names and in the formats of the released files that
    the example workflows name: 9B, 9B KV, base 9B and 4B fp8, Qwen3-8B fp8 mixed, Qwen3-4B, the FLUX.2 VAE."""
    flow, metadata, _ = fp8_state({name: w.bfloat16() for name, w in flow_state(**FLOW).items()}, "metadata")
    for variant in ("9b", "9b-kv", "base-9b", "4b"):
        save(flow, models / f"diffusion_models/flux-2-klein-{variant}-fp8.safetensors", metadata)
    encoder = {name: w.bfloat16() for name, w in encoder_state(encoder_oracle(**ENCODER)).items()}
    save(fp8_state(encoder, "comfy_quant")[0], models / "text_encoders/qwen_3_8b_fp8mixed.safetensors")
    save(encoder, models / "text_encoders/qwen_3_4b.safetensors")
    save(vae_state(vae_oracle()), models / "vae/flux2-vae.safetensors")


def _count(state: dict, stack: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{stack}.")})
