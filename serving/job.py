"""One job for all API families, and the stage that makes it of a request's fields."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from .fields import Field, Kind, choice, number, ratio, shaped, size, switch, text, whole
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
    stream: bool = False  # whether each picture is answered as soon as it is there
    partials: int = 0  # how often it is shown on its way
    digest: str = ""  # of the references as they were sent: who sends the same to the same host finds what it keeps of them


def kinds(settings: Settings) -> dict[str, Kind]:
    """What each field may hold; what depends on others comes after."""
    side = whole(16, settings.pixels)
    return {
        "model": text(200), "prompt": text(), "n": whole(1, settings.images), "seed": whole(0, SEEDS - 1), "size": size(settings.pixels),
        "width": side, "height": side, "ratio": ratio(), "steps": whole(1, 100), "guidance": number(1, 100),
        "format": choice(FORMATS), "quality": whole(0, 100), "stream": switch(), "partials": whole(0, 3),
    }  # fmt: skip


MISSING = {
    "model": "name one, such as flux-2-klein-9b; GET /v1/models lists them",
    "prompt": "say what the picture shall show",
}


async def job(
    fields: dict[str, Field], pictures: list[Field], mask: Field | None, settings: Settings, transparent: bool = False
) -> Job:
    """Checks all that is asked, first what needs no picture. transparent: only transparent pixels of a mask are painted,
    else the white ones of a mask that is nowhere transparent too."""
    for name, advice in MISSING.items():
        if name not in fields:
            raise Refused(f"{name} is missing: {advice}.", name)
    table = kinds(settings)
    given = {name: table[name].read(field) for name, field in fields.items()}
    chosen = model(given["model"])
    count, first = given.get("n", 1), given.get("seed")
    if first is None:
        first = secrets.randbelow(2**32)
    elif first + count > SEEDS:
        raise fields["seed"].refused(f"a whole number from 0 to {SEEDS - count}")
    if given.get("guidance", 1) != 1 and not chosen.base:
        raise fields["guidance"].refused(f"1, as {chosen.id} is distilled and takes no other")
    wanted = asked_size(fields, given, chosen, settings, mask)
    if given.get("format", "png") == "png" and given.get("quality", 100) != 100:
        raise fields["quality"].refused("100 for png, which loses nothing, or jpeg or webp")
    if given.get("partials") and not given.get("stream"):
        raise fields["partials"].refused("0 without stream")
    if len(pictures) > MOST_REFERENCES:
        raise Refused(
            f"{len(pictures)} pictures are given, expected at most {MOST_REFERENCES}: leave some out.", pictures[0].name
        )
    if mask and not pictures:
        raise Refused(f"{mask.name} is given without a picture to paint on: give one, or leave it out.", mask.name)
    sent = hashlib.sha256()
    stored = [await keep(picture, settings, sent) for picture in pictures]
    if mask:
        painting = await painted(mask, settings, transparent)
        fits(mask, painting, stored[0], wanted)
        if "ratio" in given:
            has(stored[0].size, fields["ratio"], given["ratio"])
    if not stored and wanted is None:
        wanted = (chosen.side, chosen.side)
    return Job(
        chosen, given["prompt"], tuple(range(first, first + count)), wanted, tuple(each.name for each in stored),
        painting.name if mask else "", given.get("steps", 50 if chosen.base else 4), given.get("guidance", 4.0 if chosen.base else 1.0),
        given.get("format", "png"), given.get("quality", 95), given.get("stream", False), given.get("partials", 0), sent.hexdigest() if stored else "",
    )  # fmt: skip


def asked_size(
    fields: dict[str, Field], given: dict, chosen: Model, settings: Settings, mask: Field | None
) -> tuple[int, int] | None:
    """The size that is asked for, in one of three ways; two that agree are fine. A ratio asks for none under a mask: some
    clients send it for the picture's own size."""
    wanted = given.get("size")
    sides = [fields[side] for side in ("width", "height") if side in fields]
    if len(sides) == 1:
        raise Refused(f"{sides[0].name} stands alone: give width and height, or none of them.", sides[0].name)
    if sides:
        said = Field(f"{sides[0].name} x {sides[1].name}", f"{given['width']}x{given['height']}")
        both = size(settings.pixels).read(said)
        if wanted not in (None, both):
            raise fields["size"].refused(f"{both[0]}x{both[1]}, as width and height say, or none")
        wanted = both
    if "ratio" in given:
        if wanted:
            has(wanted, fields["ratio"], given["ratio"])
        elif not mask:
            wanted = shaped(given["ratio"], chosen.side)
    return wanted


def has(size: tuple[int, int], ratio: Field, shape: float) -> None:
    """A size has a ratio if rounding to 16 can have made the difference."""
    if abs(size[0] - size[1] * shape) >= 16 * max(1, shape):
        raise ratio.refused(f"that of {size[0]}x{size[1]}, or none")


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
