"""The agents' HTTP in this process, with ComfyUI's modules and no running server: what cannot be brought about from outside."""

import asyncio
import importlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import BytesIO
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from klein.serving.fields import Field
from klein.serving.refused import Refused
from klein.serving.settings import Settings
from tools import inprocess, provision


@pytest.fixture(scope="module")
def serving():
    """serving("job"): that module of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(provision.comfyui())  # before the pack's own folder of that name: nodes
        inprocess.import_adapter("settings")
        importlib.import_module("utils.install_util")  # before nodes, which puts a module of that name in front
        import server

        patch.setattr(server.PromptServer, "instance", SimpleNamespace(sockets={}), raising=False)
        yield lambda name: importlib.import_module(f"klein.serving.{name}")


@pytest.mark.parametrize(
    "data",
    [
        None, "text", [], {}, {"value": 1, "max": 2}, {"value": 1, "max": 0, "prompt_id": "a"}, {"value": "1", "max": 2, "prompt_id": "a"},
        {"value": 1, "max": None, "prompt_id": "a"}, {"value": 1, "max": 2, "prompt_id": ["a"]}, {"value": 1.0, "max": 10**400, "prompt_id": "a"},
        {"value": float("nan"), "max": 2, "prompt_id": "a"},
    ],
)  # fmt: skip
def test_what_another_pack_broadcasts_as_progress_is_passed_by(serving, data):
    """The host has no handler around it: what is raised here would end the whole server."""

    async def heard():
        with serving("host").Previews(["a"]) as previews:
            await previews.send_json({"type": "progress", "data": {"value": 1, "max": 4, "prompt_id": "a"}})
            await previews.send_json({"type": "progress", "data": data})
            await previews.send_bytes((1).to_bytes(4, "big") + b"kindpicture")
            return previews.steps

    assert asyncio.run(heard()) == {"a": [(0.25, b"picture")]}


def test_what_fails_after_a_stream_has_begun_is_an_event_of_it(serving, monkeypatch, caplog):
    openai, http = serving("openai"), serving("http")

    @asynccontextmanager
    async def pictures(*_):
        async def none():
            raise RuntimeError("the disk is full")
            yield

        yield none()

    async def queued(*_):
        return []

    monkeypatch.setattr(openai, "pictures", pictures)
    monkeypatch.setattr(openai, "queued", queued)
    made = serving("job").Job(None, "a prompt", (1,), stream=True)
    route = http.Route("GET", "/", lambda *given: openai.answer(*given, made, "image_edit"), openai.failure, "a stream")

    async def asked() -> tuple[int, str]:
        app = web.Application()
        app.router.add_get("/", http.handler(route, Settings(), {}))
        async with TestClient(TestServer(app)) as client, client.get("/") as answer:
            return answer.status, await answer.text()

    status, events = asyncio.run(asked())
    kind, data = events.strip().split("\n")
    assert status == 200 and kind == "event: error"
    said = json.loads(data.removeprefix("data: "))
    assert (
        said["type"] == "error" and said["error"]["type"] == "server_error" and "its log says why" in said["error"]["message"]
    )
    assert "the disk is full" in caplog.text


@pytest.fixture
def kept(serving, monkeypatch, tmp_path):
    """The folder of request pictures."""
    monkeypatch.setattr(serving("images"), "inputs", lambda: tmp_path)
    return tmp_path / "klein"


def flat(grey: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (grey, grey, grey))


def test_pictures_stored_at_the_same_time_are_there_while_others_are_dropped_for_them(serving, kept):
    """At the cap: every second one is new, and what can be dropped for it is what the others ask for again."""
    store = serving("images").store
    for grey in range(200):
        store(flat(grey), Settings())
    for file in kept.glob("*"):
        os.utime(file, (1, 1))
    cap = Settings(store=sum(file.stat().st_size for file in kept.glob("*")))

    def there(grey: int) -> bool:
        return (kept.parent / store(flat(grey), cap).name).is_file()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there, [grey for pair in zip(range(50), range(200, 250)) for grey in pair]))


def test_what_a_crash_has_left_half_written_counts_and_is_dropped_after_an_hour(serving, kept):
    images = serving("images")
    images.store(flat(1), Settings())
    left = kept / "left.part"
    left.write_bytes(b"\0" * 1000)
    with pytest.raises(Refused, match="they are full"):
        images.store(flat(2), Settings(store=1000))
    os.utime(left, (time.time() - 4000,) * 2)
    images.store(flat(2), Settings(store=1000))
    assert [file.suffix for file in kept.glob("*")] == [".png"] * 2


@pytest.mark.parametrize(
    "side, ratio, said",
    [
        ((512, 512), "1:1", ""),
        ((500, 333), "500:333", ""),
        ((1920, 1088), "16:9", ""),
        ((512, 512), "16:9", "aspect_ratio is '16:9', expected that of 512x512"),
        ((512, 256), "1:2", "aspect_ratio is '1:2', expected that of 512x256"),
    ],
)
def test_under_a_mask_an_aspect_ratio_is_that_of_the_picture_and_its_size_stays(serving, kept, monkeypatch, side, ratio, said):
    monkeypatch.setattr(serving("job"), "model", lambda _: SimpleNamespace(id="klein-tiny", base=False, side=1024))
    fields = {"model": Field("model", "klein-tiny"), "prompt": Field("prompt", "x"), "ratio": Field("aspect_ratio", ratio)}
    data = BytesIO()
    Image.new("RGB", side, "white").save(data, "png")
    picture, mask = Field("input_image", data.getvalue()), Field("mask", data.getvalue())
    asked = serving("job").job(fields, [picture], mask, Settings())
    if said:
        with pytest.raises(Refused, match=said):
            asyncio.run(asked)
    else:
        assert asyncio.run(asked).size is None
