"""The FLUX.2 autoencoder as the host's VAE, built from the widths found in the file."""

from __future__ import annotations

from pathlib import Path

import comfy.diffusers_convert
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.model import Decoder

from ...model_loaders.errors import KleinError
from ...model_loaders.formats.files import open_checkpoint
from ...model_loaders.formats.identify import require
from ...model_loaders.formats.names import block_count

COUNTER = "bn.num_batches_tracked"  # of training, in some files only
PREFIXES = ("vae.", "first_stage_model.")


def load_vae(path: Path):
    """A VAE from a file or diffusers folder: flux2-vae, the small decoder, or any other widths. Raises KleinError for
    another model's."""
    checkpoint = open_checkpoint(path, subfolder="vae")
    require(checkpoint, "vae")
    prefix = next((p for p in PREFIXES if f"{p}decoder.conv_in.weight" in checkpoint), "")
    state = {_host_name(name.removeprefix(prefix)): checkpoint[name] for name in checkpoint.shapes if name.startswith(prefix)}
    if "decoder.up_blocks.0.resnets.0.norm1.weight" in state:
        state = comfy.diffusers_convert.convert_vae_state_dict(state)
    state.pop(COUNTER, None)
    try:
        vae = _build(state)
    except (KeyError, IndexError, RuntimeError) as error:
        raise KleinError(f"{path.name} does not make a FLUX.2 VAE ({error}): it is incomplete, download it again.") from error
    missing = [name for name in vae.first_stage_model.state_dict() if name not in state and name != COUNTER]
    if missing:
        raise KleinError(
            f"{path.name} lacks {len(missing)} tensors of the FLUX.2 VAE (first: {missing[0]}): it is incomplete, download it again."
        )
    vae.patcher.cached_patcher_init = (load_patcher, (path,))
    return vae


def load_patcher(path: Path, disable_dynamic: bool = False):
    """The patcher of a VAE, for hosts that load one anew; a VAE is always as the host loads it."""
    return load_vae(path).patcher


def _host_name(name: str) -> str:
    """Black Forest Labs keep these two convolutions inside the halves, the host beside them."""
    return name.replace("encoder.quant_conv.", "quant_conv.").replace("decoder.post_quant_conv.", "post_quant_conv.")


def _build(state: dict[str, torch.Tensor]):
    encoder, decoder = _widths(state, "encoder.down"), _widths(state, "decoder.up")
    config = {"ddconfig": encoder, "embed_dim": state["post_quant_conv.weight"].shape[1]}
    if encoder == decoder:
        vae = comfy.sd.VAE(sd=state, config={"params": config})
    else:  # the host builds both halves with one width: its decoder is replaced before the weights go in
        with torch.device("meta"):
            host_decoder = Decoder(**encoder)
        stand_in = {f"decoder.{name}": torch.zeros(1).expand(p.shape) for name, p in host_decoder.state_dict().items()}
        vae = comfy.sd.VAE(sd=state | stand_in, config={"params": config})
        own = Decoder(**decoder)
        own.load_state_dict({n.removeprefix("decoder."): t for n, t in state.items() if n.startswith("decoder.")})
        vae.first_stage_model.decoder = own.eval().to(vae.vae_dtype)
        vae.size = None
        vae.model_size()
    vae.latent_channels = 4 * encoder["z_channels"]
    vae.downscale_ratio = vae.upscale_ratio = 2 * 2 ** (len(encoder["ch_mult"]) - 1)
    decode = vae.memory_used_decode
    vae.memory_used_decode = lambda shape, dtype: 4 * decode(shape, dtype)  # its latents are at half the usual scale
    return vae


def _widths(state: dict[str, torch.Tensor], stack: str) -> dict:
    """The host's configuration of one half, from tensor shapes."""
    levels, blocks = block_count(state, stack), block_count(state, f"{stack}.0.block")
    widths = [state[f"{stack}.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "double_z": True,
        "z_channels": state["decoder.conv_in.weight"].shape[1],
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": blocks - (stack == "decoder.up"),
        "attn_resolutions": [],
        "dropout": 0.0,
        "batch_norm_latent": True,
    }
