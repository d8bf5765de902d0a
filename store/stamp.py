"""What files of weights hold, without reading them: a digest of their headers and of some bytes from every tensor.
Safetensors says itself where those lie; of other files whoever opened them says so.

It is kept by path, inode, size, and the times of the last change of content and of the inode, and made again only when one
of these is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from .keys import digest
from .store import Store

TAKEN = 64  # bytes at the start, in the middle and at the end of each tensor
LONGEST_HEADER = 100 * 2**20  # bytes, as safetensors allows


@dataclass(frozen=True)
class Source:
    """The files of a model, how they were when their headers were read, and where the tensors lie in those that are not
    safetensors: their first byte and the one behind the last, file by file."""

    files: tuple[Path, ...]
    identities: tuple[tuple, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]


def source(files: Iterable[Path], spans: dict[Path, list[tuple[int, int]]] | None = None) -> Source:
    """spans: by file, of those that are not safetensors."""
    files = tuple(sorted(path.resolve() for path in files))
    known = {path.resolve(): tuple(sorted(places)) for path, places in (spans or {}).items()}
    return Source(files, tuple(map(_identity, files)), tuple(known.get(path, ()) for path in files))


def stamp(of: Source, store: Store) -> str | None:
    """64 hex digits of the content; None where a file is no longer as it was, or is neither safetensors nor known by its spans."""
    try:
        if _changed(of):
            return None
        key = digest("stamp", identities=of.identities)
        known = store.get(key)
        if known is not None:
            return bytes(known["stamp"].tolist()).decode()
        found = digest("content", files=[_content(*each) for each in zip(of.files, of.spans)])
        if _changed(of):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    store.put(key, {"stamp": torch.tensor(list(found.encode()), dtype=torch.uint8)}, f"stamp of {of.files[0].name}")
    return found


def _changed(of: Source) -> bool:
    return tuple(map(_identity, of.files)) != of.identities


def _identity(path: Path) -> tuple:
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(path: Path, spans: tuple[tuple[int, int], ...]) -> str:
    """ValueError and the like where it is not what it should be."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        if spans:
            found.update(file.read(spans[0][0]))
        else:
            header, spans = _safetensors(path, file)
            found.update(header)
        for start, end in spans:
            for place in (start, (start + end - TAKEN) // 2, end - TAKEN):
                file.seek(max(place, start))
                found.update(file.read(min(TAKEN, end - start)))
    return found.hexdigest()


def _safetensors(path: Path, file: BinaryIO) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """The header, and the first and last bytes of tensors in the file."""
    length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"{path.name} is not safetensors")
    header = file.read(length)
    places = [each["data_offsets"] for name, each in json.loads(header).items() if name != "__metadata__"]
    return header, tuple((8 + length + start, 8 + length + end) for start, end in sorted(places))
