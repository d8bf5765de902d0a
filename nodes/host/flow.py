"""The engine's flow transformer as ComfyUI's MODEL: a FLUX.2 model of the host with our transformer inside."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...errors import KleinError
from ...model_loaders.flow.load import FlowFile, is_block_matrix, read_flow
from ...model_loaders.flow.model import Flow
from ...model_loaders.flow.positions import rotate
from ...model_loaders.flow.reference_kv import ReferenceSet
from ...model_loaders.flow.sizes import FlowSizes
from ...model_loaders.flow.work import Sequence, activation_bytes
from ...model_loaders.formats.identify import encoder_for
from ...model_loaders.formats.table import FLOAT8, Codec
from ...store.stamp import source
from .compat import fused_rotation, note_dtypes
from .conditioning import controls_of
from .memory import Beside, new_patcher
from .operations import flow_operations, hosted, native_layers, native_tensors
from .packed import markers, pack, packed_layers
from .tiny import SIZES, colour_previews

# Among the transformer's options: what gives keys and values of references, which then stay out of the sequence.
REFERENCE_CACHE = "klein_reference_cache"
VARIANTS = ("auto", "distilled", "base", "kv")
TEXT = "klein_text"  # among the shapes of a conditioning that the host estimates memory by
MARGIN = 1.1  # over what the tensors of a step need: allocators round up
FUSED = fused_rotation()
WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


def load_model(path: Path, weight_dtype: str = "default", variant: str = "auto", disable_dynamic: bool = False):
    """A MODEL from a file or folder. Raises KleinError before any weight is read when the file is not a klein flow.

    disable_dynamic: as in the host's own loaders, for callers that patch weights in place.
    """
    file = read_flow(path)
    dtype, quantised = storage(file, WEIGHT_DTYPES[weight_dtype])
    quantised = hosted(quantised, file.plan.stacked, file.name)
    model = _build(file, dtype, quantised, uniform=weight_dtype != "default" or file.plan.uniform)
    model.source, model.weight_dtype = source(file.plan.checkpoint.files, file.plan.checkpoint.spans), weight_dtype
    model.klein_variant = (file.variant or variant_of(file.name)) if variant == "auto" else variant
    # A host that streams weights from the file would add patches to packed bytes.
    plain = disable_dynamic or bool(packed_layers(quantised))
    patcher = new_patcher(model, comfy.model_management.get_torch_device(), model.device, plain)
    state = native_tensors(file.tensors(WEIGHT_DTYPES[weight_dtype]), native_layers(quantised))
    model.diffusion_model.load_state_dict(state, strict=False, assign=True)  # names and shapes are known to fit
    note_dtypes(model.diffusion_model)
    if model.device.type != "cpu":
        model.to(model.device)
    patcher.cached_patcher_init = (load_model, (path, weight_dtype, variant))
    logging.info(f"Klein flow model {file.name}: hidden {file.sizes.hidden_size}, variant {model.klein_variant}")
    return patcher


def offered(dtypes: dict[str, torch.dtype | None]) -> list[str]:
    """Names of the dtypes that the device can hold: Apple's has no fp8."""
    apple = comfy.model_management.is_device_mps(comfy.model_management.get_torch_device())
    return [name for name, dtype in dtypes.items() if not (apple and dtype and dtype.itemsize == 1)]


def storage(file: FlowFile, weight_dtype: torch.dtype | None) -> tuple[torch.dtype, dict[str, Codec]]:
    """(dtype of the plain weights, codecs of the others by layer) in memory, for a file and the user's choice."""
    if weight_dtype is None or weight_dtype.itemsize > 1:
        return weight_dtype or file.dtype, file.plan.quantised
    matrices = [name for name, shape in file.plan.shapes.items() if is_block_matrix(name, shape)]
    # Newer hosts would round the activations too: rounding the weights is all that was asked for.
    precise = replace(FLOAT8, full_precision_matrix_mult=True)
    rounded = {name.removesuffix(".weight"): precise for name in matrices}
    return file.dtype, rounded | file.plan.quantised


