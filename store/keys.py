"""Digests of everything that a value depends on."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor


def digest(kind: str, **parts: object) -> str:
    """64 hex digits of a kind of value and of all that decides it, by name."""
    return hashlib.sha256(json.dumps([kind, parts], sort_keys=True).encode()).hexdigest()


def content(tensors: dict[str, Tensor]) -> str:
    """64 hex digits of names, shapes, dtypes and values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{json.dumps(name)} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
