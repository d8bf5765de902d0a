"""The example graphs of FLUX.2 [klein]: 9B, its K/V and base variants, and 4B."""

from .graph import BASE, ENCODER, ENCODER_4B, FLOW, FLOW_4B, KV, PAGES, VAE, Graph, Link, out


def note(title: str, flow: str, encoder: str, settings: str) -> str:
    rows = "\n".join(
        f"| [{file}]({PAGES[file]}) | `models/{folder}` |"
        for file, folder in ((flow, "diffusion_models"), (encoder, "text_encoders"), (VAE, "vae"))
    )
    return f"""# FLUX.2 [klein]: {title}

**Put the files here**

| file | folder |
|---|---|
{rows}

**Licence and download.** {APACHE if flow == FLOW_4B else GATED + (AS_KV if flow == KV else AS_OTHER)}

**Settings.** {settings}"""


APACHE = f"klein **4B** is Apache 2.0, free for any use. klein **9B** ([{FLOW}]({PAGES[FLOW]}) with [{ENCODER}]({PAGES[ENCODER]})) paints more finely, is under the FLUX Non-Commercial License, and its download is gated."
GATED = f"klein **9B** is under the FLUX Non-Commercial License, and its download is gated: log in to Hugging Face, accept the licence on the model's page, then download. klein **4B** ([{FLOW_4B}]({PAGES[FLOW_4B]}) with [{ENCODER_4B}]({PAGES[ENCODER_4B]})) is Apache 2.0, free for any use: choose its two files in the loaders, "
AS_OTHER = "nothing else changes."
AS_KV = "and set Klein Reference Cache to off, as 4B is not trained for it."
STEPS = "klein wants 4 steps and cfg 1. klein *base* wants 20 to 50 steps, cfg 4 to 5, and an empty Klein Prompt wired to *negative*."
NUMBERED = "The prompt calls the pictures *image 1*, *image 2*, ... in the order of the sockets. The image has the size of image 1, unless width and height say otherwise."
PAINT = "Right-click the picture, *Open in MaskEditor*, and paint what shall change; all else stays as it is, bit for bit. "
REMOVE = "Remove what is in the middle of the picture. Continue the background as if it had never been there."
LORA = "Put a LoRA for klein 9B into `models/loras` and choose it; the report says what of it fits. *strength* 1 is what it was trained for, 0 changes nothing. "
DIAL = "The LoRA is one that was trained on such maps. *strength* of the dial says how much attention the map gets (0.5 half, 2 twice), *start* and *end percent* in which part of the steps it is there: up to 0.75 it is gone in the last of 4 steps, which is then free in its details. The image has the map's size."
LOOK = "*Klein Preflight* looks at the run before any weight reaches the card: parts that do not belong together stop it in a sentence; tokens, work, memory and warnings stand in its report. It can be queued alone, for its report only."
SCHEDULE = "The sampler takes its sigmas from *Klein Schedule*: its own *steps*, *denoise* and *schedule* are then not read. *continuous* leaves out the jump that klein's schedule has above 1072x1024. The same sigmas fit ComfyUI's SamplerCustomAdvanced."
FOX = "A red fox asleep on a mossy stone in morning fog, soft light, 85 mm photograph."


def parts(name: str, title: str, settings: str, flow: str = FLOW, encoder: str = ENCODER):
    """A graph, and in it the outputs of the three loaders: MODEL, CLIP, VAE."""
    graph = Graph(name, title, note(title, flow, encoder, settings))
    model = graph.put("KleinFlowLoader", flow_name=flow)
    return graph, model, graph.put("KleinQwen3EncoderLoader", encoder_name=encoder), graph.put("KleinVAELoader")


def finish(graph: Graph, vae: Link, canvas: Link | None = None, back: dict = {}, **sampler) -> None:
    """Sampler, decoder, the way back where there is a canvas, and the picture saved."""
    image = graph.put("VAEDecode", samples=graph.put("KleinDistilledSampler", **sampler), vae=vae)
    if canvas:
        image = graph.put("KleinCanvasRestore", image=image, canvas=canvas, **back)
    graph.add("SaveImage", images=image)


def text_to_image(
    name: str, title: str, settings: str = STEPS, flow: str = FLOW, encoder: str = ENCODER, base: dict = {}
) -> Graph:
    """base: the sampler's settings for a model that wants a negative."""
    graph, model, clip, vae = parts(name, title, settings, flow, encoder)
    positive = graph.put("KleinPrompt", clip=clip, text=FOX)
    negative = {"negative": graph.put("KleinPrompt", title="Negative", clip=clip)} if base else {}
    latent = graph.put("EmptyFlux2LatentImage")
    finish(graph, vae, model=model, positive=positive, latent_image=latent, **base, **negative)
    return graph


def references(
    name: str, title: str, text: str, count: int, flow: str = FLOW, settings: str = NUMBERED, masked=False, restored=False
) -> Graph:
    graph, model, clip, vae = parts(name, title, settings, flow)
    images = [graph.add("LoadImage", title=f"Image {i}") for i in range(1, count + 1)]
    if masked:
        given = {"references": graph.put("KleinReference", image=out(graph, images[0]), mask=out(graph, images[0], 1))}
    else:
        given = {f"image_{i}": out(graph, image) for i, image in enumerate(images, start=1)}
    prompt = graph.put("KleinPrompt", clip=clip, text=text)
    both = graph.add("KleinMultiReference", positive=prompt, vae=vae, **given)
    if flow == KV:
        model = graph.put("KleinReferenceCache", model=model)
    canvas = out(graph, both, 3) if restored else None
    finish(graph, vae, canvas, model=model, positive=out(graph, both), latent_image=out(graph, both, 2))
    return graph


