"""Several reference images in one conditioning, each with its own strength, mask and window."""

from comfy_api.latest import io

from ..pictures.references import SOCKETS, chain
from ..pictures.sizing import SIZINGS
from .checks import check
from .host.combine import combine
from .host.compat import aliases
from .host.reports import all_ours, with_report
from .loaders import CATEGORY

References = io.Custom("KLEIN_REFERENCES")
CanvasType = io.Custom("KLEIN_CANVAS")
POSITIVE = "The prompt. It calls the pictures image 1, image 2, ..."
PICTURE = "A reference picture. Each image of a batch is one of its own."
OUTPUTS = [
    io.Conditioning.Output(display_name="positive", tooltip="The prompt with the references."),
    io.Conditioning.Output(display_name="negative", tooltip="The negative with the same references, where one is connected."),
    io.Latent.Output(display_name="latent", tooltip="What the sampler starts from, in the size of the image to be made."),
    CanvasType.Output(display_name="canvas", tooltip="For Klein Canvas Restore."),
    io.String.Output(display_name="report", tooltip="The number, size and share of each picture, and warnings."),
]


class KleinReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        percent = dict(min=0.0, max=1.0, step=0.01)
        return io.Schema(
            node_id="KleinReference",
            display_name="Klein Reference",
            category=CATEGORY,
            description="A reference image with its own strength, mask and part of the steps. Chain several; each image of a "
            "batch is a reference.",
            inputs=[
                io.Image.Input("image", tooltip="The picture, of any size."),
                References.Input("references", optional=True, tooltip="References that come before this one."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is kept. Parts of 16x16 pixels that are less than half white never enter the model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much attention the reference gets: 2 doubles its weight, 0 leaves it out, 1 changes nothing.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    **percent,
                    tooltip="The reference is there from this part of the steps on; 0: from the start.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    **percent,
                    tooltip="The reference is there until this part of the steps; 1: to the end.",
                ),
            ],
            outputs=[
                References.Output(display_name="references", tooltip="For Klein Multi Reference, Klein Edit or the next.")
            ],
            **aliases("reference", "kontext", "reference strength", "image prompt", "weight", "flux2", "klein"),
        )

    @classmethod
    def execute(cls, image, strength, start_percent, end_percent, references=(), mask=None) -> io.NodeOutput:
        check(
            cls,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            image=image,
            references=references,
            mask=mask,
        )
        return io.NodeOutput(chain(image, references, mask, strength, start_percent, end_percent))


class KleinMultiReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        side = dict(default=0, min=0, max=16384, step=16, tooltip="Of the image to be made, in pixels; 0: from image 1.")
        return io.Schema(
            node_id="KleinMultiReference",
            display_name="Klein Multi Reference",
            category=CATEGORY,
            description="Adds reference images to a prompt and gives the empty latent to sample. The prompt calls them image 1, "
            "image 2, ... in the order of the sockets, then of the chain.",
            inputs=[
                io.Conditioning.Input("positive", tooltip=POSITIVE),
                io.Vae.Input("vae", tooltip="The FLUX.2 VAE."),
                io.Combo.Input(
                    "sizing",
                    options=list(SIZINGS),
                    default="exact",
                    tooltip="exact: the whole image, resized once to the 16-pixel grid, never enlarged. bfl: Black Forest Labs' caps, "
                    "edges beyond the grid cut off. one_megapixel: always 1 megapixel, as ComfyUI's template. keep: as it is, edges cut.",
                ),
                io.Float.Input(
                    "max_megapixels",
                    default=1.0,
                    min=0.01,
                    max=16.0,
                    step=0.05,
                    tooltip="The largest reference under exact (1: 1024x1024).",
                ),
                io.Int.Input("width", **side),
                io.Int.Input("height", **side),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Images to make at once."),
                io.Conditioning.Input("negative", optional=True, tooltip="Gets the same references; for klein base."),
                *(io.Image.Input(name, optional=True, tooltip=PICTURE) for name in SOCKETS),
                References.Input(
                    "references", optional=True, tooltip="From Klein Reference: they come after the sockets' images."
                ),
            ],
            outputs=list(OUTPUTS),
            hidden=[io.Hidden.prompt],
            **aliases(
                "reference", "references", "image edit", "edit", "kontext", "omni", "reference latent", "multi image", "flux2"
            ),
        )

    @classmethod
    def execute(
        cls, positive, vae, sizing, max_megapixels, width, height, batch_size, negative=None, references=(), **images
    ) -> io.NodeOutput:
        check(
            cls,
            sizing=sizing,
            max_megapixels=max_megapixels,
            width=width,
            height=height,
            batch_size=batch_size,
            positive=positive,
            vae=vae,
            negative=negative,
            references=references,
            **images,
        )
        images = {name: images[name] for name in SOCKETS if images.get(name) is not None}
        return with_report(
            *combine(
                positive, negative, vae, images, references, sizing, max_megapixels, width, height, batch_size, all_ours(cls)
            ),
        )
