"""Files of the released sizes with random weights: matrices of the layers in fp8 with a scale each, the rest in bf16."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from klein.model_loaders.qwen3.encoder import EncoderSizes, Qwen3Encoder
from tools import small

ENCODER, LAYERS = EncoderSizes(4096, 32, 8, 128, 12288, 151936), 36
BLOCK = 2**24  # bytes of random weights, repeated
SCALE = np.float32(0.25).tobytes()
MARK = json.dumps({"format": "float8_e4m3fn"}).encode()


def encoder() -> dict[str, tuple[int, ...]]:
    """Names and shapes of Qwen3-8B, its 36 layers as released."""
    found = {}
    for name, p in Qwen3Encoder(ENCODER, device="meta").model.named_parameters():
        found[name] = tuple(p.shape)
        if name.startswith("layers.0."):
            found |= {name.replace("layers.0.", f"layers.{n}."): found[name] for n in range(LAYERS)}
    return {f"model.{name}": found[name] for name in sorted(found)}


def write(path: Path, shapes: dict[str, tuple[int, ...]], quantised) -> Path:
    """quantised: of a name, whether its matrix is one of fp8."""
    rng = np.random.default_rng(0)
    small_numbers = (rng.integers(0, 32, BLOCK, dtype=np.uint8) | (rng.integers(0, 2, BLOCK, dtype=np.uint8) << 7)).tobytes()
    normal = rng.standard_normal(BLOCK // 2, dtype=np.float32) / 64
    fillings = {"F8_E4M3": small_numbers, "BF16": (normal.view(np.uint32) >> 16).astype(np.uint16).tobytes()}
    ones = np.full(BLOCK // 2, 0x3F80, dtype=np.uint16).tobytes()
    tensors: dict[str, tuple[str, int, tuple[int, ...]]] = {}
    filled: dict[str, bytes] = {}
    for name, shape in shapes.items():
        kind, size = ("F8_E4M3", 1) if len(shape) == 2 and quantised(name) else ("BF16", 2)
        tensors[name], filled[name] = (kind, size, shape), fillings[kind] if len(shape) == 2 else ones
        if kind == "F8_E4M3":
            layer = name.removesuffix(".weight")
            tensors[f"{layer}.weight_scale"], filled[f"{layer}.weight_scale"] = ("F32", 4, ()), SCALE
            tensors[f"{layer}.comfy_quant"], filled[f"{layer}.comfy_quant"] = ("U8", 1, (len(MARK),)), MARK
    start, sizes = small.header(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        for name, size in zip(tensors, sizes, strict=True):
            for done in range(0, size, BLOCK):
                file.write(filled[name][: min(BLOCK, size - done)])
        file.flush()
        os.fsync(file.fileno())
    return path


def forget(path: Path) -> None:
    """Out of the system's memory."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
