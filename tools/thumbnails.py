"""The pictures of the example graphs, workflows/*.jpg: of klein-tiny's what it makes of what, run in a real ComfyUI; of
klein's, whose weights are not here, a drawn card that looks like none of its results. And docs/graph.jpg, a graph in the
real frontend."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from workflows import build
from workflows.graph import Graph

from . import small
from .browser import load, opened
from .pictures import FOLDER
from .provision import ROOT, comfyui
from .server import Server

SIZE, EDGE, GAP = (640, 360), 24, 56
INK, PAPER, PALE = (40, 44, 52), (244, 241, 234), (208, 203, 192)
SHOWN = "klein_9b_two_references"  # in docs/graph.jpg
SETTINGS = {"Comfy.Minimap.Visible": False, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
PLACES = """app.graph.nodes.map(({pos, size}) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]
    .map((at, i) => (at + app.canvas.ds.offset[i % 2]) * app.canvas.ds.scale))"""  # on the page: left, top, right, bottom


def main() -> None:
    with tempfile.TemporaryDirectory() as base:
        server = Server(Path(base))
        small.released_files(server.base / "models")
        shutil.copy(comfyui() / "input/example.png", server.base / "input")
        server.start()
        try:
            for graph in build.graphs():
                card = made(server, graph) if graph.name.startswith("klein_tiny") else drawn(graph)
                card.save(build.HERE / f"{graph.name}.jpg", quality=88)
            screenshot(server)
        finally:
            server.stop()


def made(server: Server, graph: Graph) -> Image.Image:
    """The pictures that go in, and the one that comes out."""
    api = graph.api()
    (save,) = [number for number, node in api.items() if node["class_type"] == "SaveImage"]
    result = Image.open(server.file(server.run(api)[save]["images"][0])).convert("RGB")
    names = [values["picture"] for _, kind, values in graph.nodes if kind == "KleinExamplePicture"]
    painted = any(name == "mask" for _, _, name in graph.links)
    sources = [shown(FOLDER / f"{name}.png", painted and i == 0) for i, name in enumerate(names)]
    return row(sources, result, graph.title, Image.Resampling.NEAREST)


def shown(path: Path, painted: bool) -> Image.Image:
    """An example picture; what its mask paints under grey stripes."""
    pixels = np.asarray(Image.open(path).convert("RGBA")).copy()
    stripes = np.add.outer(np.arange(pixels.shape[0]), np.arange(pixels.shape[1])) % 6 < 3
    if painted:
        pixels[(pixels[..., 3] == 0) & stripes, :3] = 128
    return Image.fromarray(pixels[..., :3])


def drawn(graph: Graph) -> Image.Image:
    """Empty frames for what goes in and comes out."""
    count = [kind for _, kind, _ in graph.nodes].count("LoadImage")
    return row([frame(f"image {i}") for i in range(1, count + 1)], frame("?"), graph.title, Image.Resampling.LANCZOS)


def frame(text: str) -> Image.Image:
    image = Image.new("RGB", (256, 256), PAPER)
    pen = ImageDraw.Draw(image)
    for at in range(-256, 256, 24):
        pen.line((at, 256, at + 256, 0), fill=PALE, width=2)
    pen.rectangle((0, 0, 255, 255), outline=INK, width=4)
    pen.text((128, 128), text, fill=INK, anchor="mm", font=ImageFont.load_default(56 if text == "?" else 40))
    return image


def row(sources: list[Image.Image], result: Image.Image, title: str, resampling: Image.Resampling) -> Image.Image:
    """Sources in two rows at most, an arrow, the result; the title below."""
    card = Image.new("RGB", SIZE, PAPER)
    pen, tall = ImageDraw.Draw(card), SIZE[1] - 3 * EDGE - 30
    side = tall if len(sources) < 2 else (tall - EDGE) // 2
    columns = 0 if not sources else 1 if len(sources) < 3 else 2
    wide = columns * side + max(columns - 1, 0) * EDGE + (GAP if columns else 0) + tall
    left = (SIZE[0] - wide) // 2
    for i, source in enumerate(sources):
        x, y = left + i // 2 * (side + EDGE), EDGE + i % 2 * (side + EDGE)
        paste(card, source, (x, y), side, resampling)
    if columns:
        x, y = SIZE[0] - left - tall - GAP + 10, EDGE + tall // 2
        pen.line((x, y, x + GAP - 28, y), fill=INK, width=5)
        pen.polygon([(x + GAP - 32, y - 12), (x + GAP - 32, y + 12), (x + GAP - 14, y)], fill=INK)
    paste(card, result, (SIZE[0] - left - tall, EDGE), tall, resampling)
    pen.text((SIZE[0] // 2, SIZE[1] - EDGE - 12), title, fill=INK, anchor="mm", font=ImageFont.load_default(26))
    return card


def paste(card: Image.Image, image: Image.Image, at: tuple[int, int], side: int, resampling: Image.Resampling) -> None:
    scale = side / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    card.paste(image.resize(size, resampling), (at[0] + (side - size[0]) // 2, at[1] + (side - size[1]) // 2))


def screenshot(server: Server) -> None:
    with opened(server) as page:
        for name, value in SETTINGS.items():
            page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
        load(page, SHOWN)
        page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.wait_for_timeout(4000)
        left, top, right, bottom = zip(*page.evaluate(PLACES))
        corners = min(left) - 20, min(top) - 50, max(right) + 20, max(bottom) + 20
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop(tuple(map(round, corners)))
        (ROOT / "docs").mkdir(exist_ok=True)
        shot.save(ROOT / "docs/graph.jpg", quality=85)


if __name__ == "__main__":
    main()
