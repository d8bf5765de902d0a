"""One server for the tests of the frontend."""

import numpy as np
import pytest
from PIL import Image

from fixtures import lora
from tools import small
from tools.server import Server


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("browser")
    small.released_files(base / "models")
    state = small.flow_state(**small.FLOW)
    small.save(lora.written("ai-toolkit", state, modules=["img_in"])[0], base / "models/loras/lora.safetensors")
    server = Server(base).start()
    Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(base / "input/example.png")
    yield server
    server.stop()
