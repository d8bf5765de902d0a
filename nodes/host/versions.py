"""Every difference between ComfyUI versions that the pack has to know."""

from __future__ import annotations

import comfy.model_patcher


def new_patcher(model, load_device, offload_device):
    """A patcher around a model: the host's preferred class where it has one (dynamic offload), else the plain one."""
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=load_device, offload_device=offload_device)
