"""The layers of weights that lie in memory as packed rows, and are made dense when they are used."""

from __future__ import annotations

import json
import logging

import comfy.model_management
import comfy.ops
import torch

from ...errors import KleinError
from ...model_loaders.formats.table import Codec


class Packed(torch.nn.Module, comfy.ops.CastWeightBiasOp):
    """`weight`: rows of bytes, for the host to move, count and back up as any parameter. Its patches are added to the dense
    weight: at call time, or once for all, and then it stays dense until the host puts the packed one back."""

    comfy_cast_weights = True

    def __init__(self, codec: Codec, rows: int, columns: int):
        super().__init__()
        self.codec, self.columns = codec, columns
        self.weight = torch.nn.Parameter(torch.empty(rows, codec.row(columns), dtype=torch.uint8, device="meta"), False)
        self.own: torch.Tensor | None = None  # the packed weight while a patched one stands in its place, as the host's backup
        self.bias = None
        self.weight_function: list = []
        self.bias_function: list = []

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The whole weight, with what the host adds to it."""
        copied = comfy.model_management.device_supports_non_blocking(device)
        weight = self._numbers(comfy.model_management.cast_to(self.weight, None, device, non_blocking=copied), dtype)
        if self.own is not None and self.weight.dtype == torch.uint8:
            self.own = None
        for place, function in enumerate(self.weight_function):
            patched = place > 0 or self.weight.dtype != torch.uint8
            more = (self._unpatched(device),) if patched and getattr(function, "of_own", False) else ()
            weight = function(weight, *more)
        return weight

    def _unpatched(self, device: torch.device) -> torch.Tensor | None:
        """The whole weight without what the host adds to it, float32."""
        rows = self.weight if self.weight.dtype == torch.uint8 else self.own
        return None if rows is None else self.codec.dense(rows.to(device), torch.float32)

    def _numbers(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of its own where functions may change it in place: not the parameter, which would keep what they add."""
        if weight.dtype == torch.uint8:
            return self.codec.dense(weight, dtype)
        return weight.to(dtype, copy=bool(self.weight_function))

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **kwargs) -> torch.Tensor:
        """For the host's patches. It hands over the bytes of `weight` as floats, or what `dense` has given it."""
        packed = weight.shape[-1] != self.columns
        return self.codec.dense(weight.to(torch.uint8), torch.float32) if packed else weight

    def set_weight(self, weight: torch.Tensor, inplace_update=False, seed=None, return_weight=False, **kwargs):
        """A patched weight is kept as it is: rounded again, a small patch would be lost."""
        if return_weight:
            return weight
        if inplace_update:  # the host's hooks: they write the old weight back into the new one, which is of another shape
            raise KleinError(
                f"A LoRA that comes over hooks cannot change weights that stay packed as {self.codec.name}: use a LoRA loader without "
                f"hooks, or a bf16 file of this model."
            )
        if self.weight.dtype == torch.uint8:
            self.own = self.weight.detach().cpu()
        self.weight = torch.nn.Parameter(weight.to(patched_dtype(weight.device)), requires_grad=False)


class PackedLinear(Packed):
    def forward(self, input):
        comfy.ops.run_every_op()
        return torch.nn.functional.linear(input, self.dense(input.dtype, input.device))


class PackedEmbedding(Packed):
    def forward(self, ids):
        comfy.ops.run_every_op()
        if self.weight_function or self.weight.dtype != torch.uint8:
            return torch.nn.functional.embedding(ids, self.dense(torch.float32, ids.device))
        rows = self.weight[ids.to(self.weight.device)]
        return self.codec.dense(rows.to(ids.device), torch.float32)


def dense_shape(layer: torch.nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, packed or not."""
    return (len(layer.weight), layer.columns) if isinstance(layer, Packed) else tuple(layer.weight.shape)


def markers(model: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """What a saved file needs beside the packed weights of a model: the name of each one's codec."""
    packed = {name: layer for name, layer in model.named_modules() if isinstance(layer, Packed)}
    said = {
        f"{prefix}{n}.comfy_quant": json.dumps(p.codec.settings).encode()
        for n, p in packed.items()
        if p.weight.dtype == torch.uint8
    }
    return {name: torch.tensor(list(text), dtype=torch.uint8) for name, text in said.items()}


def patched_dtype(device: torch.device) -> torch.dtype:
    """What a patched weight is kept in."""
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


def packed_layers(quantised: dict[str, Codec]) -> dict[str, Codec]:
    return {layer: codec for layer, codec in quantised.items() if codec.unpack}


def pack(model: torch.nn.Module, quantised: dict[str, Codec], name: str) -> None:
    """Put packed layers where a model has its own for these, and say what it costs."""
    packed = packed_layers(quantised)
    kept = most = 0
    for layer, codec in packed.items():
        own = model.get_submodule(layer)
        parent, _, leaf = layer.rpartition(".")
        if isinstance(own, torch.nn.Embedding):
            new: Packed = PackedEmbedding(codec, own.num_embeddings, own.embedding_dim)
        else:
            new = PackedLinear(codec, own.out_features, own.in_features)
            most = max(most, own.out_features * own.in_features)
        kept += new.weight.nbytes
        setattr(model.get_submodule(parent), leaf, new)
    if packed:
        names = ", ".join(sorted({codec.name for codec in packed.values()}))
        logging.info(
            f"{name}: {len(packed)} layers stay packed as {names} ({kept / 1e6:.0f} MB) and are made dense one by one when they are "
            f"used: up to {2 * most / 1e6:.0f} MB beside them in 16 bit, and time in every step"
        )
