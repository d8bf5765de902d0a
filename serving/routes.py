"""The routes of all API families, on the host's own server."""

from __future__ import annotations

import logging

from aiohttp import web

from ..errors import KleinError
from ..nodes.host.settings import given
from . import bfl, gateway, openai, preflight
from .description import document
from .host import server
from .http import LEFT, Route, take
from .patience import mind_the_end
from .settings import Settings, settings

log = logging.getLogger(__name__)


async def description(request: web.Request, settings: Settings) -> web.Response:
    return web.json_response(document([route for route in ROUTES if route not in LEFT], settings))


async def health(request: web.Request, settings: Settings) -> web.Response:
    return web.json_response({"status": "ok", "queue": server().prompt_queue.get_tasks_remaining(), "most": settings.queue})


# Last is one that nobody else has: aiohttp lets no host start where the next pack's first route has the very same path.
ROUTES = [
    *openai.ROUTES, *gateway.ROUTES, *preflight.ROUTES,
    Route("GET", "/v1/openapi.json", description, openai.failure, "This description"),
    Route("GET", "/v1/health", health, openai.failure, "Whether this host takes requests, and how many runs wait", open=True),
    *bfl.ROUTES,
]  # fmt: skip


def register() -> None:
    """To be called before the host starts to listen; does nothing where there is no server."""
    if server() is None:
        return
    try:
        chosen = settings(given())
    except KleinError as error:
        log.error("Klein: the HTTP for agents is off: %s", error)
        return
    if chosen.enabled:
        take(server(), ROUTES, chosen)
        mind_the_end(server().app)
