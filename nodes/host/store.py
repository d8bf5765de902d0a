"""The store of this server: below ComfyUI's user folder, or where KLEIN_STORE says (`off`: in memory only), of
KLEIN_STORE_GB at most."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import comfyui_version
import folder_paths
import torch

from ...store.keys import digest
from ...store.stamp import Source, stamp
from ...store.store import Store
from .settings import given

PLACE, SIZE = "KLEIN_STORE", "KLEIN_STORE_GB"
GIGABYTES = 4.0  # on disk: a prompt takes 13 MB for 9B
MEMORY = 256 * 2**20
ARITHMETIC = 1  # one more whenever a change of this pack changes what an encoder gives


@functools.cache
def store() -> Store:
    place = given().get(PLACE, "")
    if place.lower() == "off":
        return Store(None, 0, MEMORY)
    folder = Path(place) if place else Path(folder_paths.get_user_directory()) / "klein_store"
    return Store(folder, int(_gigabytes() * 2**30), MEMORY)


def described() -> str:
    """Where the store lies, how much is in it, and of how much."""
    disk = store().disk
    if disk is None:
        return f"in memory only ({PLACE}=off)"
    count, nbytes = disk.usage()
    return f"{count} entries, {nbytes / 2**30:.2g} of {disk.most / 2**30:.3g} GB in {disk.folder}"


def key(kind: str, of: Source | None, device: torch.device, **parts: object) -> str | None:
    """Of a value that a model's file decides, on a device, with this torch and this ComfyUI; None where the file can no longer
    be told, and so nothing may be kept."""
    made_by = None if of is None else stamp(of, store())
    if made_by is None:
        return None
    host = comfyui_version.__version__
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return digest(kind, arithmetic=ARITHMETIC, torch=torch.__version__, host=host, device=name, made_by=made_by, **parts)


def _gigabytes() -> float:
    text = given().get(SIZE, "")
    try:
        found = float(text or GIGABYTES)
        if 0 <= found < float("inf"):
            return found
    except ValueError:
        pass
    logging.warning(f"{SIZE} is {text!r}, expected a number of gigabytes: {GIGABYTES:g} are taken.")
    return GIGABYTES
