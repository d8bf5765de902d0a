"""The lists of files and folders that loaders offer, and the paths behind their entries."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...model_loaders.errors import KleinError


def choices(category: str, subfolder: str) -> list[str]:
    """Files of a ComfyUI category, then Hugging Face folders (with index or a single safetensors file) in it, then
    the `subfolder` of those in models/diffusers."""
    files = folder_paths.get_filename_list(category)
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
    raise KleinError(
        f"{name} is not in the folders of {category}: put it there, or choose another file (key R refreshes the list)."
    )


def known(category: str, subfolder: str, name: str) -> bool | str:
    """True for an entry of `choices`, else the sentence that the graph's validation shows."""
    if name in choices(category, subfolder):
        return True
    return (
        f"{name} was not found in models/{category}, expected one of the {len(choices(category, subfolder))} entries of the list: "
        f"download it there (links are in the workflow's note), then refresh the list (key R)."
    )


def _roots(category: str) -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(category)]


def _folders(category: str, subfolder: str) -> list[str]:
    found = []
    for root in _roots(category):
        for config in sorted(root.glob(os.path.join("*", subfolder, "config.json"))):
            if any(config.parent.glob("*.safetensors")):
                found.append(config.relative_to(root).parts[0])
    return found
