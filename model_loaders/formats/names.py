"""The names under which files store a model, and the canonical ones (Black Forest Labs' for the flow model,
Hugging Face's for the encoder). A plan says for each canonical tensor where it comes from."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from ...errors import KleinError
from .codecs import Markers, StoredWeight
from .files import Checkpoint
from .table import Codec

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

    weights: canonical layer -> its stored weight, or several that are stacked on axis 0; unused: names in the file with no
    place; swapped: layers whose halves change places.
    """

    checkpoint: Checkpoint
    weights: dict[str, tuple[StoredWeight, ...]]
    unused: list[str]
    swapped: frozenset[str] = frozenset()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical `layer.weight` -> its shape, from headers alone."""
        return {f"{layer}.weight": self._stacked(layer, parts) for layer, parts in self.weights.items()}

    @property
    def nbytes(self) -> int:
        """Of the weights as they are kept: packed rows with their scales, others as they lie in the file."""
        return sum(part.nbytes for parts in self.weights.values() for part in parts)

    def _stacked(self, layer: str, parts: tuple[StoredWeight, ...]) -> tuple[int, ...]:
        """The shape of weights on top of each other; KleinError where they do not fit."""
        shapes = [part.shape for part in parts]
        if len(shapes) == 1:
            return shapes[0]
        if len({shape[1:] for shape in shapes}) > 1 or not all(shapes):
            raise KleinError(
                f"{self.checkpoint.path.name} stores {layer} in parts of shapes {shapes}, which do not fit: download it again."
            )
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def sides(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a canonical `layer.weight` of this rank; KleinError where it is another, or empty."""
        shape = self.shapes[name]
        if len(shape) != rank or 0 in shape:
            raise KleinError(
                f"{name} in {self.checkpoint.path.name} has shape {list(shape)}, expected {rank} sides above 0: download it again."
            )
        return shape

    def expect(self, shapes: dict[str, tuple[int, ...]], of: str) -> None:
        """KleinError for the first weight whose shape is not that of a model of these sizes."""
        for name, expected in shapes.items():
            if self.shapes[name] != expected:
                raise KleinError(
                    f"{name} in {self.checkpoint.path.name} has shape {list(self.shapes[name])}, expected {list(expected)} for {of}: "
                    f"the file mixes two models, download it again."
                )

    @cached_property
    def quantised(self) -> dict[str, Codec]:
        """Canonical layer -> its codec, of those that are not plain."""
        return {layer: parts[0].codec for layer, parts in self.weights.items() if parts[0].codec}

    @property
    def stacked(self) -> set[str]:
        """The layers that the file has in several parts."""
        return {layer for layer, parts in self.weights.items() if len(parts) > 1}

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the matrices that are not quantised, by their number of elements."""
        elements: Counter[torch.dtype] = Counter()
        for parts in self._matrices():
            elements[parts[0].dtype] += sum(math.prod(part.shape) for part in parts)
        return elements.most_common(1)[0][0] if elements else torch.bfloat16

    @property
    def uniform(self) -> bool:
        """Whether all matrices that are not quantised have that dtype."""
        return {parts[0].dtype for parts in self._matrices()} == {self.dtype}

    def _matrices(self) -> list[tuple[StoredWeight, ...]]:
        return [parts for parts in self.weights.values() if not parts[0].codec and len(parts[0].shape) == 2]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (canonical name, tensor) in the file's dtype: mapped where the file has it whole, else built one
        layer at a time. Quantised layers also yield `weight_scale` and `input_scale` (float32 scalars)."""
        for layer, parts in self.weights.items():
            read = [part.read(self.checkpoint) for part in parts]
            weight = read[0]["weight"] if len(read) == 1 else torch.cat([part["weight"] for part in read])
            if layer in self.swapped:
                weight = torch.cat(weight.chunk(2)[::-1])
            yield f"{layer}.weight", weight
            yield from ((f"{layer}.{which}", scale) for which, scale in read[0].items() if which != "weight")


def flow_prefix(names: Iterable[str]) -> str | None:
    """The prefix before the flow model's names, None when there is no FLUX.2 flow model."""
    for prefix in FLOW_PREFIXES:
        if f"{prefix}double_stream_modulation_img.lin.weight" in names:
            return prefix
        if f"{prefix}double_stream_modulation_img.linear.weight" in names:
            return prefix
    return None


