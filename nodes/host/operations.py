"""The layers that hosts give to models: with weight casting, partial offload, and weights that stay as they are quantised."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.ops
import torch
from comfy.cli_args import args

from ...model_loaders.formats.rows import GROUP, split_grouped, split_mxfp8, split_nvfp4, split_scaled
from ...model_loaders.formats.table import (
    INT4_GROUPED,
    INT4_ROTATED,
    INT8_ROTATED,
    INT8_ROWS,
    MXFP8_BLOCKS,
    NVFP4_ROWS,
    SCALED,
    Codec,
)
from .compat import multiplies, reads_comfy_quant
from .places import tell_places


@dataclass(frozen=True)
class Hosted:
    """A format that hosts have layers for. format, settings: as their `comfy_quant` says it; parts: of packed rows, the weight
    and its scales as comfy-kitchen has them, in the order of the table; whole: whether there is something that all rows share,
    which a weight that was put together of several has not."""

    format: str
    parts: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    settings: Mapping[str, int | bool] = field(default_factory=dict)
    whole: bool = False


def _flat(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weight, scale = split_scaled(rows)
    return weight, scale.flatten()


ROTATED = {"convrot_groupsize": GROUP}
NAMES = {form.codec.name: ("weight", *form.scales) for form in SCALED.values()}  # in a file
HOSTED = {
    INT8_ROWS.name: Hosted("int8_tensorwise", split_scaled),
    INT8_ROTATED.name: Hosted("int8_tensorwise", split_scaled, {"convrot": True, **ROTATED}),
    INT4_ROTATED.name: Hosted("convrot_w4a4", _flat, ROTATED),
    INT4_GROUPED.name: Hosted("asym_w4a8_int8", split_grouped, {"group_size": 16, **ROTATED}, whole=True),
    MXFP8_BLOCKS.name: Hosted("mxfp8", split_mxfp8),
    NVFP4_ROWS.name: Hosted("nvfp4", split_nvfp4, whole=True),
}


def hosted(quantised: dict[str, Codec], stacked: set[str], name: str) -> dict[str, Codec]:
    """The layers of a flow model with those that the host multiplies in their format as its own: their codec unpacks
    nothing here. stacked: those that the file has in several parts."""

    def own(layer: str, form: Hosted | None) -> bool:
        return form is not None and multiplies(form.format) and not (form.whole and layer in stacked)

    chosen = {layer for layer, codec in quantised.items() if own(layer, HOSTED.get(codec.name))}
    if chosen:
        names = ", ".join(sorted({HOSTED[quantised[layer].name].format for layer in chosen}))
        logging.info(f"{name}: ComfyUI multiplies {len(chosen)} layers in {names}, and rounds what they are given to it")
    return {layer: replace(codec, unpack=None) if layer in chosen else codec for layer, codec in quantised.items()}


def flow_operations(quantised: dict[str, Codec], dtype: torch.dtype | None, compute_dtype: torch.dtype | None, load_device):
    """The layers of a flow model with the layers `quantised`, else with all weights of `dtype` (None:
    of several, each cast to its input's), computed in `compute_dtype` (None: in their own)."""
    if quantised:
        precise = not comfy.model_management.supports_fp8_compute(load_device)
        return _mixed(quantised, compute_dtype or torch.bfloat16, precise)
    if dtype is None:
        return comfy.ops.manual_cast
    return comfy.ops.pick_operations(dtype, compute_dtype, load_device)


def encoder_operations(quantised: dict[str, Codec], compute_dtype: torch.dtype):
    """The layers of a text encoder: weights are cast to their input's dtype, and never multiplied in fp8."""
    return _mixed(quantised, compute_dtype, True) if quantised else comfy.ops.manual_cast


def _mixed(quantised: dict[str, Codec], compute_dtype: torch.dtype, precise: bool):
    if reads_comfy_quant():
        return comfy.ops.mixed_precision_ops({}, compute_dtype, full_precision_mm=precise)
    layers = {layer: {"format": codec.name} for layer, codec in quantised.items()}
    return comfy.ops.mixed_precision_ops(layers, compute_dtype, full_precision_mm=precise)


def native_tensors(tensors, quantised: dict[str, Codec]) -> dict[str, torch.Tensor]:
    """The engine's stream (name, tensor) as a state dict in the host's own way of marking quantised layers. Layers with a
    scale that are not among `quantised` are dequantised."""
    state = dict(tensors)
    if args.disable_mmap:
        state = {name: tensor.clone() for name, tensor in state.items()}
    tell_places(state.values())
    for name in [name for name in state if name.endswith(".weight_scale")]:
        layer = name.removesuffix(".weight_scale")
        if layer not in quantised:
            state[f"{layer}.weight"] = state[f"{layer}.weight"].float() * state.pop(name)
            state.pop(f"{layer}.input_scale", None)
    if reads_comfy_quant():
        for layer, codec in quantised.items():
            said: Mapping = codec.settings
            if codec.name in HOSTED:
                form = HOSTED[codec.name]
                parts = zip(NAMES[codec.name], form.parts(state[f"{layer}.weight"]), strict=True)
                state |= {f"{layer}.{part}": tensor for part, tensor in parts}
                said = {"format": form.format, **form.settings}
            state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    return state


def native_layers(quantised: dict[str, Codec]) -> dict[str, Codec]:
    """The layers that the host itself keeps as they are stored; 0.3.75 knows linear layers only."""
    native = {layer: codec for layer, codec in quantised.items() if not codec.unpack}
    if reads_comfy_quant():
        return native
    return {layer: codec for layer, codec in native.items() if not layer.endswith("embed_tokens")}
