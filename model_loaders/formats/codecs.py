"""How one weight is stored: its data, the codec that its numbers are written in, and the scales beside it.

Three ways of marking an fp8 layer are read as one:
1. `_quantization_metadata` in the header: {"layers": {name: {"format": ...}}}       (flux-2-klein-9b-fp8)
2. a `comfy_quant` tensor per layer: the bytes of {"format": ...}                    (qwen_3_8b_fp8mixed)
3. a `scaled_fp8` marker in the file and `scale_weight`, `scale_input` per layer     (older files)
Where several speak of a layer, the tensor's word is the last. Whatever lies beside a weight and is not understood is
refused by its name: a scale left out or misread gives garbage, not an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from ...errors import KleinError
from . import rows
from .files import Checkpoint
from .table import CODECS, FLOAT8_ROWS, FLOATS, FP8, SCALED, Codec, Scaled

SCALES = {"weight_scale": ("weight_scale", "scale_weight"), "input_scale": ("input_scale", "scale_input")}
LONGEST_MARKER = 4096  # bytes of a `comfy_quant` tensor
KNOWN = "bf16, fp16, fp32, fp8, mxfp8, nvfp4, int8, w4a4, w4a8 or GGUF"
INSTEAD = "load the bf16 or the fp8 file of this model instead."


@dataclass(frozen=True)
class StoredWeight:
    """One weight of a file. data, weight_scale, input_scale: names of its tensors; shape: of the dense weight; dtype: of
    the data; codec: None for plain floats. The dense weight is data * weight_scale.

    pack: for a packed codec, of data and `scales`, what lies beside it by name and dtype, to the rows; levels: that of those
    whose numbers may be below 0.
    """

    data: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    codec: Codec | None = None
    weight_scale: str | None = None
    input_scale: str | None = None
    pack: Callable[..., torch.Tensor] | None = None
    scales: Mapping[str, torch.dtype] = field(default_factory=dict)
    levels: str = ""

    @property
    def nbytes(self) -> int:
        """Of `weight` as it is read."""
        if self.codec and self.codec.unpack:
            return self.shape[0] * self.codec.row(self.shape[1])
        return math.prod(self.shape) * self.dtype.itemsize

    def as_rows(self) -> StoredWeight:
        """A scaled fp8 weight as rows with their scale, so that it can be put on top of others."""
        assert self.weight_scale is not None
        return replace(
            self,
            codec=FLOAT8_ROWS,
            pack=rows.pack_scaled,
            scales={self.weight_scale: torch.float32},
            weight_scale=None,
            input_scale=None,
        )

    def read(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """`weight` as it lies in the file, or packed; and the float32 scalars `weight_scale` and `input_scale` where it has
        them. A plain weight with a scale is multiplied by it."""
        if self.pack:
            scales = [_checked(checkpoint, name, dtype, name == self.levels) for name, dtype in self.scales.items()]
            inputs = {"input_scale": _scalar(checkpoint, self.input_scale)} if self.input_scale else {}
            return {"weight": self.pack(checkpoint[self.data], *scales), **inputs}
        parts = {"weight": checkpoint[self.data]}
        for part, name in (("weight_scale", self.weight_scale), ("input_scale", self.input_scale)):
            if name is not None:
                parts[part] = _scalar(checkpoint, name)
        if self.codec is None:
            parts.pop("input_scale", None)
            scale = parts.pop("weight_scale", None)
            if scale is not None:
                parts["weight"] = (parts["weight"].float() * scale).to(self.dtype)
        elif self.codec.full_precision_matrix_mult or self._is_unknown(parts.get("input_scale")):
            parts.pop("input_scale", None)
        return parts

    def _is_unknown(self, scale: torch.Tensor | None) -> bool:
        """The older scheme writes 1 where it knows no scale of the inputs."""
        return scale is not None and str(self.input_scale).endswith(".scale_input") and float(scale) == 1


class Markers:
    """What a file says of the codecs of its layers."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self._header = _header_settings(checkpoint)
        sizes = [math.prod(shape) for name, shape in checkpoint.shapes.items() if name.rpartition(".")[2] == "scaled_fp8"]
        # The older scheme's marker has two elements where the layers must be multiplied in full precision.
        self._precise = 2 in sizes
        self._scaled = bool(sizes or self._header) or any(
            name.rpartition(".")[2] in ("comfy_quant", *SCALES["weight_scale"]) for name in checkpoint.shapes
        )

    def stored(self, prefix: str, layer: str, data: str = "weight") -> StoredWeight:
        """The weight of a layer (its name without the prefix), whose tensor is `layer.data`. KleinError for what is not
        understood."""
        checkpoint, path = self.checkpoint, f"{prefix}{layer}"
        name = f"{path}.{data}"
        shape, dtype = checkpoint.shapes[name], checkpoint.dtypes[name]
        if name in checkpoint.packed:
            shape = (*shape[:-1], CODECS[checkpoint.packed[name]].row(shape[-1]))
        beside = {other.removeprefix(f"{path}.") for other in checkpoint.beside(path)} - {data, "comfy_quant"}
        scales = {part: next((own for own in names if own in beside), None) for part, names in SCALES.items()}
        codec = self._codec(prefix, layer, data, dtype, scales["weight_scale"] is not None)
        if isinstance(codec, Scaled):
            return self._scaled_rows(path, name, codec, beside)
        strange = sorted(beside - set(scales.values()))
        if strange:
            raise KleinError(
                f"{checkpoint.path.name} has {path}.{strange[0]} beside a weight, which is no part of a plain or fp8 layer: {INSTEAD}"
            )
        if codec and codec.unpack:
            return self._packed(path, name, shape, codec, beside)
        if dtype not in FLOATS and dtype not in FP8:
            raise KleinError(
                f"{checkpoint.path.name} stores {name} as {dtype_name(dtype)} and does not say how it is to be read: {INSTEAD}"
            )
        if codec and scales["weight_scale"] is None or codec is None and dtype in FP8 and self._scaled:
            raise KleinError(
                f"{checkpoint.path.name} lacks the scale of its fp8 layer {path}: it is incomplete, download it again."
            )
        own = {part: None if leaf is None else f"{path}.{leaf}" for part, leaf in scales.items()}
        for scale in filter(None, own.values()):
            _expect_one(checkpoint, scale)
        return StoredWeight(name, shape, dtype, codec, own["weight_scale"], own["input_scale"])

    def _packed(self, path: str, name: str, shape: tuple[int, ...], codec: Codec, beside: set[str]) -> StoredWeight:
        """A weight whose rows, of this shape, hold all that there is to know."""
        columns = codec.columns(shape[-1]) if len(shape) == 2 else 0
        if beside or not columns:
            what = f"{path}.{min(beside)} beside" if beside else f"shape {list(shape)} for"
            raise KleinError(
                f"{self.checkpoint.path.name} has {what} its {codec.name} weight {name}, expected whole rows and nothing beside: {INSTEAD}"
            )
        return StoredWeight(name, (shape[0], columns), torch.uint8, codec)

    def _scaled_rows(self, path: str, name: str, form: Scaled, beside: set[str]) -> StoredWeight:
        """A weight of a format that is packed into rows, with all its scales beside it and nothing else."""
        checkpoint, shape = self.checkpoint, self.checkpoint.shapes[name]
        strange = sorted(beside - {*form.scales, form.inputs}) or sorted(set(form.scales) - beside)
        columns = shape[1] * form.count if len(shape) == 2 else 0
        if strange or not columns or columns % form.codec.count or not shape[0]:
            what = (
                f"a {path}.{strange[0]} that is {'strange' if strange[0] in beside else 'missing'}"
                if strange
                else f"shape {list(shape)}"
            )
            raise KleinError(f"{checkpoint.path.name} has {what} in its {form.codec.name} layer {path}: {INSTEAD}")
        for leaf, (shapes, dtypes) in form.scales.items():
            scale = f"{path}.{leaf}"
            allowed = shapes(shape[0], columns)
            if checkpoint.shapes[scale] not in allowed or checkpoint.dtypes[scale] not in dtypes:
                raise KleinError(
                    f"{scale} in {checkpoint.path.name} is {dtype_name(checkpoint.dtypes[scale])} of shape {list(checkpoint.shapes[scale])}, "
                    f"expected {dtype_name(dtypes[0])} of shape {' or '.join(str(list(each)) for each in allowed)}: {INSTEAD}"
                )
        scales = {f"{path}.{leaf}": dtypes[0] for leaf, (_, dtypes) in form.scales.items()}
        levels = form.levels and f"{path}.{form.levels}"
        inputs = f"{path}.{form.inputs}" if form.inputs in beside else None
        if inputs:
            _expect_one(checkpoint, inputs)
        return StoredWeight(name, (shape[0], columns), torch.uint8, form.codec, None, inputs, form.pack, scales, levels)

    def _codec(self, prefix: str, layer: str, data: str, dtype: torch.dtype, scaled: bool) -> Codec | Scaled | None:
        path, own = f"{prefix}{layer}", f"{prefix}{layer}.comfy_quant"
        if f"{path}.{data}" in self.checkpoint.packed:
            return CODECS[self.checkpoint.packed[f"{path}.{data}"]]
        marked = own in self.checkpoint
        settings = _tensor_settings(self.checkpoint, own) if marked else self._header.get(path, self._header.get(layer))
        if settings is None:
            if dtype not in FP8 or not scaled:
                return None
            settings = {"format": dtype_name(dtype), "full_precision_matrix_mult": self._precise}
        codec = _known(self.checkpoint, path, settings)
        if dtype == codec.dtype:
            return codec
        if marked or dtype not in FLOATS:
            raise KleinError(
                f"{self.checkpoint.path.name} says that {path} is {settings['format']}, but stores it as {dtype_name(dtype)}: download it again."
            )
        return None  # a file that was saved anew in a plain dtype, with the header it had


