"""What the agents' HTTP refuses, and how: one sentence that names the field, never a 5xx."""

import random
import re
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fixtures.serving import BASE, CIRCLE, KEY, PROMPT, ask, edit, form, generate, idle, pixels, png, refused, shown, text

URL = "data:image/png;base64,"


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
        ({"partial_images": 2}, "partial_images is 2, expected 0 without stream"),
        ({"partial_images": 4, "stream": True}, "partial_images is 4, expected a whole number from 0 to 3"),
        ({"stream": "maybe"}, "stream is 'maybe', expected true or false"),
        ({"webhook_url": "http://x"}, "'webhook_url' is not an option"),
        ({"negative_prompt": "x"}, "'negative_prompt' is not an option"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_refused_by_its_name(limited, fields, said):
    refused(generate(limited, **fields), said)


def test_values_that_mean_the_default_pass(limited):
    neutral = {
        "quality": "auto", "background": "auto", "moderation": "auto", "user": "me", "response_format": "b64_json", "n": None,
        "partial_images": 0, "stream": False, "size": "auto", "style": None, "output_compression": 100, "guidance": 1,
    }  # fmt: skip
    assert generate(limited, **neutral).status == 200
    answer = ask(
        limited, "/bfl/v1/klein-tiny",
        {"prompt": PROMPT, "prompt_upsampling": False, "safety_tolerance": 2, "webhook_url": None, "aspect_ratio": "1:1", "width": 64, "height": 64},
    )  # fmt: skip
    assert answer.status == 200
    idle(limited)


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
        ({"mask": text(shown(CIRCLE))}, "mask is given without a picture"),
    ],
)  # fmt: skip
def test_black_forest_labs_requests_are_refused_under_their_own_names(limited, fields, said):
    refused(ask(limited, "/bfl/v1/klein-tiny", {"prompt": PROMPT, **fields}), said)


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
def test_gateway_requests_are_refused_under_their_own_names(limited, fields, said):
    refused(ask(limited, "/v1/ai/image-model", {"prompt": PROMPT, **fields}, {**KEY, "ai-model-id": "klein-tiny"}), said)


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b"", "application/json", 400), (b"{", "application/json", 400), (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 400), (b"\xff\xfe", "application/json", 400), (b'"text"', "application/json", 400),
        (b'{"seed": 1' + b"0" * 9000 + b"}", "application/json", 400), (b"prompt=x", "application/x-www-form-urlencoded", 415),
        (b"x", "multipart/form-data; boundary=y", 400), (b"x", "multipart/form-data", 400), (b"--y\r\n\r\nx", "multipart/form-data; boundary=y", 400),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(limited, body, kind, status):
    for path in ("/v1/images/generations", "/v1/images/edits", "/bfl/v1/klein-tiny", "/v1/ai/image-model"):
        answer = ask(limited, path, body, kind=kind)
        assert answer.status == status and len(answer.error) < 300, answer.data


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it is this large."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0" * 100)) + part(b"IEND", b"")


def test_pictures_that_are_none_or_too_large_are_refused(limited):
    fine, clear = URL + text(shown(CIRCLE)), png(np.zeros((64, 64, 4), np.uint8))
    refused(edit(limited, image=URL + text(bomb(9_000, 9_000))), "image is 9000x9000, expected at most 1048576", status=413)
    refused(edit(limited, image=URL + text(bomb(60_000, 60_000))), "image is far above the 1048576 pixels", status=413)
    refused(edit(limited, image=URL + text(bomb(64, 64))), "image is not a picture that can be read")
    refused(edit(limited, image=URL + text(shown(CIRCLE)[:300])), "image is not a picture that can be read")
    refused(edit(limited, image=[fine, 5]), "image is 5, expected a picture")
    refused(edit(limited, image="{"), "image is '{'")
    refused(edit(limited, image=[]), "image is missing")
    refused(edit(limited, image={"file_id": "x"}), "expected pictures as {image_url}")
    refused(edit(limited, image=fine, mask=fine), "mask paints nothing: make transparent")
    refused(
        edit(limited, image=fine, mask=URL + text(png(np.zeros((32, 64, 4), np.uint8)))), "mask is 64x32 and its picture 64x64"
    )
    refused(edit(limited, image=fine, mask=[URL + text(clear)] * 2), "2 masks are given")
    refused(edit(limited, image=fine, mask=URL + text(clear), size="96x96"), "a picture with a mask keeps its own 64x64")


def loaded(server) -> str:
    """The picture of the last run."""
    entry = list(ask(server, "/history").json.values())[-1]
    (name,) = [node["inputs"]["image"] for node in entry["prompt"][2].values() if node["class_type"] == "LoadImage"]
    return name


def test_odd_pictures_are_read_as_the_hosts_own_load_image_reads_them(limited):
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    for picture in (grey, (grey.astype(np.uint16) * 256), np.dstack([grey] * 4)):
        assert edit(limited, image=URL + text(png(picture) if picture.dtype == np.uint8 else sixteen(picture))).status == 200
        assert np.abs(pixels((limited.base / "input" / loaded(limited)).read_bytes())[..., 0] - grey / 255).max() < 0.01


def several(kind: str) -> bytes:
    """A red picture, and a blue one in the same file."""
    file = BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, kind, save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")])
    return file.getvalue()


def test_a_cameras_jpeg_with_a_preview_in_it_is_its_first_picture_and_an_animation_is_refused(limited):
    assert edit(limited, image=URL + text(several("mpo"))).status == 200
    assert np.abs(pixels((limited.base / "input" / loaded(limited)).read_bytes()) - (1, 0, 0)).max() < 0.05
    for kind in ("gif", "tiff", "webp"):
        refused(edit(limited, image=URL + text(several(kind))), "image has several frames")


def sixteen(picture: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


VALUES = [
    None, True, 0, -1, 1e400, 2**70, 0.5, "", "x", "\ud800", "\0", "64x64", "1:1", "[object Object]", [], [[]], {}, {"a": []}, "[" * 2000,
    "http://", "data:,", "data:image/png;base64,", "../../etc/passwd", "\u202e", "9" * 5000, [None], {"image_url": None}, "=", "[1]",
]  # fmt: skip


def test_400_bodies_of_nonsense_get_a_sentence_each_and_no_5xx(limited):
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
            answer = ask(limited, path, data, kind=kind)
        else:
            answer = ask(limited, path, body, {**KEY, "ai-model-id": "klein-tiny"})
        statuses.append(answer.status)
        if answer.status != 200:
            assert 400 <= answer.status < 500 and 0 < len(answer.error) <= 800, (number, path, body, answer.data)
        else:
            idle(limited)
    assert 3 < statuses.count(200) < 200
    assert generate(limited).status == 200
    assert not re.search(r"Klein: \S+ failed", limited.log.read_text())
