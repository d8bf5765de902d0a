"""Black Forest Labs' API: a request is answered with an address, which says later where the picture is."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import web

from .fields import Field, read
from .http import Route, body
from .job import MOST_REFERENCES, Job, job
from .refused import Refused
from .run import Picture, pictures, queued
from .settings import Settings

BASE = "/bfl/v1"
NAMES = {
    "prompt": "prompt", "seed": "seed", "aspect_ratio": "ratio", "width": "width", "height": "height", "steps": "steps",
    "guidance": "guidance", "output_format": "format",
}  # fmt: skip
NEUTRAL = {"prompt_upsampling": (False,), "safety_tolerance": (2,), "raw": (False,)}
PICTURES = ("input_image", *(f"input_image_{place}" for place in range(2, MOST_REFERENCES + 1)))
KEPT = 1000  # tasks that can still be asked for


@dataclass
class Task:
    work: asyncio.Task
    picture: Picture | None = None
    error: str = ""


TASKS: OrderedDict[str, Task] = OrderedDict()


def failure(refused: Refused) -> dict:
    return {"detail": str(refused)}


async def submit(request: web.Request, settings: Settings) -> web.Response:
    asked, files = await body(request, settings)
    if files:
        raise Refused(f"{files[0].name} is a file, expected JSON: send it as base64.", files[0].name)
    given = {name: asked.pop(name) for name in (*PICTURES, "mask") if asked.get(name) is not None}
    fields = read({name: value for name, value in asked.items() if value is not None}, NAMES, NEUTRAL)
    fields["model"] = Field("model", request.match_info["model"])
    mask = given.pop("mask", None)
    images = [Field(name, value) for name, value in given.items()]
    made = await job(fields, images, None if mask is None else Field("mask", mask), settings)
    runs = await queued(made, settings)
    name = str(uuid.uuid4())
    TASKS[name] = Task(asyncio.create_task(paint(name, made, runs)))
    for old in [each for each, task in TASKS.items() if task.work.done()][: max(0, len(TASKS) - KEPT)]:
        del TASKS[old]
    return web.json_response({"id": name, "polling_url": f"{request.url.origin()}{BASE}/get_result?id={name}"})


async def paint(name: str, made: Job, runs: list[str]) -> None:
    try:
        async with aclosing(pictures(made, runs, lambda: False)) as painted:
            async for each in painted:
                TASKS[name].picture = each
    except Refused as refused:
        TASKS[name].error = str(refused)


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
        sample = f"{request.url.origin()}{BASE}/sample/{name}"
        said |= {"status": "Ready", "result": {"sample": sample, "seed": found.picture.seed}}
    return web.json_response(said)


async def sample(request: web.Request, settings: Settings) -> web.Response:
    found = task(request.match_info["id"])
    if not found.picture or not found.picture.path.is_file():
        raise Refused("There is no picture of this task: ask its polling_url.", "id", 404)
    data = await asyncio.to_thread(found.picture.data)
    return web.Response(body=data, content_type=f"image/{found.picture.format}")


ROUTES = [
    Route("GET", f"{BASE}/get_result", result, failure),
    Route("GET", f"{BASE}/sample/{{id}}", sample, failure),
    Route("POST", f"{BASE}/{{model}}", submit, failure),
]
