"""The pack as a user gets it, in a folder of any name, on a ComfyUI that knows nothing of it: no further step to a picture."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tools.provision import ROOT
from tools.server import Server
from tools.train.judge import look
from tools.train.world import SIZE

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: git lists the files")
NAMES = "git", "ls-files", "--cached"


def clone(target) -> None:
    """As ComfyUI Manager and git do."""
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(target)], check=True)


def archive(target) -> None:
    """As the registry's archive: without what .comfyignore names."""
    kept, gone = (
        subprocess.run([*NAMES, *more], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        for more in ((), ("--ignored", "--exclude-from=.comfyignore"))
    )
    for name in set(kept) - set(gone):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)


@pytest.mark.parametrize(
    ("install", "folder"), [(archive, "klein-9b"), pytest.param(clone, "Some Other Name", marks=pytest.mark.long)]
)
def test_an_installed_pack_paints_what_is_asked_without_any_further_step(tmp_path, install, folder):
    server = Server(tmp_path)
    (tmp_path / "custom_nodes/klein").unlink()
    install(tmp_path / "custom_nodes" / folder)
    server.start()
    try:
        assert "klein_tiny_text_to_image" in server.get("/workflow_templates")[folder]
        outputs = server.run(json.loads((ROOT / "workflows/api/klein_tiny_text_to_image.json").read_text()))
        (picture,) = [output["images"][0] for output in outputs.values() if output.get("images")]
        ground, things = look(np.array(Image.open(server.file(picture)).convert("RGB").resize((SIZE, SIZE))) / 255)
    finally:
        server.stop()
    assert (ground, [(thing.shape, thing.colour) for thing in things]) == ("white", [("circle", "red")])
