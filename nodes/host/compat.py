"""Every difference between ComfyUI versions that the pack has to know."""

from __future__ import annotations

import functools
import inspect

import comfy.model_management
import comfy.model_patcher
import comfy.sd


def new_patcher(model, load_device, offload_device, disable_dynamic: bool = False):
    """A patcher around a model whose weights are not yet loaded: where the host has one that streams weights from the
    file (dynamic), that one, unless it is disabled. `model.give_back()` frees what the model keeps beside its weights."""
    plain = comfy.model_patcher.ModelPatcher
    preferred = getattr(comfy.model_patcher, "CoreModelPatcher", plain)  # bound late: the host replaces it at start-up
    return _giving_back(plain if disable_dynamic else preferred)(model, load_device=load_device, offload_device=offload_device)


@functools.cache
def _giving_back(base: type) -> type:
    """The host takes a part of a model's memory by a method, without a callback."""

    class KleinPatcher(base):
        def partially_unload(self, device_to, memory_to_free=0, *args, **kwargs):
            freed = self.model.give_back() if memory_to_free > 0 else 0
            if freed and freed >= memory_to_free:
                return freed
            return freed + super().partially_unload(device_to, memory_to_free - freed, *args, **kwargs)

    return KleinPatcher


def note_dtypes(module) -> None:
    """Newer hosts cast each weight, when a GPU needs it, to the dtype that its layer was built with: tell them the one
    it was loaded in."""
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive:
        archive(module)


def clip_options(disable_dynamic: bool) -> dict:
    """What tells a CLIP of the host to load its weights as a whole, where the host knows another way."""
    known = "disable_dynamic" in inspect.signature(comfy.sd.CLIP.__init__).parameters
    return {"disable_dynamic": disable_dynamic} if known else {}
