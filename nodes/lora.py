"""LoRAs on a klein MODEL and its CLIP."""

from comfy_api.latest import io

from .checks import check
from .host import files
from .host.compat import aliases
from .host.lora import attach
from .host.reports import with_report
from .loaders import CATEGORY


class KleinLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinLoraLoader",
            display_name="Klein LoRA Loader",
            category=CATEGORY,
            description="Applies a LoRA, LoKr, LoHa or DoRA for FLUX.2 [klein], as any trainer writes it, and reports what of it "
            "fits. Quantised weights are not rounded again. Chain several; their order does not matter.",
            inputs=[
                io.Model.Input("model", tooltip="From Klein Flow Loader, or another Klein LoRA Loader."),
                io.Combo.Input("lora_name", options=files.choices("loras", None), tooltip="From models/loras."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="1 is what it was trained for, 0 changes nothing, negative turns it around.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="For the few LoRAs that change the text encoder too."),
                io.Float.Input(
                    "clip_strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    tooltip="As strength, for what it changes in the text encoder.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA."),
                io.Clip.Output(tooltip="The CLIP with the LoRA; empty when none is connected."),
                io.String.Output(id="report", display_name="report", tooltip="What of the file fits, its rank and trainer."),
            ],
            **aliases("lora", "loraloader", "lokr", "loha", "dora", "lycoris", "flux2", "klein"),
        )

    @classmethod
    def validate_inputs(cls, lora_name):
        return files.known("loras", None, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name, **kwargs):
        return files.stamp("loras", lora_name)

    @classmethod
    def execute(cls, model, lora_name, strength, clip=None, clip_strength=1.0) -> io.NodeOutput:
        check(cls, model=model, strength=strength, clip=clip, clip_strength=clip_strength)
        return with_report(*attach(model, clip, files.resolve("loras", None, lora_name), strength, clip_strength))
