"""Reference pictures in order: the chain, their numbers, and the canvas of the picture to be made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import KleinError
from .masks import kept_tokens
from .sizing import GRID, Canvas, on_grid

LARGEST = 16384  # pixels a side of the picture to be made
SOCKETS = ("image_1", "image_2", "image_3", "image_4")


@dataclass(frozen=True, eq=False)
class Reference:
    """One image (1, h, w, C) with its mask (1, h, w) or None, strength, and window of the steps."""

    image: Tensor
    mask: Tensor | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def source(self) -> tuple[int, int]:
        return self.image.shape[2], self.image.shape[1]


def chain(
    image: Tensor,
    references: tuple[Reference, ...] = (),
    mask: Tensor | None = None,
    strength: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
) -> tuple[Reference, ...]:
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


def pictures(image: Tensor) -> list[Tensor]:
    """Each picture (1, h, w, C) of an IMAGE, in float32."""
    if image.ndim != 4 or not image.numel() or not 1 <= image.shape[-1] <= 4:
        shape = "x".join(map(str, image.shape))
        raise KleinError(
            f"The reference is a tensor of {shape}, expected pictures x height x width x 1 to 4 colours: connect an IMAGE."
        )
    if not image.isfinite().all():
        raise KleinError("A picture holds NaN or infinity, expected colours from 0 to 1: change the node that made it.")
    return list(image.float().split(1))


def enters(reference: Reference) -> bool:
    """Whether a reference counts when sizes depend on how many there are."""
    return reference.strength > 0


def unpainted(reference: Reference) -> bool:
    """Whether there is a mask on which nothing is painted: Load Image's, of a picture without alpha."""
    return reference.mask is not None and not reference.mask.any()


def kept(reference: Reference, canvas: Canvas) -> bytes | None:
    """One byte a token, 0 for one that the mask leaves out; None where it leaves none out, as one does on which nothing is
    painted."""
    if reference.mask is None or unpainted(reference):
        return None
    tokens = kept_tokens(reference.mask.cpu(), canvas)
    return None if tokens.all() else bytes(tokens.tolist())


def gaps(images: dict[str, list], number: int, sockets: tuple[str, ...] = SOCKETS) -> list[str]:
    """Warnings where the number of a socket's image is not the socket's; `number` is that of the first image."""
    warnings, shift = [], number - 1
    for name, image in images.items():
        if number - shift != sockets.index(name) + 1:
            empty = any(earlier not in images for earlier in sockets[: sockets.index(name)])
            warnings.append(f"{name} is image {number}, as a socket before it {'is empty' if empty else 'holds several'}")
        number += len(image)
    return warnings


def known_by_latent(latent: Tensor) -> Canvas:
    """The canvas of a reference of which only the latent (..., h, w) is known."""
    size = (GRID * latent.shape[-1], GRID * latent.shape[-2])
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
