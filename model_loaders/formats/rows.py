"""Quantised weights with scales beside them, as rows of bytes that hold all there is to know: `pack_*` makes such rows of
what a file has, the others make rows dense again.

A row can be moved, sliced and stacked on others by itself, so that q, k and v with scales of their own are one weight.
Formats as comfy-kitchen (Apache-2.0) writes them: its tensor/*.py and backends/eager/quantization.py. Functions without
another word take (n, bytes of a row) uint8 and give (n, K) float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import grouped

FP4_VALUES = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)  # E2M1; OCP Microscaling Formats, 5.3.3
GROUP = 256  # numbers that ConvRot turns together
LEVELS = 64  # bytes of 16 float32 numbers


def float8(rows: Tensor) -> Tensor:
    return rows[:, :-4].view(torch.float8_e4m3fn).float() * _tail(rows)


def int8(rows: Tensor) -> Tensor:
    return rows[:, :-4].view(torch.int8).float() * _tail(rows)


def int8_rotated(rows: Tensor) -> Tensor:
    return _rotated(int8(rows))


def int4_rotated(rows: Tensor) -> Tensor:
    """Two's complement, the low half first."""
    pairs = torch.stack([rows[:, :-4] & 15, rows[:, :-4] >> 4], dim=-1).flatten(1).view(torch.int8)
    return _rotated(((pairs ^ 8) - 8).float() * _tail(rows))


def int4_grouped(rows: Tensor) -> Tensor:
    """K/2 bytes of places among 16 levels, the low half first, K/16 of scales, the levels, one scale of all. A level times the
    scale of its 16 is an integer of 8 bits."""
    count = (rows.shape[1] - LEVELS - 4) // 9
    pairs = torch.stack([rows[:, : 8 * count] & 15, rows[:, : 8 * count] >> 4], dim=-1).flatten(1)
    values = _levels(rows).gather(1, pairs.long())
    scales = rows[:, 8 * count : 9 * count].view(torch.float8_e4m3fn).float()
    return _rotated(grouped(values, scales).round().clamp(-127, 127) * _tail(rows))


def nvfp4(rows: Tensor) -> Tensor:
    """K/2 bytes of numbers, the high half first, K/16 of scales, one scale of all."""
    count = rows.shape[1] // 9
    pairs = torch.stack([rows[:, : 8 * count] >> 4, rows[:, : 8 * count] & 15], dim=-1).flatten(1)
    values = torch.tensor(FP4_VALUES, dtype=torch.float32, device=rows.device)[pairs.int()]
    return grouped(values, rows[:, 8 * count : -4].view(torch.float8_e4m3fn).float() * _tail(rows))


def mxfp8(blocks: Tensor) -> Tensor:
    """(n, 33): 32 numbers and the power of two, E8M0, which is the exponent of a float32."""
    scale = (blocks[:, 32:].int() << 23).view(torch.float32)
    return blocks[:, :32].view(torch.float8_e4m3fn).float() * scale


def pack_scaled(data: Tensor, scale: Tensor) -> Tensor:
    """Bytes and one scale, of all rows or of each."""
    return torch.cat([_bytes(data), _bytes(_column(scale, len(data)))], dim=1)


def split_scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The way back: (integers (n, ...) int8, a scale of each row (n, 1) float32)."""
    return rows[:, :-4].contiguous().view(torch.int8), _tail(rows)


def pack_nvfp4(data: Tensor, scale: Tensor, second: Tensor) -> Tensor:
    scales = unswizzled(_bytes(scale), len(data), data.shape[1] // 8)
    return torch.cat([data, scales, _bytes(_column(second, len(data)))], dim=1)


def pack_grouped(data: Tensor, scale: Tensor, channel: Tensor, levels: Tensor) -> Tensor:
    levels = levels.float().expand(len(data), -1)
    return torch.cat([_bytes(data), _bytes(scale), _bytes(levels), _bytes(_column(channel, len(data)))], dim=1)


def split_grouped(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The way back: (data (n, K/2) int8, scales (n, K/16) e4m3, a scale of each row (n,) and the first's levels (16,) float32)."""
    count = (rows.shape[1] - LEVELS - 4) // 9
    data, scale = rows[:, : 8 * count].contiguous(), rows[:, 8 * count : 9 * count].contiguous()
    return data.view(torch.int8), scale.view(torch.float8_e4m3fn), _tail(rows).flatten(), _levels(rows)[0].clone()


def split_nvfp4(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The way back: (data (n, K/2) uint8, scales as tensor cores read them, e4m3, and the one scale of all, float32)."""
    count = rows.shape[1] // 9
    scales = swizzled(rows[:, 8 * count : 9 * count]).view(torch.float8_e4m3fn)
    return rows[:, : 8 * count].contiguous(), scales, _tail(rows)[0, 0].clone()


def pack_mxfp8(data: Tensor, scale: Tensor) -> Tensor:
    blocks = _bytes(data).unflatten(1, (-1, 32))
    return torch.cat([blocks, unswizzled(_bytes(scale), *blocks.shape[:2])[..., None]], dim=2).flatten(1)


def split_mxfp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The way back: (data (n, K) e4m3, scales as tensor cores read them, e8m0)."""
    blocks = rows.unflatten(1, (-1, 33))
    data = blocks[..., :32].flatten(1).view(torch.float8_e4m3fn)
    return data, swizzled(blocks[..., 32]).view(torch.float8_e8m0fnu)


def unswizzled(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Scales in the order that tensor cores read (cuBLAS: 128x4 tiles of scaling factors) as a matrix."""
    tiles = scales.reshape(-(-rows // 128), -(-columns // 4), 32, 4, 4)  # row // 128, column // 4, row % 32, ...
    return tiles.permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 2)[:rows, :columns]


def swizzled(scales: Tensor) -> Tensor:
    """A matrix of bytes in the order that tensor cores read, zeros where a tile has more."""
    rows, columns = swizzled_shape(*scales.shape)
    padded = torch.nn.functional.pad(scales, (0, columns - scales.shape[1], 0, rows - scales.shape[0]))
    tiles = padded.reshape(rows // 128, 4, 32, columns // 4, 4)  # row // 128, row % 128 // 32, row % 32, column // 4, ...
    return tiles.permute(0, 3, 2, 1, 4).reshape(rows, columns)


def swizzled_shape(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // 128) * 128, -(-columns // 4) * 4


def _rotated(weight: Tensor) -> Tensor:
    """Groups times ConvRot's Hadamard matrix, which is symmetric and its own inverse."""
    small = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], device=weight.device) / 2.0
    matrix = torch.kron(torch.kron(small, small), torch.kron(small, small))
    return (weight.unflatten(1, (-1, GROUP)) @ matrix).flatten(1)


def _levels(rows: Tensor) -> Tensor:
    return rows[:, -LEVELS - 4 : -4].contiguous().view(torch.float32)


def _tail(rows: Tensor) -> Tensor:
    """The float32 number at the end of each row: (n, 1)."""
    return rows[:, -4:].contiguous().view(torch.float32)


def _column(scale: Tensor, rows: int) -> Tensor:
    return scale.float().reshape(-1, 1).expand(rows, 1).contiguous()


def _bytes(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.uint8)
