"""A real nginx with docs/nginx.conf before hosts of this machine."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from .provision import ROOT

MAIN = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {klein}
}}
"""


def nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


class Fleet:
    """hashing: by references, as the configuration has it; else nginx's own turn by turn."""

    def __init__(self, folder: Path, ports: list[int], hashing: bool = True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        klein = (ROOT / "docs/nginx.conf").read_text()
        for number, port in enumerate(ports, start=1):
            klein = klein.replace(f"10.0.0.{number}:8188", f"127.0.0.1:{port}")
        klein = klein.replace("listen 8188;", f"listen 127.0.0.1:{self.port};")
        if not hashing:
            klein = re.sub(r"\n *hash .*;", "", klein)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, klein=klein))
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen([nginx(), "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx did not start:\n{(folder / 'error.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
