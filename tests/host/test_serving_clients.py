"""The real clients of npm (pinned in tests/clients/package-lock.json) and Python's openai against the real host with klein-tiny."""

import json
import shutil
import subprocess
from io import BytesIO

import numpy as np
import pytest

from fixtures.serving import CIRCLE, PROMPT, ask, idle, pixels, png, shown, text
from tools.provision import CLIENTS
from tools.train import world
from tools.train.judge import judge

SNIPPET = "bfl/flux-2-klein-9b"  # here klein-tiny under the released names
BARE = {"bfl": "flux-2-klein-9b"}  # where the name of the model is a part of the address
SEEDED = {
    "snippet": lambda seed: {"providerOptions": {"klein": {"seed": seed}}},
    "compatible": lambda seed: {"providerOptions": {"klein": {"seed": seed}}},
    "openai": lambda seed: {},  # knows no seed, and sends none
    "bfl": lambda seed: {"seed": seed},
    "gateway": lambda seed: {"seed": seed},
}
NAMES = [
    pytest.param(name, marks=[pytest.mark.long] * (name == "compatible")) for name in SEEDED
]  # the snippet is that client too


def clients(test):
    return pytest.mark.usefixtures("node")(pytest.mark.parametrize("client", NAMES)(test))


@pytest.fixture(scope="module")
def node():
    if not shutil.which("node"):
        pytest.skip("Node.js is not here")
    if not (CLIENTS / "node_modules").is_dir():
        pytest.skip("the npm packages of tests/clients are not installed: python3 dev.py test does it where npm is")


