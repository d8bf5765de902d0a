"""Three hosts behind a real nginx with docs/nginx.conf: how many calls of agents, each with references of its own, find their
keys and values kept, with hashing by references and without."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
import urllib.request
from io import BytesIO

from PIL import Image

from tools.fleet import Fleet, nginx
from tools.server import Server

from .table import Row

HOSTS, CALLS = 3, 6  # calls: of each agent
MODEL = "flux-2-klein-9b-kv"  # keeps what it computed of the last references


def measure(folder, rounds: int, put) -> list[Row]:
    """put: gives a host its models."""
    if not nginx():
        print("nginx is not here (apt-get install nginx): nothing is measured behind it", file=sys.stderr)
        return []
    servers = [Server(folder / f"host{number}", "--use-pytorch-cross-attention") for number in range(HOSTS)]
    for server in servers:
        put(server)
    try:
        for server in servers:
            server.start()
        rows = []
        for agents in (1, HOSTS, 2 * HOSTS):
            for hashing in (True, False):
                proxy = Fleet(folder / f"nginx{agents}{hashing}", [server.port for server in servers], hashing)
                share = kept(proxy.url, servers, agents, rounds)
                proxy.stop()
                how = "with hashing by references" if hashing else "without hashing"
                rows.append(
                    Row(f"calls that find their references' keys kept, {agents} agents on {HOSTS} hosts, {how}", share, unit="")
                )
        return rows
    finally:
        for server in servers:
            server.stop()


def kept(url: str, servers: list[Server], agents: int, rounds: int) -> float:
    """The share of calls, in a random order, of agents that have new references each round."""
    rng = random.Random(5)
    before = told(servers)
    for _ in range(rounds):
        references = [[picture(rng) for _ in range(2)] for _ in range(agents)]
        order = [each for each in references for _ in range(CALLS)]
        rng.shuffle(order)
        for pictures in order:
            edit(url, pictures)
    found, made = (b - a for a, b in zip(before, told(servers), strict=True))
    return found / (found + made)


def told(servers: list[Server]) -> list[int]:
    """How often their logs say that keys were kept, and computed."""
    lines = [line for server in servers for line in server.log.read_text().splitlines() if "Klein reference cache:" in line]
    return [sum(line.endswith(how) for line in lines) for how in ("kept from an earlier run", "computed")]


def edit(url: str, pictures: list[bytes]) -> None:
    body = {"model": MODEL, "prompt": "image 1 beside image 2", "size": "64x64", "steps": 1}
    body["image"] = [base64.b64encode(each).decode() for each in pictures]
    headers = {"Content-Type": "application/json", "X-Klein-References": hashlib.sha256(b"".join(pictures)).hexdigest()}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/images/edits", json.dumps(body).encode(), headers)) as answer:
        answer.read()


def picture(rng: random.Random) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), tuple(rng.randrange(256) for _ in range(3))).save(file, "png")
    return file.getvalue()
