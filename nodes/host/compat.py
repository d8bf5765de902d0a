"""Every difference between ComfyUI versions that the pack has to know."""

from __future__ import annotations

import inspect

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.sd
from comfy_api.latest import io


def aliases(*words: str) -> dict:
    """What tells a node's schema the words that a search finds it by, where the host knows such words."""
    return {"search_aliases": list(words)} if "search_aliases" in inspect.signature(io.Schema).parameters else {}


def patcher_class(disable_dynamic: bool = False) -> type:
    """Where the host has a patcher that streams weights from the file (dynamic), that one, unless it is disabled."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)  # the host sets it at start-up


def streams_weights() -> bool:
    """Whether the host has that patcher."""
    return hasattr(comfy.model_patcher, "CoreModelPatcher")


def file_slice():
    """What newer hosts, where they stream weights, look for on a mapped tensor to read it from its file in one go; None
    elsewhere. A tuple of an open file, the lock of its position, the first byte and the number of bytes."""
    memory = getattr(comfy, "memory_management", None)
    slice_of = getattr(memory, "TensorFileSlice", None)
    known = getattr(slice_of, "_fields", None) == ("file_ref", "lock", "offset", "size")
    return slice_of if known and memory.aimdo_enabled else None


def note_dtypes(module) -> None:
    """Newer hosts cast each weight, when a GPU needs it, to the dtype that its layer was built with: tell them the one
    it was loaded in."""
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive:
        archive(module)


def fused_rotation():
    """The host's kernel that rotates queries or keys (x, rotations), where it has one."""
    return getattr(getattr(comfy.quant_ops, "ck", None), "apply_rope1", None)


def clip_options(disable_dynamic: bool) -> dict:
    """What tells a CLIP of the host to load its weights as a whole, where the host knows another way."""
    known = "disable_dynamic" in inspect.signature(comfy.sd.CLIP.__init__).parameters
    return {"disable_dynamic": disable_dynamic} if known else {}


def multiplies(form: str) -> bool:
    """Whether this host has layers for weights of this format (as `comfy_quant` names it), and the card multiplies in it."""
    known = comfy.quant_ops.QUANT_ALGOS.get(form)
    if not known or not reads_comfy_quant() or not comfy.model_management.is_nvidia():
        return False
    card = getattr(comfy.model_management, f"supports_{form}_compute", lambda device: True)
    layout = comfy.quant_ops.get_layout_class(known["comfy_tensor_layout"])
    return layout.supports_fast_matmul() and card(comfy.model_management.get_torch_device())


def reads_comfy_quant() -> bool:
    """Newer hosts find a layer's format in its `comfy_quant` tensor, 0.3.75 in a table given beforehand."""
    return "layer_quant_config" not in inspect.signature(comfy.ops.mixed_precision_ops).parameters
