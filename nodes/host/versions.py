"""Every difference between ComfyUI versions that the pack has to know."""

from __future__ import annotations

import comfy.model_patcher


def new_patcher(model, load_device, offload_device, disable_dynamic: bool = False):
    """A patcher around a model whose weights are not yet loaded: where the host has one that streams weights from the
    file (dynamic), that one, unless it is disabled."""
    plain = comfy.model_patcher.ModelPatcher
    preferred = getattr(comfy.model_patcher, "CoreModelPatcher", plain)  # bound late: the host replaces it at start-up
    return (plain if disable_dynamic else preferred)(model, load_device=load_device, offload_device=offload_device)
