"""What the pack writes into a conditioning beside ComfyUI's own keys, all under one key of its own. Others may write there
too: what has another shape than ours is as if it were not there."""

from __future__ import annotations

from ...model_loaders.flow.controls import Control

KEY = "klein_pack"


def _ours(values: dict) -> dict:
    found = values.get(KEY)
    return found if isinstance(found, dict) else {}


def controls_of(values: dict) -> tuple[Control, ...]:
    """What each reference is asked for, in order; those beyond are neutral."""
    found = _ours(values).get("controls")
    return found if isinstance(found, tuple) and all(isinstance(each, Control) for each in found) else ()


def prompt_of(values: dict) -> str | None:
    """The text that the conditioning was encoded from."""
    found = _ours(values).get("prompt")
    return found if isinstance(found, str) else None


def with_ours(values: dict, **ours: object) -> dict:
    """The values with `controls` or `prompt` set."""
    return {**values, KEY: {**_ours(values), **ours}}
