"""The pack as a user gets it, in a folder of any name, on a ComfyUI that knows nothing of it: no further step to a picture."""

import json
import shutil
import subprocess
from urllib.parse import quote

import numpy as np
import pytest
import tomllib
from PIL import Image

from tools.provision import ROOT, comfyui
from tools.server import FOLDERS, Server
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


def painted(server: Server, folder: str) -> tuple[str, list[tuple[str, str]]]:
    """Ground and things of the picture that a template of the installed pack makes, as judged."""
    server.start()
    try:
        assert "klein_tiny_text_to_image" in server.get("/workflow_templates")[folder]
        outputs = server.run(json.loads((ROOT / "workflows/api/klein_tiny_text_to_image.json").read_text()))
        (picture,) = [output["images"][0] for output in outputs.values() if output.get("images")]
        ground, things = look(np.array(Image.open(server.file(picture)).convert("RGB").resize((SIZE, SIZE))) / 255)
    finally:
        server.stop()
    return ground, [(thing.shape, thing.colour) for thing in things]


ASKED = "white", [("circle", "red")]


@pytest.mark.parametrize(
    ("install", "folder"), [(archive, "klein-9b"), pytest.param(clone, "Some Other Name", marks=pytest.mark.long)]
)
def test_an_installed_pack_paints_what_is_asked_without_any_further_step(tmp_path, install, folder):
    server = Server(tmp_path)
    (tmp_path / "custom_nodes/klein").unlink()
    install(tmp_path / "custom_nodes" / folder)
    assert painted(server, folder) == ASKED
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"Klein {version}\n" in server.log.read_text()


@pytest.mark.long
@pytest.mark.skipif(
    not shutil.which("cm-cli"), reason="no cm-cli in PATH: pip install comfyui-manager, beside a ComfyUI's packages"
)
def test_comfyui_manager_installs_the_pack(tmp_path, monkeypatch):
    """By its command line, from a git URL, into a ComfyUI of its own."""
    host, top = tmp_path / "ComfyUI", str(comfyui())
    shutil.copytree(top, host, ignore=lambda folder, names: {*FOLDERS, ".git", "models"} & set(names) if folder == top else ())
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    server = Server(host)
    (host / "custom_nodes/klein").unlink()
    subprocess.run(["cm-cli", "install", f"file://localhost{quote(str(ROOT))}", "--mode", "local"], cwd=host, check=True)
    assert painted(server, ROOT.name) == ASKED
