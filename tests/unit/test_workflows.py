"""The example graphs as files."""

import json
import re

import pytest

from fixtures.wires import behind, boxes
from tools import counts
from workflows import build
from workflows.graph import NODE_TYPES

GRAPHS = build.graphs()
REAL = [graph for graph in GRAPHS if not graph.name.startswith("klein_tiny")]


def kinds(graph) -> list[str]:
    return [kind for _, kind, _ in graph.nodes]


EDITS = [graph for graph in GRAPHS if "KleinEdit" in kinds(graph)]
PLAIN = [graph for graph in REAL if graph not in EDITS]


def named(graphs):
    return pytest.mark.parametrize("graph", graphs, ids=[graph.name for graph in graphs])


def test_the_files_are_what_build_writes_and_there_are_no_others():
    written = build.files()
    assert {path: path.read_text(encoding="utf-8") for path in written} == written
    assert {*build.HERE.rglob("*.json"), *(build.HERE.parent / "subgraphs").rglob("*.json")} == set(written)


@named(PLAIN)
def test_a_plain_graph_of_n_references_has_at_most_8_and_n_nodes_and_9_and_n_links(graph):
    """A LoRA, a cache, a reference of its own, the way back, a negative, a schedule and a look before the run take one node
    each, and a link or two; the look takes one of each thing that it looks at."""
    count = kinds(graph).count
    pictures = count("LoadImage")
    negative = sum(name == "negative" for _, _, name in graph.links)
    others = (
        "KleinLoraLoader",
        "KleinReferenceCache",
        "KleinReference",
        "KleinCanvasRestore",
        "KleinSchedule",
        "KleinPreflight",
    )
    extra = sum(map(count, others)) + negative
    looked = [number for number, kind, _ in graph.nodes if kind == "KleinPreflight"]
    links = extra + sum(name in ("mask", "canvas", "negative", "sigmas") or target in looked for _, target, name in graph.links)
    assert len(graph.nodes) - extra <= 8 + pictures
    assert len(graph.links) - links <= (9 if pictures else 7) + pictures


def test_every_node_of_the_pack_has_a_place_in_a_graph():
    files = (build.HERE.parent / "nodes").glob("*.py")
    declared = {name for file in files for name in re.findall(r'node_id="(\w+)"', file.read_text(encoding="utf-8"))}
    assert len(declared) >= 14
    assert declared - {kind for graph in GRAPHS for kind in kinds(graph)} == set()


@named(EDITS)
def test_an_edit_has_at_most_10_nodes_and_13_links_and_one_of_each_for_every_further_picture(graph):
    """Save included; the tiny ones have a node more, which enlarges what they paint."""
    tiny = graph.name.startswith("klein_tiny")
    further = kinds(graph).count("KleinExamplePicture" if tiny else "LoadImage") - 1
    assert len(graph.nodes) <= 10 + tiny + further and len(graph.links) <= 13 + tiny + further


@named(REAL)
def test_a_graph_of_klein_says_its_licence_and_where_its_files_are(graph):
    nodes = graph.frontend()["nodes"]
    (text,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert "Non-Commercial" in text and "gated" in text and "Apache 2.0" in text
    models = [model for node in nodes for model in node["properties"].get("models", ())]
    assert len(models) == 3 and all(model["name"] in text and model["url"].endswith(model["name"]) for model in models)


@named(GRAPHS)
def test_no_node_lies_on_another_and_each_in_the_group_of_its_step(graph):
    data = graph.frontend()
    around = list(boxes(data).values())
    for i, (left, top, right, bottom) in enumerate(around):
        for other in around[i + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    groups = [(x, y, x + wide, y + tall) for x, y, wide, tall in (group["bounding"] for group in data["groups"])]
    for i, (left, top, right, bottom) in enumerate(groups):
        for other in groups[i + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    for box in around[: len(graph.nodes)]:
        assert sum(x <= box[0] and y <= box[1] and box[2] <= r and box[3] <= b for x, y, r, b in groups) == 1


@named(GRAPHS)
def test_no_wire_runs_behind_a_node_that_is_not_its_end(graph):
    assert behind(graph.frontend()) == []


def test_a_wire_behind_a_node_is_found():
    """The measure of the test above: a node pushed into the way of the longest wire."""
    data = next(graph for graph in GRAPHS if graph.name == "klein_9b_two_references").frontend()
    (decode,), (prompt,) = ([node for node in data["nodes"] if node["type"] == kind] for kind in ("VAEDecode", "KleinPrompt"))
    (wire,) = [link[0] for link in data["links"] if link[3] == decode["id"] and link[5] == "VAE"]
    prompt["pos"][1] = decode["pos"][1]
    assert (wire, prompt["id"]) in behind(data)


@named(GRAPHS)
def test_text_of_a_graph_that_is_fitted_to_1600_by_1000_is_9_pixels_high_at_least(graph):
    left, top, right, bottom = zip(*boxes(graph.frontend()).values())
    assert 14 * min(1600 / (max(right) - min(left)), 1000 / (max(bottom) - min(top))) >= 9


def test_node_numbers_links_and_slots_agree():
    for graph in GRAPHS:
        data = json.loads(build.text_of(graph.frontend()))
        nodes = {node["id"]: node for node in data["nodes"]}
        for number, source, output, target, slot, kind in data["links"]:
            assert number in nodes[source]["outputs"][output]["links"] and nodes[source]["outputs"][output]["type"] == kind
            assert nodes[target]["inputs"][slot]["link"] == number and nodes[target]["inputs"][slot]["type"] == kind


@named(GRAPHS)
def test_every_graph_has_its_linear_form_with_the_prompt_and_the_picture_that_it_saves(graph):
    data = graph.frontend()
    kinds_of, asked = {node["id"]: node["type"] for node in data["nodes"]}, data["extra"]["linearData"]
    assert ("KleinPrompt", "text") in [(kinds_of[number], name) for number, name in asked["inputs"]]
    assert all(name in NODE_TYPES[kinds_of[number]].widgets for number, name in asked["inputs"])
    assert [kinds_of[number] for number in asked["outputs"]] == ["SaveImage"]


def test_the_counts_in_the_measurements_are_those_of_the_files():
    said = counts.PAPER.read_text(encoding="utf-8").split(counts.BEGIN)[1].split(counts.END)[0]
    assert [line for line in said.splitlines() if "| ours |" in line] == counts.lines_of_ours()


def test_a_count_leaves_out_notes_and_bypassed_nodes_and_opens_subgraphs():
    part = {"id": "part", "nodes": [{"id": 1, "type": "A"}, {"id": 2, "type": "B"}, {"id": 3, "type": "Note"}], "links": [
        {"origin_id": 1, "target_id": 2}, {"origin_id": -10, "target_id": 1}, {"origin_id": 2, "target_id": -20}]}  # fmt: skip
    nodes = [
        {"id": 1, "type": "LoadImage"}, {"id": 2, "type": "part"}, {"id": 3, "type": "SaveImage"},
        {"id": 4, "type": "part", "mode": 4}, {"id": 5, "type": "MarkdownNote"},
    ]  # fmt: skip
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 1, 0, 4, 0, "IMAGE"]]
    found = counts.counted({"nodes": nodes, "links": links, "definitions": {"subgraphs": [part]}})
    assert found == counts.Counts(3, 2, (4, 3), 1) and (found.template, found.built) == (5, 13)
