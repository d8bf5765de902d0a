"""A real ComfyUI with the pack installed, driven over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from . import provision

FOLDERS = ("custom_nodes", "models", "input", "output", "user/default", "temp")


class PromptError(RuntimeError):
    """A prompt that the server refused, or that failed while running: `text` is what a user reads."""

    def __init__(self, text: str, kind: str = ""):
        super().__init__(text)
        self.text, self.kind = text, kind


class Server:
    def __init__(self, base: Path, *options: str, packs: tuple[Path, ...] = ()):
        self.base = Path(base)
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for pack in (provision.ROOT, *packs):
            link = self.base / "custom_nodes" / ("klein" if pack == provision.ROOT else pack.name)
            if not link.exists():
                link.symlink_to(pack, target_is_directory=True)
        settings = self.base / "user/default/comfy.settings.json"
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "9.9.9"}))
        self.options = options
        self.client = uuid.uuid4().hex
        self.process = None

    def start(self, patience: float = 120) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            os.environ.get("COMFYUI_PYTHON") or provision.python(), "main.py", "--cpu", "--listen", "127.0.0.1",
            "--port", str(self.port), "--disable-auto-launch", "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{self.base}/user/comfyui.db", *self.options,
        ]  # fmt: skip
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        own = {name: value for name, value in os.environ.items() if name != "KLEIN_STORE"}  # its store lies in its own folder
        self.log = self.base / "server.log"
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=provision.comfyui(), env={**own, **quiet},
            stdout=self.log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + patience
        while True:
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}") from None
                time.sleep(0.3)

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict | None = None) -> dict:
        data = json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            details = json.loads(error.read() or "{}")
            nodes = details.get("node_errors", {})
            texts = [e["message"] + ": " + e["details"] for node in nodes.values() for e in node["errors"]]
            raise PromptError("; ".join(texts) or str(details.get("error", error)), "refused") from None

    def queue(self, graph: dict) -> str:
        return self.post("/prompt", {"prompt": graph, "client_id": self.client})["prompt_id"]

    def wait(self, prompt: str, patience: float = 600) -> dict:
        """The history entry of a prompt that has ended; PromptError with the user's text when it failed."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt}").get(prompt)
            if entry:
                for kind, message in entry["status"]["messages"]:
                    if kind == "execution_error":
                        raise PromptError(message["exception_message"].strip(), message["exception_type"])
                    if kind == "execution_interrupted":
                        raise PromptError("interrupted", "interrupted")
                return entry
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI died:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt} did not end within {patience:g} s")

    def run(self, graph: dict) -> dict:
        """Outputs by node id."""
        return self.wait(self.queue(graph))["outputs"]

    def file(self, output: dict) -> Path:
        """The path of an output's file ({filename, subfolder, type})."""
        return self.base / output["type"] / output["subfolder"] / output["filename"]

    def free(self) -> None:
        """Unload all models and forget all results."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1.5)

    def put(self, source: Path, category: str, name: str | None = None) -> None:
        target = self.base / "models" / category / (name or source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def anonymous_bytes(pid: int | str) -> int:
    """Anonymous memory of a process (Linux): what is neither a mapped file nor shared."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Anonymous line")


def held_files(pid: int | str, path: Path) -> set[str]:
    """The files at or below a path that a process has open or mapped (Linux)."""
    mapped = [line.split(maxsplit=5)[5:] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    files = {*opened, *(file for named in mapped for file in named)}
    return {file for file in files if Path(file).is_relative_to(path.resolve())}
