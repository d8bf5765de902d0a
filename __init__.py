"""ComfyUI nodes for FLUX.2 [klein] 9B and 4B."""

import logging
import re
from pathlib import Path

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
VERSION = re.search(r'^version = "(.+)"', (Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]


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
    logging.info(f"Klein {VERSION}")
    register()
    return KleinExtension()
