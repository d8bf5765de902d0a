"""Pictures that a request brings: read with care, kept as PNG files named by their pixels, so that graphs can load them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import aiohttp
from PIL import Image, ImageOps

from .fields import Field
from .host import inputs
from .refused import Refused
from .settings import Settings

FOLDER = "klein"
READABLE = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
FETCHING = 20  # seconds for a picture from elsewhere
WRITING = 3600  # seconds that a file may be half written
KEEPING = threading.Lock()  # pictures are read in threads: what one lists, touches or drops no other may drop meanwhile
CODED = {"type": "string", "format": "byte", "description": "base64, a data URL, or a URL where fetching is switched on"}


@dataclass(frozen=True)
class Stored:
    """A picture in the host's input folder."""

    name: str
    size: tuple[int, int]


async def keep(field: Field, settings: Settings, sent) -> Stored:
    """A reference; its transparency counts for nothing, as in the host's own Load Image. sent: a hash that takes its bytes."""
    data = await content(field, settings)

    def read() -> Stored:
        sent.update(data)
        return store(opened(field, data, settings).convert("RGB"), settings)

    return await asyncio.to_thread(read)


async def painted(field: Field, settings: Settings, transparent: bool) -> Stored:
    """A mask, as a grey picture whose white is painted."""
    data = await content(field, settings)

    def read() -> Stored:
        image = opened(field, data, settings)
        if "A" in image.getbands() or "transparency" in image.info:
            grey = ImageOps.invert(image.convert("RGBA").getchannel("A"))
        else:
            grey = Image.new("L", image.size)
        if not transparent and not grey.getbbox():
            grey = image.convert("L")
        if not (grey.getextrema()[1] >= 128):
            how = "transparent" if transparent else "transparent or white"
            raise Refused(f"{field.name} paints nothing: make {how} what shall change.", field.name)
        return store(grey.convert("RGB"), settings)

    return await asyncio.to_thread(read)


async def content(field: Field, settings: Settings) -> bytes:
    """The bytes of an upload, of base64, of a data URL, or of a URL if those are switched on."""
    value = field.value
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise field.refused("a picture as base64 or data URL")
    if re.match(r"https?://", value, re.IGNORECASE):
        if not settings.remote:
            raise Refused(
                f"{field.name} is a URL, and fetching is switched off on this host (KLEIN_REMOTE_IMAGES): send the picture itself.",
                field.name,
            )
        return await fetched(field, settings)
    encoded = re.sub(r"^data:[^,]{0,200};base64,", "", value[:250]) + value[250:]
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise field.refused("a picture as base64 or data URL") from None


async def fetched(field: Field, settings: Settings) -> bytes:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(FETCHING)) as session,
            session.get(field.value, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise Refused(
                    f"{field.name} could not be fetched (status {answer.status}): send the picture itself.", field.name
                )
            data = bytearray()
            async for part in answer.content.iter_chunked(65536):
                data += part
                if len(data) > settings.body:
                    raise Refused(f"{field.name} has more than {settings.body} bytes: send a smaller picture.", field.name, 413)
            return bytes(data)
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{field.name} could not be fetched ({error}): send the picture itself.", field.name) from None


def opened(field: Field, data: bytes, settings: Settings) -> Image.Image:
    """One whole picture; its size is read before any of its pixels is."""
    try:
        image = Image.open(BytesIO(data), formats=READABLE)
        width, height = image.size
        if width * height > settings.pixels:
            raise Refused(
                f"{field.name} is {width}x{height}, expected at most {settings.pixels} pixels: make it smaller.",
                field.name,
                413,
            )
        if getattr(image, "n_frames", 1) != 1 and image.format != "MPO":  # a camera's JPEG, whose further frames are previews
            raise Refused(f"{field.name} has several frames, expected one picture: send one of them.", field.name)
        image.load()
        image = ImageOps.exif_transpose(image)
    except Refused:
        raise
    except Image.DecompressionBombError:
        sentence = f"{field.name} is far above the {settings.pixels} pixels that are taken: make it smaller."
        raise Refused(sentence, field.name, 413) from None
    except Exception:  # Pillow's readers raise whatever broken bytes lead them to
        raise Refused(
            f"{field.name} is not a picture that can be read, expected png, jpeg or webp: send it again.", field.name
        ) from None
    return image.point(lambda value: value / 256).convert("L") if image.mode.startswith("I") else image


def store(image: Image.Image, settings: Settings) -> Stored:
    """Under a name of ours; a picture that is there already is not written again."""
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    name, folder = f"{FOLDER}/{digest}.png", inputs() / FOLDER
    path = folder / f"{digest}.png"
    folder.mkdir(exist_ok=True)
    with KEEPING:
        if path.is_file():
            os.utime(path)
            return Stored(name, image.size)
    handle, part = tempfile.mkstemp(".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            image.save(file, "png", compress_level=1)
        with KEEPING:
            make_room(folder, settings)
            os.replace(part, path)
    finally:
        with KEEPING:
            Path(part).unlink(missing_ok=True)
    return Stored(name, image.size)


def make_room(folder: Path, settings: Settings) -> None:
    """Drops what a crash has left half written, and what was not asked for of late, the longest first; none that a request may
    still wait for."""
    found = [(file, file.stat()) for kind in ("*.png", "*.part") for file in folder.glob(kind)]
    files = sorted((status.st_mtime, status.st_size, file) for file, status in found)
    total = sum(size for _, size, _ in files)
    for asked, size, file in files:
        age = time.time() - asked
        if age > WRITING if file.suffix == ".part" else total > settings.store and age > settings.seconds:
            total -= size
            file.unlink()
    if total > settings.store:
        raise Refused(
            f"The host keeps {settings.store} bytes of request pictures (KLEIN_REQUESTS_MB), and they are full: try later.",
            "",
            429,
            60,
        )