def variant_of(name: str) -> str:
    """distilled, base or kv, by the words of a file's name (nothing in the released weights tells)."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()  # Flux2KleinBase9B too
    words = re.split(r"[-_. ]|(?<=[a-z])(?=[0-9])", words)
    return "base" if "base" in words else "kv" if "kv" in words else "distilled"


def _build(file: FlowFile, dtype: torch.dtype, quantised: dict[str, Codec], uniform: bool) -> KleinModel:
    device = comfy.model_management.get_torch_device()
    config = comfy.supported_models.Flux2(
        {
            "image_model": "flux2",
            "in_channels": file.sizes.in_channels,
            "out_channels": file.sizes.in_channels,
            "context_in_dim": file.sizes.context_in_dim,
            "hidden_size": file.sizes.hidden_size,
            "num_heads": file.sizes.num_heads,
            "mlp_hidden": file.sizes.mlp_hidden,
            "depth": file.sizes.depth,
            "depth_single_blocks": file.sizes.depth_single_blocks,
        }
    )
    supported = config.supported_inference_dtypes
    compute_dtype = comfy.model_management.unet_manual_cast(None if quantised else dtype, device, supported)
    config.set_inference_dtype(dtype, compute_dtype)
    native = native_layers(quantised)
    config.custom_operations = flow_operations(native, dtype if uniform and not quantised else None, compute_dtype, device)
    # Layers that read their own fp8 weights put them on the device they were built for: that cannot be meta.
    model = KleinModel(config, device=None if native else "meta")
    pack(model.diffusion_model, quantised, file.name)
    model.diffusion_model.requires_grad_(False)
    model.device = comfy.model_management.unet_offload_device()
    if file.sizes == SIZES:
        colour_previews(model.latent_format)
    return model


class HostedFlow(Flow):
    """Built and called the way the host builds and calls its own FLUX.2 transformer."""

    patch_size = 1

    def __init__(self, dtype=None, device=None, operations=None, **config):
        sizes = FlowSizes(**{name: config[name] for name in FlowSizes.__dataclass_fields__})
        super().__init__(sizes, operations, host_attention, host_rotation, dtype=dtype, device=device)
        # What nodes read of the host's own FLUX.2 transformer.
        self.in_channels = self.out_channels = sizes.in_channels
        self.hidden_size, self.num_heads = sizes.hidden_size, sizes.num_heads
        self.guidance_in = torch.nn.Identity()
        self.vector_in = self.txt_norm = None
        vars(self.params).update(
            out_channels=sizes.in_channels, vec_in_dim=None, mlp_ratio=sizes.mlp_hidden / sizes.hidden_size,
            axes_dim=list(sizes.axes_dim), theta=self.pe_embedder.theta, patch_size=1, qkv_bias=False, guidance_embed=False,
            txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False, ref_index_scale=10.0,
            yak_mlp=False, txt_norm=False,
        )  # fmt: skip

    def forward(
        self, x, timestep, context, y=None, guidance=None, ref_latents=None, control=None, transformer_options={}, **kwargs
    ):
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, y, guidance, ref_latents, control, transformer_options, **kwargs)

    def _forward(
        self, x, timestep, context, y=None, guidance=None, ref_latents=None, control=None, transformer_options={}, **kwargs
    ):
        method = kwargs.get("ref_latents_method")
        references = kwargs.get("klein_references")  # None where there is none
        run = transformer_options.get(REFERENCE_CACHE)
        return super().forward(
            x,
            timestep,
            context,
            ref_latents=ref_latents,
            ref_latents_method=method,
            control_residuals=control,
            attention_mask=kwargs.get("attention_mask"),
            controls=references.controls if references else (),
            reference_kv=run.keys_values(self, ref_latents, references, method, tuple(x.shape[-2:]), transformer_options)
            if run and references and ref_latents
            else None,
            transformer_options=transformer_options,
        )


def host_attention(q, k, v, mask=None, transformer_options={}):
    """The attention kernel that the user chose for ComfyUI."""
    return optimized_attention(q, k, v, q.shape[1], mask=mask, skip_reshape=True, transformer_options=transformer_options)


def host_rotation(x, pe):
    """The host's kernel where it has one, which knows no gradients."""
    return rotate(x, pe) if FUSED is None or x.requires_grad else FUSED(x, pe)


