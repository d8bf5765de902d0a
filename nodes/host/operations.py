"""The layers that hosts give to models: with weight casting, partial offload, and fp8 weights that stay fp8."""

from __future__ import annotations

import inspect
import json

import comfy.model_management
import comfy.ops
import torch


def operations(
    quantised: dict[str, dict], dtype: torch.dtype, compute_dtype: torch.dtype | None, load_device, exact: bool = False
):
    """The namespace of layers for weights of `dtype` computed in `compute_dtype` (None: in their own).

    quantised: layer -> fp8 settings. exact: never multiply in fp8, even where the device can.
    """
    if not quantised:
        return comfy.ops.pick_operations(dtype, compute_dtype, load_device)
    compute_dtype = compute_dtype or torch.bfloat16
    precise = exact or not comfy.model_management.supports_fp8_compute(load_device)
    if _reads_comfy_quant():
        return comfy.ops.mixed_precision_ops({}, compute_dtype, full_precision_mm=precise)
    layers = {layer: {"format": settings["format"]} for layer, settings in quantised.items()}
    return comfy.ops.mixed_precision_ops(layers, compute_dtype, full_precision_mm=precise)


def native_tensors(tensors, quantised: dict[str, dict]) -> dict[str, torch.Tensor]:
    """The engine's stream (name, tensor) as a state dict in the host's own way of marking fp8 layers."""
    state = dict(tensors)
    if _reads_comfy_quant():
        for layer, settings in quantised.items():
            state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    return state


def _reads_comfy_quant() -> bool:
    """Newer hosts find a layer's format in its `comfy_quant` tensor, 0.3.75 in a table given beforehand."""
    return "layer_quant_config" not in inspect.signature(comfy.ops.mixed_precision_ops).parameters
