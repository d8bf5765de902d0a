"""What the agents' HTTP refuses, and how: one sentence that names the field, never a 5xx; limits; who may ask; who goes away."""

import json
import os
import random
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fixtures.serving import ask, form, host, idle, pixels, png, shown, text
from tools.train import world

PROMPT = "a large red circle on a white background, in the center"
SCENE = world.Scene("white", (world.Thing("circle", "red", 32, 32, 16),), "center", "large")
KEY = {"x-key": "a key é".encode().decode("latin-1")}
BASE = {"model": "klein-tiny", "prompt": PROMPT}
URL = "data:image/png;base64,"
PACK = """
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {{}}

@PromptServer.instance.routes.{method}("{path}")
async def held(request):
    return web.json_response("held by another pack")
"""


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """With small limits and a key, beside two packs that each want a route of ours; one of them loads before, one after."""
    folder, packs = tmp_path_factory.mktemp("packs"), []
    for name, method, path in (
        ("a_pack", "post", "/v1/images/variations"),
        ("b_pack", "get", "/v1/models"),
        ("z_pack", "get", "/bfl/v1/get_result"),
    ):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(PACK.format(method=method, path=path))
        packs.append(folder / name)
    server = host(
        tmp_path_factory.mktemp("limits"), packs=tuple(packs), KLEIN_API_KEY="a key é", KLEIN_MAX_BODY_MB="1", KLEIN_MAX_QUEUE="4",
        KLEIN_MAX_IMAGES="3", KLEIN_MAX_MEGAPIXELS="1", KLEIN_STORE_MB="1", KLEIN_REMOTE_IMAGES="on",
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="module")
def open_host(tmp_path_factory):
    """As it is without any setting."""
    server = host(tmp_path_factory.mktemp("open"))
    yield server
    server.stop()


def generate(server, headers=KEY, **fields):
    return ask(server, "/v1/images/generations", {**BASE, **fields}, headers)


def edit(server, **fields):
    return ask(server, "/v1/images/edits", {**BASE, **fields}, KEY)


