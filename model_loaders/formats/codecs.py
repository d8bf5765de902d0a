"""Three ways of writing fp8 weights into a file, read as one: `weight`, `weight_scale`, `input_scale` per layer.

1. `_quantization_metadata` in the header: {"layers": {name: {"format": ...}}}       (flux-2-klein-9b-fp8)
2. a `comfy_quant` tensor per layer: the bytes of {"format": ...}                    (qwen_3_8b_fp8mixed)
3. a `scaled_fp8` marker in the file and `scale_weight`, `scale_input` per layer     (older files)
The weight of a quantised layer is `weight * weight_scale`.
"""

from __future__ import annotations

import json
import math

import torch

from ..errors import KleinError
from .files import Checkpoint

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn}
SCALES = {"weight_scale": ("weight_scale", "scale_weight"), "input_scale": ("input_scale", "scale_input")}
MARKERS = ("comfy_quant", "scaled_fp8")


def quantised_layers(checkpoint: Checkpoint) -> dict[str, dict]:
    """Layer name -> its settings, at least {"format": "float8_e4m3fn"}. Empty for a plain file. Names from the header's
    metadata may lack the prefix that the tensors have. Raises KleinError for a format other than fp8."""
    layers = _from_scales(checkpoint) | _from_metadata(checkpoint) | _from_tensors(checkpoint)
    for layer, settings in layers.items():
        found = settings.get("format")
        if found not in FORMATS:
            raise KleinError(
                f"{checkpoint.path.name} holds {found} weights ({layer}), expected bf16, fp16, fp32 or fp8: "
                f"load the bf16 or the fp8 file of this model instead."
            )
    return layers


def scale_name(checkpoint: Checkpoint, layer: str, which: str) -> str | None:
    """The file's name of a layer's `weight_scale` or `input_scale`, None when it has none."""
    return next((f"{layer}.{name}" for name in SCALES[which] if f"{layer}.{name}" in checkpoint), None)


def is_quantisation_name(name: str) -> bool:
    """Whether a tensor describes the quantisation and is no weight of the model."""
    return name.rpartition(".")[2] in {*SCALES["weight_scale"], *SCALES["input_scale"], *MARKERS}


def quantise(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to fp8 with one float32 scale for the whole tensor: (weight, weight_scale).

    The largest absolute value maps to the largest fp8 value, as NVIDIA's per-tensor recipe does.
    """
    limit = torch.finfo(dtype).max
    wide = weight.float()
    scale = (wide.abs().amax() / limit).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale).clamp(-limit, limit).to(dtype), scale


def _from_metadata(checkpoint: Checkpoint) -> dict[str, dict]:
    text = checkpoint.metadata.get("_quantization_metadata")
    if text is None:
        return {}
    try:
        return {layer: dict(settings) for layer, settings in json.loads(text)["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KleinError(
            f"The quantisation metadata of {checkpoint.path.name} cannot be read ({error!r}): download it again."
        ) from error


def _from_tensors(checkpoint: Checkpoint) -> dict[str, dict]:
    layers = {}
    for name in checkpoint.shapes:
        if name.endswith(".comfy_quant"):
            try:
                layers[name.removesuffix(".comfy_quant")] = dict(json.loads(bytes(checkpoint[name].tolist())))
            except (ValueError, TypeError) as error:
                raise KleinError(f"{name} in {checkpoint.path.name} is not JSON ({error}): download it again.") from error
    return layers


def _from_scales(checkpoint: Checkpoint) -> dict[str, dict]:
    layers = {}
    # The older scheme's marker has two elements where the layers must be multiplied in full precision.
    precise = any(name.endswith("scaled_fp8") and math.prod(shape) == 2 for name, shape in checkpoint.shapes.items())
    for name in checkpoint.shapes:
        layer, _, leaf = name.rpartition(".")
        weight = checkpoint.dtypes.get(f"{layer}.weight")
        if leaf in SCALES["weight_scale"] and weight in FP8:
            layers[layer] = {"format": str(weight).removeprefix("torch.")}
            if precise:
                layers[layer]["full_precision_matrix_mult"] = True
    return layers
