"""The pictures of the nodes' help, web/docs/images/*.jpg: each node in a graph, between what it takes from and gives to.

python3 -m tools.help_pictures draws them in the real frontend; after a change of a node's inputs.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from . import small
from .browser import opened
from .provision import ROOT
from .server import Server
from .thumbnails import PLACES, SETTINGS

FOLDER = ROOT / "web/docs/images"
LARGEST = (900, 600)

# node -> ([(from, its output, input)], [(output, to, its input)])
FLOW, PROMPT, VAE = ("KleinFlowLoader", 0, "model"), ("KleinPrompt", 0, "positive"), ("KleinVAELoader", 0, "vae")
PICTURE, SAMPLER = ("LoadImage", 0, "image"), "KleinDistilledSampler"
SAMPLED = [(0, SAMPLER, "positive"), (2, SAMPLER, "latent_image")]
AROUND = {
    "KleinFlowLoader": ([], [(0, SAMPLER, "model")]),
    "KleinQwen3EncoderLoader": ([], [(0, "KleinPrompt", "clip")]),
    "KleinVAELoader": ([], [(0, "VAEDecode", "vae")]),
    "KleinLoraLoader": ([FLOW, ("KleinQwen3EncoderLoader", 0, "clip")], [(0, SAMPLER, "model"), (1, "KleinPrompt", "clip")]),
    "KleinPrompt": ([("KleinQwen3EncoderLoader", 0, "clip")], [(0, SAMPLER, "positive")]),
    "KleinReference": ([PICTURE, ("LoadImage", 1, "mask")], [(0, "KleinMultiReference", "references")]),
    "KleinMultiReference": ([PROMPT, VAE, ("LoadImage", 0, "image_1")], SAMPLED),
    "KleinEdit": ([PROMPT, VAE, PICTURE, ("LoadImage", 1, "mask")], [*SAMPLED, (3, "KleinCanvasRestore", "canvas")]),
    "KleinCanvasRestore": ([("VAEDecode", 0, "image"), ("KleinEdit", 3, "canvas")], [(0, "SaveImage", "images")]),
    "KleinReferenceCache": ([FLOW], [(0, SAMPLER, "model")]),
    SAMPLER: ([FLOW, PROMPT, ("EmptyFlux2LatentImage", 0, "latent_image")], [(0, "VAEDecode", "samples")]),
    "KleinSchedule": ([("EmptyFlux2LatentImage", 0, "latent")], [(0, "SamplerCustomAdvanced", "sigmas")]),
    "KleinExamplePicture": ([], [(0, "KleinEdit", "image"), (1, "KleinEdit", "mask")]),
    "KleinPreflight": (
        [FLOW, ("KleinQwen3EncoderLoader", 0, "clip"), ("KleinVAELoader", 0, "vae")],
        [(0, SAMPLER, "model"), (1, "KleinPrompt", "clip"), (2, "VAEDecode", "vae")],
    ),
}
BUILD = """([type, before, after]) => {
    window.last = Math.max(window.last || 0, app.graph.last_node_id);
    app.graph.clear();
    app.graph.last_node_id = window.last;  // what was shown on a node of before is kept by its number
    const made = {}, columns = [0, 0, 0];
    const add = (type, column) => {
        if (made[type]) return made[type];
        const node = made[type] = LiteGraph.createNode(type);
        node.pos = [column * 430, columns[column]];
        app.graph.add(node);
        node.setSize(node.computeSize());
        node.setSize([320, Math.max(node.size[1], type === 'LoadImage' ? 200 : 60)]);
        columns[column] += node.size[1] + 70;
        return node;
    };
    const node = add(type, 1);
    for (const [from, output, input] of before)
        add(from, 0).connect(output, node, node.inputs.findIndex(each => each.name === input));
    for (const [output, to, input] of after) {
        const next = add(to, 2);
        node.connect(output, next, next.inputs.findIndex(each => each.name === input));
    }
    app.canvas.deselectAll?.();
    app.graph.setDirtyCanvas(true, true);
}"""


def house() -> Image.Image:
    """A picture to load, with a transparent roof: its mask."""
    picture = Image.new("RGBA", (384, 256), "#bfdcec")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 170, 384, 256), fill="#9dbb7a")
    draw.rectangle((110, 110, 240, 200), fill="#e8d3a8")
    draw.polygon([(92, 114), (175, 44), (258, 114)], fill="#b5563f80")
    draw.rectangle((155, 150, 190, 200), fill="#22262e")
    return picture


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base:
        server = Server(Path(base))
        small.released_files(server.base / "models")
        house().save(server.base / "input/house.png")
        (server.base / "models/loras").mkdir(exist_ok=True)
        (server.base / "models/loras/my_style.safetensors").touch()  # a name to show
        server.start()
        try:
            with opened(server) as page:
                for name, value in SETTINGS.items():
                    page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
                for node, (before, after) in AROUND.items():
                    page.evaluate(BUILD, [node, before, after])
                    page.wait_for_timeout(800)
                    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
                    page.wait_for_timeout(1500)
                    left, top, right, bottom = zip(*page.evaluate(PLACES))
                    corners = min(left) - 8, min(top) - 8, max(right) + 8, max(bottom) + 8
                    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop(tuple(map(round, corners)))
                    shot.thumbnail(LARGEST, Image.Resampling.LANCZOS)
                    shot.save(FOLDER / f"{node}.jpg", quality=80)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
