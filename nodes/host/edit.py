"""One picture to be changed, in whole or under a mask: its region encoded, with its noise mask, and the references."""

from __future__ import annotations

from ...errors import KleinError
from ...pictures.paste import described, percent
from ...pictures.references import SOCKETS, Reference, gaps, pictures
from ...pictures.region import WHOLE, Region, region
from ...pictures.sizing import Canvas, fit
from .combine import encode, join, references_of

OTHERS = SOCKETS[1:]  # the first is the picture itself


def edit(
    positive, negative, vae, image, mask, mode, context, grow, feather, max_megapixels, margins, batch_size, images, references,
    ours=False
):  # fmt: skip
    """(positive, negative, LATENT with noise_mask, KLEIN_CANVAS, report). images: socket -> IMAGE, in order."""
    if context < 0 and context != WHOLE:
        raise KleinError(f"context is {context:g}, expected 0 or more, or {WHOLE:g} for the whole picture: change it.")
    single = pictures(image)
    if len(single) > 1:
        raise KleinError(
            f"The image is a batch of {len(single)} pictures, expected one: choose one, such as with Image From Batch."
        )
    area = region(single[0], mask, mode, context, grow, feather, max_megapixels, margins)
    images = {socket: pictures(each) for socket, each in images.items()}
    others = [Reference(each) for image in images.values() for each in image] + list(references or ())
    canvases = [fit(ref.source, "exact", max_megapixels) for ref in others]
    pixels = area.pixels()
    if mode != "replace":
        # in outpaint the picture as it was: what is added is no picture of anything
        own = Reference(single[0] if mode == "outpaint" else pixels)
        canvas = fit(own.source, "exact", max_megapixels) if mode == "outpaint" else as_it_is(area)
        others, canvases = [own, *others], [canvas, *canvases]
    first = len(references_of(positive)) + (mode != "replace") + 1
    warnings = [] if mode == "replace" else gaps(images, first, OTHERS)
    if mode != "outpaint" and any(margins):
        warnings.append(f"left, top, right and bottom count in outpaint only, not in {mode}")
    latent = {}
    if mode != "edit":
        latent["noise_mask"] = area.painted()
        warnings += faint(latent["noise_mask"])
    positive, negative, lines = join(positive, negative, vae, others, canvases, area.size, warnings, ours)
    latent["samples"] = encode(vae, pixels).repeat(batch_size, 1, 1, 1)
    return positive, negative, latent, area, "\n".join([*said(area, mask, mode, images, first), lines])


def as_it_is(area: Region) -> Canvas:
    return Canvas(area.size, area.size, (0, 0), area.size)


def faint(painted) -> list[str]:
    """A warning where no token (1, 1, H/16, W/16) is painted by half: the rest of each is the source."""
    most = float(painted.max())
    if most >= 0.5:
        return []
    return [
        f"the mask is so thin here that at most {percent(most)} of the new shows in any token of 16x16: raise grow or lower context"
    ]


def said(area: Region, mask, mode: str, images: dict, first: int) -> list[str]:
    """Lines of the report on the region."""
    lines = [f"{mode}: {described(area)}"]
    if area.scale > 1.01:
        lines[0] += f", {area.scale:.1f} times larger"
    if mode == "replace":
        lines.append("the picture is no reference, so that what was there does not come back")
        for socket, each in images.items():
            last = first + len(each) - 1
            lines.append(f"{socket} is image {first}" if last == first else f"{socket} is images {first} to {last}")
            first = last + 1
    elif mode == "edit" and mask is not None:
        lines.append(
            "nothing is painted on the mask, so it is none" if area.mask is None else "the mask limits what comes back"
        )
    return lines
