"""The pack's settings: an environment variable KLEIN_..., else what the user chose in ComfyUI's own dialog (web/settings.js)."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import folder_paths

# Not among them are those that open the host to others: whoever reaches it may write its settings.
CHOSEN = (
    "KLEIN_SERVING", "KLEIN_MAX_QUEUE", "KLEIN_MAX_IMAGES", "KLEIN_MAX_MEGAPIXELS", "KLEIN_MAX_BODY_MB", "KLEIN_REQUESTS_MB",
    "KLEIN_MAX_SECONDS", "KLEIN_STORE", "KLEIN_STORE_GB",
)  # fmt: skip


def given() -> dict[str, str]:
    """Name of an environment variable -> value, as if all were set there."""
    path = Path(folder_paths.get_user_directory()) / "default/comfy.settings.json"
    try:
        chosen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        texts = {name: _text(chosen.get(_id(name))) for name in CHOSEN}
    except (OSError, ValueError, AttributeError) as error:
        logging.warning(f"Klein: ComfyUI's settings could not be read ({error}): the defaults are taken.")
        texts = {}
    return {**texts, **{name: value for name, value in os.environ.items() if name.startswith("KLEIN_")}}


def _id(name: str) -> str:
    """The setting's name in the dialog and its file."""
    return "klein." + name.removeprefix("KLEIN_").lower()


def _text(value: object) -> str:
    """The dialog has switches, which are on by default, and numbers; nothing else counts, a folder's name least of all."""
    if value is True or not isinstance(value, bool | int | float):
        return ""
    return "off" if value is False else f"{value:.10g}"
