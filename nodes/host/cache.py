"""The reference cache on a MODEL: what is kept, for how long, and what decides that it is still true.

A wrapper around the host's PREPARE_SAMPLING opens a `Run` and counts the memory its references will take; the flow model
asks the run for the keys and values of its references.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial

import torch
from comfy.patcher_extension import WrappersMP

from ...errors import KleinError
from ...model_loaders.flow.reference_kv import ReferenceKV, ReferenceSet, Storage
from ...model_loaders.flow.work import kept_bytes
from . import kept, store
from .conditioning import controls_of
from .flow import REFERENCE_CACHE, KleinModel

MODES = ("off", "within_run", "across_runs", "on_disk")
DEVICES = ("gpu", "cpu")
DTYPES = {"model": None, "float8_e4m3fn": torch.float8_e4m3fn}


def attach(patcher, mode: str, device: str, dtype: str):
    """(MODEL with a reference cache, report)."""
    model = patcher.model
    if not isinstance(model, KleinModel):
        raise KleinError(
            f"The reference cache needs a model from Klein Flow Loader, and this one is {type(model).__name__} of another loader: "
            f"change the loader."
        )
    patcher = patcher.clone()
    patcher.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, REFERENCE_CACHE)
    if mode == "off":
        return patcher, "off: references are part of the sequence in every step"
    cache = ReferenceCache(mode, device, DTYPES[dtype])
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, REFERENCE_CACHE, cache.prepare)
    size = bytes_per_token(model, DTYPES[dtype])
    lines = [
        f"{mode}, on the {device}: {size / 2**20:.3g} MB a token of the references, "
        f"{4096 * size / 2**30:.3g} GB for one of 1024x1024"
    ]
    if mode == "on_disk":
        why = kept.hindrance(model)
        lines.append(f"Warning: kept in memory only, as {why}" if why else f"on disk: {store.described()}")
    if model.klein_variant != "kv":
        lines.append(
            f"Warning: this model is {model.klein_variant}, and only the KV variant was trained for cached references: "
            f"images will differ from those without the cache."
        )
        logging.warning(f"Klein reference cache: {lines[-1].removeprefix('Warning: ')}")
    return patcher, "\n".join(lines)


def bytes_per_token(model: KleinModel, dtype: torch.dtype | None) -> int:
    """Keys and values of one token in all blocks."""
    return kept_bytes(model.diffusion_model.sizes, (dtype or model.manual_cast_dtype or model.get_dtype()).itemsize)


def cache_of(patcher) -> ReferenceCache | None:
    """The reference cache that a MODEL has."""
    found = patcher.wrappers.get(WrappersMP.PREPARE_SAMPLING, {}).get(REFERENCE_CACHE)
    return found[-1].__self__ if found else None


class ReferenceCache:
    """What one cache node keeps, as long as a MODEL it gave lives. dtype: None for the model's own."""

    def __init__(self, mode: str, device: str, dtype: torch.dtype | None):
        self.across = mode in ("across_runs", "on_disk")  # what a run computed is there for the next
        self.on_disk = mode == "on_disk"  # and for the next server
        self.device, self.dtype = device, dtype
        self.last: Run | None = None

    def kept(self, flow) -> int:
        """The bytes on the GPU of what is kept from run to run for a transformer."""
        return sum(each.nbytes for each in self._found(flow))

    def forget(self, flow) -> int:
        """The host wants memory on the GPU of a transformer: so goes what is kept, on all GPUs, as a run needs the whole.
        Returns the bytes freed there, without those that a run still holds."""
        kept = [(weakref.ref(each), each.nbytes) for each in self._found(flow)]
        if self.device == "gpu":
            self.last = None
        return sum(nbytes for each, nbytes in kept if each() is None)

    def _found(self, flow) -> list[ReferenceKV]:
        last = self.last if self.device == "gpu" else None
        return [each for key, each in list(last.found.items()) if key[0]() is flow] if last else []

    def prepare(self, executor, patcher, noise_shape, conds, *args, model_options=None, **kwargs):
        """Around the host's prepare_sampling: open a run, and count what its references will take among the memory that
        the host makes free."""
        model, options = patcher.model, model_options["transformer_options"]
        patchers = [patcher, *patcher.get_additional_models_with_key("multigpu")]  # copies, each with a GPU of its own
        for each in patchers:
            each.model.beside.add(self)  # here, as hosts build second models for copies of the patcher
        wanted = [_set_of(cond) for of_one in conds.values() for cond in of_one if cond.get("reference_latents")]
        foreign = _foreign(patcher, options)
        storage = Storage(torch.device("cpu") if self.device == "cpu" else None, self.dtype)
        run = Run(patcher, storage, _weights(patcher, options), self.on_disk and not foreign)
        if self.across and foreign:
            logging.warning(f"Klein reference cache: kept within this run only, as the model has {foreign}.")
        last, self.last = self.last, None  # until all is loaded, nothing that this run needs is given back
        if last and not foreign:
            run.take_over(last, [each.model.beside.flow for each in patchers], {each.key for each in wanted})
        del last
        known = {key[2] for key in run.found}
        tokens = sum({each.key: each.tokens * each.rows for each in wanted if each.key not in known}.values())
        model.beside.cached = True
        model.beside.wanted = tokens * bytes_per_token(model, self.dtype) if self.device == "gpu" else 0
        options[REFERENCE_CACHE] = run
        try:
            prepared = executor(patcher, noise_shape, conds, *args, model_options=model_options, **kwargs)
        finally:
            model.beside.wanted, model.beside.cached = 0, False
        self.last = run if self.across and not foreign else None
        for each in patchers if self.last and self.device == "gpu" else ():
            each.model.beside.enter(each.load_device)
        return prepared