class KleinModel(comfy.model_base.Flux2):
    """The host's FLUX.2 model around our transformer; `klein_variant` is distilled, base or kv; `source` and `weight_dtype`
    are what its weights were made from; `beside` is what is kept on the GPU beside them."""

    def __init__(self, model_config, device=None):
        comfy.model_base.Flux.__init__(self, model_config, device=device, unet_model=HostedFlow)
        self.beside = Beside(self.diffusion_model)
        # The host's estimate for FLUX.2, proportional to the width (its supported_models: 3.1 * 4 at width 2604).
        self.memory_usage_factor = (
            comfy.supported_models.Flux.memory_usage_factor * 4 * self.diffusion_model.sizes.hidden_size / 2604
        )

    def encode_adm(self, **kwargs):
        return None  # klein has no pooled text vector, whatever a conditioning carries

    def extra_conds(self, **kwargs):
        text = kwargs.get("cross_attn")
        check_conditioning(self, text, kwargs.get("reference_latents") or ())
        out = super().extra_conds(**kwargs)
        # The host pads short texts on the left, as FLUX.2 [dev] wants them; klein sees what the encoder gave.
        out["c_crossattn"] = comfy.conds.CONDRegular(text)
        references = kwargs.get("reference_latents")
        if references:
            out["klein_references"] = comfy.conds.CONDConstant(ReferenceSet(references, controls_of(kwargs)))
        return out

    def state_dict_for_saving(self, *args, **kwargs):
        return super().state_dict_for_saving(*args, **kwargs) | markers(self.diffusion_model, "model.diffusion_model.")

    def extra_conds_shapes(self, **kwargs):
        text = kwargs.get("cross_attn")
        return super().extra_conds_shapes(**kwargs) | ({} if text is None else {TEXT: [1, 1, text.shape[1]]})

    def memory_required(self, input_shape, cond_shapes={}):
        """Bytes that a step takes beside the weights, by what klein's own tensors need; where attention may hold a matrix of
        all tokens by all tokens, the host's estimate for FLUX.2."""
        manage = comfy.model_management
        if not (manage.xformers_enabled() or manage.pytorch_attention_flash_attention()):
            return super().memory_required(input_shape, cond_shapes) + self.beside.wanted
        rows, _, height, width = input_shape
        references, text = (max((shape[2] for shape in cond_shapes.get(name, ())), default=0) for name in ("ref_latents", TEXT))
        sizes, dtype = self.diffusion_model.sizes, self.manual_cast_dtype or self.get_dtype()
        passes = [Sequence(text, height * width, references)]
        if self.beside.cached:
            passes = [Sequence(text, height * width, kept=references), Sequence(0, 0, references)]
        cast = self.manual_cast_dtype is not None
        return MARGIN * max(activation_bytes(sizes, each, dtype.itemsize, rows, cast) for each in passes) + self.beside.wanted


def check_conditioning(model: KleinModel, text: torch.Tensor | None, references) -> None:
    """KleinError when the text (B, L, width) was made by an encoder, or a reference (B, channels, h, w) by a VAE, for
    another model."""
    sizes = model.diffusion_model.sizes
    if text is None:
        raise KleinError("The conditioning holds no text embedding: connect Klein Prompt, or CLIP Text Encode.")
    if text.shape[-1] != sizes.context_in_dim:
        raise KleinError(
            f"The conditioning is {text.shape[-1]} wide, made by {encoder_for(text.shape[-1])}, but this flow model expects "
            f"{sizes.context_in_dim}: load {encoder_for(sizes.context_in_dim)} in the encoder loader."
        )
    for number, latent in enumerate(references, start=1):
        if latent.ndim != 4 or latent.shape[1] != sizes.in_channels or 0 in latent.shape:
            raise KleinError(
                f"Reference {number} has shape {list(latent.shape)}, expected [batch, {sizes.in_channels}, height/16, width/16]: "
                f"encode it with the FLUX.2 VAE."
            )
