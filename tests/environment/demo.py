"""The pack's main job, end to end: the example graph in a real ComfyUI, with small random weights in the released
formats standing in for the gated 9B. Leaves out/klein_9b_text_to_image.png: what noise through random weights looks
like; with the real files in models/ the same graph gives the picture of the prompt."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from . import small
from .provision import ROOT, say
from .server import Server


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--models", type=Path, help="a ComfyUI models folder with the real files, instead of small random ones"
    )
    options.add_argument("--size", type=int, default=0, help="pixels a side (default: 256 with small weights, else 1024)")
    options = options.parse_args()
    graph = json.loads((ROOT / "workflows/api/klein_9b_text_to_image.json").read_text())
    canvas = next(node["inputs"] for node in graph.values() if node["class_type"] == "EmptyFlux2LatentImage")
    canvas["width"] = canvas["height"] = options.size or (1024 if options.models else 256)
    with tempfile.TemporaryDirectory() as base:
        server = Server(Path(base))
        models = server.base / "models"
        if options.models:
            models.rmdir()
            models.symlink_to(options.models.resolve(), target_is_directory=True)
        else:
            small.released_files(models)
        server.start()
        try:
            outputs = server.run(graph)
            image = next(output["images"][0] for output in outputs.values() if output.get("images"))
            target = ROOT / "out/klein_9b_text_to_image.png"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(server.file(image), target)
        finally:
            server.stop()
    say(f"Wrote {target.relative_to(ROOT)} ({canvas['width']}x{canvas['height']})")


if __name__ == "__main__":
    main()
