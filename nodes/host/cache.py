"""The reference cache on a MODEL: what is kept, for how long, and what decides that it is still true.

A wrapper around the host's PREPARE_SAMPLING opens a `Run` and counts the memory its references will take; the flow model
asks the run for the keys and values of its references.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP

from ...model_loaders.errors import KleinError
from ...model_loaders.flow.cache import ReferenceKV, ReferenceSet, Storage
from .flow import REFERENCE_CACHE, KleinModel

MODES = ("off", "within_run", "across_runs")
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
    if mode != "across_runs":
        model.klein_kept = {}
    if mode == "off":
        return patcher, "off: references are part of the sequence in every step"
    settings = Settings(mode == "across_runs", device, DTYPES[dtype])
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, REFERENCE_CACHE, settings.prepare)
    size = bytes_per_token(model, DTYPES[dtype])
    lines = [
        f"{mode}, on the {device}: {size / 2**20:.3g} MB a token of the references, "
        f"{4096 * size / 2**30:.3g} GB for one of 1024x1024"
    ]
    if model.klein_variant != "kv":
        lines.append(
            f"Warning: this model is {model.klein_variant}, and only the KV variant was trained for cached references: "
            f"images will differ from those without the cache."
        )
        logging.warning(f"Klein reference cache: {lines[1].removeprefix('Warning: ')}")
    return patcher, "\n".join(lines)


def bytes_per_token(model: KleinModel, dtype: torch.dtype | None) -> int:
    """Keys and values of one token in all blocks."""
    sizes = model.diffusion_model.sizes
    itemsize = (dtype or model.manual_cast_dtype or model.get_dtype()).itemsize
    return 2 * (sizes.depth + sizes.depth_single_blocks) * sizes.hidden_size * itemsize


@dataclass(frozen=True)
class Settings:
    """across: keep what a run computed for the next. dtype: None for the model's own."""

    across: bool
    device: str
    dtype: torch.dtype | None

    def prepare(self, executor, patcher, noise_shape, conds, *args, model_options=None, **kwargs):
        """Around the host's prepare_sampling: open a run, and count what its references will take among the memory that
        the host makes free."""
        model, options = patcher.model, model_options["transformer_options"]
        wanted = [_set_of(cond) for of_one in conds.values() for cond in of_one if cond.get("reference_latents")]
        wanted = {each.key: each.tokens for each in wanted}
        foreign = _foreign(patcher, options)
        if self.across and foreign:
            logging.warning(f"Klein reference cache: kept within this run only, as the model has {foreign}.")
        run = Run(self, _weights(patcher, options))
        if self.across and not foreign:
            run.found = {key: kv for key, kv in model.klein_kept.items() if key[0] == run.weights and key[1] in wanted}
        model.klein_kept = run.found if self.across and not foreign else {}
        known = {key[1] for key in run.found}
        tokens = sum(count for key, count in wanted.items() if key not in known)
        model.klein_kept_bytes = tokens * bytes_per_token(model, self.dtype) if self.device == "gpu" else 0
        options[REFERENCE_CACHE] = run
        try:
            return executor(patcher, noise_shape, conds, *args, model_options=model_options, **kwargs)
        finally:
            model.klein_kept_bytes = 0


class Run:
    """One sampling run: keys and values of its references by what they depend on."""

    def __init__(self, settings: Settings, weights: tuple):
        device = torch.device("cpu") if settings.device == "cpu" else None
        self.storage, self.weights = Storage(device, settings.dtype), (weights, device, settings.dtype)
        self.found: dict[tuple, ReferenceKV] = {}
        self.told: set[tuple] = set()

    def keys_values(self, flow, latents, references: ReferenceSet, method, canvas, options: dict) -> ReferenceKV:
        """Of the references of one model call: latents, each (B, channels, h, w), of which all rows are alike unless the
        set itself has several."""
        rope = tuple(sorted((options.get("rope_options") or {}).items()))
        places = canvas if method in ("offset", "uxo") else (0, 0)
        if _wrappers(options) and not references.is_content_of(latents):
            return flow.read_references(latents, references.controls, self.storage, method, places, dict(rope))
        rows = 1 if references.rows == 1 else len(latents[0])
        parts = len(options.get("cond_or_uncond", ())) if rows > 1 else 1  # which repeat the rows in turn
        key = (self.weights, references.key, rows, parts, method, rope, places)
        kept = key in self.found
        if not kept:
            self.found[key] = flow.read_references(
                [latent[:rows] for latent in latents], references.controls, self.storage, method, places, dict(rope)
            )
        if key not in self.told:
            self.told.add(key)
            size = f"{self.found[key].tokens} tokens, {self.found[key].nbytes / 2**20:.1f} MB"
            logging.info(f"Klein reference cache: {size}, {'kept from an earlier run' if kept else 'computed'}")
        return self.found[key]


class Same:
    """An object that equals itself alone, and lives as long as a key needs it."""

    def __init__(self, thing):
        self.thing = thing

    def __eq__(self, other) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def _set_of(cond: dict) -> ReferenceSet:
    return ReferenceSet(cond["reference_latents"], cond.get("klein", {}).get("controls", ()))


def _weights(patcher, options: dict) -> tuple:
    """What the weights of a MODEL are: its patches, replaced objects, and wrappers around the transformer."""
    objects = [(name, Same(thing)) for name, thing in patcher.object_patches.items() if name.startswith("diffusion_model")]
    return patcher.patches_uuid, tuple(objects), tuple(map(Same, _wrappers(options)))


def _wrappers(options: dict) -> list:
    """What other packs put around the transformer, and may change its references."""
    kinds = (options.get("wrappers", {}).get(kind, {}) for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL))
    return [wrapper for kind in kinds for of_key in kind.values() for wrapper in of_key]


def _foreign(patcher, options: dict) -> str | None:
    """What another pack does inside the transformer, which the pass over the references alone would not see change."""
    if patcher.hook_patches:
        return "a hook LoRA"
    if options.get("patches") or options.get("patches_replace", {}).get("dit"):
        return "patches of its attention or blocks"
    if patcher.injections:
        return "injected layers"
    return None
