"""The example graphs as files."""

import json

import pytest

from workflows import build

GRAPHS = build.graphs()
NINE = [graph for graph in GRAPHS if graph.name.startswith("klein_9b")]  # the tiny ones paint their references themselves


def test_the_files_are_what_build_writes_and_there_are_no_others():
    written = build.files()
    assert {path: path.read_text(encoding="utf-8") for path in written} == written
    assert set(build.HERE.rglob("*.json")) == set(written)


@pytest.mark.parametrize("graph", NINE, ids=[graph.name for graph in NINE])
def test_a_plain_graph_of_n_references_has_at_most_8_and_n_nodes_and_9_and_n_links(graph):
    kinds = [kind for _, kind, _ in graph.nodes]
    references = kinds.count("LoadImage")
    extra = kinds.count("KleinReferenceCache") + kinds.count("KleinReference")  # one node and link each, a mask one link
    masks = sum(name == "mask" for _, _, name in graph.links)
    assert len(kinds) - extra <= 8 + references
    assert len(graph.links) - extra - masks <= (9 if references else 7) + references


@pytest.mark.parametrize("graph", NINE, ids=[graph.name for graph in NINE])
def test_a_graph_of_the_9b_says_its_licence_and_where_its_files_are(graph):
    nodes = graph.frontend()["nodes"]
    (text,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert "Non-Commercial" in text and "gated" in text and "Apache 2.0" in text
    models = [model for node in nodes for model in node["properties"].get("models", ())]
    assert len(models) == 3 and all(model["name"] in text and model["url"].endswith(model["name"]) for model in models)


def test_references_that_a_graph_paints_itself_stay_the_same_from_run_to_run():
    """A cache across runs would never be used otherwise."""
    for graph in GRAPHS:
        widgets = [node["widgets_values"] for node in graph.frontend()["nodes"] if node["type"] == "KleinDistilledSampler"]
        assert [values[1] for values in widgets] == ["fixed"] * (len(widgets) - 1) + ["randomize"]


def test_node_numbers_links_and_slots_agree():
    for graph in GRAPHS:
        data = json.loads(build.text_of(graph.frontend()))
        nodes = {node["id"]: node for node in data["nodes"]}
        for number, source, output, target, slot, kind in data["links"]:
            assert number in nodes[source]["outputs"][output]["links"] and nodes[source]["outputs"][output]["type"] == kind
            assert nodes[target]["inputs"][slot]["link"] == number and nodes[target]["inputs"][slot]["type"] == kind
