"""Where mapped weights lie in their files, for hosts that stream them: they read a weight whose place they know in one go,
and fault in any other page by page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path

import torch

from ...model_loaders.formats.files import ORIGIN, stamp_of
from .compat import file_slice


def tell_places(tensors: Iterable[torch.Tensor]) -> None:
    """Of the tensors that are as safetensors files have them."""
    slice_of = file_slice()
    if slice_of is None:
        return
    opened: dict[Path, tuple] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        *file, name = getattr(storage, ORIGIN, (None, None, None))
        if name is None:
            continue
        if file[0] not in opened:
            opened[file[0]] = _open(*file)
        stream, lock, spans = opened[file[0]]
        if name in spans:
            storage._comfy_tensor_file_slice = slice_of(stream, lock, spans[name], storage.nbytes())


def _open(path: Path, stamp: tuple) -> tuple:
    """(the open file, the lock of its position, the first byte of each tensor by name): of none where it is no longer the
    file that was mapped."""
    stream = path.open("rb", buffering=0)
    if stamp_of(stream.fileno()) != stamp:
        return stream, None, {}
    length = int.from_bytes(stream.read(8), "little")
    tensors = {name: each for name, each in json.loads(stream.read(length)).items() if name != "__metadata__"}
    return stream, threading.Lock(), {name: 8 + length + each["data_offsets"][0] for name, each in tensors.items()}
