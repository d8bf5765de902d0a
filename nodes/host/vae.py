"""The FLUX.2 autoencoder as the host's VAE, built from the widths found in the file."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.model import Decoder

from ...errors import KleinError
from ...model_loaders.vae.load import Half, VAEFile, read_vae
from ...store.keys import digest
from ...store.stamp import source

SOURCE, LOADED = "klein_source", "klein_loaded"  # on the module that is the model: its files, and its `structure` then


def load_vae(path: Path):
    """A VAE from a file or diffusers folder: flux2-vae, the small decoder, or any other widths. Raises KleinError before
    any weight is read when it is another model's."""
    file = read_vae(path)
    try:
        vae = _build(file)
    except (KeyError, IndexError, RuntimeError) as error:
        raise KleinError(f"{Path(path).name} does not make a FLUX.2 VAE ({error}): download it again.") from error
    setattr(vae.first_stage_model, SOURCE, source(file.checkpoint.files, file.checkpoint.spans))
    setattr(vae.first_stage_model, LOADED, structure(vae.first_stage_model))
    vae.patcher.cached_patcher_init = (load_patcher, (path,))
    return vae


def load_patcher(path: Path, disable_dynamic: bool = False):
    """The patcher of a VAE, for hosts that load one anew; a VAE is always as the host loads it."""
    return load_vae(path).patcher


def structure(model: torch.nn.Module) -> str:
    """A digest of what a model computes with beside its weights: nodes for seamless tiles change its layers in place."""
    layers = []
    for name, layer in model.named_modules():
        own = {key: value for key, value in vars(layer).items() if callable(value) or (key.endswith("hooks") and value)}
        said = [f"{key} {getattr(value, '__qualname__', type(value).__name__)}" for key, value in sorted(own.items())]
        layers.append([name, type(layer).__qualname__, layer.extra_repr(), said])
    return digest("structure", layers=layers)


def _host_name(name: str) -> str:
    """Black Forest Labs keep these two convolutions inside the halves, the host beside them."""
    return name.replace("encoder.quant_conv.", "quant_conv.").replace("decoder.post_quant_conv.", "post_quant_conv.")


def _build(file: VAEFile):
    state = {_host_name(name): tensor for name, tensor in file.tensors()}
    encoder, decoder = _config(file, file.encoder, 0), _config(file, file.decoder, 1)
    config = {"ddconfig": encoder, "embed_dim": file.channels}
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
    vae.latent_channels = 4 * file.channels
    vae.downscale_ratio = vae.upscale_ratio = 2 ** len(file.encoder.widths)
    decode = vae.memory_used_decode
    vae.memory_used_decode = lambda shape, dtype: 4 * decode(shape, dtype)  # its latents are at half the usual scale
    return vae


def _config(file: VAEFile, half: Half, more_blocks: int) -> dict:
    """The host's configuration of one half; its decoder has one block more a level than it says."""
    return {
        "double_z": True,
        "z_channels": file.channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": half.widths[0],
        "ch_mult": [width // half.widths[0] for width in half.widths],
        "num_res_blocks": half.blocks - more_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
        "batch_norm_latent": True,
    }
