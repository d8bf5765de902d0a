"""The names under which files store a model, and the canonical ones (Black Forest Labs' for the flow model,
Hugging Face's for the encoder). A plan says for each canonical tensor where it comes from."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import torch

from ..errors import KleinError
from .codecs import FP8, is_quantisation_name, quantised_layers, scale_name
from .files import Checkpoint

FLOW_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")

# BFL layer -> diffusers layers; several are stacked on the output axis.
DIFFUSERS_LAYERS = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_guidance_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_guidance_embed.timestep_embedder.linear_2"],
    "double_stream_modulation_img.lin": ["double_stream_modulation_img.linear"],
    "double_stream_modulation_txt.lin": ["double_stream_modulation_txt.linear"],
    "single_stream_modulation.lin": ["single_stream_modulation.linear"],
    "double_blocks.N.img_attn.qkv": [f"transformer_blocks.N.attn.to_{x}" for x in "qkv"],
    "double_blocks.N.img_attn.norm.query_norm": ["transformer_blocks.N.attn.norm_q"],
    "double_blocks.N.img_attn.norm.key_norm": ["transformer_blocks.N.attn.norm_k"],
    "double_blocks.N.img_attn.proj": ["transformer_blocks.N.attn.to_out.0"],
    "double_blocks.N.img_mlp.0": ["transformer_blocks.N.ff.linear_in"],
    "double_blocks.N.img_mlp.2": ["transformer_blocks.N.ff.linear_out"],
    "double_blocks.N.txt_attn.qkv": [f"transformer_blocks.N.attn.add_{x}_proj" for x in "qkv"],
    "double_blocks.N.txt_attn.norm.query_norm": ["transformer_blocks.N.attn.norm_added_q"],
    "double_blocks.N.txt_attn.norm.key_norm": ["transformer_blocks.N.attn.norm_added_k"],
    "double_blocks.N.txt_attn.proj": ["transformer_blocks.N.attn.to_add_out"],
    "double_blocks.N.txt_mlp.0": ["transformer_blocks.N.ff_context.linear_in"],
    "double_blocks.N.txt_mlp.2": ["transformer_blocks.N.ff_context.linear_out"],
    "single_blocks.N.linear1": ["single_transformer_blocks.N.attn.to_qkv_mlp_proj"],
    "single_blocks.N.linear2": ["single_transformer_blocks.N.attn.to_out"],
    "single_blocks.N.norm.query_norm": ["single_transformer_blocks.N.attn.norm_q"],
    "single_blocks.N.norm.key_norm": ["single_transformer_blocks.N.attn.norm_k"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}
SWAPPED = "final_layer.adaLN_modulation.1"  # diffusers stores (scale, shift), BFL (shift, scale)

QWEN3_LAYER = (
    *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")),
    "input_layernorm",
    "post_attention_layernorm",
)


@dataclass(frozen=True)
class Plan:
    """Where each canonical tensor of a model lies in a checkpoint.

    sources: canonical layer -> layers in the file (stacked on axis 0); unused: names in the file with no place;
    quantised: canonical layer -> its fp8 settings.
    """

    checkpoint: Checkpoint
    sources: dict[str, list[str]]
    names: dict[str, str]
    unused: list[str]
    quantised: dict[str, dict]
    swapped: frozenset[str] = frozenset()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical `layer.weight` -> its shape, from headers alone."""
        out = {}
        for layer, sources in self.sources.items():
            shapes = [self.checkpoint.shapes[self.names[source]] for source in sources]
            out[f"{layer}.weight"] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return out

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights that are not quantised, by their number of elements."""
        elements = Counter()
        for layer, dtype in self._matrices():
            elements[dtype] += math.prod(self.shapes[f"{layer}.weight"])
        return elements.most_common(1)[0][0] if elements else torch.bfloat16

    @property
    def uniform(self) -> bool:
        """Whether all matrices that are not quantised have that dtype."""
        return {dtype for _, dtype in self._matrices()} == {self.dtype}

    def _matrices(self):
        """(layer, dtype in the file) of each matrix that is not quantised."""
        for layer, sources in self.sources.items():
            if layer not in self.quantised and len(self.checkpoint.shapes[self.names[sources[0]]]) == 2:
                yield layer, self.checkpoint.dtypes[self.names[sources[0]]]

    def tensors(self):
        """Yield (canonical name, tensor) in the file's dtype: mapped where the file has it whole, else built one
        layer at a time. Quantised layers also yield `weight_scale` and `input_scale` (float32 scalars)."""
        for layer, sources in self.sources.items():
            parts = [self.checkpoint[self.names[source]] for source in sources]
            weight = parts[0] if len(parts) == 1 else torch.cat(parts)
            if layer in self.swapped:
                weight = torch.cat(weight.chunk(2)[::-1])
            scales = {which: self._scale(sources, which) for which in ("weight_scale", "input_scale")}
            if layer not in self.quantised and scales["weight_scale"] is not None:
                weight, scales = (weight.float() * scales["weight_scale"]).to(weight.dtype), {}
            elif layer in self.quantised and scales["weight_scale"] is None:
                raise KleinError(
                    f"{self.checkpoint.path.name} lacks the scale of its fp8 layer {layer}: it is incomplete, download it again."
                )
            yield f"{layer}.weight", weight
            yield from ((f"{layer}.{which}", scale) for which, scale in scales.items() if scale is not None)

    def _scale(self, sources: list[str], which: str) -> torch.Tensor | None:
        layers = [self.names[source].removesuffix(".weight") for source in sources]
        names = [scale_name(self.checkpoint, layer, which) for layer in layers]
        if names[0] is None:
            return None
        if len(names) > 1:
            raise KleinError(
                f"{self.checkpoint.path.name} stores scaled fp8 weights under diffusers names, which cannot be fused "
                f"exactly: load the fp8 file with BFL names (flux-2-klein-9b-fp8.safetensors) instead."
            )
        scale = self.checkpoint[names[0]].float()
        if which == "input_scale" and (self._precise(sources[0]) or (names[0].endswith(".scale_input") and scale == 1)):
            return None  # 1 is what the older scheme writes when it knows no scale
        return scale

    def _precise(self, source: str) -> bool:
        return self.quantised.get(source, {}).get("full_precision_matrix_mult", False)


def flow_prefix(names) -> str | None:
    """The prefix before the flow model's names, None when there is no FLUX.2 flow model."""
    for prefix in FLOW_PREFIXES:
        if f"{prefix}double_stream_modulation_img.lin.weight" in names:
            return prefix
        if f"{prefix}double_stream_modulation_img.linear.weight" in names:
            return prefix
    return None


