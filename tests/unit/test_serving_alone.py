"""The agents' HTTP beside stand-ins for the host's modules."""

import asyncio
import importlib
import sys
from types import SimpleNamespace

import pytest


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
