"""The lists of files and folders that loaders offer, and the paths behind their entries."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...errors import KleinError, half_character
from ...model_loaders.formats.files import INDEX
from ...model_loaders.formats.lora import settings_beside

TINY = Path(__file__).resolve().parents[2] / "tiny"  # comes with the pack; in its own loaders' lists only


_known: dict[str, tuple[list[str], dict[str, float]]] = {}  # folder -> the files below it, the times of its folders


def choices(category: str, subfolder: str | None) -> list[str]:
    """Files of a ComfyUI category, then Hugging Face folders in it and the `subfolder` of those in models/diffusers, then
    the pack's own models. Without a subfolder files alone."""
    files = folder_paths.get_filename_list(category)
    if subfolder is None:
        return files
    files = files + _gguf(category)
    inside = tuple(f"{name}{os.sep}" for name in _folders(category))
    folders = {**_folders("diffusers", subfolder), **_folders(category)}
    names = [name for name in files if not name.startswith(inside)] + sorted(folders)
    return names + [name for name in _own(category) if name not in names]


def resolve(category: str, subfolder: str | None, name: str) -> Path:
    """The path of an entry of `choices`; KleinError when it is no longer there, or no name that can be written down."""
    if not isinstance(name, str):
        raise KleinError(f"No file of {category} is chosen ({name!r} is not a name): choose one.")
    if half_character(name):
        raise KleinError(f"The file name {name} in {category} is not UTF-8: rename the file, then refresh the list (key R).")
    path = folder_paths.get_full_path(category, name)
    if path is None and subfolder is not None:
        path = _folders(category).get(name) or _folders("diffusers", subfolder).get(name) or _own(category).get(name)
    if path is None:
        raise KleinError(
            f"{name} is not in the folders of {category}: put it there, or choose another file (key R refreshes the list)."
        )
    return Path(path)


def known(category: str, subfolder: str | None, name: str | None) -> bool | str:
    """True for an entry of `choices`, else the sentence that the graph's validation shows. None: the name comes over a
    link, and is known only when the graph runs."""
    names = choices(category, subfolder)
    if name is None or name in names:
        return True
    sentence = KleinError(
        f"{name} was not found in models/{category}: "
        f"download it there (links are in the workflow's note), then refresh the list (key R)."
    )
    return str(sentence)


def stamp(category: str, name: str | None) -> str:
    """Another text when a file of a category, or the settings beside it, are others, so that a graph runs anew with them."""
    path = folder_paths.get_full_path(category, name) if isinstance(name, str) else None
    files = filter(None, (path, settings_beside(Path(path)))) if path else ()
    return " ".join([str(name), *(str(os.stat(file).st_mtime_ns) for file in files)])


def _gguf(category: str) -> list[str]:
    """GGUF files, which the host does not list, by their paths in the folders of a category."""
    found = set().union(*map(_walked, folder_paths.get_folder_paths(category)))
    return folder_paths.filter_files_extensions(found, [".gguf"])


def _walked(root: str) -> list[str]:
    """All files below a folder. It is walked again only when a folder below it has changed: lists are asked for at each run."""
    files, times = _known.get(root, ([], {}))
    if not times or any(not os.path.isdir(each) or os.path.getmtime(each) != time for each, time in times.items()):
        files, times = _known[root] = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
    return files


def _own(category: str) -> dict[str, Path]:
    return {path.name: path for path in sorted((TINY / category).glob("klein-tiny*"))}


def _folders(category: str, subfolder: str = "") -> dict[str, Path]:
    """Hugging Face models in the folders of a category, by name: with a config.json, and an index or one single file."""
    found = {}
    for root in reversed([Path(root) for root in folder_paths.get_folder_paths(category)]):  # the first root wins
        for config in root.glob(os.path.join("*", subfolder, "config.json")):
            if any(config.parent.glob(INDEX)) or len(list(config.parent.glob("*.safetensors"))) == 1:
                path = root / config.relative_to(root).parts[0]
                found[path.name] = path
    return found