def encoder_prefix(names: Iterable[str]) -> str | None:
    """The prefix before `layers.N` and `embed_tokens` of a Hugging Face language model, None when there is none."""
    for name in names:
        if name.endswith("embed_tokens.weight"):
            return name.removesuffix("embed_tokens.weight")
    return None


def flow_plan(checkpoint: Checkpoint) -> Plan:
    """The plan of a FLUX.2 flow model under BFL or diffusers names, with or without a prefix."""
    prefix = flow_prefix(checkpoint.shapes) or ""
    names = [name.removeprefix(prefix) for name in checkpoint.shapes if name.startswith(prefix)]
    diffusers = f"{prefix}x_embedder.weight" in checkpoint
    sources = {}
    for layer, theirs in DIFFUSERS_LAYERS.items():
        stack = (theirs[0] if diffusers else layer).partition(".N.")[0]
        for number in range(block_count(names, stack)) if ".N." in layer else [None]:
            mine = _numbered(layer, number)
            sources[mine] = [_numbered(name, number) for name in theirs] if diffusers else [mine]
    plan = _plan(checkpoint, prefix, sources, frozenset({SWAPPED}) if diffusers else frozenset())
    strange = [name for name in plan.unused if name.startswith(prefix) and not name.endswith("scaled_fp8")]
    if strange:
        raise KleinError(
            f"{checkpoint.path.name} holds {len(strange)} tensors that no klein model has (first: {strange[0]}): choose another file."
        )
    return plan


def encoder_plan(checkpoint: Checkpoint, layers: int) -> Plan:
    """The plan of a Qwen3 model's embedding and first `layers` layers; what lies above is not part of it."""
    prefix = encoder_prefix(checkpoint.shapes) or ""
    sources = {"embed_tokens": ["embed_tokens"]}
    for number in range(layers):
        for part in QWEN3_LAYER:
            sources[f"layers.{number}.{part}"] = [f"layers.{number}.{part}"]
    plan = _plan(checkpoint, prefix, sources)
    read = tuple(f"{prefix}layers.{number}." for number in range(layers))
    strange = [name for name in plan.unused if name.startswith(read)]
    if strange:
        raise KleinError(
            f"{checkpoint.path.name} holds {len(strange)} tensors that Qwen3's layers do not have (first: {strange[0]}): choose "
            f"another file."
        )
    return plan


def block_count(names: Iterable[str], stack: str) -> int:
    """How many blocks `stack.0`, `stack.1`, ... there are, without a gap."""
    numbers = {int(match[1]) for name in names if (match := re.match(rf"{re.escape(stack)}\.(0|[1-9]\d{{0,3}})\.", name))}
    return next(number for number in range(len(numbers) + 1) if number not in numbers)


def _plan(checkpoint: Checkpoint, prefix: str, sources: dict[str, list[str]], swapped=frozenset()) -> Plan:
    found = {source: _leaf(checkpoint, f"{prefix}{source}", layer) for layer, group in sources.items() for source in group}
    missing = [source for source, leaf in found.items() if leaf is None]
    if missing:
        raise KleinError(
            f"{checkpoint.path.name} lacks {len(missing)} of the {len(found)} tensors of this model (first: "
            f"{prefix}{missing[0]}.weight): it is incomplete or was saved by another program, download it again."
        )
    markers = Markers(checkpoint)
    weights = {
        layer: tuple(markers.stored(prefix, source, found[source] or "") for source in group)
        for layer, group in sources.items()
    }
    for layer, parts in weights.items():
        if len(parts) > 1 and all(part.codec and not part.codec.unpack for part in parts):
            weights[layer] = parts = tuple(part.as_rows() for part in parts)
        if len({part.codec.name if part.codec else "" for part in parts}) > 1:
            raise KleinError(
                f"{checkpoint.path.name} stores the parts of {layer} in several formats, which cannot be fused exactly: load a file with "
                f"BFL names (flux-2-klein-9b-fp8.safetensors) instead."
            )
    used = {f"{prefix}{source}" for source in found}
    unused = sorted(name for name in checkpoint.shapes if name.rpartition(".")[0] not in used)
    return Plan(checkpoint, weights, unused, swapped)


def _leaf(checkpoint: Checkpoint, path: str, layer: str) -> str | None:
    """What the weight of a layer is called in the file: some write the scale of a norm as `scale`."""
    leaves = ("weight", "scale") if layer.endswith("_norm") else ("weight",)
    return next((leaf for leaf in leaves if f"{path}.{leaf}" in checkpoint), None)


def _numbered(pattern: str, number: int | None) -> str:
    return pattern.replace(".N.", f".{number}.")
