"""The agents' HTTP beside stand-ins for the host's modules."""

import asyncio
import importlib
import json
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from klein.serving.settings import Settings


@pytest.fixture(scope="module")
def serving():
    """serving("job"): that module of ours; what is imported for it is forgotten afterwards, as no host stands behind it."""
    before, server = set(sys.modules), SimpleNamespace(sockets={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "execution", SimpleNamespace())
        patch.setitem(sys.modules, "folder_paths", SimpleNamespace())
        patch.setitem(sys.modules, "nodes", SimpleNamespace())
        types = SimpleNamespace(PREVIEW_IMAGE=1)
        patch.setitem(
            sys.modules, "server", SimpleNamespace(BinaryEventTypes=types, PromptServer=SimpleNamespace(instance=server))
        )
        yield lambda name: importlib.import_module(f"klein.serving.{name}")
        for name in set(sys.modules) - before:
            if name.startswith("klein.serving."):
                del sys.modules[name]


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
