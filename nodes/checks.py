"""What the host checks for widgets only, and not for what comes over a link: lists and bounds. NaN passes its check too."""

from __future__ import annotations

from numbers import Integral, Real

from comfy_api.latest import io

from ..errors import KleinError


def check(node: type[io.ComfyNode], **values: object) -> None:
    """KleinError where a value lies outside the list or the bounds of the node's own input of that name."""
    inputs = {each.id: each for each in node.define_schema().inputs}
    for name, value in values.items():
        given = inputs[name]
        if isinstance(given, io.Combo.Input):
            fits, expected = value in list(given.options), f"one of {', '.join(given.options)}"
        else:
            whole = isinstance(given, io.Int.Input)
            fits = isinstance(value, Integral if whole else Real) and given.min <= value <= given.max
            expected = f"a {'whole ' * whole}number from {given.min} to {given.max}"
        if not fits:
            raise KleinError(f"{name} is {value!r}, expected {expected}: change it.")
