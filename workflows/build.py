"""python3 workflows/build.py : writes every example graph, for the canvas (workflows/) and for the API (workflows/api/)."""

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
HUB = "https://huggingface.co"
KLEIN, ENCODERS = f"{HUB}/black-forest-labs/FLUX.2-klein", f"{HUB}/Comfy-Org/flux2-klein"
FLOW, KV, ENCODER, VAE = (
    "flux-2-klein-9b-fp8.safetensors",
    "flux-2-klein-9b-kv-fp8.safetensors",
    "qwen_3_8b_fp8mixed.safetensors",
    "flux2-vae.safetensors",
)
URLS = {
    FLOW: f"{KLEIN}-9b-fp8/resolve/main/{FLOW}",
    KV: f"{KLEIN}-9b-kv-fp8/resolve/main/{KV}",
    ENCODER: f"{ENCODERS}-9B/resolve/main/split_files/text_encoders/{ENCODER}",
    VAE: f"{HUB}/Comfy-Org/flux2-dev/resolve/main/split_files/vae/{VAE}",
}


@dataclass
class Kind:
    """A node class as the canvas shows it: link inputs (name, type; a name that ends in ? may stay empty), outputs, widgets
    with their defaults, column, size, and the folder of the model files that its first widget names."""

    links: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    widgets: dict
    column: int
    size: tuple[int, int]
    folder: str = ""


KINDS = {
    "KleinFlowLoader": Kind([], [("MODEL", "MODEL")], {"flow_name": FLOW, "weight_dtype": "default", "variant": "auto"}, 0, (400, 130), "diffusion_models"),
    "KleinReferenceCache": Kind([("model", "MODEL")], [("MODEL", "MODEL"), ("report", "STRING")], {"mode": "across_runs", "device": "gpu", "dtype": "model"}, 2, (320, 190)),
    "KleinQwen3EncoderLoader": Kind([], [("CLIP", "CLIP")], {"encoder_name": ENCODER, "device": "default"}, 0, (400, 110), "text_encoders"),
    "KleinVAELoader": Kind([], [("VAE", "VAE")], {"vae_name": VAE}, 0, (400, 80), "vae"),
    "KleinPrompt": Kind([("clip", "CLIP")], [("CONDITIONING", "CONDITIONING"), ("report", "STRING")], {"text": ""}, 1, (400, 240)),
    "EmptyFlux2LatentImage": Kind([], [("LATENT", "LATENT")], {"width": 1024, "height": 1024, "batch_size": 1}, 1, (400, 130)),
    "LoadImage": Kind([], [("IMAGE", "IMAGE"), ("MASK", "MASK")], {"image": "example.png"}, 4, (280, 310)),
    "SolidMask": Kind([], [("MASK", "MASK")], {"value": 0.0, "width": 64, "height": 64}, 4, (280, 130)),
    "MaskComposite": Kind(
        [("destination", "MASK"), ("source", "MASK")], [("MASK", "MASK")], {"x": 0, "y": 0, "operation": "add"}, 4, (280, 150)
    ),
    "KleinReference": Kind(
        [("image", "IMAGE"), ("references?", "KLEIN_REFERENCES"), ("mask?", "MASK")], [("references", "KLEIN_REFERENCES")],
        {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}, 1, (400, 170),
    ),
    "KleinMultiReference": Kind(
        [("positive", "CONDITIONING"), ("vae", "VAE"), ("negative?", "CONDITIONING"), *((f"image_{i}?", "IMAGE") for i in range(1, 5)), ("references?", "KLEIN_REFERENCES")],
        [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT"), ("canvas", "KLEIN_CANVAS"), ("report", "STRING")],
        {"sizing": "exact", "max_megapixels": 1.0, "width": 0, "height": 0, "batch_size": 1}, 1, (400, 420),
    ),
    "KleinDistilledSampler": Kind(
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("latent_image", "LATENT"), ("negative?", "CONDITIONING"), ("sigmas?", "SIGMAS")],
        [("LATENT", "LATENT")], {"seed": 0, "steps": 4, "cfg": 1.0, "denoise": 1.0, "schedule": "official"}, 2, (320, 300),
    ),
    "VAEDecode": Kind([("samples", "LATENT"), ("vae", "VAE")], [("IMAGE", "IMAGE")], {}, 2, (320, 60)),
    "ImageScaleBy": Kind([("image", "IMAGE")], [("IMAGE", "IMAGE")], {"upscale_method": "nearest-exact", "scale_by": 8.0}, 2, (320, 90)),
    "PreviewImage": Kind([("images", "IMAGE")], [], {}, 3, (420, 300)),
    "SaveImage": Kind([("images", "IMAGE")], [], {"filename_prefix": "klein"}, 3, (420, 460)),
}  # fmt: skip
COLUMNS = (40, 480, 920, 1280, -280)  # left edges
BESIDE = {"seed": ["randomize"], "image": ["image"]}  # what the canvas keeps after a widget's value


