"""ComfyUI nodes for FLUX.2 [klein] 9B and 4B."""

from comfy_api.latest import ComfyExtension

from .nodes.cache import KleinReferenceCache
from .nodes.editing import KleinCanvasRestore, KleinEdit
from .nodes.examples import KleinExamplePicture
from .nodes.loaders import KleinFlowLoader, KleinQwen3EncoderLoader, KleinVAELoader
from .nodes.lora import KleinLoraLoader
from .nodes.preflight import KleinPreflight
from .nodes.prompt import KleinPrompt
from .nodes.references import KleinMultiReference, KleinReference
from .nodes.sampling import KleinDistilledSampler, KleinSchedule
from .serving.routes import register

WEB_DIRECTORY = "./web"


class KleinExtension(ComfyExtension):
    async def get_node_list(self):
        return [
            KleinFlowLoader,
            KleinQwen3EncoderLoader,
            KleinVAELoader,
            KleinLoraLoader,
            KleinPrompt,
            KleinReference,
            KleinMultiReference,
            KleinEdit,
            KleinCanvasRestore,
            KleinReferenceCache,
            KleinDistilledSampler,
            KleinSchedule,
            KleinExamplePicture,
            KleinPreflight,
        ]


async def comfy_entrypoint() -> KleinExtension:
    register()
    return KleinExtension()
