"""The lists of files and folders that loaders offer, and the paths behind their entries."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...model_loaders.errors import KleinError

MODEL_FILES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")  # all but the first two are refused by name


def choices(category: str, subfolder: str) -> list[str]:
    """Files of a ComfyUI category, then Hugging Face folders (with index or a single safetensors file) in it, then
    the `subfolder` of those in models/diffusers."""
    files = [name for name in folder_paths.get_filename_list(category) if name.endswith(MODEL_FILES)]
    folders = _folders(category, "")
    pipelines = _folders("diffusers", subfolder)
    inside = tuple(f"{name}{os.sep}" for name in folders)
    return [name for name in files if not name.startswith(inside)] + folders + pipelines


def resolve(category: str, name: str) -> Path:
    """The path of an entry of `choices`; KleinError when it is no longer there."""
    file = folder_paths.get_full_path(category, name)
    if file is not None:
        return Path(file)
    for root in _roots(category) + _roots("diffusers"):
        if (root / name).is_dir():
            return root / name
    raise KleinError(f"{name} is not in the folders of {category}: put it there, or choose another file (key R refreshes the list).")


def _roots(category: str) -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(category)]


def _folders(category: str, subfolder: str) -> list[str]:
    found = []
    for root in _roots(category):
        for config in sorted(root.glob(os.path.join("*", subfolder, "config.json"))):
            if any(config.parent.glob("*.safetensors")):
                found.append(config.relative_to(root).parts[0])
    return found