def refused(answer, *said: str, status: int = 400) -> None:
    assert answer.status == status, (answer.status, answer.data[:300])
    sentence = answer.error
    assert len(sentence) <= 800 and "\n" not in sentence and "Traceback" not in sentence
    assert all(part in sentence for part in said), sentence


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": 5}, "prompt is 5, expected a text"),
        ({"prompt": "\ud800"}, "prompt is"),
        ({"model": None}, "model is missing"),
        ({"model": ["x"]}, "model is ['x'], expected a text"),
        ({"n": 0}, "n is 0, expected a whole number from 1 to 3"),
        ({"n": 4}, "n is 4, expected a whole number from 1 to 3"),
        ({"n": True}, "n is True"),
        ({"n": 1.5}, "n is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**53}, "seed is 9007199254740992"),
        ({"seed": "many"}, "seed is 'many'"),
        ({"size": "100x100"}, "multiples of 16, such as 96x96"),
        ({"size": "4096x4096"}, "size is '4096x4096', expected at most 1048576 pixels"),
        ({"size": 64}, "size is 64, expected WIDTHxHEIGHT"),
        ({"size": "0x64"}, "size is '0x64'"),
        ({"aspect_ratio": "16:0"}, "aspect_ratio is '16:0'"),
        ({"aspect_ratio": "1:100"}, "from 1:8 to 8:1"),
        ({"aspect_ratio": "1:2", "size": "64x64"}, "aspect_ratio is '1:2', expected that of 64x64"),
        ({"aspect_ratio": "1:1", "aspectRatio": "1:1"}, "say the same: leave one out"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": 4}, "guidance is 4, expected 1, as klein-tiny is distilled"),
        ({"output_format": "gif"}, "output_format is 'gif', expected one of png, jpeg, webp"),
        ({"output_compression": 50}, "output_compression is 50, expected 100 for png"),
        ({"quality": "hd"}, "quality = 'hd' is not supported"),
        ({"background": "transparent"}, "background = 'transparent' is not supported"),
        ({"response_format": "url"}, "response_format = 'url' is not supported"),
        ({"partial_images": 2}, "partial_images = 2 is not supported"),
        ({"stream": "maybe"}, "stream is 'maybe', expected true or false"),
        ({"webhook_url": "http://x"}, "'webhook_url' is not an option"),
        ({"negative_prompt": "x"}, "'negative_prompt' is not an option"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_refused_by_its_name(serving, fields, said):
    refused(generate(serving, **fields), said)


def test_values_that_mean_the_default_pass(serving):
    neutral = {
        "quality": "auto", "background": "auto", "moderation": "auto", "user": "me", "response_format": "b64_json", "n": None,
        "partial_images": 0, "stream": False, "size": "auto", "style": None, "output_compression": 100, "guidance": 1,
    }  # fmt: skip
    assert generate(serving, **neutral).status == 200
    answer = ask(
        serving, "/bfl/v1/klein-tiny",
        {"prompt": PROMPT, "prompt_upsampling": False, "safety_tolerance": 2, "webhook_url": None, "aspect_ratio": "1:1", "width": 64, "height": 64},
        KEY,
    )  # fmt: skip
    assert answer.status == 200
    idle(serving)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"webhook_url": "http://x"}, "'webhook_url' is not an option"),
        ({"webhook_secret": "s"}, "'webhook_secret' is not an option"),
        ({"prompt_upsampling": True}, "prompt_upsampling = True is not supported"),
        ({"prompt_upsampling": 0}, "prompt_upsampling = 0 is not supported"),
        ({"width": 64}, "width stands alone"),
        ({"width": 64, "height": 65}, "width x height is '64x65'"),
        ({"input_image": "no picture"}, "input_image is 'no picture', expected a picture as base64"),
        ({"input_image_2": text(b"GIF89a nothing")}, "input_image_2 is not a picture that can be read"),
        ({"mask": text(shown(SCENE))}, "mask is given without a picture"),
    ],
)  # fmt: skip
def test_black_forest_labs_requests_are_refused_under_their_own_names(serving, fields, said):
    refused(ask(serving, "/bfl/v1/klein-tiny", {"prompt": PROMPT, **fields}, KEY), said)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"providerOptions": {"bfl": {"webhookUrl": "http://x"}}}, "providerOptions.bfl.webhookUrl is not supported"),
        ({"providerOptions": []}, "providerOptions is []"),
        ({"providerOptions": {"bfl": {"steps": 0}}}, "steps is 0"),
        ({"files": "x"}, "files is 'x', expected a list"),
        ({"files": [{"type": "file"}]}, "files is None, expected a picture"),
        ({"mask": 5}, "mask is [5], expected a list"),
    ],
)  # fmt: skip
def test_gateway_requests_are_refused_under_their_own_names(serving, fields, said):
    refused(ask(serving, "/v1/ai/image-model", {"prompt": PROMPT, **fields}, {**KEY, "ai-model-id": "klein-tiny"}), said)


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b"", "application/json", 400), (b"{", "application/json", 400), (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 400), (b"\xff\xfe", "application/json", 400), (b'"text"', "application/json", 400),
        (b'{"seed": 1' + b"0" * 9000 + b"}", "application/json", 400), (b"prompt=x", "application/x-www-form-urlencoded", 415),
        (b"x", "multipart/form-data; boundary=y", 400), (b"x", "multipart/form-data", 400), (b"--y\r\n\r\nx", "multipart/form-data; boundary=y", 400),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(serving, body, kind, status):
    for path in ("/v1/images/generations", "/v1/images/edits", "/bfl/v1/klein-tiny", "/v1/ai/image-model"):
        answer = ask(serving, path, body, KEY, kind)
        assert answer.status == status and len(answer.error) < 300, answer.data


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it is this large."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0" * 100)) + part(b"IEND", b"")


def test_pictures_that_are_none_or_too_large_are_refused(serving):
    fine, clear = URL + text(shown(SCENE)), png(np.zeros((64, 64, 4), np.uint8))
    refused(edit(serving, image=URL + text(bomb(9_000, 9_000))), "image is 9000x9000, expected at most 1048576", status=413)
    refused(edit(serving, image=URL + text(bomb(60_000, 60_000))), "image is far above the 1048576 pixels", status=413)
    refused(edit(serving, image=URL + text(bomb(64, 64))), "image is not a picture that can be read")
    refused(edit(serving, image=URL + text(shown(SCENE)[:300])), "image is not a picture that can be read")
    refused(edit(serving, image=[fine, 5]), "image is 5, expected a picture")
    refused(edit(serving, image="{"), "image is '{'")
    refused(edit(serving, image=[]), "image is missing")
    refused(edit(serving, image={"file_id": "x"}), "expected pictures as {image_url}")
    refused(edit(serving, image=fine, mask=fine), "mask paints nothing: make transparent")
    refused(
        edit(serving, image=fine, mask=URL + text(png(np.zeros((32, 64, 4), np.uint8)))), "mask is 64x32 and its picture 64x64"
    )
    refused(edit(serving, image=fine, mask=[URL + text(clear)] * 2), "2 masks are given")
    refused(edit(serving, image=fine, mask=URL + text(clear), size="96x96"), "a picture with a mask keeps its own 64x64")


