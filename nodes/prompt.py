"""Prompt to conditioning."""

from comfy_api.latest import io

from .checks import check
from .host.compat import aliases
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
                io.Clip.Input("clip", tooltip="From Klein Qwen3 Encoder Loader."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Plain sentences work best. An empty text is a prompt too.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The prompt as the sampler reads it."),
                io.String.Output(
                    id="report", display_name="report", tooltip="How many of 512 tokens it takes, and what was cut."
                ),
            ],
            **aliases("klein prompt", "flux2", "text encode", "clip text encode", "qwen3", "tokens"),
        )

    @classmethod
    def execute(cls, clip, text) -> io.NodeOutput:
        check(cls, clip=clip, text=text)
        return with_report(*encode_prompt(clip, text))
