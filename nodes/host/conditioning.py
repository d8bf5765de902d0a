"""Reference images into conditioning: ComfyUI's own `reference_latents`, and beside them, under a key of the pack's own,
what each reference is asked for."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import comfy.model_management
import torch

from ...model_loaders.errors import KleinError
from ...model_loaders.flow.controls import NEUTRAL, Control, complete
from ...pictures.report import Entry, report
from ...pictures.sizing import Canvas, fit, kept_tokens, on_grid, place
from . import asked
from .sampling import CHANNELS

MOST = 10  # references of one image
LARGEST = 16384  # pixels a side of the image to be made
KEPT_LATENTS = 64 * 2**20  # bytes of encoded references kept for each VAE: 2 MB each at a megapixel
SOCKETS = ("image_1", "image_2", "image_3", "image_4")

_latents: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # the VAE's module -> digest of pixels -> latent


@dataclass(frozen=True, eq=False)
class Reference:
    """One image (1, h, w, C) with its mask (1, h, w) or None, strength, and window of the steps."""

    image: torch.Tensor
    mask: torch.Tensor | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def source(self) -> tuple[int, int]:
        return self.image.shape[2], self.image.shape[1]


def chain(image, references=(), mask=None, strength=1.0, start=0.0, end=1.0) -> tuple[Reference, ...]:
    """KLEIN_REFERENCES: those given, then each image of the batch with the same strength and window, and the mask, or
    its own of as many masks."""
    if start >= end:
        raise KleinError(
            f"start_percent is {start:g} and end_percent {end:g}, which leaves no step: set the end above the start."
        )
    images = pictures(image)
    if mask is not None and (mask.ndim < 2 or not mask.numel()):
        shape = "x".join(map(str, mask.shape))
        raise KleinError(f"The mask is a tensor of {shape}, expected masks x height x width: connect a MASK.")
    masks = [None] * len(images) if mask is None else mask.reshape(-1, *mask.shape[-2:]).split(1)
    if len(masks) == 1:
        masks = masks * len(images)
    if len(masks) != len(images):
        raise KleinError(f"There are {len(masks)} masks for {len(images)} images: give one for all, or one for each.")
    return (*references, *(Reference(single, own, strength, start, end) for single, own in zip(images, masks)))


def pictures(image: torch.Tensor) -> list[torch.Tensor]:
    """Each picture (1, h, w, C) of an IMAGE, in float32."""
    if image.ndim != 4 or not image.numel() or not 1 <= image.shape[-1] <= 4:
        shape = "x".join(map(str, image.shape))
        raise KleinError(
            f"The reference is a tensor of {shape}, expected pictures x height x width x 1 to 4 colours: connect an IMAGE."
        )
    return list(image.float().split(1))


def combine(positive, negative, vae, images: dict, references, sizing, max_megapixels, width, height, batch_size):
    """(positive, negative, LATENT, KLEIN_CANVAS, report) with references appended to those that the conditioning has.

    images: socket -> IMAGE, in order. Each image of a batch is a reference of its own.
    """
    images = {socket: pictures(image) for socket, image in images.items()}
    chosen = [Reference(single) for image in images.values() for single in image] + list(references or ())
    values = positive[0][1] if positive else {}
    before = values.get("reference_latents") or []
    total = len(before) + len(chosen)
    if total > MOST:
        raise KleinError(f"There are {total} references, expected {MOST} at most: disconnect some.")
    several = len(before) + sum(map(enters, chosen)) > 1
    canvases = [fit(ref.source, sizing, max_megapixels, several) for ref in chosen]
    controls = [control_of(ref, canvas) for ref, canvas in zip(chosen, canvases)]
    latents = [encode(vae, place(ref.image, canvas)) for ref, canvas in zip(chosen, canvases)]

    canvas = output_canvas([*(pixels(latent) for latent in before), *canvases], width, height)
    latent = torch.zeros(
        batch_size, CHANNELS, canvas.size[1] // 16, canvas.size[0] // 16, device=comfy.model_management.intermediate_device()
    )
    old = complete(asked.controls(values), len(before))
    entries = [entry(None, pixels(latent), control, "already in the conditioning") for latent, control in zip(before, old)]
    entries += [entry(ref.source, canvas, control) for ref, canvas, control in zip(chosen, canvases, controls)]
    warnings = gaps(images, len(before) + 1) + differing(positive, negative, len(before))
    for number, control in enumerate(controls, start=len(before) + 1):
        if control.keep is not None and not any(control.keep):
            warnings.append(f"the mask of image {number} keeps nothing, so image {number} is left out")
    text = positive[0][0].shape[1] if positive else 0
    lines = report(entries, canvas.size, text, asked.prompt(values), warnings)
    if any(control != NEUTRAL for control in (*old, *controls)):
        lines += "\nStrength, mask and window need a model of Klein Flow Loader."
    added = [append(conditioning, latents, controls) for conditioning in (positive, negative)]
    return *added, {"samples": latent}, canvas, lines


def enters(reference: Reference) -> bool:
    """Whether a reference counts when sizes depend on how many there are."""
    return reference.strength > 0 and (reference.mask is None or bool(reference.mask.any()))


def differing(positive, negative, count: int) -> list[str]:
    """A warning where the conditionings do not all have `count` references before those added, which shifts numbers."""
    counts = {len(values.get("reference_latents") or []) for _, values in (*(positive or ()), *(negative or ()))}
    if counts <= {count}:
        return []
    return [f"positive and negative have {min(counts)} to {max(counts)} references of before, so their numbers differ"]


def gaps(images: dict[str, list], number: int) -> list[str]:
    """Warnings where the number of a socket's image is not the socket's; `number` is that of the first image."""
    warnings, shift = [], number - 1
    for name, image in images.items():
        if number - shift != SOCKETS.index(name) + 1:
            empty = any(earlier not in images for earlier in SOCKETS[: SOCKETS.index(name)])
            warnings.append(f"{name} is image {number}, as a socket before it {'is empty' if empty else 'holds several'}")
        number += len(image)
    return warnings


def control_of(reference: Reference, canvas: Canvas) -> Control:
    keep = None
    if reference.mask is not None:
        kept = kept_tokens(reference.mask.cpu(), canvas)
        keep = None if kept.all() else bytes(kept.tolist())
    return Control(reference.strength, keep, reference.start, reference.end)


def entry(source: tuple[int, int] | None, canvas: Canvas, control: Control, *notes: str) -> Entry:
    kept = canvas.tokens if control.keep is None else sum(control.keep)
    notes = list(notes)
    if control.keep is not None:
        notes.append(f"{kept} of {canvas.tokens} tokens kept by the mask")
    if control.strength == 0:
        kept, notes = 0, [*notes, "strength 0: left out"]
    elif control.strength != 1:
        notes.append(f"strength {control.strength:g}")
    if control.start > 0 or control.end < 1:
        notes.append(f"steps from {control.start:.0%} to {control.end:.0%}")
    return Entry(source, canvas.size, kept, tuple(notes))


def encode(vae, image: torch.Tensor) -> torch.Tensor:
    """(1, 128, H/16, W/16) of an image (1, H, W, 3), from memory when this VAE has seen these pixels."""
    kept = _latents.setdefault(vae.first_stage_model, OrderedDict())
    pixels = image.cpu().contiguous()
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.numpy().tobytes()).digest()
    if digest not in kept:
        kept[digest] = vae.encode(image)
        while len(kept) > 1 and sum(latent.nbytes for latent in kept.values()) > KEPT_LATENTS:
            kept.popitem(last=False)
    kept.move_to_end(digest)
    return kept[digest]


def append(conditioning, latents: list, controls: list[Control]):
    """The conditioning with references behind its own; None stays None. Controls are written only where one asks for
    something, so that neutral references are exactly ComfyUI's own."""
    if conditioning is None or not latents:
        return conditioning
    out = []
    for text, values in conditioning:
        values = dict(values)
        before = values.get("reference_latents") or []
        old = complete(asked.controls(values), len(before))
        values["reference_latents"] = [*before, *latents]
        if any(control != NEUTRAL for control in (*old, *controls)):
            values = asked.asking(values, controls=(*old, *controls))
        out.append([text, values])
    return out


def pixels(latent: torch.Tensor) -> Canvas:
    """The canvas of a reference that is known only by its latent."""
    size = (16 * latent.shape[-1], 16 * latent.shape[-2])
    return Canvas(size, size, (0, 0), size)


def output_canvas(canvases: list[Canvas], width: int, height: int) -> Canvas:
    """The canvas of the image to be made: that of image 1, or the size asked for (0: from the other side and image 1's
    aspect), which then stands for the whole of image 1's source."""
    first = canvases[0] if canvases else Canvas((1024, 1024), (1024, 1024), (0, 0), (1024, 1024))
    if not width and not height:
        return first
    across, down = first.source
    size = on_grid(width or height * across / down), on_grid(height or width * down / across)
    if max(size) > LARGEST:
        raise KleinError(
            f"The image would be {size[0]}x{size[1]} by the aspect of image 1, expected {LARGEST} a side at most: give both sides."
        )
    return Canvas(first.source if canvases else size, size, (0, 0), size)
