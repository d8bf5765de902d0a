"""Keys and values of references on disk: what one server computed, the next one finds.

An entry a block, so that no more than a block is in memory twice; where which reference lies is written last, and so its
presence says that all was written.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import astuple

import torch
from comfy.cli_args import args
from comfy.ldm.modules.attention import optimized_attention
from comfy.weight_adapter.base import WeightAdapterBase

from ...model_loaders.flow.reference_kv import ReferenceKV, Storage
from ...model_loaders.formats.lora_delta import Delta
from ...store.disk import MOST_BESIDE
from ...store.keys import content, digest
from ...store.stamp import stamp
from . import store
from .compat import fused_rotation
from .lora import CallTime

KNOWN: OrderedDict[object, str | None] = OrderedDict()  # of the last patches: a LoRA of 9B takes some tenths of a second
MOST_KNOWN = 8
BLOCKS = {"double": "depth", "single": "depth_single_blocks"}  # the name of each kind's number among the sizes


def name_of(patcher, storage: Storage, like: torch.Tensor, **parts: object) -> str | None:
    """The key of keys and values that a MODEL computes, of latents such as these; None where something decides them that
    cannot be told in another process."""
    model, patches = patcher.model, patches_of(patcher)
    if patches is None:
        return None
    return store.key(
        "keys and values", model.source, like.device, patches=patches, weights=model.weight_dtype, kept=str(storage.dtype),
        layers=_layouts(model), fused=fused_rotation() is not None,
        computed=str(like.dtype), fast=sorted(map(str, args.fast or ())), attention=optimized_attention.__name__, **parts,
    )  # fmt: skip


def _layouts(model) -> list[str]:
    """The formats that a host may multiply this model's weights in: not all hosts do."""
    return sorted({weight._layout_cls for weight in model.diffusion_model.parameters() if hasattr(weight, "_layout_cls")})


def hindrance(model) -> str | None:
    """Why nothing that this model computes can be kept on disk."""
    if store.store().disk is None:
        return f"the store is off ({store.PLACE}=off)"
    if stamp(model.source, store.store()) is None:
        return "its file is no longer as it was loaded"
    return None


def load(name: str, storage: Storage, sizes, device: torch.device) -> ReferenceKV | None:
    """What lies on disk, where a run computes or the storage says; None where it does not."""
    disk = store.store().disk
    if disk is None:
        return None

    def part(which: str) -> dict[str, torch.Tensor] | None:
        found = disk.get(_part(name, which))
        return None if found is None else {each: x.to(storage.device or device) for each, x in found.items()}

    blocks = [(kind, index) for kind, number in BLOCKS.items() for index in range(getattr(sizes, number))]
    return ReferenceKV.of_parts(storage, blocks, part)


def save(name: str, kept: ReferenceKV) -> None:
    disk = store.store().disk
    if disk is None:
        return
    if kept.nbytes + MOST_BESIDE * (len(kept.blocks) + 1) > disk.most:  # or the last would put out the first
        size = f"{kept.nbytes / 2**30:.3g} GB, the store holds {disk.most / 2**30:.3g}"
        logging.warning(f"Klein reference cache: not written to disk, as they take {size}: raise {store.SIZE}.")
        return
    for which, tensors in kept.parts():
        if not disk.put(_part(name, which), tensors, f"keys and values of references, {which}"):
            logging.warning(f"Klein reference cache: not written to disk, as {disk.folder} cannot be written or is full.")
            return


def _part(name: str, which: str) -> str:
    return digest("part", of=name, which=which)


def patches_of(patcher) -> str | None:
    """A digest of what the patches of a MODEL or CLIP hold; None where one is of a kind that is not known here."""
    number = patcher.patches_uuid
    if number not in KNOWN:
        tensors: dict[str, torch.Tensor] = {}
        try:
            said = _said([patcher.patches, patcher.weight_wrapper_patches], tensors)
            KNOWN[number] = digest("patches", said=said, tensors=content(tensors))
        except TypeError:
            KNOWN[number] = None
        while len(KNOWN) > MOST_KNOWN:
            KNOWN.popitem(last=False)
    return KNOWN[number]


def _said(value, tensors: dict[str, torch.Tensor]):
    """A value without its tensors, which are put among `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[str(len(tensors))] = value
        return "tensor"
    if isinstance(value, dict):
        return {key: _said(value[key], tensors) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_said(each, tensors) for each in value]
    if isinstance(value, Delta):
        return _said(astuple(value), tensors)
    if isinstance(value, CallTime):
        return [type(value).__qualname__, _said(value.terms, tensors)]
    if isinstance(value, WeightAdapterBase):
        return [type(value).__module__, type(value).__qualname__, _said(value.weights, tensors)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(type(value).__name__)
