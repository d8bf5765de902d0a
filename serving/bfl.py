"""Black Forest Labs' API: a request is answered with an address, which says later where the picture is."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlencode

from aiohttp import web

from .fields import Body, Field, read
from .http import REFERENCES, Place, Route, body, named
from .images import CODED
from .job import FORMATS, MOST_REFERENCES, Job, job
from .patience import Patience, patience
from .refused import Refused
from .run import Picture, pictures, queued
from .settings import Settings

log = logging.getLogger(__name__)
BASE = "/bfl/v1"
PICTURES = ("input_image", *(f"input_image_{place}" for place in range(2, MOST_REFERENCES + 1)))
BODY = Body(
    {
        "prompt": "prompt", "seed": "seed", "aspect_ratio": "ratio", "width": "width", "height": "height", "steps": "steps",
        "guidance": "guidance", "output_format": "format",
    },
    {"prompt_upsampling": (False,), "safety_tolerance": (2,), "raw": (False,)},
    {name: CODED for name in (*PICTURES, "mask")},
)  # fmt: skip
PAINTED = tuple(f"image/{each}" for each in FORMATS)
KEPT = 1000  # tasks that can still be asked for


@dataclass
class Task:
    """way: what leads a proxy to this host again, as it led it here."""

    work: asyncio.Task
    way: str
    picture: Picture | None = None
    error: str = ""


TASKS: OrderedDict[str, Task] = OrderedDict()


def failure(refused: Refused) -> dict:
    return {"detail": str(refused)}


async def submit(request: web.Request, settings: Settings) -> web.Response:
    asked, files = await body(request, settings)
    if files:
        raise Refused(f"{files[0].name} is a file, expected JSON: send it as base64.", files[0].name)
    fields = read(asked, BODY)
    fields["model"] = Field("model", request.match_info["model"])
    images = [Field(name, asked[name]) for name in PICTURES if asked.get(name) is not None]
    mask = None if asked.get("mask") is None else Field("mask", asked["mask"])
    made = await job(fields, images, mask, settings)
    runs = await queued(made, settings)
    name = str(uuid.uuid4())
    led = request.headers.get(REFERENCES)
    way = urlencode({"references": led}) if led else ""
    TASKS[name] = Task(asyncio.create_task(paint(name, made, runs, patience(settings))), way)
    for old in [each for each, task in TASKS.items() if task.work.done()][: max(0, len(TASKS) - KEPT)]:
        del TASKS[old]
    polling = f"{request.url.origin()}{BASE}/get_result?id={name}{'&' * bool(way)}{way}"
    return web.json_response({"id": name, "polling_url": polling}, headers=named(made.digest))


async def paint(name: str, made: Job, runs: list[str], patience: Patience) -> None:
    try:
        async with pictures(made, runs, patience) as painted:
            async for each in painted:
                TASKS[name].picture = each
    except Refused as refused:
        TASKS[name].error = str(refused)
    except Exception:  # else its client would ask for ever
        log.exception("Klein: task %s failed", name)
        TASKS[name].error = "The host failed on this task: its log says why."


def task(name: str) -> Task:
    if name not in TASKS:
        raise Refused(f"Task {name[:80]!r} is not known here: ask again for the picture.", "id", 404)
    return TASKS[name]


async def result(request: web.Request, settings: Settings) -> web.Response:
    name = request.query.get("id", "")
    found = task(name)
    said = {"id": name, "status": "Pending", "result": None}
    if found.error:
        said |= {"status": "Error", "details": {"message": found.error}}
    elif found.picture:
        sample = f"{request.url.origin()}{BASE}/sample/{name}{'?' * bool(found.way)}{found.way}"
        said |= {"status": "Ready", "result": {"sample": sample, "seed": found.picture.seed}}
    return web.json_response(said)


async def sample(request: web.Request, settings: Settings) -> web.Response:
    found = task(request.match_info["id"])
    if not found.picture or not found.picture.path.is_file():
        raise Refused("There is no picture of this task: ask its polling_url.", "id", 404)
    data = await asyncio.to_thread(found.picture.data)
    return web.Response(body=data, content_type=f"image/{found.picture.format}")


ROUTES = [
    Route("GET", f"{BASE}/get_result", result, failure, "Black Forest Labs: whether a task's picture is there", places=(Place("query", "id"),)),
    Route("POST", f"{BASE}/{{model}}", submit, failure, "Black Forest Labs: a task, and where its picture will be", BODY, (Place("path", "model", "model"),)),
    Route("GET", f"{BASE}/sample/{{id}}", sample, failure, "The picture of a task", places=(Place("path", "id"),), gives=PAINTED),
]  # fmt: skip
