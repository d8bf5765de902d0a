"""Values of a request: each under the name that its API family gives it, each checked by one function."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..errors import half_character
from .refused import Refused

LONGEST = 60  # characters of a value that are shown


@dataclass(frozen=True)
class Field:
    """A value and the name it came under."""

    name: str
    value: Any

    def refused(self, expected: str) -> Refused:
        return Refused(f"{self.name} is {show(self.value)}, expected {expected}: change it.", self.name)


def show(value: Any) -> str:
    text = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def read(body: dict, names: dict[str, str], neutral: dict[str, tuple]) -> dict[str, Field]:
    """The fields of a body under our names (`names`: theirs -> ours). What is not supported may stand there with the values
    that mean its default (`neutral`; an empty tuple: any value means nothing here). null is as if it were not there."""
    found: dict[str, Field] = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in names:
            if names[name] in found:
                raise Refused(f"{name} and {found[names[name]].name} say the same: leave one out.", name)
            found[names[name]] = Field(name, value)
        elif name not in neutral:
            raise Refused(f"{show(name)} is not an option of this API here: leave it out.", name)
        elif neutral[name] and not any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral[name]
        ):
            raise Refused(f"{name} = {show(value)} is not supported: leave it out.", name)
    return found


def text(field: Field, longest: int = 100_000) -> str:
    value = field.value
    if not isinstance(value, str) or len(value) > longest or half_character(value):
        raise field.refused(f"a text of at most {longest} characters")
    return value


def whole(field: Field, low: int, high: int) -> int:
    """Forms send numbers as text, JSON may send 2.0."""
    value = field.value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise field.refused(f"a whole number from {low} to {high}")
    return value


def number(field: Field, low: float, high: float) -> float:
    value = field.value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise field.refused(f"a number from {low:g} to {high:g}")
    return float(value)


def switch(field: Field) -> bool:
    if field.value not in (True, False, "true", "false") or isinstance(field.value, (int, float)) != isinstance(
        field.value, bool
    ):
        raise field.refused("true or false")
    return field.value in (True, "true")


def choice(field: Field, options: tuple[str, ...]) -> str:
    if field.value not in options:
        raise field.refused(f"one of {', '.join(options)}")
    return field.value


def size(field: Field, pixels: int) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    said = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", field.value) if isinstance(field.value, str) else None
    if not said:
        raise field.refused("WIDTHxHEIGHT, such as 1024x1024")
    width, height = int(said[1]), int(said[2])
    if width % 16 or height % 16 or not width or not height:
        nearest = "x".join(str(max(16, round(side / 16) * 16)) for side in (width, height))
        raise field.refused(f"sides that are multiples of 16, such as {nearest}")
    if width * height > pixels:
        raise field.refused(f"at most {pixels} pixels")
    return width, height


def ratio(field: Field) -> float:
    """WIDTH:HEIGHT."""
    said = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", field.value) if isinstance(field.value, str) else None
    if not said or not int(said[1]) or not int(said[2]) or not 1 / 8 <= int(said[1]) / int(said[2]) <= 8:
        raise field.refused("WIDTH:HEIGHT from 1:8 to 8:1, such as 16:9")
    return int(said[1]) / int(said[2])


def shaped(ratio: float, side: int) -> tuple[int, int]:
    """The size in steps of 16 that has this ratio and about side * side pixels."""
    width = max(16, round(side * math.sqrt(ratio) / 16) * 16)
    return width, max(16, round(width / ratio / 16) * 16)
