"""The AI Gateway's image protocol, as createGateway({ baseURL: '.../v1/ai' }) speaks it."""

from __future__ import annotations

import asyncio
import base64

from aiohttp import web

from .fields import Body, Field, read
from .http import Place, Route, body, named
from .images import CODED
from .job import job
from .patience import patience
from .refused import Refused
from .run import pictures, queued
from .settings import Settings

FILE = {"type": "object", "properties": {"type": {"enum": ["file", "url"]}, "data": CODED, "url": CODED, "mediaType": {}}}
BODY = Body(
    {
        "prompt": "prompt", "n": "n", "size": "size", "aspectRatio": "ratio", "seed": "seed", "width": "width", "height": "height",
        "steps": "steps", "guidance": "guidance", "outputFormat": "format", "outputCompression": "quality",
    },
    {
        "promptUpsampling": (False,), "safetyTolerance": (2,), "quality": ("auto", "standard"), "background": ("auto", "opaque"),
        "moderation": ("auto", "low"), "user": (), "pollIntervalMillis": (), "pollTimeoutMillis": (),
    },
    {
        "files": {"type": "array", "items": FILE}, "mask": FILE,
        "providerOptions": {"type": "object", "additionalProperties": {"type": "object"}},
    },
)  # fmt: skip
OPTIONS = (*BODY.neutral, "width", "height", "steps", "guidance", "outputFormat", "outputCompression")
KINDS = {401: "authentication_error", 404: "model_not_found", 429: "rate_limit_exceeded", 500: "internal_server_error"}


def failure(refused: Refused) -> dict:
    kind = KINDS.get(refused.status, "invalid_request_error")
    return {"error": {"message": str(refused), "type": kind, "param": refused.field or None, "code": None}}


async def image_model(request: web.Request, settings: Settings) -> web.Response:
    asked, files = await body(request, settings)
    if files:
        raise Refused(f"{files[0].name} is a file, expected JSON: send it as base64.", files[0].name)
    images = sources("files", asked.get("files"))
    mask = sources("mask", None if asked.get("mask") is None else [asked["mask"]])
    fields = read({**options(asked.get("providerOptions")), **asked}, BODY)
    if "ai-model-id" in request.headers:
        fields["model"] = Field("ai-model-id", request.headers["ai-model-id"])
    made = await job(fields, images, mask[0] if mask else None, settings)
    runs = await queued(made, settings)
    async with pictures(made, runs, patience(settings, request)) as painted:
        found = [(await asyncio.to_thread(each.data), each.seed) async for each in painted]
    answer = {
        "images": [base64.b64encode(data).decode() for data, _ in found],
        "providerMetadata": {"klein": {"images": [{"seed": seed} for _, seed in found]}},
    }  # fmt: skip
    return web.json_response(answer, headers=named(made.digest))


def options(given) -> dict:
    """The options of all providers, flat."""
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
        raise Field("providerOptions", given).refused("an object of objects")
    found: dict = {}
    for provider, each in given.items():
        for name in each:
            if name in found or name not in OPTIONS:
                raise Refused(
                    f"providerOptions.{provider[:40]}.{name[:40]} is not supported here: leave it out.", "providerOptions"
                )
        found |= each
    return found


def sources(name: str, files) -> list[Field]:
    if files is None:
        return []
    if not isinstance(files, list) or not all(isinstance(each, dict) for each in files):
        raise Field(name, files).refused("a list of {type, data or url}")
    return [Field(name, each.get("url") if each.get("type") == "url" else each.get("data")) for each in files]


ROUTES = [
    Route("POST", "/v1/ai/image-model", image_model, failure, "The AI Gateway: pictures", BODY, (Place("header", "ai-model-id", "model"),)),
]  # fmt: skip
