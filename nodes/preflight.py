"""A look at a run before it starts."""

from comfy_api.latest import io

from .checks import check
from .host.compat import aliases
from .host.preflight import preflight
from .host.reports import with_report
from .loaders import CATEGORY
from .references import References
from .sampling import CFG, STEPS


class KleinPreflight(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinPreflight",
            display_name="Klein Preflight",
            category=CATEGORY,
            description="Checks a run before any weight reaches the device, and hands on what it is given: whether the parts fit "
            "together, tokens, work, memory, licence. What cannot run stops here; the rest is a warning in the report.",
            inputs=[
                io.Model.Input("model", optional=True, tooltip="From Klein Flow Loader."),
                io.Clip.Input("clip", optional=True, tooltip="Before Klein Prompt, so that a wrong encoder never loads."),
                io.Vae.Input("vae", optional=True, tooltip="From Klein VAE Loader."),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="With it the prompt and its references are looked at."
                ),
                io.Latent.Input("latent_image", optional=True, tooltip="The canvas: tokens, work and memory need it."),
                References.Input("references", optional=True, tooltip="Counted where the conditioning has none."),
                io.Int.Input("steps", optional=True, **STEPS),
                io.Float.Input("cfg", optional=True, **CFG),
                io.String.Input(
                    "text",
                    optional=True,
                    default="",
                    tooltip="The prompt, where no conditioning is there: looked at before the encoder reads it.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="As it came in."),
                io.Clip.Output(tooltip="As it came in."),
                io.Vae.Output(tooltip="As it came in."),
                io.Conditioning.Output(display_name="positive", tooltip="As it came in."),
                io.Latent.Output(display_name="latent_image", tooltip="As it came in."),
                References.Output(display_name="references", tooltip="As they came in."),
                io.Int.Output(display_name="steps", tooltip="As they came in."),
                io.Float.Output(display_name="cfg", tooltip="As it came in."),
                io.String.Output(display_name="report", tooltip="What the run will be, with warnings."),
            ],
            **aliases("preflight", "check", "memory", "tokens", "estimate", "klein", "flux2"),
            is_output_node=True,  # so that it can be queued alone
        )

    @classmethod
    def execute(
        cls, model=None, clip=None, vae=None, positive=None, latent_image=None, references=None, steps=4, cfg=1.0, text=""
    ) -> io.NodeOutput:
        given = dict(
            model=model, clip=clip, vae=vae, positive=positive, latent_image=latent_image, references=references, steps=steps, cfg=cfg
        )  # fmt: skip
        check(cls, **given, text=text)
        return with_report(*given.values(), preflight(*given.values(), text))
