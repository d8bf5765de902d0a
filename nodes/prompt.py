"""Prompt to conditioning."""

from comfy_api.latest import io

from .checks import check
from .host.encoder import encode_prompt
from .host.reports import with_report
from .loaders import CATEGORY


class KleinPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinPrompt",
            display_name="Klein Prompt",
            category=CATEGORY,
            description="Encodes a prompt and tells how many tokens it has and whether its end was cut off (klein reads "
            "512). Weights such as (word:1.3) mean nothing to klein: they are read as text.",
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="Plain sentences work best."),
            ],
            outputs=[io.Conditioning.Output(), io.String.Output(id="report", display_name="report")],
        )

    @classmethod
    def execute(cls, clip, text) -> io.NodeOutput:
        check(cls, clip=clip, text=text)
        return with_report(*encode_prompt(clip, text))
