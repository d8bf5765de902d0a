"""The pictures of the example graphs, workflows/*.jpg, from the real frontend; what klein-tiny paints is on them."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from . import small
from .browser import load, opened, queue
from .provision import ROOT, comfyui
from .server import Server

SETTINGS = {"Comfy.Minimap.Visible": False, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
PLACES = """app.graph.nodes.map(({pos, size}) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]
    .map((at, i) => (at + app.canvas.ds.offset[i % 2]) * app.canvas.ds.scale))"""  # on the page: left, top, right, bottom
LARGEST = (760, 480)


def main() -> None:
    with tempfile.TemporaryDirectory() as base:
        server = Server(Path(base))
        small.released_files(server.base / "models")
        shutil.copy(comfyui() / "input/example.png", server.base / "input")
        server.start()
        try:
            with opened(server) as page:
                for name, value in SETTINGS.items():
                    page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
                for path in sorted((ROOT / "workflows").glob("*.json")):
                    load(page, path.stem)
                    if "tiny" in path.stem:
                        queue(page)
                    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
                    page.wait_for_timeout(4000)  # until its note of the finished run is gone
                    left, top, right, bottom = zip(*page.evaluate(PLACES))
                    corners = min(left), min(top), max(right), max(bottom)
                    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop(tuple(map(round, corners)))
                    shot.thumbnail(LARGEST, Image.Resampling.LANCZOS)
                    shot.save(path.with_suffix(".jpg"), quality=80)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