@dataclass
class Graph:
    """Nodes in the order of `add`; `links` are (source node, output, target node, input)."""

    name: str
    title: str
    note: str = ""
    nodes: list = field(default_factory=list)
    links: list = field(default_factory=list)
    fixed: list = field(default_factory=list)  # samplers that keep their seed from run to run

    def add(self, kind: str, **inputs) -> str:
        """A node; inputs are values of widgets, or outputs of other nodes as `out` gives them. Returns its number."""
        number = len(self.nodes) + 1
        values = {**KINDS[kind].widgets, **{name: value for name, value in inputs.items() if not isinstance(value, Link)}}
        names = [name.removesuffix("?") for name, _ in KINDS[kind].links]
        for name in names:
            if name in inputs:
                self.links.append((inputs[name], number, name))
        self.nodes.append((number, kind, values))
        return number

    def api(self) -> dict:
        out = {str(number): {"class_type": kind, "inputs": dict(values)} for number, kind, values in self.nodes}
        for link, target, name in self.links:
            out[str(target)]["inputs"][name] = [str(link.node), link.output]
        return out

    def canvas(self) -> dict:
        tops = dict.fromkeys(range(len(COLUMNS)), 60)
        nodes = []
        for number, kind, values in self.nodes:
            nodes.append(self._node(number, kind, values, tops))
        if self.note:
            place = [COLUMNS[2], max(tops[2], tops[3]) + 40]
            nodes.append({
                "id": len(nodes) + 1, "type": "MarkdownNote", "pos": place, "size": [780, 400], "flags": {}, "order": len(nodes),
                "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [self.note],
                "color": "#432", "bgcolor": "#653", "title": "Files, licence, settings",
            })  # fmt: skip
        links = []
        for number, (link, target, name) in enumerate(self.links, start=1):
            links.append([number, link.node, link.output, target, self._slot(target, name), link.kind])
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)), "revision": 0, "last_node_id": len(nodes),
            "last_link_id": len(links), "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip

    def _slot(self, number: int, name: str) -> int:
        kind = self.nodes[number - 1][1]
        return [each.removesuffix("?") for each, _ in KINDS[kind].links].index(name)

    def _node(self, number: int, kind: str, values: dict, tops: dict) -> dict:
        look = KINDS[kind]
        place = [COLUMNS[look.column], tops[look.column]]
        tops[look.column] += look.size[1] + 50
        incoming = {name: i for i, (_, target, name) in enumerate(self.links, start=1) if target == number}
        inputs = []
        for name, type_ in look.links:
            bare = name.removesuffix("?")
            inputs.append({"name": bare, "type": type_, "link": incoming.get(bare), **({"shape": 7} if bare != name else {})})
        outputs = []
        for slot, (name, type_) in enumerate(look.outputs):
            leaving = [i for i, (link, _, _) in enumerate(self.links, start=1) if (link.node, link.output) == (number, slot)]
            outputs.append({"name": name, "type": type_, "links": leaving})
        properties = {"Node name for S&R": kind}
        first = next(iter(values.values()), None)
        if look.folder and first in URLS:
            properties["models"] = [{"name": first, "url": URLS[first], "directory": look.folder}]
        beside = BESIDE | ({"seed": ["fixed"]} if number in self.fixed else {})
        widgets = [part for name, value in values.items() for part in (value, *beside.get(name, ()))]
        return {
            "id": number, "type": kind, "pos": place, "size": list(look.size), "flags": {}, "order": number - 1, "mode": 0,
            "inputs": inputs, "outputs": outputs, "properties": properties, "widgets_values": widgets,
        }  # fmt: skip


@dataclass(frozen=True)
class Link:
    node: int
    output: int
    kind: str


def out(graph: Graph, node: int, output: int = 0) -> Link:
    return Link(node, output, KINDS[graph.nodes[node - 1][1]].outputs[output][1])


