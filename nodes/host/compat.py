"""Every difference between ComfyUI versions that the pack has to know."""

from __future__ import annotations

import inspect

import comfy.model_patcher
import comfy.sd


def patcher_class(disable_dynamic: bool = False) -> type:
    """Where the host has a patcher that streams weights from the file (dynamic), that one, unless it is disabled."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)  # the host sets it at start-up


def clip_options(disable_dynamic: bool) -> dict:
    """What tells a CLIP of the host to load its weights as a whole, where the host knows another way."""
    known = "disable_dynamic" in inspect.signature(comfy.sd.CLIP.__init__).parameters
    return {"disable_dynamic": disable_dynamic} if known else {}
