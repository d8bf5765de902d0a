"""What all API families do alike: who may ask, bodies, errors, and the routes that they take."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from .fields import Body, Field, show
from .patience import OPEN, running
from .refused import Refused
from .settings import Settings

log = logging.getLogger(__name__)
REFERENCES = "x-klein-references"  # the header of a job's digest
LEFT: set[Route] = set()  # to other packs, who answer there
Answer = Callable[[web.Request, Settings], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Place:
    """Where else than in its body a request says something; `field`: what, under our name, if it is a field of a job."""

    where: str  # path, query or header
    name: str
    field: str = ""


@dataclass(frozen=True, eq=False)
class Route:
    method: str
    path: str
    answer: Answer
    failure: Callable[[Refused], dict]  # an error as the family's clients read it
    says: str
    takes: Body | None = None
    places: tuple[Place, ...] = ()
    gives: tuple[str, ...] = ("application/json",)
    open: bool = False  # whether it is answered without a key, too


def handler(route: Route, settings: Settings, others: dict[Route, Callable]):
    """others: who answers in our place, where another pack wants the same route."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if route in others:
            return await others[route](request)
        OPEN.add(id(request))
        try:
            running()
            if not route.open:
                authorise(request, settings)
            return await route.answer(request, settings)
        except Exception as error:
            return failed(route, reason(error, route.path, settings))
        finally:
            OPEN.remove(id(request))

    return handle


def reason(error: Exception, path: str, settings: Settings) -> Refused:
    """What its client is told of what went wrong."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Refused(f"The request has more than {settings.body} bytes: send smaller pictures, or fewer.", "", 413)
    if isinstance(error, ConnectionResetError):
        return Refused("The client went away.", "", 499)
    log.error("Klein: %s failed", path, exc_info=error)
    return Refused("The host failed on this request: its log says why.", "", 500)


def named(digest: str) -> dict[str, str]:
    """Headers that say which references a job has."""
    return {REFERENCES: digest} if digest else {}


def failed(route: Route, refused: Refused) -> web.Response:
    headers = {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
    return web.json_response(route.failure(refused), status=refused.status, headers=headers)


def authorise(request: web.Request, settings: Settings) -> None:
    if not settings.key:
        return
    given = [request.headers.get("x-key", ""), request.headers.get("Authorization", "").removeprefix("Bearer ")]
    if not any([hmac.compare_digest(key.encode("utf-8", "replace"), settings.key.encode()) for key in given]):
        raise Refused("The API key is missing or wrong: send the host's KLEIN_API_KEY as Bearer or x-key.", "", 401)


async def body(request: web.Request, settings: Settings) -> tuple[dict, list[Field]]:
    """The fields of a JSON object, or of a form; and the files of a form, in order."""
    request = request.clone(client_max_size=settings.body)
    if request.content_type == "application/json":
        return parsed(await request.read()), []
    if request.content_type == "multipart/form-data":
        return await form(request)
    raise Refused("The request is not JSON: send application/json.", "", 415)


def parsed(data: bytes) -> dict:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("The body is not valid JSON: send a JSON object.") from None
    if not isinstance(value, dict):
        raise Refused(f"The body is {show(value)}, expected a JSON object: change it.")
    return value


async def form(request: web.Request) -> tuple[dict, list[Field]]:
    try:
        posted = await request.post()
    except web.HTTPRequestEntityTooLarge:
        raise
    except Exception:  # the parser raises whatever a broken form leads it to
        raise Refused("The form could not be read: send multipart/form-data.") from None
    fields: dict = {}
    files = []
    for name, value in posted.items():
        if isinstance(value, web.FileField):
            files.append(Field(name, value.file.read()))
        elif isinstance(value, str) and name not in fields:
            fields[name] = value
        else:
            raise Refused(f"{show(name)} stands in the form twice: leave one out.", name)
    return fields, files


def take(server, routes: list[Route], settings: Settings) -> None:
    """Adds routes to the host's own, but those that another pack has taken, or takes later."""
    taken = {(route.method, route.path) for route in server.routes if isinstance(route, web.RouteDef)}
    others: dict[Route, Callable] = {}
    ours = {}
    for route in routes:
        if (route.method, route.path) in taken:
            left_alone(route)
        else:
            ours[route] = handler(route, settings, others)
            server.routes.route(route.method, route.path)(ours[route])

    async def look_for_later_ones(app: web.Application) -> None:
        for route, handle in ours.items():
            for each in app.router.routes():
                same = each.method == route.method and each.resource and each.resource.canonical == route.path
                if same and each.handler is not handle:
                    others[route] = each.handler
                    left_alone(route)

    server.app.on_startup.append(look_for_later_ones)


def left_alone(route: Route) -> None:
    LEFT.add(route)
    log.warning("Klein: %s %s belongs to another pack and is left to it.", route.method, route.path)
