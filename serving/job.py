"""One job for all API families, and the stage that makes it of a request's fields."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from .fields import Field, choice, number, ratio, shaped, size, text, whole
from .images import Stored, keep, painted
from .models import Model, model
from .refused import Refused
from .settings import Settings

SEEDS = 2**53  # JavaScript's whole numbers end there
MOST_REFERENCES = 10
FORMATS = ("png", "jpeg", "webp")


@dataclass(frozen=True)
class Job:
    """`size` is None where it is that of the first reference."""

    model: Model
    prompt: str
    seeds: tuple[int, ...]
    size: tuple[int, int] | None = None
    references: tuple[str, ...] = ()  # names in the host's input folder, in order
    mask: str = ""
    steps: int = 4
    guidance: float = 1.0
    format: str = "png"
    quality: int = 95


async def job(
    fields: dict[str, Field], pictures: list[Field], mask: Field | None, settings: Settings, transparent: bool = False
) -> Job:
    """Checks all that is asked, first what needs no picture. transparent: only transparent pixels of a mask are painted,
    else the white ones of a mask that is nowhere transparent too."""
    if "model" not in fields:
        raise Refused("model is missing: name one, such as flux-2-klein-9b; GET /v1/models lists them.", "model")
    chosen = model(text(fields["model"], 200))
    if "prompt" not in fields:
        raise Refused("prompt is missing: say what the picture shall show.", "prompt")
    prompt = text(fields["prompt"])
    count = whole(fields["n"], 1, settings.images) if "n" in fields else 1
    first = whole(fields["seed"], 0, SEEDS - count) if "seed" in fields else secrets.randbelow(2**32)
    steps = whole(fields["steps"], 1, 100) if "steps" in fields else 50 if chosen.base else 4
    guidance = strength(fields, chosen)
    wanted = asked_size(fields, chosen, settings)
    format, quality = coding(fields)
    if len(pictures) > MOST_REFERENCES:
        raise Refused(
            f"{len(pictures)} pictures are given, expected at most {MOST_REFERENCES}: leave some out.", pictures[0].name
        )
    if mask and not pictures:
        raise Refused(f"{mask.name} is given without a picture to paint on: give one, or leave it out.", mask.name)
    stored = [await keep(picture, settings) for picture in pictures]
    if mask:
        painting = await painted(mask, settings, transparent)
        fits(mask, painting, stored[0], wanted)
    if not stored and wanted is None:
        wanted = (chosen.side, chosen.side)
    return Job(
        chosen, prompt, tuple(range(first, first + count)), wanted, tuple(each.name for each in stored),
        painting.name if mask else "", steps, guidance, format, quality,
    )  # fmt: skip


def strength(fields: dict[str, Field], chosen: Model) -> float:
    if "guidance" not in fields:
        return 4.0 if chosen.base else 1.0
    asked = number(fields["guidance"], 1, 100)
    if asked != 1 and not chosen.base:
        raise fields["guidance"].refused(f"1, as {chosen.id} is distilled and takes no other")
    return asked


def asked_size(fields: dict[str, Field], chosen: Model, settings: Settings) -> tuple[int, int] | None:
    """The size that is asked for, in one of three ways; two that agree are fine."""
    wanted = None
    if "size" in fields and fields["size"].value != "auto":
        wanted = size(fields["size"], settings.pixels)
    sides = [fields[side] for side in ("width", "height") if side in fields]
    if len(sides) == 1:
        raise Refused(f"{sides[0].name} stands alone: give width and height, or none of them.", sides[0].name)
    if sides:
        given = "x".join(str(whole(side, 16, settings.pixels)) for side in sides)
        both = size(Field(f"{sides[0].name} x {sides[1].name}", given), settings.pixels)
        if wanted not in (None, both):
            raise fields["size"].refused(f"{both[0]}x{both[1]}, as width and height say, or none")
        wanted = both
    if "ratio" in fields:
        shape = ratio(fields["ratio"])
        if wanted and abs(wanted[0] - wanted[1] * shape) >= 16 * max(1, shape):
            raise fields["ratio"].refused(f"that of {wanted[0]}x{wanted[1]}, or none")
        wanted = wanted or shaped(shape, chosen.side)
    return wanted


def coding(fields: dict[str, Field]) -> tuple[str, int]:
    format = choice(fields["format"], FORMATS) if "format" in fields else "png"
    if "quality" not in fields:
        return format, 95
    quality = whole(fields["quality"], 0, 100)
    if format == "png" and quality != 100:
        raise fields["quality"].refused("100 for png, which loses nothing, or jpeg or webp")
    return format, quality


def fits(mask: Field, painting: Stored, picture: Stored, wanted: tuple[int, int] | None) -> None:
    shown = f"{picture.size[0]}x{picture.size[1]}"
    if painting.size != picture.size:
        raise Refused(
            f"{mask.name} is {painting.size[0]}x{painting.size[1]} and its picture {shown}: give a mask of the picture's size.",
            mask.name,
        )
    if wanted not in (None, picture.size):
        raise Refused(
            f"size is {wanted[0]}x{wanted[1]}, but a picture with a mask keeps its own {shown}: leave it out.", "size"
        )