def quantise(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to fp8 with one float32 scale for the whole tensor: (weight, weight_scale).

    The largest absolute value maps to the largest fp8 value, as NVIDIA's per-tensor recipe does.
    """
    limit = torch.finfo(dtype).max
    wide = weight.float()
    scale = (wide.abs().amax() / limit).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale).clamp(-limit, limit).to(dtype), scale


def _known(checkpoint: Checkpoint, layer: str, settings: dict) -> Codec | Scaled:
    if isinstance(settings.get("params"), dict):  # some write them there
        settings = {**settings["params"], **{key: value for key, value in settings.items() if key != "params"}}
    name, precise = str(settings.get("format")), settings.get("full_precision_matrix_mult", False)
    known = SCALED[name].settings if name in SCALED else {}
    rotated = f"{name}, rotated" if "convrot" in known and settings.get("convrot") is True else name
    more = sorted(
        str(key) for key, value in settings.items()
        if value and key not in ("format", "full_precision_matrix_mult") and value not in known.get(key, ())
    )  # fmt: skip
    if (name not in CODECS and rotated not in SCALED) or not isinstance(precise, bool) or more:
        what = f"{name} weights" + (f" with {more[0]}" if more else "")
        raise KleinError(f"{checkpoint.path.name} holds {what} ({layer}), expected {KNOWN}: {INSTEAD}")
    return SCALED[rotated] if rotated in SCALED else replace(CODECS[name], full_precision_matrix_mult=precise)


def _header_settings(checkpoint: Checkpoint) -> dict[str, dict]:
    text = checkpoint.metadata.get("_quantization_metadata")
    if text is None:
        return {}
    try:
        return {layer: dict(settings) for layer, settings in json.loads(text)["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KleinError(
            f"The quantisation metadata of {checkpoint.path.name} cannot be read ({error!r}): download it again."
        ) from error


def _tensor_settings(checkpoint: Checkpoint, name: str) -> dict:
    shape, dtype = checkpoint.shapes[name], checkpoint.dtypes[name]
    if dtype != torch.uint8 or len(shape) != 1 or shape[0] > LONGEST_MARKER:
        raise KleinError(
            f"{name} in {checkpoint.path.name} is {dtype_name(dtype)} of shape {list(shape)}, expected at most {LONGEST_MARKER} bytes of "
            f"JSON: download it again."
        )
    try:
        settings = json.loads(bytes(checkpoint[name].tolist()))
        return {str(key): value for key, value in settings.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise KleinError(f"{name} in {checkpoint.path.name} is not JSON ({error}): download it again.") from error


def _expect_one(checkpoint: Checkpoint, scale: str) -> None:
    if math.prod(checkpoint.shapes[scale]) != 1 or checkpoint.dtypes[scale] not in FLOATS:
        raise KleinError(
            f"{scale} in {checkpoint.path.name} is {dtype_name(checkpoint.dtypes[scale])} of shape {list(checkpoint.shapes[scale])}, "
            f"expected one floating-point number a layer: {INSTEAD}"
        )


def _scalar(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    scale = checkpoint[name].float().reshape(())
    if not (scale.isfinite() and scale > 0):
        raise KleinError(f"{name} in {checkpoint.path.name} is {float(scale)}, expected a scale above 0: download it again.")
    return scale


def _checked(checkpoint: Checkpoint, name: str, dtype: torch.dtype, signed: bool) -> torch.Tensor:
    """Scales of rows or blocks: numbers, none below 0 unless signed, and no 0 for a whole tensor (rows and blocks of zeros may
    have one). Bytes are of this dtype."""
    scale = checkpoint[name]
    scale = scale.view(dtype) if scale.dtype == torch.uint8 else scale
    wide = scale.float()
    wrong = ~wide.isfinite() | (wide < 0) & (not signed) | (wide == 0) & (wide.numel() == 1)
    if wrong.any():
        raise KleinError(
            f"{name} in {checkpoint.path.name} holds {int(wrong.sum())} scales that are no numbers above 0: download it again."
        )
    return scale


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
