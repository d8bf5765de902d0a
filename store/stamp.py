"""What files of weights hold, without reading them: a digest of their headers and of some bytes from every tensor.

It is kept by path, inode, size, and the times of the last change of content and of the inode, and made again only when one
of these is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .keys import digest
from .store import Store

TAKEN = 64  # bytes at the start, in the middle and at the end of each tensor
LONGEST_HEADER = 100 * 2**20  # bytes, as safetensors allows


@dataclass(frozen=True)
class Source:
    """The files of a model, and how they were when their headers were read."""

    files: tuple[Path, ...]
    identities: tuple[tuple, ...]


def source(files: Iterable[Path]) -> Source:
    files = tuple(sorted(path.resolve() for path in files))
    return Source(files, tuple(map(_identity, files)))


def stamp(of: Source, store: Store) -> str | None:
    """64 hex digits of the content; None where a file is no longer as it was, or is not safetensors."""
    try:
        if source(of.files) != of:
            return None
        key = digest("stamp", identities=of.identities)
        known = store.get(key)
        if known is not None:
            return bytes(known["stamp"].tolist()).decode()
        found = digest("content", files=[_content(path) for path in of.files])
        if source(of.files) != of:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    store.put(key, {"stamp": torch.tensor(list(found.encode()), dtype=torch.uint8)}, f"stamp of {of.files[0].name}")
    return found


def _identity(path: Path) -> tuple:
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(path: Path) -> str:
    """ValueError and the like where it is not safetensors."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"{path.name} is not safetensors")
        header = file.read(length)
        found.update(header)
        spans = [each["data_offsets"] for name, each in json.loads(header).items() if name != "__metadata__"]
        for start, end in sorted(spans):
            for place in (start, (start + end - TAKEN) // 2, end - TAKEN):
                file.seek(8 + length + max(place, start))
                found.update(file.read(min(TAKEN, end - start)))
    return found.hexdigest()
