"""What the host checks for widgets only, and not for what comes over a link: lists and bounds. NaN passes its check too."""

from __future__ import annotations

from numbers import Integral, Real

from comfy_api.latest import io

from ..errors import KleinError

LONGEST = 80  # characters of a value that are shown


def linked(value: object) -> bool:
    return value is not None and not isinstance(value, (str, int, float, list, dict))


LINKED = {
    "CONDITIONING": lambda value: (
        isinstance(value, list) and all(isinstance(each, (list, tuple)) and len(each) == 2 for each in value)
    ),
    "LATENT": lambda value: isinstance(value, dict) and "samples" in value,
}  # those that JSON could say too


def check(node: type[io.ComfyNode], **values: object) -> None:
    """KleinError where a value lies outside the list or the bounds of the node's own input of that name, or is what JSON
    can say where a node's output belongs."""
    inputs = {each.id: each for each in node.define_schema().inputs}
    for name, value in values.items():
        given = inputs[name]
        if given.optional and (value is None or value == ()):
            continue
        if not isinstance(given, io.WidgetInput):
            fits, expected = LINKED.get(given.io_type, linked)(value), f"{given.io_type} of a node"
        elif isinstance(given, io.String.Input):
            fits, expected = isinstance(value, str), "a text"
        elif isinstance(given, io.Combo.Input):
            fits, expected = value in list(given.options), f"one of {', '.join(given.options)}"
        else:
            whole = isinstance(given, io.Int.Input)
            fits = isinstance(value, Integral if whole else Real) and given.min <= value <= given.max
            expected = f"a {'whole ' * whole}number from {given.min} to {given.max}"
        if not fits:
            raise KleinError(f"{name} is {repr(value)[:LONGEST]}, expected {expected}: change it.")
