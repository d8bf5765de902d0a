"""Reference images into conditioning: ComfyUI's own `reference_latents`, and beside them, under a key of the pack's own,
what each reference is asked for."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import comfy.model_management
import torch

from ...errors import KleinError
from ...model_loaders.flow.controls import NEUTRAL, Control, complete
from ...pictures.references import Reference, enters, gaps, kept, known_by_latent, output_canvas, pictures, unpainted
from ...pictures.report import Entry, report
from ...pictures.sizing import Canvas, Size, fit, place
from ...store.keys import content
from .conditioning import controls_of, prompt_of, with_ours
from .sampling import CHANNELS
from .store import key as key_of
from .store import store
from .vae import LOADED, SOURCE, structure

MOST = 10  # references of one image
KEPT_LATENTS = 64 * 2**20  # bytes of encoded references kept for each VAE: 2 MB each at a megapixel

_latents: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # the VAE's module -> digests of it and of pixels -> latent


def combine(positive, negative, vae, images: dict, references, sizing, max_megapixels, width, height, batch_size, ours=False):
    """(positive, negative, LATENT, KLEIN_CANVAS, report) with references appended to those that the conditioning has.

    images: socket -> IMAGE, in order. Each image of a batch is a reference of its own. ours: every model of the graph is
    Klein Flow Loader's.
    """
    images = {socket: pictures(image) for socket, image in images.items()}
    chosen = [Reference(single) for image in images.values() for single in image] + list(references or ())
    before = references_of(positive)
    several = len(before) + sum(map(enters, chosen)) > 1
    canvases = [fit(ref.source, sizing, max_megapixels, several) for ref in chosen]
    canvas = output_canvas([*(known_by_latent(latent) for latent in before), *canvases], width, height)
    warnings = gaps(images, len(before) + 1)
    positive, negative, lines = join(positive, negative, vae, chosen, canvases, canvas.size, warnings, ours)
    latent = torch.zeros(
        batch_size, CHANNELS, canvas.size[1] // 16, canvas.size[0] // 16, device=comfy.model_management.intermediate_device()
    )
    return positive, negative, {"samples": latent}, canvas, lines


def references_of(conditioning) -> list[torch.Tensor]:
    """The encoded references that a conditioning has."""
    return (conditioning[0][1].get("reference_latents") or []) if conditioning else []


def join(positive, negative, vae, chosen: list[Reference], canvases: list[Canvas], size: Size, warnings: list[str], ours: bool):
    """(positive, negative, report) with these references, each on its canvas, behind those that the conditioning has.
    size: of the image to be made."""
    values = positive[0][1] if positive else {}
    before = references_of(positive)
    total = len(before) + len(chosen)
    if total > MOST:
        raise KleinError(f"There are {total} references, expected {MOST} at most: disconnect some.")
    controls = [Control(ref.strength, kept(ref, canvas), ref.start, ref.end) for ref, canvas in zip(chosen, canvases)]
    latents = [encode(vae, place(ref.image, canvas)) for ref, canvas in zip(chosen, canvases)]

    old = complete(controls_of(values), len(before))
    entries = [
        entry(None, known_by_latent(latent), control, "already in the conditioning") for latent, control in zip(before, old)
    ]
    entries += [entry(ref.source, canvas, control) for ref, canvas, control in zip(chosen, canvases, controls)]
    warnings = warnings + differing(positive, negative, len(before))
    for number, (reference, control) in enumerate(zip(chosen, controls), start=len(before) + 1):
        if unpainted(reference):
            warnings.append(f"nothing is painted on the mask of image {number}, so the whole of it is seen")
        if control.keep is not None and not any(control.keep):
            warnings.append(f"the mask of image {number} keeps nothing, so image {number} is left out")
    text = positive[0][0].shape[1] if positive else 0
    lines = report(entries, size, text, prompt_of(values), warnings)
    if not ours and any(control != NEUTRAL for control in (*old, *controls)):
        lines += "\nStrength, mask and window need a model of Klein Flow Loader."
    added = [append(conditioning, latents, controls) for conditioning in (positive, negative)]
    return *added, lines


def differing(positive, negative, count: int) -> list[str]:
    """A warning where the conditionings do not all have `count` references before those added, which shifts numbers."""
    counts = {len(values.get("reference_latents") or []) for _, values in (*(positive or ()), *(negative or ()))}
    if counts <= {count}:
        return []
    return [f"positive and negative have {min(counts)} to {max(counts)} references of before, so their numbers differ"]


def entry(source: tuple[int, int] | None, canvas: Canvas, control: Control, *notes: str) -> Entry:
    tokens = canvas.tokens if control.keep is None else sum(control.keep)
    notes = list(notes)
    if control.keep is not None:
        notes.append(f"{tokens} of {canvas.tokens} tokens kept by the mask")
    if control.strength == 0:
        tokens, notes = 0, [*notes, "strength 0: left out"]
    elif control.strength != 1:
        notes.append(f"strength {control.strength:g}")
    if control.start > 0 or control.end < 1:
        notes.append(f"steps from {control.start:.0%} to {control.end:.0%}")
    return Entry(source, canvas.size, tokens, tuple(notes))


def encode(vae, image: torch.Tensor) -> torch.Tensor:
    """(1, 128, H/16, W/16) of an image (1, H, W, 3), from memory when this VAE has seen these pixels, or from the store when
    one of the same file has."""
    kept = _latents.setdefault(vae.first_stage_model, OrderedDict())
    pixels = image.cpu().contiguous()
    layers, digest = structure(vae.first_stage_model), content({"pixels": pixels})
    if (layers, digest) not in kept:
        kept[layers, digest] = _stored(vae, image, layers, digest)
        while len(kept) > 1 and sum(latent.nbytes for latent in kept.values()) > KEPT_LATENTS:
            kept.popitem(last=False)
    kept.move_to_end((layers, digest))
    return kept[layers, digest]


def _stored(vae, image: torch.Tensor, layers: str, digest: str) -> torch.Tensor:
    """By a VAE of Klein VAE Loader that nothing has patched or changed; others encode anew in each life of the server."""
    model = vae.first_stage_model
    of = getattr(model, SOURCE, None)
    touched = vae.patcher.patches or vae.patcher.object_patches or getattr(model, LOADED, None) != layers
    key = None if touched else key_of("latent", of, vae.device, dtype=str(vae.vae_dtype), pixels=digest)
    known = store().get(key) if key else None
    if known:
        return known["latent"].to(comfy.model_management.intermediate_device())
    if key is None:
        return vae.encode(image)
    sizes = set()
    hook = model.encoder.register_forward_pre_hook(lambda _, given: sizes.add(tuple(given[0].shape[-2:])))
    try:
        latent = vae.encode(image)
    finally:
        hook.remove()
    if sizes == {tuple(image.shape[1:3])}:  # out of memory the host encodes in tiles, which is not the same
        store().put(key, {"latent": latent}, f"a picture of {image.shape[2]}x{image.shape[1]}, encoded")
    return latent


def append(conditioning, latents: list, controls: list[Control]):
    """The conditioning with references behind its own; None stays None. Controls are written only where one asks for
    something, so that neutral references are exactly ComfyUI's own."""
    if conditioning is None or not latents:
        return conditioning
    out = []
    for text, values in conditioning:
        values = dict(values)
        before = values.get("reference_latents") or []
        old = complete(controls_of(values), len(before))
        values["reference_latents"] = [*before, *latents]
        if any(control != NEUTRAL for control in (*old, *controls)):
            values = with_ours(values, controls=(*old, *controls))
        out.append([text, values])
    return out
