"""One server for the tests of the frontend."""

import numpy as np
import pytest
from PIL import Image

from tools import small
from tools.server import Server


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("browser")
    small.released_files(base / "models")
    server = Server(base).start()
    Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(base / "input/example.png")
    yield server
    server.stop()
