"""The table of codecs: how the numbers of a weight may be written, in memory (CODECS) and in files (SCALED)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import rows
from .blocks import BLOCKS

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
AT_ONCE = 2**20  # numbers made dense in one go: what that takes beside the result stays small


@dataclass(frozen=True)
class Codec:
    """name: of the format, as the host's `comfy_quant` has it; dtype: of the stored numbers; full_precision_matrix_mult:
    whether activations must not be rounded to it.

    unpack: of a packed codec, whose weight (N, K) is N rows of bytes, each complete in itself: `count` numbers lie in `size`
    bytes, `tail` bytes follow. It takes (n, bytes) uint8, of blocks, or of rows where they have a tail, and gives (n,
    numbers) float32.
    """

    name: str
    dtype: torch.dtype
    full_precision_matrix_mult: bool = False
    unpack: Callable[[Tensor], Tensor] | None = None
    count: int = 1
    size: int = 1
    tail: int = 0

    def columns(self, row: int) -> int:
        """The numbers of a row of so many bytes; 0 where that cannot be."""
        bare = row - self.tail
        return 0 if bare <= 0 or bare % self.size else bare // self.size * self.count

    def row(self, columns: int) -> int:
        """The bytes of a row of so many numbers."""
        return columns // self.count * self.size + self.tail

    def dense(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Packed rows (..., bytes) as numbers (..., K), some at a time."""
        assert self.unpack is not None
        parts = rows.reshape(-1, rows.shape[-1] if self.tail else self.size)
        numbers = self.columns(parts.shape[-1])
        out = torch.empty(len(parts), numbers, dtype=dtype, device=rows.device)
        step = max(1, AT_ONCE // numbers)
        for start in range(0, len(parts), step):
            out[start : start + step] = self.unpack(parts[start : start + step])
        return out.reshape(*rows.shape[:-1], -1)

    @property
    def settings(self) -> dict[str, str | bool]:
        """What the host's `comfy_quant` says of a layer."""
        precise = {"full_precision_matrix_mult": True} if self.full_precision_matrix_mult else {}
        return {"format": self.name, **precise}


FLOAT8 = Codec("float8_e4m3fn", torch.float8_e4m3fn)
GGML = [Codec(name, torch.uint8, unpack=unpack, count=count, size=size) for name, (_, count, size, unpack) in BLOCKS.items()]
# Of what a file has with scales beside it; the names are ours.
FLOAT8_ROWS = Codec("float8_rows", torch.uint8, unpack=rows.float8, tail=4)
INT8_ROWS = Codec("int8_rows", torch.uint8, unpack=rows.int8, tail=4)
INT8_ROTATED = Codec("int8_rotated_rows", torch.uint8, unpack=rows.int8_rotated, count=rows.GROUP, size=rows.GROUP, tail=4)
INT4_ROTATED = Codec("int4_rotated_rows", torch.uint8, unpack=rows.int4_rotated, count=rows.GROUP, size=rows.GROUP // 2, tail=4)
INT4_GROUPED = Codec(
    "int4_grouped_rows",
    torch.uint8,
    unpack=rows.int4_grouped,
    count=rows.GROUP,
    size=rows.GROUP // 16 * 9,
    tail=rows.LEVELS + 4,
)
MXFP8_BLOCKS = Codec("mxfp8_blocks", torch.uint8, unpack=rows.mxfp8, count=32, size=33)
NVFP4_ROWS = Codec("nvfp4_rows", torch.uint8, unpack=rows.nvfp4, count=16, size=9, tail=4)
ROWS = (FLOAT8_ROWS, INT8_ROWS, INT8_ROTATED, INT4_ROTATED, INT4_GROUPED, MXFP8_BLOCKS, NVFP4_ROWS)
CODECS = {codec.name: codec for codec in (FLOAT8, *GGML, *ROWS)}


ROTATION: Mapping[str, tuple] = {"convrot": (True,), "convrot_groupsize": (rows.GROUP,), "linear_dtype": ("int4", "int8")}


@dataclass(frozen=True)
class Scaled:
    """A format of the host's that is packed into rows when it is read. dtype, count: of the data, and how many numbers
    each of its elements holds; scales: what lies beside, by name, as `pack` takes it: (shapes that it may have for N, K;
    dtypes); levels: that of them whose numbers may be below 0; settings: what `comfy_quant` may say beside the format."""

    codec: Codec
    dtype: torch.dtype
    pack: Callable[..., Tensor]
    scales: Mapping[str, tuple[Callable[[int, int], list[tuple[int, ...]]], tuple[torch.dtype, ...]]]
    count: int = 1
    levels: str = ""
    settings: Mapping[str, tuple] = field(default_factory=lambda: ROTATION)
    inputs: str = ""  # the scale of what the layer is given, of use where the host multiplies in the format


def _one(n: int, k: int) -> list[tuple[int, ...]]:
    return [(), (1,), (1, 1)]


def _by_row(n: int, k: int) -> list[tuple[int, ...]]:
    return [(n,), (n, 1)]


BY_ROW = {"weight_scale": (_by_row, FLOATS)}
E4M3, E8M0 = (torch.float8_e4m3fn, torch.uint8), (torch.float8_e8m0fnu, torch.uint8)
SCALED = {
    "int8_tensorwise": Scaled(
        INT8_ROWS, torch.int8, rows.pack_scaled, {"weight_scale": (lambda n, k: _one(n, k) + _by_row(n, k), FLOATS)}
    ),
    "int8_tensorwise, rotated": Scaled(INT8_ROTATED, torch.int8, rows.pack_scaled, BY_ROW),
    "convrot_w4a4": Scaled(INT4_ROTATED, torch.int8, rows.pack_scaled, BY_ROW, count=2),
    "asym_w4a8_int8": Scaled(
        INT4_GROUPED, torch.int8, rows.pack_grouped,
        {
            "weight_s_rel": (lambda n, k: [(n, k // 16)], E4M3), "weight_s_channel": (lambda n, k: [(n,)], FLOATS),
            "weight_codebook": (lambda n, k: [(16,)], FLOATS),
        },
        count=2, levels="weight_codebook", settings={"group_size": (16,), "convrot_groupsize": (rows.GROUP,)},
    ),
    "mxfp8": Scaled(
        MXFP8_BLOCKS, torch.float8_e4m3fn, rows.pack_mxfp8,
        {"weight_scale": (lambda n, k: [rows.swizzled_shape(n, k // 32)], E8M0)},
    ),
    "nvfp4": Scaled(
        NVFP4_ROWS, torch.uint8, rows.pack_nvfp4,
        {"weight_scale": (lambda n, k: [rows.swizzled_shape(n, k // 16)], E4M3), "weight_scale_2": (_one, FLOATS)},
        count=2, inputs="input_scale",
    ),
}  # fmt: skip
