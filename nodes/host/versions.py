"""Every difference between ComfyUI versions that the pack has to know."""

from __future__ import annotations

import inspect

import comfy.model_patcher
import comfy.sd


def new_patcher(model, load_device, offload_device, disable_dynamic: bool = False):
    """A patcher around a model whose weights are not yet loaded: where the host has one that streams weights from the
    file (dynamic), that one, unless it is disabled."""
    plain = comfy.model_patcher.ModelPatcher
    preferred = getattr(comfy.model_patcher, "CoreModelPatcher", plain)  # bound late: the host replaces it at start-up
    return (plain if disable_dynamic else preferred)(model, load_device=load_device, offload_device=offload_device)


def clip_options(disable_dynamic: bool) -> dict:
    """What tells a CLIP of the host to load its weights as a whole, where the host knows another way."""
    known = "disable_dynamic" in inspect.signature(comfy.sd.CLIP.__init__).parameters
    return {"disable_dynamic": disable_dynamic} if known else {}