def encoder_prefix(names) -> str | None:
    """The prefix before `layers.N` and `embed_tokens` of a Hugging Face language model, None when there is none."""
    for name in names:
        if name.endswith("embed_tokens.weight"):
            return name.removesuffix("embed_tokens.weight")
    return None


def flow_plan(checkpoint: Checkpoint) -> Plan:
    """The plan of a FLUX.2 flow model under BFL or diffusers names, with or without a prefix."""
    prefix = flow_prefix(checkpoint.shapes)
    names = _weights(checkpoint, prefix)
    diffusers = "x_embedder" in names
    sources = {}
    for layer, theirs in DIFFUSERS_LAYERS.items():
        stack = (theirs[0] if diffusers else layer).partition(".N.")[0]
        for number in range(block_count(names, stack)) if ".N." in layer else [None]:
            mine = _numbered(layer, number)
            sources[mine] = [_numbered(name, number) for name in theirs] if diffusers else [mine]
    return _plan(checkpoint, prefix, names, sources, frozenset({SWAPPED}) if diffusers else frozenset())


def encoder_plan(checkpoint: Checkpoint, layers: int) -> Plan:
    """The plan of a Qwen3 model's embedding and first `layers` layers; what lies above is not part of it."""
    prefix = encoder_prefix(checkpoint.shapes)
    names = _weights(checkpoint, prefix)
    sources = {"embed_tokens": ["embed_tokens"]}
    for number in range(layers):
        for part in QWEN3_LAYER:
            sources[f"layers.{number}.{part}"] = [f"layers.{number}.{part}"]
    return _plan(checkpoint, prefix, names, sources)


def block_count(names, stack: str) -> int:
    """How many blocks `stack.0`, `stack.1`, ... the names speak of: the highest number plus one."""
    return max((int(match[1]) + 1 for name in names if (match := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))), default=0)


def _weights(checkpoint: Checkpoint, prefix: str) -> dict[str, str]:
    """Layer name without prefix -> tensor name in the file."""
    names = {}
    for name in checkpoint.shapes:
        if name.startswith(prefix) and not is_quantisation_name(name):
            names[re.sub(r"\.(weight|scale)$", "", name.removeprefix(prefix))] = name
    return names


def _plan(checkpoint, prefix, names, sources, swapped=frozenset()) -> Plan:
    wanted = [source for group in sources.values() for source in group]
    missing = [source for source in wanted if source not in names]
    if missing:
        raise KleinError(
            f"{checkpoint.path.name} lacks {len(missing)} of the {len(wanted)} tensors of this model (first: "
            f"{prefix}{missing[0]}.weight): it is incomplete or was saved by another program, download it again."
        )
    in_file = quantised_layers(checkpoint)
    quantised = {}
    for layer, group in sources.items():
        for source in group:
            settings = in_file.get(f"{prefix}{source}") or in_file.get(source)
            if settings and checkpoint.dtypes[names[source]] in FP8:
                quantised[layer] = settings
    unused = sorted(set(names.values()) - {names[source] for source in wanted})
    return Plan(checkpoint, sources, {s: names[s] for s in wanted}, unused, quantised, swapped)


def _numbered(pattern: str, number: int | None) -> str:
    return pattern.replace(".N.", f".{number}.")
