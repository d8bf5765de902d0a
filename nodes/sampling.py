"""The sampler distilled to four steps, and its schedule for core's custom samplers."""

from comfy_api.latest import io

from ..errors import KleinError
from ..samplers.schedule import SCHEDULES
from .checks import check
from .host.compat import aliases
from .host.reports import with_report
from .host.sampling import check_guidance, latent_tokens, make_sigmas, pixel_tokens, sample
from .loaders import CATEGORY

STEPS = dict(default=4, min=1, max=200, tooltip="4 for klein, 20 to 50 for klein base.")
CFG = dict(
    default=1.0,
    min=1.0,
    max=100.0,
    step=0.1,
    round=0.01,
    tooltip="1 for klein (the negative is then not computed), 4 to 5 for klein base.",
)
SCHEDULE = dict(
    options=list(SCHEDULES),
    default="official",
    tooltip="How noise falls with image size. official: Black Forest Labs' rule, which jumps above 4300 tokens (about "
    "1072x1024). continuous: the same rule without the jump. constant: that of 1024x1024 at every size.",
)
UNCONNECTED = object()
DENOISE = dict(
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.01,
    tooltip="Below 1 the last part of the schedule is run on the latent given: with 4 steps, 0.75 skips one step, 0.5 two.",
)


class KleinDistilledSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinDistilledSampler",
            display_name="Klein Distilled Sampler",
            category=CATEGORY,
            description="Samples klein in four Euler steps on its own schedule. For klein base: 20 to 50 steps, cfg 4 to 5, "
            "and a negative.",
            inputs=[
                io.Model.Input("model", tooltip="From Klein Flow Loader, or core's loader where that knows klein."),
                io.Conditioning.Input("positive", tooltip="The prompt, with references if any."),
                io.Latent.Input("latent_image", tooltip="From Empty Flux 2 Latent, or an image encoded with the FLUX.2 VAE."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise. The same seed with the same settings gives the same image.",
                ),
                io.Int.Input("steps", **STEPS),
                io.Float.Input("cfg", **CFG),
                io.Float.Input("denoise", **DENOISE),
                io.Combo.Input("schedule", **SCHEDULE),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed when cfg is above 1: an empty prompt."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Used instead of steps, denoise and schedule."),
            ],
            outputs=[
                io.Latent.Output(tooltip="The image, for VAE Decode."),
                io.String.Output(display_name="report", tooltip="Size and steps, and warnings."),
            ],
            **aliases("klein sampler", "ksampler", "flux2 sampler", "euler", "4 steps", "distilled", "denoise"),
        )

    @classmethod
    def validate_inputs(cls, cfg, negative=UNCONNECTED):
        """When the graph is queued. The host checks no bounds of what is named here; what comes over a link is None."""
        try:
            if cfg is not None:
                check(cls, cfg=cfg)
                check_guidance(cfg, negative is not UNCONNECTED)
        except KleinError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model, positive, latent_image, seed, steps, cfg, denoise, schedule, negative=None, sigmas=None
    ) -> io.NodeOutput:
        check(
            cls,
            seed=seed,
            steps=steps,
            cfg=cfg,
            denoise=denoise,
            schedule=schedule,
            model=model,
            positive=positive,
            latent_image=latent_image,
            negative=negative,
            sigmas=sigmas,
        )
        return with_report(*sample(model, positive, negative, latent_image, seed, steps, cfg, denoise, schedule, sigmas))


class KleinSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        size = dict(default=1024, min=16, max=16384, step=16, tooltip="In pixels; not read when a latent is connected.")
        return io.Schema(
            node_id="KleinSchedule",
            display_name="Klein Schedule",
            category=CATEGORY,
            description="The sigmas of klein for core's SamplerCustomAdvanced and others.",
            inputs=[
                io.Int.Input("steps", **STEPS),
                io.Combo.Input("schedule", **SCHEDULE),
                io.Float.Input("denoise", **DENOISE),
                io.Latent.Input("latent", optional=True, tooltip="Its size is used instead of width and height."),
                io.Int.Input("width", optional=True, **size),
                io.Int.Input("height", optional=True, **size),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustomAdvanced.")],
            **aliases("klein scheduler", "flux2scheduler", "sigmas", "scheduler", "flux2"),
        )

    @classmethod
    def execute(cls, steps, schedule, denoise, latent=None, width=1024, height=1024) -> io.NodeOutput:
        check(cls, steps=steps, schedule=schedule, denoise=denoise, width=width, height=height, latent=latent)
        tokens = latent_tokens(latent) if latent is not None else pixel_tokens(width, height)
        return io.NodeOutput(make_sigmas(steps, tokens, schedule, denoise))
