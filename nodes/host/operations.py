"""The layers that hosts give to models: with weight casting, partial offload, and weights that stay as they are quantised."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import comfy.model_management
import comfy.ops
import torch
from comfy.cli_args import args

from ...errors import KleinError
from ...model_loaders.formats.rows import GROUP, split_grouped, split_scaled
from ...model_loaders.formats.table import INT4_GROUPED, INT4_ROTATED, INT8_ROTATED, INT8_ROWS, Codec
from .compat import multiplies, reads_comfy_quant
from .places import tell_places

# What hosts multiply in themselves, of what is packed in rows here: our codec -> what their `comfy_quant` says of it.
HOSTED = {
    INT8_ROWS.name: {"format": "int8_tensorwise"},
    INT8_ROTATED.name: {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": GROUP},
    INT4_ROTATED.name: {"format": "convrot_w4a4", "convrot_groupsize": GROUP},
    INT4_GROUPED.name: {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": GROUP},
}


def hosted(quantised: dict[str, Codec], name: str) -> dict[str, Codec]:
    """The layers of a flow model with those that the host multiplies in their format as its own: their codec unpacks
    nothing here."""
    own = {layer for layer, codec in quantised.items() if codec.name in HOSTED and multiplies(HOSTED[codec.name]["format"])}
    if own:
        names = ", ".join(sorted({HOSTED[quantised[layer].name]["format"] for layer in own}))
        logging.info(f"{name}: ComfyUI multiplies {len(own)} layers in {names}, and rounds what they are given to it")
    return {layer: replace(codec, unpack=None) if layer in own else codec for layer, codec in quantised.items()}


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
            if codec.name in HOSTED:
                parts = _split(codec, state[f"{layer}.weight"], layer)
                state |= {f"{layer}.{leaf}": part for leaf, part in parts.items()}
            said = json.dumps(HOSTED.get(codec.name, codec.settings))
            state[f"{layer}.comfy_quant"] = torch.tensor(list(said.encode()), dtype=torch.uint8)
    return state


def _split(codec: Codec, rows: torch.Tensor, layer: str) -> dict[str, torch.Tensor]:
    """Packed rows as comfy-kitchen has the weight, by the names in a file."""
    if codec.name == INT4_GROUPED.name:
        weight, scale, channel, levels = split_grouped(rows)
        if (levels != levels[0]).any():
            raise KleinError(
                f"q, k and v of {layer} are w4a8 with levels of their own: load the bf16 or the fp8 file of this model instead."
            )
        return {"weight": weight, "weight_s_rel": scale, "weight_s_channel": channel, "weight_codebook": levels[0].clone()}
    weight, scale = split_scaled(rows)
    return {"weight": weight, "weight_scale": scale.flatten() if codec.name == INT4_ROTATED.name else scale}


def native_layers(quantised: dict[str, Codec]) -> dict[str, Codec]:
    """The layers that the host itself keeps as they are stored; 0.3.75 knows linear layers only."""
    native = {layer: codec for layer, codec in quantised.items() if not codec.unpack}
    if reads_comfy_quant():
        return native
    return {layer: codec for layer, codec in native.items() if not layer.endswith("embed_tokens")}
