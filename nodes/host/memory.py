"""What is kept on the GPU beside a model's weights, and how the host gets it back."""

from __future__ import annotations

import functools
import threading
import weakref

from comfy.patcher_extension import CallbacksMP

from .compat import patcher_class


class Beside:
    """Of one model. wanted: bytes that the present run will take beside the estimate of a step; cached: its references are
    not part of the sequence."""

    def __init__(self):
        self.wanted, self.cached = 0, False
        self._keepers = weakref.WeakSet()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo) -> Beside:
        return Beside()  # a copied model keeps nothing yet

    def add(self, keeper) -> None:
        """keeper.forget() lets go of what it keeps on the GPU and returns the bytes freed; it is held weakly."""
        with self._lock:
            self._keepers.add(keeper)

    def give_back(self) -> int:
        """Let go of all that is kept; returns the bytes freed."""
        with self._lock:
            keepers = list(self._keepers)
        return sum(keeper.forget() for keeper in keepers)


def new_patcher(model, load_device, offload_device, disable_dynamic: bool = False):
    """The host's patcher around a model whose weights are not yet loaded; when the host takes the model's memory, in whole
    or in part, what `model.beside` keeps goes first."""
    patcher = _giving_back(patcher_class(disable_dynamic))(model, load_device=load_device, offload_device=offload_device)
    patcher.add_callback(CallbacksMP.ON_DETACH, _detached)
    return patcher


def _detached(patcher, unpatch_all: bool) -> None:
    """The host takes a model from the GPU."""
    if unpatch_all:
        patcher.model.beside.give_back()


@functools.cache
def _giving_back(base: type) -> type:
    """The host takes a part of a model's memory by a method, without a callback."""

    class KleinPatcher(base):
        def partially_unload(self, device_to, memory_to_free=0, *args, **kwargs):
            freed = self.model.beside.give_back() if memory_to_free > 0 else 0
            if freed and freed >= memory_to_free:
                return freed
            return freed + super().partially_unload(device_to, memory_to_free - freed, *args, **kwargs)

    return KleinPatcher