class Run:
    """One sampling run: keys and values of its references by what they depend on. on_disk: they are looked for there, and
    written."""

    def __init__(self, patcher, storage: Storage, weights: tuple, on_disk: bool):
        self.patcher, self.storage, self.weights, self.on_disk = weakref.ref(patcher), storage, weights, on_disk
        self.found: dict[tuple, ReferenceKV] = {}
        self.used: set[tuple] = set()

    def __deepcopy__(self, memo) -> Run:
        return self  # packs copy the options it lies in

    def take_over(self, last: Run, flows: list, sets: set[tuple]) -> None:
        """What the last run used and this one can: of these transformers, of the same weights and of sets that it has."""
        found = {key: kept for key, kept in list(last.found.items()) if key in last.used and key[0] in flows}
        self.found = {key: kept for key, kept in found.items() if key[1] == self.weights and key[2] in sets}

    @torch.compiler.disable
    def keys_values(self, flow, latents, references: ReferenceSet, method, canvas, options: dict) -> ReferenceKV:
        """Of the references of one model call: latents, each (B, channels, h, w), of which all rows are alike unless the
        set itself has several."""
        method = method or flow.params.default_ref_method
        rope = tuple(sorted((options.get("rope_options") or {}).items()))
        canvas = canvas if method == "uxo" else (0, 0)
        parts = len(options.get("cond_or_uncond", (0,)))  # conditionings in the batch, each with the set's rows in turn
        if not references.is_content_of(latents, parts):  # something between the conditioning and here has changed them
            return flow.read_references(latents, references.controls, self.storage, method, canvas, dict(rope))
        rows = len(latents[0]) if references.rows > 1 else 1
        hooks = getattr(self.patcher(), "current_hooks", None)
        hooks = [] if hooks is None else hooks.hooks
        key = (
            weakref.ref(flow), self.weights, references.key, rows, parts if rows > 1 else 1, method, rope, canvas,
            tuple(hook.hook_ref for hook in hooks), tuple(hook.strength for hook in hooks),
        )  # fmt: skip
        found, how = self.found.get(key), "kept from an earlier run"
        if found is None:
            # Several GPUs call at once: only copies of the dict are gone through.
            for old in [old for old in list(self.found) if old[:-1] == key[:-1]]:  # of a hook's earlier strength
                self.found.pop(old, None)
            latents = [latent[:rows] for latent in latents]
            make = partial(flow.read_references, latents, references.controls, self.storage, method, canvas, dict(rope))
            found, how = self._known(key, flow, latents[0], make) if self.on_disk else (make(), "computed")
            self.found[key] = found
        if key not in self.used:
            self.used.add(key)
            size = f"{found.tokens} tokens, {found.nbytes / 2**20:.1f} MB"
            logging.info(f"Klein reference cache: {size}, {how}")
        return found

    def _known(self, key: tuple, flow, like: torch.Tensor, make) -> tuple[ReferenceKV, str]:
        """What lies on disk under a key of `found`, made and written where there is nothing; and which of the two."""
        (_, objects, wrappers), others, hooks = key[1], key[2:-2], key[-2]
        foreign = objects or wrappers or hooks
        name = None if foreign else kept.name_of(self.patcher(), self.storage, like, key=repr(others))
        if name is None:
            why = kept.hindrance(self.patcher().model) or "the model has patches that cannot be told again"
            logging.warning(f"Klein reference cache: kept in memory only, as {why}.")
            return make(), "computed"
        found = kept.load(name, self.storage, flow.sizes, like.device)
        if found is not None:
            return found, "read from disk"
        kept.save(name, found := make())
        return found, "computed"


class Same:
    """An object that equals itself alone, and lives as long as a key needs it."""

    def __init__(self, thing):
        self.thing = thing

    def __eq__(self, other) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def _set_of(cond: dict) -> ReferenceSet:
    return ReferenceSet(cond["reference_latents"], controls_of(cond))


def _weights(patcher, options: dict) -> tuple:
    """What the weights of a MODEL are: its patches, replaced objects, and wrappers around the transformer."""
    objects = [(name, Same(thing)) for name, thing in patcher.object_patches.items() if name.startswith("diffusion_model")]
    kinds = (options.get("wrappers", {}).get(kind, {}) for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL))
    wrappers = [Same(wrapper) for kind in kinds for of_key in kind.values() for wrapper in of_key]
    return patcher.patches_uuid, tuple(objects), tuple(wrappers)


def _foreign(patcher, options: dict) -> str | None:
    """What another pack does inside the transformer, which the pass over the references alone would not see change."""
    if patcher.hook_patches:
        return "a hook LoRA"
    if options.get("patches") or options.get("patches_replace", {}).get("dit"):
        return "patches of its attention or blocks"
    if patcher.injections:
        return "injected layers"
    return None