def note(title: str, flow: str, settings: str) -> str:
    page = f"{KLEIN}-9b-kv-fp8" if flow == KV else f"{KLEIN}-9b-fp8"
    else_changes = "set Klein Reference Cache to off, as 4B is not trained for it" if flow == KV else "nothing else changes"
    return f"""# FLUX.2 [klein] 9B: {title}

**Put the files here**

| file | folder |
|---|---|
| [{flow}]({page}) | `models/diffusion_models` |
| [{ENCODER}]({ENCODERS}-9B/tree/main/split_files/text_encoders) | `models/text_encoders` |
| [{VAE}]({HUB}/Comfy-Org/flux2-dev/tree/main/split_files/vae) | `models/vae` |

**Licence and download.** klein **9B** is under the FLUX Non-Commercial License, and its download is gated: log in to Hugging Face, accept the licence on the model's page, then download. klein **4B** ([flux-2-klein-4b-fp8.safetensors]({KLEIN}-4b-fp8) with [qwen_3_4b.safetensors]({ENCODERS}-4B/tree/main/split_files/text_encoders)) is Apache 2.0, free for any use: choose its two files in the loaders, {else_changes}.

**Settings.** {settings}"""


BASE = "klein wants 4 steps and cfg 1. klein *base* wants 20 to 50 steps, cfg 4 to 5, and an empty Klein Prompt wired to *negative*."
NUMBERED = "The prompt calls the pictures *image 1*, *image 2*, ... in the order of the sockets. The image has the size of image 1, unless width and height say otherwise."


def text_to_image() -> Graph:
    graph = Graph("klein_9b_text_to_image", "text to image", note("text to image", FLOW, BASE))
    model, clip, vae = (graph.add(kind) for kind in ("KleinFlowLoader", "KleinQwen3EncoderLoader", "KleinVAELoader"))
    text = "A red fox asleep on a mossy stone in morning fog, soft light, 85 mm photograph."
    prompt = graph.add("KleinPrompt", clip=out(graph, clip), text=text)
    latent = graph.add("EmptyFlux2LatentImage")
    finish(graph, out(graph, model), out(graph, prompt), out(graph, latent), vae)
    return graph


def finish(graph: Graph, model: Link, positive: Link, latent: Link, vae: int) -> None:
    sampler = graph.add("KleinDistilledSampler", model=model, positive=positive, latent_image=latent)
    image = graph.add("VAEDecode", samples=out(graph, sampler), vae=out(graph, vae))
    graph.add("SaveImage", images=out(graph, image))


def references(name: str, title: str, text: str, count: int, flow: str = FLOW, settings: str = NUMBERED, masked=False) -> Graph:
    graph = Graph(name, title, note(title, flow, settings))
    model = graph.add("KleinFlowLoader", flow_name=flow)
    clip, vae = (graph.add(kind) for kind in ("KleinQwen3EncoderLoader", "KleinVAELoader"))
    images = [graph.add("LoadImage") for _ in range(count)]
    prompt = graph.add("KleinPrompt", clip=out(graph, clip), text=text)
    if masked:
        chain = graph.add("KleinReference", image=out(graph, images[0]), mask=out(graph, images[0], 1))
        given = {"references": out(graph, chain)}
    else:
        given = {f"image_{i}": out(graph, image) for i, image in enumerate(images, start=1)}
    combined = graph.add("KleinMultiReference", positive=out(graph, prompt), vae=out(graph, vae), **given)
    if flow == KV:
        model = graph.add("KleinReferenceCache", model=out(graph, model))
    finish(graph, out(graph, model), out(graph, combined), out(graph, combined, 2), vae)
    return graph


