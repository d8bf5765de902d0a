"""Keys and values of references, computed once."""

from comfy_api.latest import io

from .checks import check
from .host.cache import DEVICES, DTYPES, MODES, attach
from .host.compat import aliases
from .host.flow import offered
from .host.reports import with_report
from .loaders import CATEGORY


class KleinReferenceCache(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinReferenceCache",
            display_name="Klein Reference Cache",
            category=CATEGORY,
            description="Computes what the model keeps of the references once instead of in every step: with 4 steps and "
            "several references most of the time is saved. For klein 9B KV; other models give other images with it.",
            inputs=[
                io.Model.Input("model", tooltip="A model of Klein Flow Loader, with its LoRAs and patches."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="within_run",
                    tooltip="within_run: computed once a run. across_runs: kept while the same references are used, with any "
                    "prompt, seed or size. on_disk: that, and found again by the next server. off: changes nothing.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(DEVICES),
                    default="gpu",
                    tooltip="Where it is kept. cpu needs none of the GPU's memory, and time to copy it in every step.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=offered(DTYPES),
                    default="model",
                    tooltip="model: exact. float8_e4m3fn: half the memory of 16 bit, slightly different images.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the cache."),
                io.String.Output(id="report", display_name="report", tooltip="The memory that references take."),
            ],
            **aliases("klein cache", "kv cache", "flux kv cache", "reference cache", "speed", "flux2", "klein kv"),
        )

    @classmethod
    def execute(cls, model, mode, device, dtype) -> io.NodeOutput:
        check(cls, mode=mode, device=device, dtype=dtype, model=model)
        return with_report(*attach(model, mode, device, dtype))
