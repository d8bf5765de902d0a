"""Memory in front of a folder, behind one interface."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from torch import Tensor

from .disk import Disk, Entry


class Store:
    """Tensors by key (64 hex digits, of `digest`): `memory` bytes of those asked for last in this process, `disk` bytes in
    a folder that outlives it. folder: None for memory alone."""

    def __init__(self, folder: Path | None, disk: int, memory: int):
        self.disk = None if folder is None else Disk(folder, disk)
        self._most = memory
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under a key, to be kept and changed by the caller; None where it is not known."""
        with self._lock:
            found = self._kept.get(key)
        if self.disk is not None:
            if found is None:
                found = self.disk.get(key)
            else:
                self.disk.touch(key)
        if found is None:
            return None
        self._remember(key, found)
        return _copy(found)

    def put(self, key: str, tensors: dict[str, Tensor], what: str) -> None:
        """Keep tensors under a key, with some words on what they are. Where the folder cannot be written, in memory only."""
        self._remember(key, _copy(tensors))
        if self.disk is not None:
            self.disk.put(key, tensors, what)

    def entries(self) -> list[Entry]:
        """What lies in the folder."""
        return [] if self.disk is None else self.disk.entries()

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
        if self.disk is not None:
            self.disk.clear()

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        with self._lock:
            self._kept[key] = tensors
            self._kept.move_to_end(key)
            while self._kept and sum(map(_size, self._kept.values())) > self._most:
                self._kept.popitem(last=False)


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
