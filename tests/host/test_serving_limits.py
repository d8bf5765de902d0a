"""The agents' HTTP: its limits, who may ask, who goes away, and routes of others."""

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from fixtures.serving import BASE, CIRCLE, KEY, PROMPT, ask, edit, form, generate, host, idle, png, refused, shown, text
from tools.provision import ROOT

URL = "data:image/png;base64,"


def test_a_body_above_the_limit_answers_413(limited):
    body, kind = form([("model", "klein-tiny"), ("prompt", PROMPT), ("image", b"\0" * 1_200_000)])
    refused(ask(limited, "/v1/images/edits", body, kind=kind), "more than 1048576 bytes", status=413)
    refused(edit(limited, image="x" * 1_200_000), "more than 1048576 bytes", status=413)
    refused(ask(limited, "/bfl/v1/klein-tiny", {"prompt": "x" * 1_200_000}), "more than 1048576 bytes", status=413)


def test_a_full_queue_answers_429_with_retry_after_and_takes_nothing_of_the_request(limited):
    idle(limited)
    slow = {"steps": 8, "n": 3}
    first = threading.Thread(target=generate, args=(limited,), kwargs=slow)
    first.start()
    while len(sum(ask(limited, "/queue").json.values(), [])) < 3:
        time.sleep(0.02)
    answer = generate(limited, n=2)
    refused(answer, "The queue is full (3 of 4 runs, 2 more asked)", status=429)
    assert int(answer.headers["Retry-After"]) > 0
    assert len(sum(ask(limited, "/queue").json.values(), [])) <= 3
    first.join()
    assert generate(limited).status == 200


