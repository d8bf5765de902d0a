"""What is kept on the GPU beside a model's weights, and how the host gets it back."""

from __future__ import annotations

import copy
import functools
import threading
import weakref

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP

from .compat import patcher_class, streams_weights


class Beside:
    """Of one model, whose transformer is `flow`. wanted: bytes that the present run will take beside the estimate of a step;
    cached: its references are not part of the sequence."""

    def __init__(self, flow: torch.nn.Module):
        self.wanted, self.cached = 0, False
        self.flow = weakref.ref(flow)
        self._keepers = weakref.WeakSet()
        self._lock = threading.Lock()
        self._entry: Entry | None = None

    def __deepcopy__(self, memo) -> Beside:
        return Beside(copy.deepcopy(self.flow(), memo))  # a copied model keeps nothing yet

    def add(self, keeper) -> None:
        """keeper.kept(flow) is the bytes that it keeps on the GPU for a transformer; keeper.forget(flow) lets go of them and
        returns the bytes freed. It is held weakly."""
        with self._lock:
            self._keepers.add(keeper)

    @property
    def nbytes(self) -> int:
        return sum(keeper.kept(self.flow()) for keeper in self._all())

    def give_back(self) -> int:
        """Let go of all that is kept; returns the bytes freed."""
        return sum(keeper.forget(self.flow()) for keeper in self._all())

    def enter(self, device: torch.device) -> None:
        """Hosts that stream weights ask no model that does so for memory when another such model needs some, and clone it
        into a patcher of their own where it shall not: for them what is kept on a device is a loaded model of its own."""
        if not streams_weights():
            return
        if self._entry is None or self._entry.load_device != device:
            self._entry = Entry(self, device)
        loaded = comfy.model_management.current_loaded_models
        if not any(each.model is self._entry for each in loaded):
            own = comfy.model_management.LoadedModel(self._entry)
            own.model_load()
            loaded.insert(0, own)

    def _all(self) -> list:
        with self._lock:
            return list(self._keepers)


class KeptBeside(torch.nn.Module):
    """No layers: what hosts name when they speak of an `Entry`."""


class Entry(comfy.model_patcher.ModelPatcher):
    """What is kept beside a model, among the models that the host has loaded: it is given back as a whole."""

    def __init__(self, beside: Beside, device: torch.device):
        super().__init__(KeptBeside(), device, torch.device("cpu"))
        self.beside = weakref.ref(beside)  # which owns this

    def loaded_size(self) -> int:
        beside = self.beside()
        return beside.nbytes if beside else 0

    model_size = loaded_size

    def partially_load(self, *args, **kwargs) -> int:
        return 0

    def partially_unload(self, *args, **kwargs) -> int:
        beside = self.beside()
        return beside.give_back() if beside else 0

    def detach(self, unpatch_all: bool = True):
        if unpatch_all:
            self.partially_unload()
        return self.model


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
