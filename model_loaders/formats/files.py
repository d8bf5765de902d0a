"""Safetensors files and folders: headers first, tensors mapped and never copied."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import KleinError

INDEX = "*.safetensors.index.json"

# First bytes of what people save under a model's name. A pickle can run code when opened: it is named, never read.
FOREIGN = (
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip archive (a PyTorch pickle, or a download that was not unpacked)"),
    (b"\x80\x02", "a PyTorch pickle"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "a web page (the download asked for a login or was refused)"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model, in one file or in several shards. Only headers have been read.

    shapes: name -> shape; dtypes: name -> torch dtype; metadata: the header's `__metadata__` (of all shards).
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    _homes: dict[str, object]

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor as it lies in the file: a private, lazily read mapping, no copy."""
        return self._homes[name].get_tensor(name)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes


def open_checkpoint(path: str | Path, subfolder: str | None = None) -> Checkpoint:
    """Open one safetensors file, or a Hugging Face folder (its `subfolder` if it has one).

    Raises KleinError for what is missing, cut short, or not safetensors.
    """
    path = Path(path)
    if path.is_dir() and subfolder and (path / subfolder).is_dir():
        path = path / subfolder
    shapes, dtypes, metadata, homes = {}, {}, {}, {}
    for file in _files(path):
        handle = _open(file)
        metadata.update(handle.metadata() or {})
        for name in handle.keys():
            part = handle.get_slice(name)
            shapes[name] = tuple(part.get_shape())
            dtypes[name] = _dtype(file, name, part.get_dtype())
            homes[name] = handle
    if not shapes:
        raise KleinError(f"{path.name} holds no tensors, expected the weights of a model: download it again.")
    return Checkpoint(path, shapes, dtypes, metadata, homes)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise KleinError(f"{path} does not exist: choose a file that is in the list, or refresh the list (key R).")
    index = sorted(path.glob(INDEX))
    if index:
        return _shards(index[0])
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise KleinError(
            f"The folder {path.name} holds {len(files)} safetensors files and no index, expected one file or an index "
            f"({INDEX}): download the whole folder again."
        )
    return files


def _shards(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KleinError(f"{index.name} is not a safetensors index ({error}): download it again.") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise KleinError(
            f"The folder {index.parent.name} lacks {len(missing)} of its {len(names)} shards (first: {missing[0]}): "
            f"download the missing files into it."
        )
    return [index.parent / name for name in names]


def _open(file: Path):
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(32)
    for magic, what in FOREIGN:
        if head.startswith(magic):
            raise KleinError(f"{file.name} is {what}, expected a .safetensors model: download the .safetensors file.")
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise KleinError(
            f"{file.name} ({size} bytes) is not a complete safetensors file ({error}): download it again."
        ) from error


def _dtype(file: Path, name: str, code: str) -> torch.dtype:
    try:
        return _DTYPES[code]
    except KeyError:
        raise KleinError(
            f"{file.name} stores {name} as {code}, expected one of {', '.join(_DTYPES)}: load a bf16 or fp8 file instead."
        ) from None


# https://github.com/huggingface/safetensors#format
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
