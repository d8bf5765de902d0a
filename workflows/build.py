"""python3 -m workflows.build : writes every example graph, for the frontend (workflows/) and for the API (workflows/api/), and
the blueprints (subgraphs/)."""

import json
from pathlib import Path

from . import klein, klein_tiny
from .blueprint import blueprints
from .graph import Graph

HERE = Path(__file__).resolve().parent


def graphs() -> list[Graph]:
    return [*klein_tiny.graphs(), *klein.graphs()]


def text_of(data: dict) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Path -> text of all example graphs and blueprints."""
    written = {HERE.parent / f"subgraphs/{name}.json": text_of(data) for name, data in blueprints().items()}
    for graph in graphs():
        written[HERE / f"{graph.name}.json"] = text_of(graph.frontend())
        written[HERE / f"api/{graph.name}.json"] = text_of(graph.api())
    return written


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path.relative_to(HERE.parent))
