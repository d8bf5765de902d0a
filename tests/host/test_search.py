"""Words that a search finds a node by: told to hosts that know them, kept from those that do not."""

import importlib
import inspect

import pytest

from tools import inprocess

MODULES = ("loaders", "prompt", "references", "editing", "cache", "sampling", "lora", "examples", "preflight")
SOUGHT = {"klein", "flux2", "edit", "inpaint", "outpaint", "reference", "kontext", "omni", "ksampler", "kv cache"}


@pytest.fixture(scope="module")
def nodes():
    """The classes of all nodes, beside the module of each."""
    inprocess.import_adapter("flow")
    modules = [importlib.import_module(f"klein.nodes.{name}") for name in MODULES]
    return [
        (module, each)
        for module in modules
        for name, each in vars(module).items()
        if inspect.isclass(each) and name.startswith("Klein") and each.__module__ == module.__name__
    ]


def test_every_node_is_found_by_words_of_its_own(comfy, nodes, monkeypatch):
    assert {each.define_schema().node_id for _, each in nodes} == {
        n for n in comfy.get("/object_info") if n.startswith("Klein")
    }
    words, few = [], []
    for module, each in nodes:
        given = []
        monkeypatch.setattr(module, "aliases", lambda *more, given=given: given.extend(more) or {})
        each.define_schema()
        words += given
        few += [each] * (len(set(given)) < 3)
    assert few == []
    assert [word for word in words if word != word.lower()] == []
    assert set(words) >= SOUGHT


def test_a_host_is_told_the_words_only_where_it_knows_such_words(monkeypatch):
    compat = inprocess.import_adapter("compat")

    def schema(node_id, search_aliases=None): ...

    def older(node_id): ...

    monkeypatch.setattr(compat.io, "Schema", schema)
    assert compat.aliases("edit", "inpaint") == {"search_aliases": ["edit", "inpaint"]}
    monkeypatch.setattr(compat.io, "Schema", older)
    assert compat.aliases("edit", "inpaint") == {}


def test_the_server_tells_the_words_where_it_tells_those_of_its_own_nodes(comfy):
    nodes = comfy.get("/object_info")
    known = any(node.get("search_aliases") for name, node in nodes.items() if not name.startswith("Klein"))
    assert ("inpaint" in (nodes["KleinEdit"].get("search_aliases") or [])) == known
