"""ggml's block types: how some bytes hold 32 or 256 numbers, and the numbers.

Layouts and products as in ggml (ggml-common.h, ggml-quants.c: dequantize_row_*), by way of the package `gguf` (quants.py),
whose results these equal bit for bit. Each function takes (n, bytes of a block) uint8 and gives (n, numbers) float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml: kvalues_iq4nl


def q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_fields(b[:, 2:], 16, 4).float() - 8)


def q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _fields(b[:, 4:], 16, 4).float() + _half(b, 2)


def q5_0(b: Tensor) -> Tensor:
    q = _fields(b[:, 6:], 16, 4) | _fields(b[:, 2:6], 1, 1) << 4
    return _half(b, 0) * (q.float() - 16)


def q5_1(b: Tensor) -> Tensor:
    q = _fields(b[:, 8:], 16, 4) | _fields(b[:, 4:8], 1, 1) << 4
    return _half(b, 0) * q.float() + _half(b, 2)


def q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:].view(torch.int8).float()


def q2_k(b: Tensor) -> Tensor:
    scales = b[:, :16]
    return grouped(_fields(b[:, 16:80], 32, 2), _half(b, 80) * (scales & 15).float(), _half(b, 82) * (scales >> 4).float())


def q3_k(b: Tensor) -> Tensor:
    scales = (_fields(b[:, 96:104], 8, 4) | _fields(b[:, 104:108], 4, 2) << 4).float() - 32
    low, high = _fields(b[:, 32:96], 32, 2), _fields(b[:, :32], 32, 1)  # a high bit that is set adds nothing, else -4
    return grouped(low.float() + 4 * high.float() - 4, _half(b, 108) * scales)


def q4_k(b: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(b[:, 4:16])
    return grouped(_fields(b[:, 16:], 32, 4), _half(b, 0) * scales, _half(b, 2) * minima)


def q5_k(b: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(b[:, 4:16])
    q = _fields(b[:, 48:], 32, 4) | _fields(b[:, 16:48], 32, 1) << 4
    return grouped(q, _half(b, 0) * scales, _half(b, 2) * minima)


def q6_k(b: Tensor) -> Tensor:
    q = (_fields(b[:, :128], 64, 4) | _fields(b[:, 128:192], 32, 2) << 4).float() - 32
    return grouped(q, _half(b, 208) * b[:, 192:208].view(torch.int8).float())


def iq4_nl(b: Tensor) -> Tensor:
    return _half(b, 0) * _iq4(b[:, 2:])


def iq4_xs(b: Tensor) -> Tensor:
    scales = (_fields(b[:, 4:8], 1, 4) | _fields(b[:, 2:4], 1, 2) << 4).float() - 32
    return grouped(_iq4(b[:, 8:]), _half(b, 0) * scales)


# name: (number of the type in a file, numbers of a block, bytes of a block, function); ggml.h, ggml-common.h
BLOCKS = {
    "Q4_0": (2, 32, 18, q4_0),
    "Q4_1": (3, 32, 20, q4_1),
    "Q5_0": (6, 32, 22, q5_0),
    "Q5_1": (7, 32, 24, q5_1),
    "Q8_0": (8, 32, 34, q8_0),
    "Q2_K": (10, 256, 84, q2_k),
    "Q3_K": (11, 256, 110, q3_k),
    "Q4_K": (12, 256, 144, q4_k),
    "Q5_K": (13, 256, 176, q5_k),
    "Q6_K": (14, 256, 210, q6_k),
    "IQ4_NL": (20, 32, 18, iq4_nl),
    "IQ4_XS": (23, 256, 136, iq4_xs),
}


def _half(b: Tensor, at: int) -> Tensor:
    """The float16 number at a byte of each block: (n, 1)."""
    return b[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(b: Tensor, width: int, bits: int) -> Tensor:
    """Numbers of some bits, packed so that each run of `width` bytes holds first its bytes' lowest bits, then the next."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=b.device).view(1, 1, -1, 1)
    return (b.reshape(len(b), -1, 1, width) >> shifts & (2**bits - 1)).flatten(1)


def grouped(q: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """Each run of numbers times its scale, less its minimum."""
    runs = scales[..., None] * q.float().unflatten(1, (scales.shape[1], -1))
    return (runs if minima is None else runs - minima[..., None]).flatten(1)


def _scales_and_minima(b: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits in 12 bytes: (n, 8) each."""
    first, second, rest = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = torch.cat([first & 63, rest & 15 | first >> 2 & 48], dim=1)
    minima = torch.cat([second & 63, rest >> 4 | second >> 2 & 48], dim=1)
    return scales.float(), minima.float()


def _iq4(b: Tensor) -> Tensor:
    values = torch.tensor(IQ4_VALUES, dtype=torch.float32, device=b.device)
    return values[_fields(b, 16, 4).int()]
