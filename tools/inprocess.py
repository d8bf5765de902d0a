"""The pack's adapters imported beside a real ComfyUI in this process, for tests that call its classes directly."""

from __future__ import annotations

import importlib
import os
import sys

import torch

from . import provision


def import_adapter(name: str):
    """A module of nodes/host/, with ComfyUI importable, on the CPU with SDPA (as the server of the tests runs)."""
    if "comfy" not in sys.modules:
        os.environ.setdefault("KLEIN_STORE", "off")  # nothing of a test stays for the next
        sys.path.append(str(provision.comfyui()))
        from comfy.cli_args import args

        args.cpu = args.use_pytorch_cross_attention = True
    return importlib.import_module(f"klein.nodes.host.{name}")


def host_flux(state: dict, heads: int, context: int):
    """ComfyUI's own FLUX.2 transformer with these weights (BFL names), built directly: 0.3.75 cannot load klein."""
    import comfy.ldm.flux.model
    import comfy.ops

    hidden, channels = state["img_in.weight"].shape
    model = comfy.ldm.flux.model.Flux(
        image_model="flux2", in_channels=channels, out_channels=channels, vec_in_dim=None, context_in_dim=context,
        hidden_size=hidden, mlp_ratio=state["double_blocks.0.img_mlp.2.weight"].shape[1] / hidden, num_heads=heads,
        depth=len({n.split(".")[1] for n in state if n.startswith("double_blocks.")}),
        depth_single_blocks=len({n.split(".")[1] for n in state if n.startswith("single_blocks.")}),
        axes_dim=[hidden // heads // 4] * 4, theta=2000, patch_size=1, qkv_bias=False, guidance_embed=False,
        global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0,
        operations=comfy.ops.disable_weight_init,
        **({"txt_ids_dims": [3]} if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__ else {}),
    )  # fmt: skip
    names = model.state_dict().keys()
    state = {n if n in names else n.replace("norm.scale", "norm.weight"): t for n, t in state.items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def host_model(path, state: dict, heads: int, context: int):
    """ComfyUI's own MODEL of a klein flow file (BFL names, float32): by its own loader where that knows klein, else its
    FLUX.2 class built directly."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models

    if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
        return comfy.sd.load_diffusion_model(str(path))
    flux = host_flux(state, heads, context)
    config = comfy.supported_models.Flux2(
        {"image_model": "flux2", "in_channels": flux.in_channels, "out_channels": flux.out_channels}
    )
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.Flux.__new__(comfy.model_base.Flux2)
    comfy.model_base.Flux.__init__(model, config, unet_model=lambda **_: flux)
    flux.dtype = torch.float32
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def hosted_flow(path):
    """Our transformer as the host runs it."""
    return import_adapter("flow").load_model(path).model.diffusion_model
