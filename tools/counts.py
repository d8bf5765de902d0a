"""Nodes, wires and clicks of the example graphs beside ComfyUI's own of the same task, as a table in docs/measurements.md.

python3 -m tools.counts FOLDER : the templates of the pip package comfyui-workflow-templates-json (which a current ComfyUI
asks for; no part of this pack), unpacked.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from .provision import ROOT

PAPER, BEGIN, END = ROOT / "docs/measurements.md", "<!-- tools/counts.py -->", "<!-- end -->"
NOTES, BYPASSED = ("Note", "MarkdownNote"), (2, 4)
ROWS = (  # task, ours, core's
    ("text to image, 4B", "workflows/klein_4b_text_to_image", "image_flux2_klein_text_to_image"),
    ("one reference, 9B", "workflows/klein_9b_one_reference", "image_flux2_klein_image_edit_9b_distilled"),
    ("two references kept, 9B KV", "workflows/klein_9b_kv_two_references", "image_flux2_klein_9b_kv_image_edit"),
)
BLUEPRINT = ("text to image, one node of ours", "subgraphs/Klein Text to Image")


@dataclass(frozen=True)
class Counts:
    nodes: int
    wires: int
    opened: tuple[int, int]  # the same with every subgraph opened
    pictures: int

    @property
    def template(self) -> int:
        """Clicks: the template browser, the template, two for each picture (the list, the file), Run."""
        return 3 + 2 * self.pictures

    @property
    def built(self) -> int:
        """Clicks from an empty canvas: two for a node (search, choose), two for a wire (its ends), two for a picture, Run."""
        return 2 * (self.nodes + self.wires + self.pictures) + 1


def counted(graph: dict) -> Counts:
    nodes = {node["id"]: node for node in graph["nodes"] if node["type"] not in NOTES and node.get("mode", 0) not in BYPASSED}
    wires = [link for link in graph["links"] if link[1] in nodes and link[3] in nodes]
    wired = {end for link in wires for end in (link[1], link[3])}  # a picture may stand there for a bypassed node alone
    nodes = {number: node for number, node in nodes.items() if number in wired}
    pictures = sum(node["type"] == "LoadImage" for node in nodes.values())
    inside = {each["id"]: each for each in graph.get("definitions", {}).get("subgraphs", [])}
    return Counts(len(nodes), len(wires), _opened(list(nodes.values()), len(wires), inside), pictures)


def _opened(nodes: list[dict], wires: int, inside: dict) -> tuple[int, int]:
    total = 0
    for node in nodes:
        if node["type"] not in inside:
            total += 1
            continue
        part = inside[node["type"]]
        within = {each["id"] for each in part["nodes"]}
        links = sum(link["origin_id"] in within and link["target_id"] in within for link in part["links"])
        more = _opened([each for each in part["nodes"] if each["type"] not in NOTES], links, inside)
        total, wires = total + more[0], wires + more[1]
    return total, wires


def row(task: str, whose: str, found: Counts, template: bool = True) -> str:
    opened = "{} / {}".format(*found.opened)
    return f"| {task} | {whose} | {found.nodes} / {found.wires} | {opened} | {found.template if template else '-'} | {found.built} |"


def ours(path: str) -> Counts:
    return counted(json.loads((ROOT / f"{path}.json").read_text(encoding="utf-8")))


def blueprint() -> Counts:
    """With the node that saves its picture, and the wire to it."""
    found = ours(BLUEPRINT[1])
    return Counts(found.nodes + 1, found.wires + 1, (found.opened[0] + 1, found.opened[1] + 1), found.pictures)


def lines_of_ours() -> list[str]:
    return [*(row(task, "ours", ours(path)) for task, path, _ in ROWS), row(BLUEPRINT[0], "ours", blueprint(), False)]


def main() -> None:
    folder = Path(sys.argv[1])
    lines = [
        "| task | whose | nodes / wires seen | all opened | clicks from the template | clicks from an empty canvas |",
        "|---|---|---|---|---|---|",
    ]
    mine = lines_of_ours()
    for (task, _, core), line in zip(ROWS, mine):
        lines += [line, row(task, "core's", counted(json.loads((folder / f"{core}.json").read_text(encoding="utf-8"))))]
    lines += mine[len(ROWS) :]
    text = PAPER.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAPER.write_text("\n".join([before + BEGIN, *lines, END]) + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
