"""Graphs as one node each, ComfyUI's blueprints (subgraphs/*.json): what a user sets stands outside, the rest inside."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from . import klein
from .graph import NODE_TYPES, Graph

IN, OUT = -10, -20  # the frontend's numbers for the two ends of a subgraph
GONE = ("SaveImage", "LoadImage")  # stay outside: pictures come in over inputs, and go out


@dataclass(frozen=True)
class Outside:
    """A widget or a link input of a node inside that is set outside, under another name where one is given."""

    kind: str
    input: str
    type: str
    name: str = ""


MODELS = (
    Outside("KleinFlowLoader", "flow_name", "COMBO"),
    Outside("KleinQwen3EncoderLoader", "encoder_name", "COMBO"),
    Outside("KleinVAELoader", "vae_name", "COMBO"),
)
PROMPT, SEED = Outside("KleinPrompt", "text", "STRING"), Outside("KleinDistilledSampler", "seed", "INT")
BLUEPRINTS = {
    "Klein Text to Image": (
        "klein_9b_text_to_image",
        (PROMPT, Outside("EmptyFlux2LatentImage", "width", "INT"), Outside("EmptyFlux2LatentImage", "height", "INT"), SEED, *MODELS),
    ),
    "Klein Edit with References": (
        "klein_9b_four_references",
        (*(Outside("KleinMultiReference", f"image_{i}", "IMAGE") for i in range(1, 5)), PROMPT, SEED, *MODELS),
    ),
    "Klein Masked Edit": (
        "klein_9b_repaint",
        (
            Outside("KleinEdit", "image", "IMAGE"), Outside("KleinEdit", "mask", "MASK"), Outside("KleinEdit", "image_2", "IMAGE"),
            PROMPT, Outside("KleinEdit", "mode", "COMBO"), Outside("KleinEdit", "context", "FLOAT"), SEED, *MODELS,
        ),
    ),
}  # fmt: skip


def blueprints() -> dict[str, dict]:
    """File name -> workflow of one node, whose subgraph is an example graph without its files."""
    graphs = {graph.name: graph for graph in klein.graphs()}
    return {name: blueprint(name, graphs[graph], outside) for name, (graph, outside) in BLUEPRINTS.items()}


def blueprint(name: str, graph: Graph, outside: tuple[Outside, ...]) -> dict:
    data = graph.frontend()
    number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"blueprint {name}"))
    inside = {node["id"]: node for node in data["nodes"] if node["type"] not in (*GONE, "MarkdownNote")}
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link))
        for link in data["links"]
        if link[1] in inside and link[3] in inside
    ]
    kept = {link["id"] for link in links}
    for node in inside.values():
        for each in node["inputs"]:
            each["link"] = each["link"] if each["link"] in kept else None
        for each in node["outputs"]:
            each["links"] = [link for link in each["links"] if link in kept]
    (saved,) = [link for link in data["links"] if link[3] not in inside and inside.get(link[1])]

    inputs, last = [], max(link[0] for link in data["links"])
    for slot, each in enumerate(outside):
        (node,) = [node for node in inside.values() if node["type"] == each.kind]
        last += 1
        names = [known["name"] for known in node["inputs"]]
        if each.input not in names:
            node["inputs"].append({"name": each.input, "type": each.type, "widget": {"name": each.input}, "link": None})
            names.append(each.input)
        target = names.index(each.input)
        node["inputs"][target]["link"] = last
        links.append(
            {
                "id": last,
                "origin_id": IN,
                "origin_slot": slot,
                "target_id": node["id"],
                "target_slot": target,
                "type": each.type,
            }
        )
        inputs.append(
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {each.input}")),
                "name": each.name or each.input,
                "type": each.type,
                "linkIds": [last],
            }
        )
    last += 1
    links.append(
        {"id": last, "origin_id": saved[1], "origin_slot": saved[2], "target_id": OUT, "target_slot": 0, "type": "IMAGE"}
    )
    inside[saved[1]]["outputs"][saved[2]]["links"] = [last]
    image = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} image")), "name": "IMAGE", "type": "IMAGE", "linkIds": [last]}

    widgets = [each for each in outside if each.input in NODE_TYPES[each.kind].widgets]
    proxies = [[str(node["id"]), each.input] for each in widgets for node in inside.values() if node["type"] == each.kind]
    right = max(node["pos"][0] + node["size"][0] for node in inside.values())
    node = {
        "id": 1, "type": number, "pos": [60, 100], "size": [400, 120 + 30 * len(outside)], "flags": {}, "order": 0, "mode": 0,
        "inputs": [
            {"name": each["name"], "type": each["type"], "link": None, **({"widget": {"name": each["name"]}} if of in widgets else {})}
            for each, of in zip(inputs, outside)
        ],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}],
        "properties": {"proxyWidgets": proxies}, "widgets_values": [], "title": name,
    }  # fmt: skip
    definition = {
        "id": number, "version": 1, "revision": 0, "config": {}, "name": name, "category": "Klein",
        "state": {"lastGroupId": 0, "lastNodeId": max(inside), "lastLinkId": last, "lastRerouteId": 0},
        "inputNode": {"id": IN, "bounding": [-160, 100, 130, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUT, "bounding": [right + 60, 100, 128, 60]},
        "inputs": inputs, "outputs": [image], "widgets": [], "nodes": list(inside.values()),
        "groups": [group for group in data["groups"] if any(within(node["pos"], group["bounding"]) for node in inside.values())],
        "links": links, "extra": {},
    }  # fmt: skip
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"workflow {name}")), "revision": 0, "last_node_id": 1, "last_link_id": 0,
        "nodes": [node], "links": [], "groups": [], "definitions": {"subgraphs": [definition]}, "config": {},
        "extra": {"BlueprintDescription": f"{name}: FLUX.2 [klein] in one node."}, "version": 0.4,
    }  # fmt: skip


def within(place: list[int], bounding: list[int]) -> bool:
    x, y, wide, tall = bounding
    return x <= place[0] <= x + wide and y <= place[1] <= y + tall
