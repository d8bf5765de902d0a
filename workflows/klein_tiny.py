"""The example graphs of klein-tiny, the small model that comes with the pack, on pictures that come with it too."""

from .graph import Graph, out

NOTE = """# klein-tiny: a small model that comes with the pack

It runs at once, on a CPU too, and shows what the nodes do: it has klein's structure and file formats, and paints one or two plain shapes at 64x64. It knows eight colours (red, green, blue, yellow, purple, cyan, white, black), circles, squares, triangles and crosses, small and large, five places, and *left of*, *right of*, *above*, *below*; of references: *the shape of image 1 in the color of image 2*, *the object of image 1 on the background of image 2*, *image 1 but green*, *image 1 on a red background*.

There is nothing to download, and its licence is the pack's, Apache 2.0. It is not FLUX.2 [klein]: for that open the graphs named klein_9b."""


def parts(name: str, title: str):
    """A graph, and in it the outputs of the three loaders: MODEL, CLIP, VAE."""
    graph = Graph(f"klein_tiny_{name}", title, NOTE)
    model = graph.put("KleinFlowLoader", flow_name="klein-tiny.safetensors")
    clip = graph.put("KleinQwen3EncoderLoader", encoder_name="klein-tiny")
    return graph, model, clip, graph.put("KleinVAELoader", vae_name="klein-tiny-vae.safetensors")


def save(graph: Graph, image) -> None:
    larger = graph.put("ImageScaleBy", image=image)
    graph.add("SaveImage", images=larger, filename_prefix="klein_tiny")


def tiny(name: str, title: str, text: str, *pictures: str, cached: bool = False, masked: bool = False) -> Graph:
    """Text to image, or references: the first with its mask turned over, where `masked`."""
    graph, model, clip, vae = parts(name, title)
    images = [graph.add("KleinExamplePicture", title=f"Image {i}", picture=each) for i, each in enumerate(pictures, start=1)]
    positive = graph.put("KleinPrompt", clip=clip, text=text)
    if masked:
        kept = graph.put("InvertMask", mask=out(graph, images[0], 1))
        given = {"references": graph.put("KleinReference", image=out(graph, images[0]), mask=kept)}
    else:
        given = {f"image_{i}": out(graph, image) for i, image in enumerate(images, start=1)}
    if given:
        both = graph.add("KleinMultiReference", positive=positive, vae=vae, **given)
        positive, latent = out(graph, both), out(graph, both, 2)
    else:
        latent = graph.put("EmptyFlux2LatentImage", width=64, height=64)
    if cached:
        model = graph.put("KleinReferenceCache", model=model)
    sampled = graph.put("KleinDistilledSampler", model=model, positive=positive, latent_image=latent)
    save(graph, graph.put("VAEDecode", samples=sampled, vae=vae))
    return graph


def edited(name: str, title: str, text: str, mode: str, *pictures: str, denoise: float = 1.0, back: dict = {}, **edit) -> Graph:
    """The first picture changed by Klein Edit, under its mask but in mode edit and outpaint, and brought back."""
    graph, model, clip, vae = parts(name, title)
    source, *others = [graph.add("KleinExamplePicture", title=f"Image {i}", picture=each) for i, each in enumerate(pictures, 1)]
    given = {f"image_{i}": out(graph, image) for i, image in enumerate(others, start=2)}
    if mode in ("repaint", "replace"):
        given["mask"] = out(graph, source, 1)
    edit = {"context": -1.0, "grow": 0, "feather": 2, "max_megapixels": 0.004, **edit}
    prompt = graph.put("KleinPrompt", clip=clip, text=text)
    edit = graph.add("KleinEdit", positive=prompt, vae=vae, image=out(graph, source), mode=mode, **edit, **given)
    sampled = graph.put(
        "KleinDistilledSampler", model=model, positive=out(graph, edit), latent_image=out(graph, edit, 2), denoise=denoise
    )
    image = graph.put("VAEDecode", samples=sampled, vae=vae)
    save(graph, graph.put("KleinCanvasRestore", image=image, canvas=out(graph, edit, 3), **back))
    return graph


def graphs() -> list[Graph]:
    red = "a large red circle on a white background, in the center"
    mixed, pair = "the object of image 1 on the background of image 2", ("red_circle", "blue_cross")
    return [
        tiny("text_to_image", "tiny: text to image", red),
        tiny("one_reference", "tiny: one reference", "image 1 but green", "red_circle"),
        tiny("two_references", "tiny: two references", mixed, *pair),
        tiny("four_references", "tiny: four references", mixed, *pair, "green_square", "white_triangle"),
        tiny("kv_two_references", "tiny: references kept", "the shape of image 2 in the color of image 1", *pair, cached=True),
        tiny("masked_reference", "tiny: a masked reference", "image 1 but yellow", "circle_and_square", masked=True),
        edited("edit", "tiny: edit a picture", "image 1 but green", "edit", "red_circle", back={"keep": "unchanged"}),
        edited("repaint", "tiny: repaint under a mask", "image 1 in the color of image 2", "repaint", "circle_and_square", "green_square"),
        edited("replace", "tiny: replace under a mask", "image 1 on a white background", "replace", "red_circle", "blue_cross"),
        edited("outpaint", "tiny: outpaint", "a large blue circle on a white background, at the left", "outpaint", "circle_at_an_edge", right=16),
        edited("remove", "tiny: remove under a mask", "image 1 without the red square", "repaint", "circle_and_square", back={"blend": "seamless"}),
        edited("detail", "tiny: detail under a mask", "image 1 but red", "repaint", "small_circle", denoise=0.75, context=0.5),
    ]  # fmt: skip
