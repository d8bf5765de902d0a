"""/v1/preflight: what a request would be, without running it."""

from __future__ import annotations

from aiohttp import web

from .fields import Body
from .http import Route, named
from .job import job
from .openai import IMAGES, NAMES, NEUTRAL, PICTURES, asked, failure
from .patience import patience
from .run import report
from .settings import Settings

TAKES = Body(NAMES, NEUTRAL, {name: PICTURES[name] for name in IMAGES}, form=True)
WARNING = "Warning"


async def preflight(request: web.Request, settings: Settings) -> web.Response:
    fields, images, _ = await asked(request, settings, TAKES)
    made = await job(fields, images, None, settings)
    lines = [line.split(": ", 1) for line in (await report(made, settings, patience(settings, request))).split("\n")]
    said = {name: value for name, value in lines if name != WARNING}
    warnings = [value for name, value in lines if name == WARNING]
    return web.json_response({"object": "preflight", "report": said, "warnings": warnings}, headers=named(made.digest))


ROUTES = [
    Route("POST", "/v1/preflight", preflight, failure, "What a request would be: parts, tokens, work, memory, warnings", TAKES)
]
