"""The pack's main job, end to end: an example graph in a real ComfyUI leaves a picture in out/. The model is klein-tiny,
which comes with the pack, or with --models the 9B of a ComfyUI models folder."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from .provision import ROOT, say
from .server import Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="a ComfyUI models folder with the real files")
    parser.add_argument("--prompt", help="instead of the graph's own")
    parser.add_argument("--size", type=int, help="with --models: pixels a side, instead of the graph's own")
    options = parser.parse_args()
    if options.size and not options.models:
        parser.error("--size goes with --models: klein-tiny paints 64x64 pixels")
    name = "klein_9b_text_to_image" if options.models else "klein_tiny_text_to_image"
    graph = json.loads((ROOT / f"workflows/api/{name}.json").read_text())
    prompt = next(node["inputs"] for node in graph.values() if node["class_type"] == "KleinPrompt")
    prompt["text"] = options.prompt or prompt["text"]
    canvas = next(node["inputs"] for node in graph.values() if node["class_type"] == "EmptyFlux2LatentImage")
    canvas["width"] = canvas["height"] = options.size or canvas["width"]
    with tempfile.TemporaryDirectory() as base:
        server = Server(Path(base))
        if options.models:
            models = server.base / "models"
            models.rmdir()
            models.symlink_to(options.models.resolve(), target_is_directory=True)
        server.start()
        try:
            outputs = server.wait(server.queue(graph), patience=3600)["outputs"]  # the 9B on a CPU takes its time
            image = next(output["images"][0] for output in outputs.values() if output.get("images"))
            target = ROOT / f"out/{name}.png"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(server.file(image), target)
        finally:
            server.stop()
    say(f"Wrote {target.relative_to(ROOT)}: {prompt['text']}")


if __name__ == "__main__":
    main()
