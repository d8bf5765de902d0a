"""Pictures that come with the pack, so that its example graphs run at once."""

from comfy_api.latest import io

from .checks import check
from .host.compat import aliases
from .host.examples import load_picture, names
from .loaders import CATEGORY


class KleinExamplePicture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinExamplePicture",
            display_name="Klein Example Picture",
            category=CATEGORY,
            description="A small picture that comes with the pack, for the klein-tiny graphs. For your own: Load Image.",
            inputs=[io.Combo.Input("picture", options=names(), tooltip="64x64 pixels and less; some have a mask.")],
            outputs=[
                io.Image.Output(tooltip="The picture."),
                io.Mask.Output(tooltip="White is what the example paints."),
            ],
            **aliases("example", "klein", "flux2", "sample picture"),
        )

    @classmethod
    def execute(cls, picture) -> io.NodeOutput:
        check(cls, picture=picture)
        return io.NodeOutput(*load_picture(picture))
