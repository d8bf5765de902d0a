"""Graphs of nodes: built once, written for the API and for the frontend. The templates, the tests and whoever queues a run
build theirs with it, so that a node's inputs and defaults stand in one table."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from .layout import Box, Layout, Wire, laid_out

HUB = "https://huggingface.co"
KLEIN, ENCODERS = f"{HUB}/black-forest-labs/FLUX.2-klein", f"{HUB}/Comfy-Org/flux2-klein"
FLOW, KV, ENCODER, VAE = (
    "flux-2-klein-9b-fp8.safetensors",
    "flux-2-klein-9b-kv-fp8.safetensors",
    "qwen_3_8b_fp8mixed.safetensors",
    "flux2-vae.safetensors",
)
BASE, FLOW_4B, ENCODER_4B = "flux-2-klein-base-9b-fp8.safetensors", "flux-2-klein-4b-fp8.safetensors", "qwen_3_4b.safetensors"
PAGES = {  # file -> the page that it is downloaded from
    FLOW: f"{KLEIN}-9b-fp8",
    KV: f"{KLEIN}-9b-kv-fp8",
    BASE: f"{KLEIN}-base-9b-fp8",
    FLOW_4B: f"{KLEIN}-4b-fp8",
    ENCODER: f"{ENCODERS}-9B",
    ENCODER_4B: f"{ENCODERS}-4B",
    VAE: f"{HUB}/Comfy-Org/flux2-dev",
}
INSIDE = {ENCODER: "split_files/text_encoders/", ENCODER_4B: "split_files/text_encoders/", VAE: "split_files/vae/"}
URLS = {file: f"{page}/resolve/main/{INSIDE.get(file, '')}{file}" for file, page in PAGES.items()}


@dataclass
class NodeType:
    """A node class as the frontend shows it: link inputs (name, type; a name that ends in ? may stay empty), outputs, widgets
    with their defaults, step (of the columns in layout.py), size, and the folder of the model files that its first widget names."""

    links: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    widgets: dict
    step: str
    size: tuple[int, int]
    folder: str = ""


NODE_TYPES = {
    "KleinFlowLoader": NodeType([], [("MODEL", "MODEL")], {"flow_name": FLOW, "weight_dtype": "default", "variant": "auto"}, "Models", (360, 130), "diffusion_models"),
    "KleinReferenceCache": NodeType([("model", "MODEL")], [("MODEL", "MODEL"), ("report", "STRING")], {"mode": "across_runs", "device": "gpu", "dtype": "model"}, "Sample", (290, 250)),
    "KleinQwen3EncoderLoader": NodeType([], [("CLIP", "CLIP")], {"encoder_name": ENCODER, "device": "default"}, "Models", (360, 110), "text_encoders"),
    "KleinVAELoader": NodeType([], [("VAE", "VAE")], {"vae_name": VAE}, "Models", (360, 80), "vae"),
    "KleinLoraLoader": NodeType([("model", "MODEL"), ("clip?", "CLIP")], [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("report", "STRING")], {"lora_name": "lora.safetensors", "strength": 1.0, "clip_strength": 1.0}, "Models", (360, 240), "loras"),
    "KleinPrompt": NodeType([("clip", "CLIP")], [("CONDITIONING", "CONDITIONING"), ("report", "STRING")], {"text": ""}, "Prompt", (360, 210)),
    "EmptyFlux2LatentImage": NodeType([], [("LATENT", "LATENT")], {"width": 1024, "height": 1024, "batch_size": 1}, "Prompt", (360, 130)),
    "LoadImage": NodeType([], [("IMAGE", "IMAGE"), ("MASK", "MASK")], {"image": "example.png"}, "Pictures", (260, 314)),
    "KleinExamplePicture": NodeType([], [("IMAGE", "IMAGE"), ("MASK", "MASK")], {"picture": "red_circle"}, "Pictures", (280, 252)),
    "LoadImageMask": NodeType([], [("MASK", "MASK")], {"image": "example.png", "channel": "alpha"}, "Pictures", (280, 318)),
    "MaskToImage": NodeType([("mask", "MASK")], [("IMAGE", "IMAGE")], {}, "Result", (360, 60)),
    "InvertMask": NodeType([("mask", "MASK")], [("MASK", "MASK")], {}, "Pictures", (280, 60)),
    "SolidMask": NodeType([], [("MASK", "MASK")], {"value": 0.0, "width": 64, "height": 64}, "Pictures", (280, 130)),
    "MaskComposite": NodeType(
        [("destination", "MASK"), ("source", "MASK")], [("MASK", "MASK")], {"x": 0, "y": 0, "operation": "add"}, "Pictures", (280, 150)
    ),
    "KleinReference": NodeType(
        [("image", "IMAGE"), ("references?", "KLEIN_REFERENCES"), ("mask?", "MASK")], [("references", "KLEIN_REFERENCES")],
        {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}, "Canvas", (360, 170),
    ),
    "KleinMultiReference": NodeType(
        [("positive", "CONDITIONING"), ("vae", "VAE"), ("negative?", "CONDITIONING"), *((f"image_{i}?", "IMAGE") for i in range(1, 5)), ("references?", "KLEIN_REFERENCES")],
        [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT"), ("canvas", "KLEIN_CANVAS"), ("report", "STRING")],
        {"sizing": "exact", "max_megapixels": 1.0, "width": 0, "height": 0, "batch_size": 1}, "Canvas", (360, 420),
    ),
    "KleinDistilledSampler": NodeType(
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("latent_image", "LATENT"), ("negative?", "CONDITIONING"), ("sigmas?", "SIGMAS")],
        [("LATENT", "LATENT"), ("report", "STRING")], {"seed": 0, "steps": 4, "cfg": 1.0, "denoise": 1.0, "schedule": "official"}, "Sample", (290, 320),
    ),
    "KleinSchedule": NodeType(
        [("latent?", "LATENT")], [("SIGMAS", "SIGMAS")],
        {"steps": 4, "schedule": "official", "denoise": 1.0, "width": 1024, "height": 1024}, "Sample", (290, 200),
    ),
    "KleinPreflight": NodeType(
        [("model?", "MODEL"), ("clip?", "CLIP"), ("vae?", "VAE"), ("positive?", "CONDITIONING"), ("latent_image?", "LATENT"), ("references?", "KLEIN_REFERENCES")],
        [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"), ("positive", "CONDITIONING"), ("latent_image", "LATENT"), ("references", "KLEIN_REFERENCES"), ("steps", "INT"), ("cfg", "FLOAT"), ("report", "STRING")],
        {"steps": 4, "cfg": 1.0, "text": ""}, "Canvas", (360, 500),
    ),
    "KleinEdit": NodeType(
        [("positive", "CONDITIONING"), ("vae", "VAE"), ("image", "IMAGE"), ("mask?", "MASK"), ("negative?", "CONDITIONING"), *((f"image_{i}?", "IMAGE") for i in range(2, 5)), ("references?", "KLEIN_REFERENCES")],
        [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT"), ("canvas", "KLEIN_CANVAS"), ("report", "STRING")],
        {"mode": "edit", "context": 0.5, "grow": 16, "feather": 16, "max_megapixels": 1.0, "left": 0, "top": 0, "right": 0, "bottom": 0, "batch_size": 1}, "Canvas", (360, 560),
    ),
    "KleinCanvasRestore": NodeType(
        [("image", "IMAGE"), ("canvas", "KLEIN_CANVAS")], [("IMAGE", "IMAGE"), ("changed", "MASK"), ("report", "STRING")],
        {"blend": "feather", "colour": "off", "keep": "off"}, "Result", (360, 300),
    ),
    "VAEEncode": NodeType([("pixels", "IMAGE"), ("vae", "VAE")], [("LATENT", "LATENT")], {}, "Canvas", (360, 60)),
    "ReferenceLatent": NodeType([("conditioning", "CONDITIONING"), ("latent?", "LATENT")], [("CONDITIONING", "CONDITIONING")], {}, "Canvas", (360, 60)),
    "VAEDecode": NodeType([("samples", "LATENT"), ("vae", "VAE")], [("IMAGE", "IMAGE")], {}, "Result", (360, 60)),
    "ImageScaleBy": NodeType([("image", "IMAGE")], [("IMAGE", "IMAGE")], {"upscale_method": "nearest-exact", "scale_by": 8.0}, "Result", (360, 90)),
    "PreviewImage": NodeType([("images", "IMAGE")], [], {}, "Result", (360, 300)),
    "SaveImage": NodeType([("images", "IMAGE")], [], {"filename_prefix": "klein"}, "Result", (360, 380)),
}  # fmt: skip
ASKED = {  # in the linear form that newer hosts show as an app: widgets of these nodes, and the pictures saved
    "KleinPrompt": ("text",), "LoadImage": ("image",), "KleinExamplePicture": ("picture",), "KleinDistilledSampler": ("seed",),
    "EmptyFlux2LatentImage": ("width", "height"),
}  # fmt: skip
RENDERER = (
    "Vue-corrected"  # places as they are meant in both node styles: else early Vue nodes spread a graph, but not its groups
)
BESIDE = {"seed": ["randomize"], "image": ["image"]}  # what the frontend keeps after a widget's value


@dataclass
class Graph:
    """Nodes in the order of `add`; `links` are (source node, output, target node, input)."""

    name: str
    title: str
    note: str = ""
    nodes: list = field(default_factory=list)
    links: list = field(default_factory=list)
    titles: dict = field(default_factory=dict)  # of nodes that have one of their own

    def add(self, class_type: str, title: str = "", **inputs) -> int:
        """A node; inputs are values of widgets, or outputs of other nodes as `out` gives them. Returns its number."""
        number = len(self.nodes) + 1
        values = {
            **NODE_TYPES[class_type].widgets,
            **{name: value for name, value in inputs.items() if not isinstance(value, Link)},
        }
        names = [name.removesuffix("?") for name, _ in NODE_TYPES[class_type].links]
        for name in names:
            if name in inputs:
                self.links.append((inputs[name], number, name))
        self.nodes.append((number, class_type, values))
        if title:
            self.titles[number] = title
        return number

    def put(self, class_type: str, output: int = 0, title: str = "", **inputs) -> Link:
        """A node of which one output is wanted: that."""
        return out(self, self.add(class_type, title, **inputs), output)

    def api(self) -> dict:
        out = {str(number): {"class_type": class_type, "inputs": dict(values)} for number, class_type, values in self.nodes}
        for link, target, name in self.links:
            out[str(target)]["inputs"][name] = [str(link.node), link.output]
        return out

    def frontend(self) -> dict:
        boxes = [Box(number, NODE_TYPES[kind].step, NODE_TYPES[kind].size) for number, kind, _ in self.nodes]
        wires = [Wire(link.node, link.output, target, self._slot(target, name), link.type) for link, target, name in self.links]
        layout = laid_out(boxes, wires)
        nodes = [
            self._node(number, kind, values, [*layout.places[number]], layout.widths[number])
            for number, kind, values in self.nodes
        ]
        groups = [
            {"title": step, "bounding": [*bounding], "color": "#3f789e", "font_size": 24, "flags": {}}
            for step, bounding in layout.groups
        ]
        if self.note:
            foot = max(y + tall for _, (_, y, _, tall) in layout.groups[:1])
            nodes.append({
                "id": len(nodes) + 1, "type": "MarkdownNote", "pos": [20, foot + 70], "size": [400, 480], "flags": {},
                "order": len(nodes), "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [self.note],
                "color": "#432", "bgcolor": "#653", "title": "Files, licence, settings",
            })  # fmt: skip
        links = [[i, wire.source, wire.output, wire.target, wire.input, wire.type] for i, wire in enumerate(wires, start=1)]
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)), "revision": 0, "last_node_id": len(nodes),
            "last_link_id": len(links), "nodes": nodes, "links": links, "groups": groups, "config": {},
            "extra": {"linearData": self._linear(), "workflowRendererVersion": RENDERER, **self._reroutes(layout)}, "version": 0.4,
        }  # fmt: skip

    def _reroutes(self, layout: Layout) -> dict:
        """Where the frontend keeps the points that wires run over, and which wire runs over which."""
        over = [
            (number, place, [i for i, (link, _, _) in enumerate(self.links, start=1) if link.node == source])
            for number, (source, place) in enumerate(layout.reroutes, start=1)
        ]
        if not over:
            return {}
        return {
            "reroutes": [{"id": number, "pos": [*place], "linkIds": wires} for number, place, wires in over],
            "linkExtensions": [{"id": wire, "parentId": number} for number, _, wires in over for wire in wires],
        }

    def _linear(self) -> dict:
        asked = [[number, name] for number, kind, _ in self.nodes for name in ASKED.get(kind, ())]
        return {"inputs": asked, "outputs": [number for number, kind, _ in self.nodes if kind == "SaveImage"]}

    def _slot(self, number: int, name: str) -> int:
        class_type = self.nodes[number - 1][1]
        return [each.removesuffix("?") for each, _ in NODE_TYPES[class_type].links].index(name)

    def _node(self, number: int, class_type: str, values: dict, place: list[int], width: int) -> dict:
        look = NODE_TYPES[class_type]
        incoming = {name: i for i, (_, target, name) in enumerate(self.links, start=1) if target == number}
        inputs = []
        for name, type_ in look.links:
            bare = name.removesuffix("?")
            inputs.append({"name": bare, "type": type_, "link": incoming.get(bare), **({"shape": 7} if bare != name else {})})
        outputs = []
        for slot, (name, type_) in enumerate(look.outputs):
            leaving = [i for i, (link, _, _) in enumerate(self.links, start=1) if (link.node, link.output) == (number, slot)]
            outputs.append({"name": name, "type": type_, "links": leaving})
        properties = {"Node name for S&R": class_type}
        first = next(iter(values.values()), None)
        if look.folder and first in URLS:
            properties["models"] = [{"name": first, "url": URLS[first], "directory": look.folder}]
        widgets = [part for name, value in values.items() for part in (value, *BESIDE.get(name, ()))]
        title = {"title": self.titles[number]} if number in self.titles else {}
        return {
            "id": number, "type": class_type, "pos": place, "size": [width, look.size[1]], "flags": {}, "order": number - 1, "mode": 0,
            "inputs": inputs, "outputs": outputs, "properties": properties, "widgets_values": widgets, **title,
        }  # fmt: skip


@dataclass(frozen=True)
class Link:
    """An output of a node of a graph, and the type of what leaves it."""

    node: int
    output: int
    type: str


def out(graph: Graph, node: int, output: int = 0) -> Link:
    return Link(node, output, NODE_TYPES[graph.nodes[node - 1][1]].outputs[output][1])


def api_node(class_type: str, **inputs) -> dict:
    """A node in API format, its inputs those given and the defaults of the table; values or [node, output]."""
    known = NODE_TYPES.get(class_type)
    return {"class_type": class_type, "inputs": {**(known.widgets if known else {}), **inputs}}
