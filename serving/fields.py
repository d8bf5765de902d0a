"""Values of a request: each under the name that its API family gives it, each of a kind that checks and describes it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
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


@dataclass(frozen=True)
class Kind:
    """What a value may be: how it is read, and the same as a JSON schema."""

    read: Callable[[Field], Any]
    schema: dict


@dataclass(frozen=True)
class Body:
    """What a request may hold: the fields of a job (`names`: theirs -> ours); what is not supported, with the values that mean
    its default (`neutral`; an empty tuple: any value means nothing here); and `others`, such as pictures, with their schemas."""

    names: dict[str, str]
    neutral: dict[str, tuple]
    others: dict[str, dict]
    form: bool = False  # whether it may come as a form, too


def read(asked: dict, body: Body) -> dict[str, Field]:
    """The fields of a job, under our names. null is as if it were not there."""
    found: dict[str, Field] = {}
    for name, value in asked.items():
        if value is None or name in body.others:
            continue
        if name in body.names:
            ours = body.names[name]
            if ours in found:
                raise Refused(f"{name} and {found[ours].name} say the same: leave one out.", name)
            found[ours] = Field(name, value)
        elif name not in body.neutral:
            raise Refused(f"{show(name)} is not an option of this API here: leave it out.", name)
        elif body.neutral[name] and not any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in body.neutral[name]
        ):
            raise Refused(f"{name} = {show(value)} is not supported: leave it out.", name)
    return found


def text(longest: int = 100_000) -> Kind:
    def read(field: Field) -> str:
        value = field.value
        if not isinstance(value, str) or len(value) > longest or half_character(value):
            raise field.refused(f"a text of at most {longest} characters")
        return value

    return Kind(read, {"type": "string", "maxLength": longest})


def whole(low: int, high: int) -> Kind:
    """Forms send numbers as text, JSON may send 2.0."""

    def read(field: Field) -> int:
        value = field.value
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise field.refused(f"a whole number from {low} to {high}")
        return value

    return Kind(read, {"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float) -> Kind:
    def read(field: Field) -> float:
        value = field.value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise field.refused(f"a number from {low:g} to {high:g}")
        return float(value)

    return Kind(read, {"type": "number", "minimum": low, "maximum": high})


def switch() -> Kind:
    def read(field: Field) -> bool:
        value = field.value
        if value not in (True, False, "true", "false") or isinstance(value, (int, float)) != isinstance(value, bool):
            raise field.refused("true or false")
        return value in (True, "true")

    return Kind(read, {"type": "boolean"})


def choice(options: tuple[str, ...]) -> Kind:
    def read(field: Field) -> str:
        if field.value not in options:
            raise field.refused(f"one of {', '.join(options)}")
        return field.value

    return Kind(read, {"type": "string", "enum": list(options)})


SIZE, RATIO = "([0-9]{1,6})x([0-9]{1,6})", "([0-9]{1,6}):([0-9]{1,6})"


def size(pixels: int) -> Kind:
    """WIDTHxHEIGHT; None for auto."""

    def read(field: Field) -> tuple[int, int] | None:
        if field.value == "auto":
            return None
        said = re.fullmatch(SIZE, field.value) if isinstance(field.value, str) else None
        if not said:
            raise field.refused("WIDTHxHEIGHT, such as 1024x1024")
        width, height = int(said[1]), int(said[2])
        if width % 16 or height % 16 or not width or not height:
            nearest = "x".join(str(max(16, round(side / 16) * 16)) for side in (width, height))
            raise field.refused(f"sides that are multiples of 16, such as {nearest}")
        if width * height > pixels:
            raise field.refused(f"at most {pixels} pixels")
        return width, height

    return Kind(read, {"type": "string", "pattern": f"^(auto|{SIZE})$"})


def ratio() -> Kind:
    """WIDTH:HEIGHT."""

    def read(field: Field) -> float:
        said = re.fullmatch(RATIO, field.value) if isinstance(field.value, str) else None
        if not said or not int(said[1]) or not int(said[2]) or not 1 / 8 <= int(said[1]) / int(said[2]) <= 8:
            raise field.refused("WIDTH:HEIGHT from 1:8 to 8:1, such as 16:9")
        return int(said[1]) / int(said[2])

    return Kind(read, {"type": "string", "pattern": f"^{RATIO}$"})


def shaped(ratio: float, side: int) -> tuple[int, int]:
    """The size in steps of 16 that has this ratio and about side * side pixels."""
    width = max(16, round(side * math.sqrt(ratio) / 16) * 16)
    return width, max(16, round(width / ratio / 16) * 16)