def send(server, path: str, body: dict) -> socket.socket:
    """The connection of a request that is on its way."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nx-key: {KEY['x-key']}\r\n"
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(
        head.encode("latin-1") + f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )
    return client


def leave(server, body: dict) -> None:
    """Asks, waits until the runs are in the queue, and closes the connection."""
    with send(server, "/v1/images/generations", body):
        while not ask(server, "/queue").json["queue_running"]:
            time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_what_it_asked_for_and_nothing_else(limited, stream):
    idle(limited)
    known = set(ask(limited, "/history").json)
    others: list = []
    leave(limited, {**BASE, "steps": 100, "n": 2, "seed": 77, "stream": stream})
    other = threading.Thread(target=lambda: others.append(generate(limited, seed=78)))
    other.start()
    other.join()
    idle(limited)
    assert others[0].status == 200
    new = {name: entry for name, entry in ask(limited, "/history").json.items() if name not in known}
    seeds = [
        node["inputs"]["seed"] for entry in new.values() for node in entry["prompt"][2].values() if "seed" in node["inputs"]
    ]
    ends = [entry["status"]["status_str"] for entry in new.values()]
    assert seeds == [77, 78] and ends == ["error", "success"], (seeds, ends)  # the second run of 77 was taken from the queue


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_its_pictures_are_read_has_nothing_painted(limited, stream):
    idle(limited)
    known, kept, rng = set(ask(limited, "/history").json), limited.base / "input/klein", np.random.default_rng()
    images = [URL + text(png(rng.integers(0, 255, (100, 100, 3), dtype=np.uint8))) for _ in range(8)]
    before = len(list(kept.glob("*.png")))
    send(limited, "/v1/images/edits", {**BASE, "image": images, "steps": 100, "n": 3, "stream": stream}).close()
    while len(list(kept.glob("*.png"))) < before + len(images):
        time.sleep(0.02)
    time.sleep(1)  # from the last picture to the queue
    idle(limited)
    new = [entry for name, entry in ask(limited, "/history").json.items() if name not in known]
    assert [entry["status"]["status_str"] for entry in new] in ([], ["error"])


def test_an_interrupt_or_a_cleared_queue_at_the_host_answers_with_a_sentence(limited):
    idle(limited)
    first, second = [], []
    asking = [threading.Thread(target=lambda to=to: to.append(generate(limited, steps=100))) for to in (first, second)]
    asking[0].start()
    while not ask(limited, "/queue").json["queue_running"]:
        time.sleep(0.02)
    asking[1].start()
    while not ask(limited, "/queue").json["queue_pending"]:
        time.sleep(0.02)
    limited.post("/queue", {"clear": True})
    limited.post("/interrupt")
    for each in asking:
        each.join()
    refused(first[0], "interrupted at the host")
    refused(second[0], "removed from the host's queue")


def test_a_model_file_that_cannot_be_loaded_answers_with_the_loaders_sentence(limited):
    limited.put(ROOT / "tiny/text_encoders/klein-tiny", "text_encoders", "qwen_3_4b")
    (limited.base / "models/diffusion_models/flux-2-klein-4b.safetensors").write_bytes(b"<html>no model</html>")
    refused(generate(limited, model="flux-2-klein-4b"), "flux-2-klein-4b.safetensors")


def test_the_key_is_asked_for_on_every_route(limited):
    for path, body in (
        ("/v1/images/generations", BASE), ("/v1/images/edits", BASE), ("/bfl/v1/klein-tiny", BASE), ("/v1/ai/image-model", BASE),
        ("/bfl/v1/sample/x", None),
    ):  # fmt: skip
        for headers in ({}, {"x-key": "a kez"}, {"x-key": "é"}, {"Authorization": "Bearer "}, {"Authorization": "Basic a key"}):
            refused(ask(limited, path, body, headers), "API key is missing or wrong", status=401)
    bearer = {"Authorization": f"Bearer {KEY['x-key']}"}
    assert ask(limited, "/v1/images/generations", BASE, bearer).status == 200


def test_pages_of_other_sites_are_refused_as_the_host_refuses_them(limited):
    for path in ("/v1/images/generations", "/prompt"):
        answer = ask(limited, path, BASE, {**KEY, "Origin": "http://evil.example"})
        assert answer.status == 403
    assert generate(limited, {**KEY, "Origin": limited.url}).status == 200


def test_a_route_of_another_pack_is_left_to_it_and_the_log_says_so(limited):
    for path in ("/v1/models", "/v1/health", "/bfl/v1/get_result"):
        assert ask(limited, path).json == "held by another pack"
        assert f"GET {path} belongs to another pack and is left to it." in limited.log.read_text()
    assert limited.log.read_text().count("belongs to another pack") == 3


def test_request_pictures_are_kept_under_their_cap_and_those_asked_for_of_late_are_not_dropped(limited):
    """Each has nearly half of the megabyte that this host may keep."""
    folder, rng = limited.base / "input/klein", np.random.default_rng(5)
    for file in folder.glob("*"):
        file.unlink()

    def noise():
        return edit(limited, image=URL + text(png(rng.integers(0, 255, (400, 400, 3), dtype=np.uint8))), size="64x64")

    assert noise().status == 200
    (old,) = folder.glob("*")
    os.utime(old, (1, 1))
    assert noise().status == 200 and old.exists()
    assert noise().status == 200 and not old.exists()
    refused(noise(), "full", status=429)
    assert len(list(folder.glob("*"))) == 2


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/")
        self.end_headers()
        self.wfile.write(b"\0" * 2_000_000 if self.path == "/large" else b"text" if self.path == "/text" else shown(CIRCLE))

    def log_message(self, *_):
        pass


def test_urls_are_fetched_only_where_that_is_switched_on_and_within_limits(limited, comfy):
    elsewhere = HTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{elsewhere.server_port}"
    assert edit(limited, image=url, seed=4).json["data"][0]["seed"] == 4
    refused(edit(limited, image=f"{url}/large"), "image has more than 1048576 bytes", status=413)
    refused(edit(limited, image=f"{url}/moved"), "could not be fetched (status 302)")
    refused(edit(limited, image=f"{url}/text"), "image is not a picture")
    refused(edit(limited, image="http://127.0.0.1:1/"), "could not be fetched")
    refused(edit(limited, image="file:///etc/passwd"), "expected a picture as base64")
    refused(ask(comfy, "/v1/images/edits", {**BASE, "image": url}), "fetching is switched off")
    refused(ask(comfy, "/bfl/v1/klein-tiny", {"prompt": PROMPT, "input_image": url}), "fetching is switched off")
    asked = {"prompt": PROMPT, "files": [{"type": "url", "url": url}]}
    refused(ask(comfy, "/v1/ai/image-model", asked, {"ai-model-id": "klein-tiny"}), "fetching is switched off")
    elsewhere.shutdown()


def test_a_switch_turns_all_routes_off(tmp_path):
    server = host(tmp_path, KLEIN_SERVING="off")
    try:
        paths = (
            "/v1/images/generations",
            "/v1/images/edits",
            "/bfl/v1/klein-tiny",
            "/v1/ai/image-model",
            "/api/v1/images/edits",
        )
        assert {ask(server, path, BASE).status for path in paths} <= {404, 405}
        assert ask(server, "/v1/models").status == 404 and ask(server, "/prompt").status == 200
    finally:
        server.stop()
