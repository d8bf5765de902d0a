"""Safetensors and GGUF files and folders: headers first, tensors mapped and never copied."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...errors import KleinError
from .blocks import BLOCKS
from .gguf import MAGIC, GgufFile, open_gguf

INDEX = "*.safetensors.index.json"
ORIGIN = "klein_origin"  # on the storage of a mapped tensor: its (file, stamp of the file, name there)
LARGEST_INDEX = 2**26  # bytes; those of klein have some tens of thousands
DEEPEST = 4  # parts of a name below its layer: bitsandbytes writes weight.quant_state.bitsandbytes__nf4

# First bytes of what people save under a model's name. A pickle can run code when opened: it is named, never read.
FOREIGN = (
    (b"PK\x03\x04", "a zip archive (a PyTorch pickle, or a download that was not unpacked)"),
    (b"\x80\x02", "a PyTorch pickle"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "a web page (the download asked for a login or was refused)"),
)
LETTERS = frozenset(b"\t\n\r") | frozenset(range(32, 127))


@dataclass(frozen=True)
class Shard:
    """An opened file, and how it was when its header was read: inode, size, time of its last change."""

    file: Path
    handle: Any
    stamp: tuple[int, int, int]

    def read(self, name: str) -> torch.Tensor:
        if stamp_of(self.file) != self.stamp:
            raise KleinError(f"{self.file.name} has changed since its header was read: load it again.")
        tensor = self.handle.get_tensor(name)
        storage = tensor.untyped_storage()
        if storage.nbytes() == tensor.nbytes:  # its own; those of a GGUF file share one
            setattr(storage, ORIGIN, (self.file, self.stamp, name))
        return tensor


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model, in one file or in several shards. Only headers have been read.

    shapes: name -> shape; dtypes: name -> torch dtype; metadata: the header's `__metadata__` (of all shards); packed:
    name -> codec, of those whose rows lie in the file as bytes.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    packed: dict[str, str]
    _homes: dict[str, Shard]

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor as it lies in the file: a private, lazily read mapping, no copy."""
        return self._homes[name].read(name)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    @property
    def files(self) -> set[Path]:
        return {shard.file for shard in self._homes.values()}

    @property
    def spans(self) -> dict[Path, list[tuple[int, int]]]:
        """Where the tensors lie in files that are not safetensors, which say so themselves: first byte, and behind the last."""
        packed = {shard.file: shard.handle for shard in self._homes.values() if isinstance(shard.handle, GgufFile)}
        return {
            file: [(each.start, each.start + each.size) for each in handle.entries.values()] for file, handle in packed.items()
        }

    def beside(self, layer: str) -> list[str]:
        """The names of all tensors below a layer, `layer.*`."""
        return self._children.get(layer, [])

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for name in self.shapes:
            parts = name.split(".")
            for depth in range(max(1, len(parts) - DEEPEST), len(parts)):
                children.setdefault(".".join(parts[:depth]), []).append(name)
        return children


def open_checkpoint(path: str | Path, subfolder: str | None = None) -> Checkpoint:
    """Open one safetensors or GGUF file, or a Hugging Face folder (its `subfolder` if it has one).

    Raises KleinError for what is missing, cut short, or neither.
    """
    path = Path(path)
    try:
        if path.is_dir() and subfolder and (path / subfolder).is_dir():
            path = path / subfolder
        shards = [_open(file) for file in _files(path)]
    except (OSError, UnicodeError) as error:
        raise KleinError(f"{path.name} cannot be opened ({error}): check the file and its permissions.") from error
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    metadata: dict[str, str] = {}
    packed: dict[str, str] = {}
    homes: dict[str, Shard] = {}
    for shard in shards:
        metadata.update(shard.handle.metadata() or {})
        for name in shard.handle.keys():
            if name in homes:
                raise KleinError(
                    f"{path.name} has {name} in {homes[name].file.name} and in {shard.file.name}, expected it once: download the "
                    f"folder again."
                )
            part = shard.handle.get_slice(name)
            shapes[name] = tuple(part.get_shape())
            if (code := part.get_dtype()) in BLOCKS:
                packed[name] = code
            dtypes[name] = torch.uint8 if code in BLOCKS else _dtype(shard.file, name, code)
            homes[name] = shard
    if not shapes:
        raise KleinError(f"{path.name} holds no tensors, expected the weights of a model: download it again.")
    return Checkpoint(path, shapes, dtypes, metadata, packed, homes)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():
        raise KleinError(f"{path.name} is no regular file, expected a .safetensors model: choose another file.")
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
        if index.stat().st_size > LARGEST_INDEX:
            raise ValueError(f"{index.stat().st_size} bytes")
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = next((name for name in names if Path(name).name != name), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KleinError(f"{index.name} is not a safetensors index ({error}): download it again.") from error
    if outside is not None:
        raise KleinError(f"{index.name} names {outside}, expected files of its own folder: download the folder again.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise KleinError(
            f"The folder {index.parent.name} lacks {len(missing)} of its {len(names)} shards (first: {next(iter(missing), 'none is named')}): "
            f"download the missing files into it."
        )
    return [index.parent / name for name in names]


def _open(file: Path) -> Shard:
    stamp = stamp_of(file)
    try:
        return Shard(file, safe_open(file, framework="pt", device="cpu"), stamp)
    except SafetensorError as error:
        if _head(file).startswith(MAGIC):
            return Shard(file, open_gguf(file), stamp)
        what = _foreign(file)
        if what:
            raise KleinError(
                f"{file.name} is {what}, expected a .safetensors model: download the .safetensors file."
            ) from error
        raise KleinError(
            f"{file.name} ({stamp[1]} bytes) is not a complete safetensors file ({error}): download it again."
        ) from error


def _foreign(file: Path) -> str | None:
    """What a file that is not safetensors is. Asked last: the first bytes of a good file are its header's length, which
    may look like anything."""
    head = _head(file)
    text = "a text, not weights (the download asked for a login or was refused)" if head and LETTERS.issuperset(head) else None
    return next((what for magic, what in FOREIGN if head.startswith(magic)), text)


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(32)


def stamp_of(file: Path | int) -> tuple[int, int, int]:
    """Of a path, or of an open file's descriptor."""
    status = os.stat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns


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
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
