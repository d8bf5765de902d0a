"""OpenAI's image API: /v1/models, /v1/images/generations, /v1/images/edits."""

from __future__ import annotations

import asyncio
import base64
import json
import time

from aiohttp import web

from .fields import Body, Field, read
from .http import Route, body, named, reason
from .images import CODED
from .job import Job, job
from .models import found
from .patience import patience
from .refused import Refused
from .run import Partial, Picture, pictures, queued
from .settings import Settings

NAMES = {
    "model": "model", "prompt": "prompt", "n": "n", "size": "size", "seed": "seed", "aspect_ratio": "ratio", "aspectRatio": "ratio",
    "steps": "steps", "guidance": "guidance", "output_format": "format", "output_compression": "quality", "stream": "stream",
    "partial_images": "partials",
}  # fmt: skip
NEUTRAL = {
    "response_format": ("b64_json",), "quality": ("auto", "standard"), "background": ("auto", "opaque"), "moderation": ("auto", "low"),
    "style": ("vivid", "natural"), "complexity": ("high",), "input_fidelity": ("low",), "user": (), "safety_identifier": (),
}  # fmt: skip
MASK = "mask"
PICTURE = {
    "anyOf": [
        CODED,
        {"type": "object", "properties": {"image_url": CODED}, "required": ["image_url"], "additionalProperties": False},
    ]
}
IMAGES = ("image", "image[]", "images")
PICTURES = {name: {"anyOf": [PICTURE, {"type": "array", "items": PICTURE}]} for name in (*IMAGES, MASK)}
GENERATION, EDIT = Body(NAMES, NEUTRAL, {}), Body(NAMES, NEUTRAL, PICTURES, form=True)
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}


def failure(refused: Refused) -> dict:
    kind = KINDS.get(refused.status, "invalid_request_error")
    return {"error": {"message": str(refused), "type": kind, "param": refused.field or None, "code": None}}


async def models(request: web.Request, settings: Settings) -> web.Response:
    listed = [
        {"id": each.id, "object": "model", "created": 0, "owned_by": "black-forest-labs" if "flux" in each.id else "klein", "license": each.licence}
        for each in found().values()
    ]  # fmt: skip
    return web.json_response({"object": "list", "data": listed})


async def generations(request: web.Request, settings: Settings) -> web.StreamResponse:
    values, files = await body(request, settings)
    if files:
        raise Refused(f"{files[0].name} is a file, expected JSON: send pictures to /v1/images/edits.", files[0].name)
    made = await job(read(values, GENERATION), [], None, settings)
    return await answer(request, settings, made, "image_generation")


async def edits(request: web.Request, settings: Settings) -> web.StreamResponse:
    fields, images, masks = await asked(request, settings, EDIT)
    if not images:
        raise Refused("image is missing: give the pictures to edit, or ask /v1/images/generations.", "image")
    if len(masks) > 1:
        raise Refused(f"{len(masks)} masks are given, expected one: leave some out.", MASK)
    made = await job(fields, images, masks[0] if masks else None, settings, transparent=True)
    return await answer(request, settings, made, "image_edit")


async def asked(request: web.Request, settings: Settings, takes: Body) -> tuple[dict[str, Field], list[Field], list[Field]]:
    """The fields of a job, the pictures and the masks of a request."""
    values, files = await body(request, settings)
    fields = read(values, takes)
    images, masks = [], []
    for each in [Field(name, values[name]) for name in takes.others if values.get(name) is not None] + files:
        if each.name not in takes.others:
            places = " or ".join(name for name in (*IMAGES[:2], MASK) if name in takes.others)
            raise Refused(f"{each.name[:80]!r} is no place for a picture, expected {places}: change it.", each.name)
        (masks if each.name == MASK else images).extend(sources(each))
    return fields, images, masks


def sources(field: Field) -> list[Field]:
    """The pictures of a field: bytes, a text, {image_url: text}, lists of them, or one of these as JSON in a form."""
    value = field.value
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise field.refused("a picture, or JSON that names some") from None
    found = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            if each.keys() != {"image_url"}:
                raise field.refused("pictures as {image_url}")
            each = each["image_url"]
        found.append(Field(field.name, each))
    return found


async def answer(request: web.Request, settings: Settings, made: Job, event: str) -> web.StreamResponse:
    runs = await queued(made, settings)
    async with pictures(made, runs, patience(settings, request)) as painted:
        if made.stream:
            return await stream(request, settings, made, painted, event)
        data = [{"b64_json": await coded(each), "seed": each.seed} async for each in painted]
    return web.json_response(
        {"created": int(time.time()), "output_format": made.format, "data": data}, headers=named(made.digest)
    )


async def stream(request: web.Request, settings: Settings, made: Job, painted, event: str) -> web.StreamResponse:
    """An event for each picture, and each on its way, as soon as it is there; an error after the first byte is an event too."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", **named(made.digest)}
    )
    await response.prepare(request)
    try:
        async for each in painted:
            said = {
                "created_at": int(time.time()),
                "output_format": made.format,
                "seed": each.seed,
                "b64_json": await coded(each),
            }
            if isinstance(each, Partial):
                name, said = f"{event}.partial_image", {**said, "partial_image_index": each.index}
            else:
                name = f"{event}.completed"
            await send(response, name, {"type": name, **said})
    except Exception as error:
        await send(response, "error", {"type": "error", **failure(reason(error, request.path, settings))})
    await response.write_eof()
    return response


async def send(response: web.StreamResponse, event: str, data: dict) -> None:
    await response.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())


async def coded(picture: Picture | Partial) -> str:
    return await asyncio.to_thread(lambda: base64.b64encode(picture.data()).decode())


ANSWERS = ("application/json", "text/event-stream")
ROUTES = [
    Route("GET", "/v1/models", models, failure, "What can run here, with its licence"),
    Route("POST", "/v1/images/generations", generations, failure, "OpenAI: pictures of a prompt", GENERATION, gives=ANSWERS),
    Route("POST", "/v1/images/edits", edits, failure, "OpenAI: pictures of a prompt and references", EDIT, gives=ANSWERS),
]