def test_odd_pictures_are_read_as_the_hosts_own_load_image_reads_them(serving):
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    for picture in (grey, (grey.astype(np.uint16) * 256), np.dstack([grey] * 4)):
        assert edit(serving, image=URL + text(png(picture) if picture.dtype == np.uint8 else sixteen(picture))).status == 200
        entry = list(ask(serving, "/history").json.values())[-1]
        (name,) = [node["inputs"]["image"] for node in entry["prompt"][2].values() if node["class_type"] == "LoadImage"]
        assert np.abs(pixels((serving.base / "input" / name).read_bytes())[..., 0] - grey / 255).max() < 0.01


def sixteen(picture: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def test_a_body_above_the_limit_answers_413(serving):
    body, kind = form([("model", "klein-tiny"), ("prompt", PROMPT), ("image", b"\0" * 1_200_000)])
    refused(ask(serving, "/v1/images/edits", body, KEY, kind), "more than 1048576 bytes", status=413)
    refused(edit(serving, image="x" * 1_200_000), "more than 1048576 bytes", status=413)
    refused(ask(serving, "/bfl/v1/klein-tiny", {"prompt": "x" * 1_200_000}, KEY), "more than 1048576 bytes", status=413)


def test_a_full_queue_answers_429_with_retry_after_and_takes_nothing_of_the_request(serving):
    idle(serving)
    slow = {"steps": 20, "n": 3}
    first = threading.Thread(target=generate, args=(serving,), kwargs=slow)
    first.start()
    while len(sum(ask(serving, "/queue").json.values(), [])) < 3:
        time.sleep(0.02)
    answer = generate(serving, n=2)
    refused(answer, "The queue is full (3 of 4 runs, 2 more asked)", status=429)
    assert int(answer.headers["Retry-After"]) > 0
    assert len(sum(ask(serving, "/queue").json.values(), [])) <= 3
    first.join()
    assert generate(serving).status == 200


def leave(server, body: dict) -> None:
    """Asks, waits until the runs are in the queue, and closes the connection."""
    data = json.dumps(body).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nx-key: {KEY['x-key']}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            head.encode("latin-1") + f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        while not ask(server, "/queue").json["queue_running"]:
            time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_what_it_asked_for_and_nothing_else(serving, stream):
    idle(serving)
    known = set(ask(serving, "/history").json)
    others: list = []
    leave(serving, {**BASE, "steps": 100, "n": 2, "seed": 77, "stream": stream})
    other = threading.Thread(target=lambda: others.append(generate(serving, seed=78)))
    other.start()
    other.join()
    idle(serving)
    assert others[0].status == 200
    new = {name: entry for name, entry in ask(serving, "/history").json.items() if name not in known}
    seeds = [
        node["inputs"]["seed"] for entry in new.values() for node in entry["prompt"][2].values() if "seed" in node["inputs"]
    ]
    ends = [entry["status"]["status_str"] for entry in new.values()]
    assert seeds == [77, 78] and ends == ["error", "success"], (seeds, ends)  # the second run of 77 was taken from the queue


def test_an_interrupt_at_the_host_answers_with_a_sentence(serving):
    idle(serving)
    found: list = []
    asking = threading.Thread(target=lambda: found.append(generate(serving, steps=100)))
    asking.start()
    while not ask(serving, "/queue").json["queue_running"]:
        time.sleep(0.02)
    serving.post("/interrupt")
    asking.join()
    refused(found[0], "interrupted at the host")


def test_the_key_is_asked_for_on_every_route(serving):
    for path, body in (
        ("/v1/images/generations", BASE), ("/v1/images/edits", BASE), ("/bfl/v1/klein-tiny", BASE), ("/v1/ai/image-model", BASE),
        ("/bfl/v1/sample/x", None),
    ):  # fmt: skip
        for headers in ({}, {"x-key": "a kez"}, {"Authorization": "Bearer "}, {"Authorization": "Basic a key"}):
            refused(ask(serving, path, body, headers), "API key is missing or wrong", status=401)
    bearer = {"Authorization": f"Bearer {KEY['x-key']}"}
    assert ask(serving, "/v1/images/generations", BASE, bearer).status == 200


def test_pages_of_other_sites_are_refused_as_the_host_refuses_them(serving):
    for path in ("/v1/images/generations", "/prompt"):
        answer = ask(serving, path, BASE, {**KEY, "Origin": "http://evil.example"})
        assert answer.status == 403
    assert generate(serving, {**KEY, "Origin": serving.url}).status == 200


def test_a_route_of_another_pack_is_left_to_it_and_the_log_says_so(serving):
    for path in ("/v1/models", "/bfl/v1/get_result"):
        assert ask(serving, path).json == "held by another pack"
        assert f"GET {path} belongs to another pack and is left to it." in serving.log.read_text()
    assert serving.log.read_text().count("belongs to another pack") == 2


def test_request_pictures_are_kept_under_their_cap_and_those_asked_for_of_late_are_not_dropped(serving):
    """Each has nearly half of the megabyte that this host may keep."""
    folder, rng = serving.base / "input/klein", np.random.default_rng(5)
    for file in folder.glob("*"):
        file.unlink()

    def noise():
        return edit(serving, image=URL + text(png(rng.integers(0, 255, (400, 400, 3), dtype=np.uint8))), size="64x64")

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
        self.wfile.write(b"\0" * 2_000_000 if self.path == "/large" else b"text" if self.path == "/text" else shown(SCENE))

    def log_message(self, *_):
        pass


def test_urls_are_fetched_only_where_that_is_switched_on_and_within_limits(serving, open_host):
    elsewhere = HTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{elsewhere.server_port}"
    assert edit(serving, image=url, seed=4).json["data"][0]["seed"] == 4
    refused(edit(serving, image=f"{url}/large"), "image has more than 1048576 bytes", status=413)
    refused(edit(serving, image=f"{url}/moved"), "could not be fetched (status 302)")
    refused(edit(serving, image=f"{url}/text"), "image is not a picture")
    refused(edit(serving, image="http://127.0.0.1:1/"), "could not be fetched")
    refused(edit(serving, image="file:///etc/passwd"), "expected a picture as base64")
    refused(ask(open_host, "/v1/images/edits", {**BASE, "image": url}), "fetching is switched off")
    refused(ask(open_host, "/bfl/v1/klein-tiny", {"prompt": PROMPT, "input_image": url}), "fetching is switched off")
    asked = {"prompt": PROMPT, "files": [{"type": "url", "url": url}]}
    refused(ask(open_host, "/v1/ai/image-model", asked, {"ai-model-id": "klein-tiny"}), "fetching is switched off")
    elsewhere.shutdown()


VALUES = [
    None, True, 0, -1, 1e400, 2**70, 0.5, "", "x", "\ud800", "\0", "64x64", "1:1", "[object Object]", [], [[]], {}, {"a": []}, "[" * 2000,
    "http://", "data:,", "data:image/png;base64,", "../../etc/passwd", "\u202e", "9" * 5000, [None], {"image_url": None}, "=", "[1]",
]  # fmt: skip


def test_400_bodies_of_nonsense_get_a_sentence_each_and_no_5xx(serving):
    rng, statuses = random.Random(9), []
    names = [
        *(
            "model",
            "prompt",
            "n",
            "size",
            "seed",
            "aspect_ratio",
            "steps",
            "guidance",
            "output_format",
            "output_compression",
            "stream",
        ),
        *(
            "image",
            "mask",
            "images",
            "quality",
            "user",
            "width",
            "height",
            "input_image",
            "input_image_2",
            "files",
            "providerOptions",
            "x",
        ),
    ]
    for number in range(400):
        path = rng.choice(["/v1/images/generations", "/v1/images/edits", "/bfl/v1/klein-tiny", "/v1/ai/image-model"])
        body = dict(BASE) if path.startswith("/v1/images") else {"prompt": PROMPT}
        body |= {name: rng.choice(VALUES) for name in rng.sample(names, rng.randint(1, 4))}
        if path.endswith("edits") and rng.random() < 0.5:
            fields = [
                (name, value.encode("utf-8", "replace") if rng.random() < 0.2 else value)
                for name, value in body.items()
                if isinstance(value, str)
            ]
            data, kind = form([(n, v if isinstance(v, bytes) else v.encode("utf-8", "replace").decode()) for n, v in fields])
            answer = ask(serving, path, data, KEY, kind)
        else:
            answer = ask(serving, path, body, {**KEY, "ai-model-id": "klein-tiny"})
        statuses.append(answer.status)
        if answer.status != 200:
            assert 400 <= answer.status < 500 and 0 < len(answer.error) <= 800, (number, path, body, answer.data)
        else:
            idle(serving)
    assert 3 < statuses.count(200) < 200
    assert generate(serving).status == 200
