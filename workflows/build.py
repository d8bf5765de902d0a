"""python3 -m workflows.build : writes every example graph, for the frontend (workflows/) and for the API (workflows/api/)."""

import json
from pathlib import Path

from .graph import ENCODER, ENCODERS, FLOW, HUB, KLEIN, KV, VAE, Graph, Link, out

HERE = Path(__file__).resolve().parent


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


def edited(
    name: str, title: str, text: str, settings: str, mode: str, others: int = 0, denoise: float = 1.0, back=(), **edit
) -> Graph:
    """A picture changed by Klein Edit and brought back; with a mask, but in mode edit and outpaint, and other pictures."""
    graph = Graph(f"klein_9b_{name}", title, note(title, FLOW, settings))
    model, clip, vae = (graph.add(kind) for kind in ("KleinFlowLoader", "KleinQwen3EncoderLoader", "KleinVAELoader"))
    source, *images = [graph.add("LoadImage") for _ in range(1 + others)]
    prompt = graph.add("KleinPrompt", clip=out(graph, clip), text=text)
    given = {f"image_{i}": out(graph, image) for i, image in enumerate(images, start=2)}
    if mode in ("repaint", "replace"):
        given["mask"] = out(graph, source, 1)
    edit = graph.add(
        "KleinEdit", positive=out(graph, prompt), vae=out(graph, vae), image=out(graph, source), mode=mode, **edit, **given
    )
    sampler = graph.add(
        "KleinDistilledSampler", model=out(graph, model), positive=out(graph, edit), latent_image=out(graph, edit, 2),
        denoise=denoise,
    )  # fmt: skip
    image = graph.add("VAEDecode", samples=out(graph, sampler), vae=out(graph, vae))
    image = graph.add("KleinCanvasRestore", image=out(graph, image), canvas=out(graph, edit, 3), **dict(back))
    graph.add("SaveImage", images=out(graph, image))
    return graph


PAINT = "Right-click the picture, *Open in MaskEditor*, and paint what shall change; all else stays as it is, bit for bit. "
REMOVE = "Remove what is in the middle of the picture. Continue the background as if it had never been there."


def edits() -> list[Graph]:
    return [
        edited(
            "edit", "edit a picture", "Make it winter: snow on everything, soft grey light.",
            "The whole picture is changed as the text says. *keep* unchanged finds what did change and takes all else from the "
            "source; *colour* match undoes drift of colour.", "edit", back={"colour": "match", "keep": "unchanged"},
        ),
        edited(
            "repaint", "repaint under a mask with a reference", "The subject of image 2 stands in image 1.",
            PAINT + "*image 1* is the region about the mask, *image 2* the second picture.", "repaint", 1,
        ),
        edited(
            "replace", "replace under a mask", "The subject of image 1.",
            PAINT + "What was there is not shown to the model, so that it does not come back: *image 1* is the second picture.",
            "replace", 1,
        ),
        edited(
            "outpaint", "outpaint", "Continue image 1 beyond its edges.",
            "*left*, *top*, *right* and *bottom* of Klein Edit say how many pixels are added; *image 1* is the picture. ",
            "outpaint", left=256, right=256, context=-1.0,
        ),
        edited("remove", "remove under a mask", REMOVE, PAINT + "The text needs no change.", "repaint", back={"blend": "seamless"}),
        edited(
            "detail", "detail under a mask", "Image 1 with fine, sharp detail.",
            PAINT + "The region is painted again at more tokens: it is enlarged to a quarter of a megapixel, or more with more "
            "*context*. *denoise* of the sampler: 0.75 keeps the shapes, 0.5 more of them.", "repaint", denoise=0.75, context=0.25,
        ),
    ]  # fmt: skip


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
        *edits(),
    ]  # fmt: skip


def text_of(data: dict) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Path -> text of all example graphs."""
    written = {}
    for graph in graphs():
        written[HERE / f"{graph.name}.json"] = text_of(graph.frontend())
        written[HERE / f"api/{graph.name}.json"] = text_of(graph.api())
    return written


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(HERE))
