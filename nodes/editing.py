"""Editing of one picture that changes only what was asked, and the way back to it."""

from comfy_api.latest import io

from ..pictures.paste import BLENDS, COLOURS, KEEPS, bring_back
from ..pictures.region import MODES, WHOLE
from .checks import check
from .host.compat import aliases
from .host.edit import OTHERS, edit
from .host.reports import all_ours, with_report
from .loaders import CATEGORY
from .references import OUTPUTS, PICTURE, POSITIVE, CanvasType, References


class KleinEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        added = dict(default=0, min=0, max=8192, step=16, tooltip="outpaint: pixels added at this side.")
        return io.Schema(
            node_id="KleinEdit",
            display_name="Klein Edit",
            category=CATEGORY,
            description="Makes a picture ready to be edited, in whole or under a mask, with references if wanted. Sample the "
            "latent, decode it, and bring it back with Klein Canvas Restore: what lies outside the mask stays as it was, bit for bit.",
            inputs=[
                io.Conditioning.Input("positive", tooltip=POSITIVE),
                io.Vae.Input("vae", tooltip="The FLUX.2 VAE."),
                io.Image.Input("image", tooltip="The picture to be edited."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="edit",
                    tooltip="edit: an instruction changes the picture, which is image 1; a mask limits what comes back. repaint: the "
                    "mask is painted anew, the region is image 1. replace: as repaint, but the picture is no reference, so that "
                    "what was there does not come back. outpaint: the picture, image 1, grows by left, top, right and bottom.",
                ),
                io.Float.Input(
                    "context",
                    default=0.5,
                    min=WHOLE,
                    max=100.0,
                    step=0.1,
                    tooltip="How much about the mask is seen and held: times the longer side of the mask's box. -1: the whole "
                    "picture. Only this region is painted, so a small mask in a large picture costs little.",
                ),
                io.Int.Input("grow", default=16, min=0, max=1024, tooltip="Pixels of the picture that the mask grows by."),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=1024,
                    tooltip="Pixels over which the new fades in, inside the grown mask.",
                ),
                io.Float.Input(
                    "max_megapixels",
                    default=1.0,
                    min=0.001,
                    max=16.0,
                    step=0.05,
                    tooltip="The largest region (1: 1024x1024). One of less than 0.25 megapixels is enlarged to that, up to 8 times.",
                ),
                *(io.Int.Input(side, **added) for side in ("left", "top", "right", "bottom")),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Images to make at once."),
                io.Mask.Input("mask", optional=True, tooltip="White is painted. Of the picture's size."),
                io.Conditioning.Input("negative", optional=True, tooltip="Gets the same references; for klein base."),
                *(io.Image.Input(name, optional=True, tooltip=PICTURE) for name in OTHERS),
                References.Input(
                    "references", optional=True, tooltip="From Klein Reference: they come after the sockets' images."
                ),
            ],
            outputs=list(OUTPUTS),
            hidden=[io.Hidden.prompt],
            **aliases(
                "edit", "image edit", "inpaint", "outpaint", "mask", "remove", "replace", "repaint", "kontext", "flux2", "klein"
            ),
        )

    @classmethod
    def execute(
        cls, positive, vae, image, mode, context, grow, feather, max_megapixels, left, top, right, bottom, batch_size,
        mask=None, negative=None, references=(), **images
    ) -> io.NodeOutput:  # fmt: skip
        check(
            cls, positive=positive, vae=vae, image=image, mode=mode, context=context, grow=grow, feather=feather,
            max_megapixels=max_megapixels, left=left, top=top, right=right, bottom=bottom, batch_size=batch_size, mask=mask,
            negative=negative, references=references, **images,
        )  # fmt: skip
        images = {name: images[name] for name in OTHERS if images.get(name) is not None}
        margins = (left, top, right, bottom)
        return with_report(
            *edit(
                positive, negative, vae, image, mask, mode, context, grow, feather, max_megapixels, margins, batch_size, images,
                references, all_ours(cls),
            ),
        )  # fmt: skip


class KleinCanvasRestore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinCanvasRestore",
            display_name="Klein Canvas Restore",
            category=CATEGORY,
            description="Brings an image made on a canvas back to the size and place of the source, without shift or zoom. After "
            "Klein Edit all that lies outside the mask is the source's own pixels, and the report says how much differs.",
            inputs=[
                io.Image.Input("image", tooltip="What was decoded, or an upscaled version of it."),
                CanvasType.Input("canvas", tooltip="From Klein Edit or Klein Multi Reference."),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default="feather",
                    optional=True,
                    tooltip="Inside the mask. feather: the new fades in over Klein Edit's feather. seamless: its colours are shifted "
                    "so that they meet the source's at the border. none: a hard edge.",
                ),
                io.Combo.Input(
                    "colour",
                    options=list(COLOURS),
                    default="off",
                    optional=True,
                    tooltip="match: undoes the drift of colour and tone, as found on what must not have changed.",
                ),
                io.Combo.Input(
                    "keep",
                    options=list(KEEPS),
                    default="off",
                    optional=True,
                    tooltip="unchanged: finds what really changed, and takes everything else from the source. Without a mask too.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The whole picture, at the size of the source."),
                io.Mask.Output(display_name="changed", tooltip="White where the image may differ from the source."),
                io.String.Output(
                    display_name="report", tooltip="How much differs, in CIEDE2000, and how much is the source's."
                ),
            ],
            **aliases("composite", "paste", "stitch", "uncrop", "inpaint", "colour match", "color match", "klein", "flux2"),
        )

    @classmethod
    def execute(cls, image, canvas, blend="feather", colour="off", keep="off") -> io.NodeOutput:
        check(cls, image=image, canvas=canvas, blend=blend, colour=colour, keep=keep)
        return with_report(*bring_back(image, canvas, blend, colour, keep))