def paint(server, client: str, **asked) -> dict:
    """What generateImage returns: images as pixels, warnings, metadata; or error, name and status."""
    said = {"client": client, "url": server.url, "key": "a key", "model": BARE.get(client, SNIPPET), "prompt": PROMPT, **asked}
    run = subprocess.run(
        ["node", "paint.mjs"], input=json.dumps(said), capture_output=True, text=True, cwd=CLIENTS, timeout=300
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    return {**found, "images": [pixels(each) for each in found.get("images", ())]}


def expected(server, seed: int) -> np.ndarray:
    body = {"model": SNIPPET, "prompt": PROMPT, "seed": seed, "size": "64x64"}
    answer = ask(server, "/v1/images/generations", body)
    return pixels(answer.json["data"][0]["b64_json"])


@clients
def test_generate_image_paints_what_the_prompt_says_from_the_seed_it_is_given(serving, client):
    found = paint(serving, client, size="64x64", **SEEDED[client](11))
    (image,) = found["images"]
    assert judge(image, CIRCLE).all
    if client != "openai":
        assert np.array_equal(image, expected(serving, 11)) and not np.array_equal(image, expected(serving, 12))
    if client in ("bfl", "gateway"):
        (told,) = (entry["images"] for entry in found["metadata"].values() if "images" in entry)
        assert told[0]["seed"] == 11


@clients
def test_n_3_is_three_pictures(serving, client):
    images = paint(serving, client, n=3, size="64x64", **SEEDED[client](21))["images"]
    assert len(images) == 3 and all(judge(image, CIRCLE).all for image in images)
    if client not in ("bfl", "openai"):  # which ask for one picture three times
        assert all(np.array_equal(image, expected(serving, 21 + i)) for i, image in enumerate(images))
        assert not np.array_equal(images[0], images[1])


def one(shape: str, colour: str, ground: str) -> world.Scene:
    return world.Scene(ground, (world.Thing(shape, colour, 32, 32, 16),), "center", "large")


FIRST, SECOND = one("circle", "red", "white"), one("square", "blue", "yellow")


@clients
def test_references_count_in_their_order(serving, client):
    said = {"prompt": "the object of image 1 on the background of image 2", "size": "64x64", **SEEDED[client](3)}
    scenes = [text(shown(FIRST)), text(shown(SECOND))]
    (image,) = paint(serving, client, images=scenes, **said)["images"]
    (swapped,) = paint(serving, client, images=scenes[::-1], **said)["images"]
    assert judge(image, one("circle", "red", "yellow")).all and judge(swapped, one("square", "blue", "white")).all


def beside(colour: str) -> world.Scene:
    return world.Scene(
        "white", (world.Thing("circle", colour, 16, 32, 12), world.Thing("square", "blue", 48, 32, 12)), "left of"
    )


def left_half() -> bytes:
    """A mask of which the left half is transparent, to be painted."""
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[:, :32] = 0
    return png(np.dstack([np.zeros((64, 64, 3), np.uint8), alpha]))


@clients
def test_a_mask_is_painted_and_nothing_else(serving, client):
    (image,) = paint(
        serving,
        client,
        model="klein-tiny",
        prompt="image 1 but green",
        images=[text(shown(beside("red")))],
        mask=text(left_half()),
        **SEEDED[client](5),
    )["images"]
    assert np.array_equal(image[:, 32:], pixels(shown(beside("red")))[:, 32:])
    assert judge(image, beside("green")).all


@clients
def test_errors_reach_the_callers_of_generate_image_as_the_sentence(serving, client):
    wrong = paint(serving, client, model="flux-2-klein-4b", size="64x64")
    assert "flux-2-klein-4b is not on this host: put flux-2-klein-4b-fp8.safetensors into" in wrong["error"], wrong
    refused = paint(serving, client, key="another")
    assert "API key" in refused["error"] and refused["status"] in (401, None), refused
    full = paint(serving, client, n=13, size="64x64", **SEEDED[client](1))
    said = (
        "n is 13, expected a whole number from 1 to 10" if client == "gateway" else "The queue is full"
    )  # one request, or several
    assert said in full["error"], full
    idle(serving)


@pytest.fixture(scope="module")
def python(serving):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{serving.url}/v1", api_key="a key", max_retries=0)


def test_pythons_openai_paints_edits_streams_and_lists(serving, python):
    assert "klein-tiny" in [each.id for each in python.models.list()]
    asked = dict(model=SNIPPET, prompt=PROMPT, size="64x64", n=2, extra_body={"seed": 11})
    found = python.images.generate(**asked)
    assert [np.array_equal(pixels(each.b64_json), expected(serving, seed)) for each, seed in zip(found.data, (11, 12))] == [
        True
    ] * 2
    events = list(python.images.generate(**asked, stream=True))
    assert [each.type for each in events] == ["image_generation.completed"] * 2
    assert [each.b64_json == data.b64_json for each, data in zip(events, found.data)] == [
        False,
        False,
    ]  # each has its own graph
    assert all(np.array_equal(pixels(each.b64_json), pixels(data.b64_json)) for each, data in zip(events, found.data))


def test_pythons_openai_edits_with_references_in_their_order_and_under_a_mask(python):
    def edited(*scenes, **asked):
        files = [(f"{number}.png", BytesIO(shown(scene))) for number, scene in enumerate(scenes)]
        found = python.images.edit(model="klein-tiny", image=files, **asked)
        return [pixels(each.b64_json) for each in found.data]

    prompt = "the object of image 1 on the background of image 2"
    (image,) = edited(FIRST, SECOND, prompt=prompt, extra_body={"seed": 3})
    (swapped,) = edited(SECOND, FIRST, prompt=prompt, extra_body={"seed": 3})
    assert judge(image, one("circle", "red", "yellow")).all and judge(swapped, one("square", "blue", "white")).all
    mask = ("mask.png", BytesIO(left_half()))
    painted = edited(beside("red"), prompt="image 1 but green", mask=mask, n=3, extra_body={"seed": 5})
    assert len(painted) == 3 and judge(painted[0], beside("green")).all
    assert all(np.array_equal(each[:, 32:], pixels(shown(beside("red")))[:, 32:]) for each in painted)


def test_pythons_openai_is_shown_pictures_on_their_way_where_the_host_makes_previews(comfy):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{comfy.url}/v1", api_key="none", max_retries=0)
    asked = dict(model="klein-tiny", prompt=PROMPT, n=2, stream=True, extra_body={"seed": 11})
    files = [("one.png", BytesIO(shown(FIRST)))]
    for kind, events in (
        ("image_generation", list(client.images.generate(**asked, partial_images=3, output_format="webp"))),
        ("image_edit", list(client.images.edit(**asked, partial_images=1, image=files))),
    ):
        count = 3 if kind == "image_generation" else 1
        partial, whole = f"{kind}.partial_image", f"{kind}.completed"
        assert [each.type for each in events] == ([partial] * count + [whole]) * 2
        assert [each.seed for each in events] == [11] * (count + 1) + [12] * (count + 1)
        assert [each.partial_image_index for each in events[:count]] == list(range(count))
        images = [pixels(each.b64_json) for each in events]
        assert all(not np.array_equal(one, two) for one, two in zip(images[:count], images[1:count]))


def test_pythons_openai_shows_the_sentence_of_an_error(python):
    import openai

    with pytest.raises(openai.BadRequestError, match="quality = 'hd' is not supported: leave it out"):
        python.images.generate(model="klein-tiny", prompt=PROMPT, quality="hd")
    with pytest.raises(openai.NotFoundError, match="nothing' is not known"):
        python.images.generate(model="nothing", prompt=PROMPT)
