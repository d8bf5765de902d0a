"""The folder of a store: one safetensors file an entry, named by its key.

A file is written beside its place and then renamed into it, so that a reader sees all of it or nothing; its header has a
checksum of its key and the rest. What does not agree is as if it were not there. Whoever writes holds the
folder's lock, which the system lets go of when a process dies: several servers may share a folder, and what a dead one
left half-written is seen and removed by the next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import safetensors.torch
from torch import Tensor

from .keys import content, digest

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT = "klein_store_1"
NAME = re.compile(r"([0-9a-f]{64})\.(safetensors|tmp)")  # what else lies in the folder is not touched
LONGEST_HEADER = 2**20  # bytes: an entry has a handful of tensors
MOST_BESIDE = 2**12  # bytes of a file beside its tensors, where it has a handful
PATIENCE = 5.0  # seconds to wait for the lock
HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)  # what the systems say while another has it


@dataclass(frozen=True)
class Entry:
    """One file: what it says of itself, its size, and when it was last asked for (seconds since 1970)."""

    key: str
    what: str
    nbytes: int
    used: float


class Disk:
    """Entries in a folder, of `most` bytes together; above that those go first that were not asked for the longest."""

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key; None for none, and for what is damaged or was not written by a store."""
        path = self._path(key)
        try:
            data = self._read(path)
        except OSError:
            return None
        tensors = decoded(key, data)
        if tensors is not None:
            self.touch(key)
            return tensors
        with contextlib.suppress(OSError):  # the folder may be read and not written
            path.unlink()
        return None

    def touch(self, key: str) -> None:
        """It is asked for now, and so goes last."""
        with contextlib.suppress(OSError):
            os.utime(self._path(key))

    def put(self, key: str, tensors: dict[str, Tensor], what: str) -> bool:
        """Whether it was written: not where the folder cannot be, the disk is full, or the value is too large."""
        data = encoded(key, tensors, what)
        if len(data) > self.most:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                self._make_room(len(data))
                self._write(key, data)
        except OSError:
            return False
        return True

    def entries(self) -> list[Entry]:
        """All that say that they are of a store, those asked for last at the end."""
        found = []
        with contextlib.suppress(OSError):
            for used, nbytes, path in self._files():
                header = _header(_start(path))
                if header.get("store") == FORMAT:
                    found.append(Entry(path.stem, str(header.get("what")), nbytes, used))
        return found

    def usage(self) -> tuple[int, int]:
        """(entries, bytes), by the folder's listing alone."""
        try:
            sizes = [nbytes for _, nbytes, _ in self._files()]
        except OSError:
            sizes = []
        return len(sizes), sum(sizes)

    def clear(self) -> None:
        """Remove all entries."""
        with contextlib.suppress(OSError), locked(self.folder):
            self._make_room(self.most + 1)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _read(self, path: Path) -> bytes:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > self.most:
            raise FileNotFoundError(path)
        return path.read_bytes()

    def _write(self, key: str, data: bytes) -> None:
        beside = self.folder / f"{key}.tmp"
        try:
            beside.write_bytes(data)
            os.replace(beside, self._path(key))
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise

    def _make_room(self, size: int) -> None:
        """Under the lock, when what is half-written belongs to nobody alive."""
        files = self._files()
        total = sum(nbytes for _, nbytes, _ in files)
        for _, nbytes, path in sorted(files, key=lambda file: (file[2].suffix != ".tmp", file[0])):
            if path.suffix == ".tmp" or total + size > self.most:
                path.unlink(missing_ok=True)
                total -= nbytes

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time, bytes, path) of each file whose name is an entry's, the oldest first."""
        found = []
        with os.scandir(self.folder) as listing:
            for each in listing:
                with contextlib.suppress(FileNotFoundError):  # another server has just removed it
                    if NAME.fullmatch(each.name) and each.is_file(follow_symlinks=False):
                        status = each.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, Path(each.path)))
        return sorted(found)


def encoded(key: str, tensors: dict[str, Tensor], what: str) -> bytes:
    """An entry's file."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    header = {"store": FORMAT, "what": what, "checksum": _checksum(key, what, tensors)}
    return safetensors.torch.save(tensors, header)


def decoded(key: str, data: bytes) -> dict[str, Tensor] | None:
    """The tensors of an entry's file; None where it is not one of this key, as it was written."""
    header = _header(data)
    if header.get("store") != FORMAT:
        return None
    try:
        tensors = safetensors.torch.load(data)
    except Exception:  # whatever the library says of damaged bytes
        return None
    return tensors if header.get("checksum") == _checksum(key, str(header.get("what")), tensors) else None


def _checksum(key: str, what: str, tensors: dict[str, Tensor]) -> str:
    return digest("entry", key=key, what=what, content=content(tensors))


def _header(data: bytes) -> dict:
    """What a safetensors file says beside its tensors; empty where it is none."""
    length = int.from_bytes(data[:8], "little")
    try:
        found = json.loads(data[8 : 8 + min(length, LONGEST_HEADER)])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _start(path: Path) -> bytes:
    """A file as far as its header goes."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))
    return b""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone among the writers of a folder; OSError where that is not to be had within some seconds."""
    with (folder / "lock").open("ab") as file:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                _lock(file)
                break
            except OSError as error:
                if error.errno not in HELD or time.monotonic() > deadline:
                    raise  # not all file systems have locks
                time.sleep(0.01)
        yield  # closing the file lets go of the lock


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