def tiny(name: str, title: str, text: str, *pictures: str, cached: bool = False, masked: bool = False) -> Graph:
    """The pack's own small model; it paints the reference pictures too, each of its prompt, the same at each run. masked:
    the left half of the first is kept."""
    graph = Graph(f"klein_tiny_{name}", title, TINY_NOTE)
    model = graph.add("KleinFlowLoader", flow_name="klein-tiny.safetensors")
    clip = graph.add("KleinQwen3EncoderLoader", encoder_name="klein-tiny")
    vae = graph.add("KleinVAELoader", vae_name="klein-tiny-vae.safetensors")
    empty = graph.add("EmptyFlux2LatentImage", width=64, height=64)

    def paint(text: str, given: dict, model: Link) -> tuple[int, Link]:
        positive, latent = out(graph, graph.add("KleinPrompt", clip=out(graph, clip), text=text)), out(graph, empty)
        if given:
            both = graph.add("KleinMultiReference", positive=positive, vae=out(graph, vae), **given)
            positive, latent = out(graph, both), out(graph, both, 2)
        sampler = graph.add("KleinDistilledSampler", model=model, positive=positive, latent_image=latent)
        return sampler, out(graph, graph.add("VAEDecode", samples=out(graph, sampler), vae=out(graph, vae)))

    painted = [paint(each, {}, out(graph, model)) for each in pictures]
    graph.fixed = [sampler for sampler, _ in painted]
    given = {f"image_{i}": image for i, (_, image) in enumerate(painted, start=1)}
    for image in given.values():
        graph.add("PreviewImage", images=image)
    if masked:
        nothing, left = graph.add("SolidMask"), graph.add("SolidMask", value=1.0, width=32)
        mask = graph.add("MaskComposite", destination=out(graph, nothing), source=out(graph, left))
        chain = graph.add("KleinReference", image=given["image_1"], mask=out(graph, mask))
        given = {"references": out(graph, chain)}
    if cached:
        model = graph.add("KleinReferenceCache", model=out(graph, model))
    _, image = paint(text, given, out(graph, model))
    larger = graph.add("ImageScaleBy", image=image)
    graph.add("SaveImage", images=out(graph, larger), filename_prefix="klein_tiny")
    return graph


TINY_NOTE = """# klein-tiny: a small model that comes with the pack

It runs at once, on a CPU too, and shows what the nodes do: it has klein's structure and file formats, and paints one or two plain shapes at 64x64. It knows eight colours (red, green, blue, yellow, purple, cyan, white, black), circles, squares, triangles and crosses, small and large, five places, and *left of*, *right of*, *above*, *below*; of references: *the shape of image 1 in the color of image 2*, *the object of image 1 on the background of image 2*, *image 1 but green*, *image 1 on a red background*.

There is nothing to download, and its licence is the pack's, Apache 2.0. It is not FLUX.2 [klein]: for that open the graphs named klein_9b."""


MORE = "a small green square on a black background, at the top", "a large white triangle on purple, on the right"
PAIR = "a blue circle left of a red square, on a white background"


def graphs() -> list[Graph]:
    red, blue = "a large red circle on a white background, in the center", "a small blue cross on yellow, at the left"
    return [
        tiny("text_to_image", "tiny: text to image", red),
        tiny("one_reference", "tiny: one reference", "image 1 but green", red),
        tiny("two_references", "tiny: two references", "the object of image 1 on the background of image 2", red, blue),
        tiny("four_references", "tiny: four references", "the object of image 1 on the background of image 2", red, blue, *MORE),
        tiny("kv_two_references", "tiny: references kept", "the shape of image 2 in the color of image 1", red, blue, cached=True),
        tiny("masked_reference", "tiny: a masked reference", "image 1 but yellow", PAIR, masked=True),
        text_to_image(),
        references("klein_9b_one_reference", "one reference", "Turn this into a watercolour painting.", 1),
        references(
            "klein_9b_two_references", "two references", "The subject of image 1 in the style and colours of image 2.", 2
        ),
        references(
            "klein_9b_four_references", "four references",
            "The subject of image 1 beside the subject of image 2, in the place of image 3, in the style of image 4.", 4,
        ),
        references(
            "klein_9b_kv_two_references", "references kept from run to run (K/V)",
            "The subject of image 1 in the style and colours of image 2.", 2, KV,
            "klein 9B **KV** is trained to compute its references once. *across_runs* keeps them for the next prompt and seed too; "
            "they take 2.1 GB a megapixel on the GPU, or of main memory with *device* cpu. " + NUMBERED,
        ),
        references(
            "klein_9b_masked_reference", "a masked reference", "The subject of image 1 on a sandy beach.", 1, FLOW,
            "Right-click the picture, *Open in MaskEditor*, and paint what shall be seen: only those parts enter the model. Without "
            "a mask the reference is left out, and the report says so.", masked=True,
        ),
    ]  # fmt: skip


def text_of(data: dict) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Path -> text of all example graphs."""
    written = {}
    for graph in graphs():
        written[HERE / f"{graph.name}.json"] = text_of(graph.canvas())
        written[HERE / f"api/{graph.name}.json"] = text_of(graph.api())
    return written


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(HERE))
