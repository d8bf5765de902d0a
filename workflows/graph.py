"""Graphs of nodes: built once, written for the API and for the frontend. The templates, the tests and whoever queues a run
build theirs with it, so that a node's inputs and defaults stand in one table."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

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
    with their defaults, column (of STEPS), size, and the folder of the model files that its first widget names."""

    links: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    widgets: dict
    column: int
    size: tuple[int, int]
    folder: str = ""


NODE_TYPES = {
    "KleinFlowLoader": NodeType([], [("MODEL", "MODEL")], {"flow_name": FLOW, "weight_dtype": "default", "variant": "auto"}, 0, (400, 130), "diffusion_models"),
    "KleinReferenceCache": NodeType([("model", "MODEL")], [("MODEL", "MODEL"), ("report", "STRING")], {"mode": "across_runs", "device": "gpu", "dtype": "model"}, 3, (320, 190)),
    "KleinQwen3EncoderLoader": NodeType([], [("CLIP", "CLIP")], {"encoder_name": ENCODER, "device": "default"}, 0, (400, 110), "text_encoders"),
    "KleinVAELoader": NodeType([], [("VAE", "VAE")], {"vae_name": VAE}, 0, (400, 80), "vae"),
    "KleinLoraLoader": NodeType([("model", "MODEL"), ("clip?", "CLIP")], [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("report", "STRING")], {"lora_name": "lora.safetensors", "strength": 1.0, "clip_strength": 1.0}, 0, (400, 240), "loras"),
    "KleinPrompt": NodeType([("clip", "CLIP")], [("CONDITIONING", "CONDITIONING"), ("report", "STRING")], {"text": ""}, 2, (400, 240)),
    "EmptyFlux2LatentImage": NodeType([], [("LATENT", "LATENT")], {"width": 1024, "height": 1024, "batch_size": 1}, 2, (400, 130)),
    "LoadImage": NodeType([], [("IMAGE", "IMAGE"), ("MASK", "MASK")], {"image": "example.png"}, 1, (280, 310)),
    "KleinExamplePicture": NodeType([], [("IMAGE", "IMAGE"), ("MASK", "MASK")], {"picture": "red_circle"}, 1, (280, 80)),
    "LoadImageMask": NodeType([], [("MASK", "MASK")], {"image": "example.png", "channel": "alpha"}, 1, (280, 310)),
    "MaskToImage": NodeType([("mask", "MASK")], [("IMAGE", "IMAGE")], {}, 4, (280, 60)),
    "InvertMask": NodeType([("mask", "MASK")], [("MASK", "MASK")], {}, 1, (280, 60)),
    "SolidMask": NodeType([], [("MASK", "MASK")], {"value": 0.0, "width": 64, "height": 64}, 1, (280, 130)),
    "MaskComposite": NodeType(
        [("destination", "MASK"), ("source", "MASK")], [("MASK", "MASK")], {"x": 0, "y": 0, "operation": "add"}, 1, (280, 150)
    ),
    "KleinReference": NodeType(
        [("image", "IMAGE"), ("references?", "KLEIN_REFERENCES"), ("mask?", "MASK")], [("references", "KLEIN_REFERENCES")],
        {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}, 1, (400, 170),
    ),
    "KleinMultiReference": NodeType(
        [("positive", "CONDITIONING"), ("vae", "VAE"), ("negative?", "CONDITIONING"), *((f"image_{i}?", "IMAGE") for i in range(1, 5)), ("references?", "KLEIN_REFERENCES")],
        [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT"), ("canvas", "KLEIN_CANVAS"), ("report", "STRING")],
        {"sizing": "exact", "max_megapixels": 1.0, "width": 0, "height": 0, "batch_size": 1}, 2, (400, 420),
    ),
    "KleinDistilledSampler": NodeType(
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("latent_image", "LATENT"), ("negative?", "CONDITIONING"), ("sigmas?", "SIGMAS")],
        [("LATENT", "LATENT"), ("report", "STRING")], {"seed": 0, "steps": 4, "cfg": 1.0, "denoise": 1.0, "schedule": "official"}, 3, (320, 300),
    ),
    "KleinSchedule": NodeType(
        [("latent?", "LATENT")], [("SIGMAS", "SIGMAS")],
        {"steps": 4, "schedule": "official", "denoise": 1.0, "width": 1024, "height": 1024}, 3, (320, 200),
    ),
    "KleinPreflight": NodeType(
        [("model?", "MODEL"), ("clip?", "CLIP"), ("vae?", "VAE"), ("positive?", "CONDITIONING"), ("latent_image?", "LATENT"), ("references?", "KLEIN_REFERENCES")],
        [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"), ("positive", "CONDITIONING"), ("latent_image", "LATENT"), ("references", "KLEIN_REFERENCES"), ("steps", "INT"), ("cfg", "FLOAT"), ("report", "STRING")],
        {"steps": 4, "cfg": 1.0}, 2, (420, 460),
    ),
    "KleinEdit": NodeType(
        [("positive", "CONDITIONING"), ("vae", "VAE"), ("image", "IMAGE"), ("mask?", "MASK"), ("negative?", "CONDITIONING"), *((f"image_{i}?", "IMAGE") for i in range(2, 5)), ("references?", "KLEIN_REFERENCES")],
        [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT"), ("canvas", "KLEIN_CANVAS"), ("report", "STRING")],
        {"mode": "edit", "context": 0.5, "grow": 16, "feather": 16, "max_megapixels": 1.0, "left": 0, "top": 0, "right": 0, "bottom": 0, "batch_size": 1}, 2, (400, 560),
    ),
    "KleinCanvasRestore": NodeType(
        [("image", "IMAGE"), ("canvas", "KLEIN_CANVAS")], [("IMAGE", "IMAGE"), ("changed", "MASK"), ("report", "STRING")],
        {"blend": "feather", "colour": "off", "keep": "off"}, 3, (320, 300),
    ),
    "VAEEncode": NodeType([("pixels", "IMAGE"), ("vae", "VAE")], [("LATENT", "LATENT")], {}, 3, (320, 60)),
    "ReferenceLatent": NodeType([("conditioning", "CONDITIONING"), ("latent?", "LATENT")], [("CONDITIONING", "CONDITIONING")], {}, 2, (320, 60)),
    "VAEDecode": NodeType([("samples", "LATENT"), ("vae", "VAE")], [("IMAGE", "IMAGE")], {}, 3, (320, 60)),
    "ImageScaleBy": NodeType([("image", "IMAGE")], [("IMAGE", "IMAGE")], {"upscale_method": "nearest-exact", "scale_by": 8.0}, 3, (320, 90)),
    "PreviewImage": NodeType([("images", "IMAGE")], [], {}, 4, (420, 300)),
    "SaveImage": NodeType([("images", "IMAGE")], [], {"filename_prefix": "klein"}, 4, (420, 460)),
}  # fmt: skip
STEPS = ("Models", "Pictures", "Prompt", "Sample", "Result")  # of the columns, from left to right
APART, TITLE = 80, 40  # pixels between columns, and of a node's own title with a gap
ASKED = {  # in the linear form that newer hosts show as an app: widgets of these nodes, and the pictures saved
    "KleinPrompt": ("text",), "LoadImage": ("image",), "KleinExamplePicture": ("picture",), "KleinDistilledSampler": ("seed",),
    "EmptyFlux2LatentImage": ("width", "height"),
}  # fmt: skip
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
        nodes, groups, left, lowest = [], [], 40, 0
        for column, step in enumerate(STEPS):
            inside = [node for node in self.nodes if NODE_TYPES[node[1]].column == column]
            if not inside:
                continue
            first, tall = left, 0
            width = max(NODE_TYPES[kind].size[0] for _, kind, _ in inside)
            across = 2 if step == "Pictures" and len(inside) > 3 else 1
            for part in range(across):
                top = 60 + TITLE
                for number, kind, values in inside[part::across]:
                    nodes.append(self._node(number, kind, values, [left, top], width))
                    top += NODE_TYPES[kind].size[1] + TITLE + 20
                left, tall = left + width + (20 if part + 1 < across else APART), max(tall, top)
            bounding = [first - 20, 20, left - APART - first + 40, tall - 50]
            groups.append({"title": step, "bounding": bounding, "color": "#3f789e", "font_size": 24, "flags": {}})
            lowest = max(lowest, tall)
        nodes.sort(key=lambda node: node["id"])
        if self.note:
            nodes.append({
                "id": len(nodes) + 1, "type": "MarkdownNote", "pos": [20, lowest + TITLE], "size": [780, 400], "flags": {},
                "order": len(nodes), "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [self.note],
                "color": "#432", "bgcolor": "#653", "title": "Files, licence, settings",
            })  # fmt: skip
        links = []
        for number, (link, target, name) in enumerate(self.links, start=1):
            links.append([number, link.node, link.output, target, self._slot(target, name), link.type])
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)), "revision": 0, "last_node_id": len(nodes),
            "last_link_id": len(links), "nodes": nodes, "links": links, "groups": groups, "config": {},
            "extra": {"linearData": self._linear()}, "version": 0.4,
        }  # fmt: skip

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