def with_lora(name: str, title: str, settings: str, control: bool = False) -> Graph:
    """Text to image with a LoRA; a control LoRA's map is image 1, with a strength and a window of its own."""
    graph, model, clip, vae = parts(name, title, settings)
    model = graph.put("KleinLoraLoader", model=model)
    positive = graph.put("KleinPrompt", clip=clip, text=FOX)
    if control:
        image = graph.put("LoadImage", title="Depth, pose or edges")
        dial = graph.put("KleinReference", title="The dial", image=image, end_percent=0.75)
        both = graph.add("KleinMultiReference", positive=positive, vae=vae, references=dial)
        positive, latent = out(graph, both), out(graph, both, 2)
    else:
        latent = graph.put("EmptyFlux2LatentImage")
    finish(graph, vae, model=model, positive=positive, latent_image=latent)
    return graph


def looked_at() -> Graph:
    """Text to image behind Klein Preflight."""
    graph, model, clip, vae = parts("klein_9b_preflight", "a look before the run", LOOK)
    positive = graph.put("KleinPrompt", clip=clip, text=FOX)
    latent = graph.put("EmptyFlux2LatentImage")
    seen = graph.add("KleinPreflight", model=model, vae=vae, positive=positive, latent_image=latent)
    model, vae, positive, latent = (out(graph, seen, slot) for slot in (0, 2, 3, 4))
    finish(graph, vae, model=model, positive=positive, latent_image=latent)
    return graph


def scheduled() -> Graph:
    """Text to image on the sigmas of Klein Schedule."""
    graph, model, clip, vae = parts("klein_9b_schedule", "the schedule as a node", SCHEDULE)
    positive = graph.put("KleinPrompt", clip=clip, text=FOX)
    latent = graph.put("EmptyFlux2LatentImage", width=1280)
    sigmas = graph.put("KleinSchedule", latent=latent, schedule="continuous")
    finish(graph, vae, model=model, positive=positive, latent_image=latent, sigmas=sigmas)
    return graph


def edited(
    name: str, title: str, text: str, settings: str, mode: str, others: int = 0, denoise: float = 1.0, back: dict = {}, **edit
) -> Graph:
    """A picture changed by Klein Edit and brought back; under its mask, but in mode edit and outpaint; with other pictures."""
    graph, model, clip, vae = parts(f"klein_9b_{name}", title, settings)
    source = graph.add("LoadImage", title="Picture")
    first = 1 if mode == "replace" else 2
    images = [graph.put("LoadImage", title=f"Image {i}") for i in range(first, first + others)]
    given = {f"image_{i}": image for i, image in enumerate(images, start=2)}
    if mode in ("repaint", "replace"):
        given["mask"] = out(graph, source, 1)
    prompt = graph.put("KleinPrompt", clip=clip, text=text)
    edit = graph.add("KleinEdit", positive=prompt, vae=vae, image=out(graph, source), mode=mode, **edit, **given)
    positive, latent, canvas = (out(graph, edit, slot) for slot in (0, 2, 3))
    finish(graph, vae, canvas, back, model=model, positive=positive, latent_image=latent, denoise=denoise)
    return graph


def graphs() -> list[Graph]:
    style = "The subject of image 1 in the style and colours of image 2."
    return [
        text_to_image("klein_9b_text_to_image", "text to image"),
        references("klein_9b_one_reference", "one reference", "Turn this into a watercolour painting.", 1),
        references("klein_9b_two_references", "two references", style, 2),
        references(
            "klein_9b_four_references", "four references",
            "The subject of image 1 beside the subject of image 2, in the place of image 3, in the style of image 4.", 4,
        ),
        references(
            "klein_9b_kv_two_references", "references kept from run to run (K/V)", style, 2, KV,
            "klein 9B **KV** is trained to compute its references once. *across_runs* keeps them for the next prompt and seed too; "
            "they take 2.1 GB a megapixel on the GPU, or of main memory with *device* cpu. " + NUMBERED,
        ),
        references(
            "klein_9b_masked_reference", "a masked reference", "The subject of image 1 on a sandy beach.", 1, FLOW,
            "Right-click the picture, *Open in MaskEditor*, and paint what shall be seen: only those parts enter the model. Without "
            "a mask all of it is seen, and the report says so.", masked=True,
        ),
        references(
            "klein_9b_restore", "back to the picture's own size", "Make it night.", 1, FLOW,
            "The picture is edited at one megapixel at most and brought back to its own size and place, without shift or zoom.",
            restored=True,
        ),
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
        text_to_image(
            "klein_base_9b_text_to_image", "base, text to image with guidance",
            "klein *base* is not distilled: it wants 20 to 50 steps, cfg 4 to 5, and a negative, here an empty prompt. Each step "
            "computes both.", BASE, base={"steps": 28, "cfg": 4.0},
        ),
        with_lora("klein_9b_lora", "a LoRA", LORA),
        with_lora("klein_9b_control_lora", "a control LoRA with a dial", LORA + DIAL, control=True),
        looked_at(),
        scheduled(),
        text_to_image("klein_4b_text_to_image", "4B, text to image", STEPS, FLOW_4B, ENCODER_4B),
    ]  # fmt: skip
