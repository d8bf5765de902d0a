"""From a file to the tensors of a FLUX.2 autoencoder, under Black Forest Labs' names, all shapes checked by the header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import KleinError
from ..formats.files import Checkpoint, open_checkpoint
from ..formats.identify import require
from ..formats.names import block_count

PREFIXES = ("vae.", "first_stage_model.")
COUNTER = "bn.num_batches_tracked"  # of training, in some files only
LEVELS = 8  # more than any released autoencoder has

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Half:
    """widths: channels of each level, the finest first; blocks: residual blocks of a level."""

    widths: tuple[int, ...]
    blocks: int


@dataclass(frozen=True)
class VAEFile:
    """An autoencoder's file after its header has been read and found whole. channels: of the latents before they are
    packed 2x2; names: Black Forest Labs' name -> the file's."""

    checkpoint: Checkpoint
    names: dict[str, str]
    encoder: Half
    decoder: Half
    channels: int

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (Black Forest Labs' name, tensor) as the file has it; attention's matrices as 1x1 convolutions."""
        for name, stored in self.names.items():
            tensor = self.checkpoint[stored]
            yield name, tensor[:, :, None, None] if name.endswith(ATTENTION) and tensor.ndim == 2 else tensor


def read_vae(path: str | Path) -> VAEFile:
    """Open a file or diffusers folder and refuse, in one sentence (KleinError), all that is not a FLUX.2 autoencoder."""
    checkpoint = open_checkpoint(path, subfolder="vae")
    require(checkpoint, "vae")
    file = checkpoint.path.name
    prefix = next((p for p in PREFIXES if f"{p}decoder.conv_in.weight" in checkpoint), "")
    bare = {name.removeprefix(prefix): name for name in checkpoint.shapes if name.startswith(prefix)}
    levels = block_count(bare, "decoder.up_blocks")
    names = {bfl_name(name, levels): stored for name, stored in bare.items()}
    names.pop(COUNTER, None)
    shapes = {name: _convolution(name, checkpoint.shapes[stored]) for name, stored in names.items()}
    halves = {stack: _half(shapes, stack, file) for stack in ("encoder.down", "decoder.up")}
    first = shapes["decoder.conv_in.weight"]
    if len(first) != 4 or 0 in first:
        raise KleinError(
            f"decoder.conv_in.weight in {file} has shape {list(first)}, expected 4 sides above 0: download it again."
        )
    channels = first[1]
    encoder, decoder = halves["encoder.down"], halves["decoder.up"]
    expected = expected_shapes(encoder, decoder, channels)
    missing = [name for name in expected if name not in names]
    if missing:
        raise KleinError(
            f"{file} lacks {len(missing)} tensors of the FLUX.2 VAE (first: {missing[0]}): it is incomplete, download it again."
        )
    strange = [stored for name, stored in names.items() if name not in expected]
    if strange:
        raise KleinError(
            f"{file} holds {len(strange)} tensors that the FLUX.2 VAE does not have (first: {strange[0]}): choose another file."
        )
    for name, shape in expected.items():
        if shapes[name] != shape or 0 in shape:
            raise KleinError(
                f"{names[name]} in {file} has shape {list(shapes[name])}, expected {list(shape)} for widths {list(encoder.widths)} and "
                f"{list(decoder.widths)}: the file mixes two models, download it again."
            )
        if not checkpoint.dtypes[names[name]].is_floating_point:
            raise KleinError(
                f"{file} stores {names[name]} as {str(checkpoint.dtypes[names[name]]).removeprefix('torch.')}, expected "
                f"floating-point numbers: load flux2-vae.safetensors instead."
            )
    return VAEFile(checkpoint, names, encoder, decoder, channels)


ATTENTION = tuple(f"attn_1.{part}.weight" for part in ("q", "k", "v", "proj_out"))

# diffusers' names (AutoencoderKLFlux2) -> Black Forest Labs' (flux2, autoencoder.py).
RULES = (
    (r"^quant_conv\.", "encoder.quant_conv."),
    (r"^post_quant_conv\.", "decoder.post_quant_conv."),
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)


def bfl_name(name: str, levels: int) -> str:
    """Black Forest Labs' name of a tensor; diffusers counts the decoder's levels from the coarsest of `levels`."""
    if match := re.match(r"decoder\.up_blocks\.(\d{1,4})\.(resnets|upsamplers)\.(\d{1,4})\.", name):
        level, rest = levels - 1 - int(match[1]), name[match.end() :]
        part = f"block.{match[3]}" if match[2] == "resnets" else "upsample"
        name = f"decoder.up.{level}.{part}.{rest}"
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def expected_shapes(encoder: Half, decoder: Half, channels: int) -> dict[str, Shape]:
    """Black Forest Labs' name -> shape, for an autoencoder of these widths. Source: flux2, autoencoder.py."""
    shapes: dict[str, Shape] = {"bn.running_mean": (4 * channels,), "bn.running_var": (4 * channels,)}

    def convolution(name: str, out: int, into: int, kernel: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name: str, out: int, into: int) -> None:
        norm(f"{name}.norm1", into)
        convolution(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out)
        convolution(f"{name}.conv2", out, out)
        if out != into:
            convolution(f"{name}.nin_shortcut", out, into, 1)

    def middle(half: str, width: int) -> None:
        for number in (1, 2):
            block(f"{half}.mid.block_{number}", width, width)
        norm(f"{half}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{half}.mid.attn_1.{part}", width, width, 1)

    width = encoder.widths[0]
    convolution("encoder.conv_in", width, 3)
    for level, out in enumerate(encoder.widths):
        for number in range(encoder.blocks):
            block(f"encoder.down.{level}.block.{number}", out, width)
            width = out
        if level < len(encoder.widths) - 1:
            convolution(f"encoder.down.{level}.downsample.conv", out, out)
    middle("encoder", width)
    norm("encoder.norm_out", width)
    convolution("encoder.conv_out", 2 * channels, width)
    convolution("encoder.quant_conv", 2 * channels, 2 * channels, 1)

    width = decoder.widths[-1]
    convolution("decoder.post_quant_conv", channels, channels, 1)
    convolution("decoder.conv_in", width, channels)
    middle("decoder", width)
    for level, out in reversed(list(enumerate(decoder.widths))):
        for number in range(decoder.blocks):
            block(f"decoder.up.{level}.block.{number}", out, width)
            width = out
        if level:
            convolution(f"decoder.up.{level}.upsample.conv", out, out)
    norm("decoder.norm_out", width)
    convolution("decoder.conv_out", 3, width)
    return shapes


def _half(shapes: dict[str, Shape], stack: str, file: str) -> Half:
    levels, blocks = block_count(shapes, stack), block_count(shapes, f"{stack}.0.block")
    widths = tuple((shapes.get(f"{stack}.{level}.block.0.conv1.weight") or (0,))[0] for level in range(levels))
    least = 1 if stack == "encoder.down" else 2
    if not 1 <= levels <= LEVELS or not least <= blocks <= LEVELS or any(width < 1 or width % widths[0] for width in widths):
        raise KleinError(
            f"{file} has {levels} levels of widths {list(widths)[:LEVELS]} with {blocks} blocks in {stack}, which is no FLUX.2 VAE: "
            f"download it again."
        )
    return Half(widths, blocks)


def _convolution(name: str, shape: Shape) -> Shape:
    return (*shape, 1, 1) if name.endswith(ATTENTION) and len(shape) == 2 else shape
