"""The agents' HTTP on the real host, with klein-tiny: what is asked is what is painted, in each API family."""

import base64
import hashlib
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fixtures.serving import CIRCLE, KEY, PROMPT, ask, form, pixels, png, shown, text
from tools.train import world
from tools.train.judge import judge
from workflows.graph import Graph

MODEL = "bfl/flux-2-klein-9b"
SIDE = {"size": "64x64"}


def openai(server, fields: dict, images=(), mask=None) -> list[np.ndarray]:
    if images:
        files = [*(("image[]", each) for each in images), *([("mask", mask)] if mask else [])]
        body, kind = form([*((name, str(value)) for name, value in fields.items()), *files])
        answer = ask(server, "/v1/images/edits", body, kind=kind)
    else:
        answer = ask(server, "/v1/images/generations", fields)
    assert answer.status == 200, answer.data
    return [pixels(each["b64_json"]) for each in answer.json["data"]]


def openai_json(server, fields: dict, images=(), mask=None) -> list[np.ndarray]:
    urls = {"image": [{"image_url": f"data:image/png;base64,{text(each)}"} for each in images]} if images else {}
    urls |= {"mask": {"image_url": f"data:image/png;base64,{text(mask)}"}} if mask else {}
    answer = ask(server, "/v1/images/edits" if images else "/v1/images/generations", {**fields, **urls})
    assert answer.status == 200, answer.data
    return [pixels(each["b64_json"]) for each in answer.json["data"]]


def bfl(server, fields: dict, images=(), mask=None) -> list[np.ndarray]:
    fields = dict(fields)
    model, first, count = fields.pop("model").removeprefix("bfl/"), fields.pop("seed"), fields.pop("n", 1)
    if "size" in fields:
        fields["width"], fields["height"] = map(int, fields.pop("size").split("x"))
    given = {"input_image" if i == 1 else f"input_image_{i}": text(each) for i, each in enumerate(images, start=1)}
    given |= {"mask": text(mask)} if mask else {}
    asked = [ask(server, f"/bfl/v1/{model}", {**fields, **given, "seed": first + i}) for i in range(count)]
    assert [each.status for each in asked] == [200] * count, asked[0].data
    return [pixels(ask(server, sample(server, each.json["polling_url"])["sample"]).data) for each in asked]


def sample(server, polling: str) -> dict:
    deadline = time.monotonic() + 60
    while (said := ask(server, polling).json)["status"] == "Pending" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert said["status"] == "Ready", said
    return said["result"]


def gateway(server, fields: dict, images=(), mask=None) -> list[np.ndarray]:
    fields = dict(fields)
    model = fields.pop("model")
    files = {"files": [{"type": "file", "mediaType": "image/png", "data": text(each)} for each in images]} if images else {}
    files |= {"mask": {"type": "file", "mediaType": "image/png", "data": text(mask)}} if mask else {}
    answer = ask(server, "/v1/ai/image-model", {**fields, **files}, {**KEY, "ai-model-id": model})
    assert answer.status == 200, answer.data
    return [pixels(each) for each in answer.json["images"]]


FAMILIES = {"openai": openai, "openai json": openai_json, "bfl": bfl, "gateway": gateway}
families = pytest.mark.parametrize("paint", FAMILIES.values(), ids=FAMILIES)


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def through_the_queue(server, seed: int) -> np.ndarray:
    """PROMPT as a user's own graph paints it."""
    graph = Graph("plain", "plain")
    model = graph.put("KleinFlowLoader", flow_name="flux-2-klein-9b.safetensors")
    clip, vae = (
        graph.put("KleinQwen3EncoderLoader", encoder_name="qwen_3_8b"),
        graph.put("KleinVAELoader", vae_name="flux2-vae.safetensors"),
    )
    latent = graph.put("EmptyFlux2LatentImage", width=64, height=64)
    sampled = graph.put(
        "KleinDistilledSampler",
        model=model,
        positive=graph.put("KleinPrompt", clip=clip, text=PROMPT),
        latent_image=latent,
        seed=seed,
    )
    save = str(graph.add("SaveImage", images=graph.put("VAEDecode", samples=sampled, vae=vae)))
    return pixels(server.file(server.run(graph.api())[save]["images"][0]).read_bytes())


@pytest.fixture(scope="module")
def plain(serving):
    """By the seed."""
    return {seed: through_the_queue(serving, seed) for seed in (7, 8, 9)}


@families
def test_a_prompt_and_a_seed_give_the_very_pixels_of_the_graph_through_prompt(serving, plain, paint):
    (image,) = paint(serving, {"model": MODEL, "prompt": PROMPT, "seed": 8, **SIDE})
    assert np.array_equal(image, plain[8]) and not np.array_equal(image, plain[7])
    assert judge(image, CIRCLE).all


@families
def test_n_pictures_have_the_seeds_that_follow_one_another(serving, plain, paint):
    assert same(paint(serving, {"model": MODEL, "prompt": PROMPT, "seed": 7, "n": 3, **SIDE}), [plain[7], plain[8], plain[9]])


def tasks(seed: int, count: int) -> list[world.Task]:
    rng = random.Random(seed)
    return [world.unseen_task(rng, 2) for _ in range(count)]


@families
def test_two_references_count_in_their_order(serving, paint):
    """Swapped pictures under the same prompt ask for something else."""
    right, swapped, wrong = [], [], []
    for task in tasks(61, 4):
        other = world.swapped(task)
        fields = {"model": "klein-tiny", "prompt": task.prompt, "seed": 1}
        (one,) = paint(serving, fields, [shown(each) for each in task.references])
        (two,) = paint(serving, fields, [shown(each) for each in other.references])
        right.append(judge(one, task.result).all)
        swapped.append(judge(two, other.result).all)
        wrong.append(judge(two, task.result).all)
    assert np.mean(right) > 0.7 and np.mean(swapped) > 0.7 and np.mean(wrong) < 0.2, (right, swapped, wrong)


def half(keep: str) -> np.ndarray:
    tokens = np.frombuffer(world.kept_tokens(keep), dtype=np.uint8).reshape(4, 4)
    return tokens.repeat(16, 0).repeat(16, 1).astype(bool)


def repaints(seed: int, count: int):
    """A scene of two things, the half to paint, the new colour of the thing there, and the scene with it."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        scene = world.scene(rng, 2)
        place = rng.choice(("left", "right") if scene.place in ("left of", "right of") else ("top", "bottom"))
        old = world.half(scene, place).things[0]
        colour = rng.choice(
            [each for each in world.COLOURS if each not in (scene.ground, *(thing.colour for thing in scene.things))]
        )
        new = tuple(replace(thing, colour=colour) if thing is old else thing for thing in scene.things)
        found.append((scene, place, colour, replace(scene, things=new)))
    return found


@families
def test_a_mask_is_painted_where_it_is_transparent_and_no_pixel_elsewhere_changes(serving, paint):
    right, words = [], random.Random(1)
    for scene, place, _, wanted in repaints(62, 8):
        area, prompt = half(place), world.caption(wanted, words)
        mask = png(np.dstack([np.zeros((64, 64, 3), np.uint8), np.where(area, 0, 255).astype(np.uint8)]))
        (image,) = paint(serving, {"model": "klein-tiny", "prompt": prompt, "seed": 2}, [shown(scene)], mask)
        right.append(judge(image, wanted).all)
        assert np.array_equal(image[~area], pixels(shown(scene))[~area]) and not np.array_equal(image, pixels(shown(scene)))
    assert np.mean(right) > 0.7, right


@pytest.mark.parametrize("paint", [bfl, gateway])
def test_a_mask_without_transparency_is_painted_where_it_is_white_as_black_forest_labs_has_it(serving, paint):
    ((scene, place, colour, _),) = repaints(63, 1)
    fields = {"model": "klein-tiny", "prompt": f"image 1 but {colour}", "seed": 2}
    white = png(np.where(half(place), 255, 0).astype(np.uint8))
    clear = png(np.dstack([np.zeros((64, 64, 3), np.uint8), np.where(half(place), 0, 255).astype(np.uint8)]))
    assert same(paint(serving, fields, [shown(scene)], white), paint(serving, fields, [shown(scene)], clear))


def test_seeds_are_returned_also_those_chosen_here_and_paint_the_same_again(serving):
    fields = {"model": MODEL, "prompt": PROMPT, **SIDE}
    first, second = (ask(serving, "/v1/images/generations", fields).json["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    again = ask(serving, "/v1/images/generations", {**fields, "seed": first["seed"]}).json["data"][0]
    assert again["seed"] == first["seed"] and np.array_equal(pixels(again["b64_json"]), pixels(first["b64_json"]))
    told = ask(serving, "/v1/ai/image-model", {"prompt": PROMPT, "n": 2, **SIDE}, {**KEY, "ai-model-id": MODEL}).json
    one, two = (each["seed"] for each in told["providerMetadata"]["klein"]["images"])
    assert two == one + 1
    task = ask(serving, "/bfl/v1/flux-2-klein-9b", {"prompt": PROMPT, "width": 64, "height": 64, "seed": 8}).json
    assert sample(serving, task["polling_url"])["seed"] == 8


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, (64, 64)),
        ({"size": "auto"}, (64, 64)),
        ({"size": "96x48"}, (96, 48)),
        ({"aspect_ratio": "16:9"}, (80, 48)),
        ({"aspect_ratio": "1:2"}, (48, 96)),
    ],
)
def test_size_and_aspect_ratio_are_those_asked_for(serving, fields, expected):
    (image,) = openai(serving, {"model": "klein-tiny", "prompt": PROMPT, **fields})
    assert (image.shape[1], image.shape[0]) == expected


def test_a_picture_from_references_has_the_size_of_the_first_unless_one_is_asked_for(serving):
    wide = png(np.full((48, 96, 3), 255, np.uint8))
    fields = {"model": "klein-tiny", "prompt": PROMPT}
    assert openai(serving, fields, [wide, shown(CIRCLE)])[0].shape == (48, 96, 3)
    assert openai(serving, {**fields, **SIDE}, [wide, shown(CIRCLE)])[0].shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_output_has_the_format_that_is_asked_for_and_shows_the_same(serving, plain, kind):
    fields = {"model": MODEL, "prompt": PROMPT, "seed": 8, **SIDE, "output_format": kind}
    answer = ask(serving, "/v1/images/generations", fields).json
    image = Image.open(BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert image.format.lower() == kind and answer["output_format"] == kind
    assert np.abs(np.asarray(image.convert("RGB"), dtype=np.float32) / 255 - plain[8]).mean() < 0.03


def test_a_request_is_an_ordinary_run_whose_picture_opens_as_a_graph_without_base64_in_it(serving):
    before = set(ask(serving, "/history").json)
    openai(serving, {"model": "klein-tiny", "prompt": PROMPT, "seed": 5}, [shown(CIRCLE)])
    history = ask(serving, "/history").json
    (new,) = set(history) - before
    entry = history[new]
    (output,) = [each for each in entry["outputs"].values() if "images" in each]
    path = serving.file(output["images"][0])
    assert path.is_relative_to(serving.base / "output/klein")
    info = Image.open(path).info
    graph = json.loads(info["prompt"])
    (loaded,) = [node["inputs"]["image"] for node in graph.values() if node["class_type"] == "LoadImage"]
    kept = serving.base / "input" / loaded
    assert loaded.startswith("klein/") and np.array_equal(pixels(kept.read_bytes()), pixels(shown(CIRCLE)))
    assert len(json.dumps(entry)) < 20_000
    drawn = json.loads(info["workflow"])
    assert {node["type"] for node in drawn["nodes"]} == {node["class_type"] for node in graph.values()}
    outputs = serving.run(
        graph | {"again": {"class_type": "PreviewImage", "inputs": {"images": graph[str(len(graph))]["inputs"]["images"]}}}
    )
    assert np.array_equal(pixels(serving.file(outputs["again"]["images"][0]).read_bytes()), pixels(path.read_bytes()))


def test_a_picture_is_kept_once_however_it_is_coded(serving):
    folder, noise = serving.base / "input/klein", np.random.default_rng(4).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    before = set(folder.glob("*")) if folder.exists() else set()
    for coded in (png(noise), png(noise, "bmp"), png(noise)):
        openai(serving, {"model": "klein-tiny", "prompt": PROMPT, "seed": 5}, [coded])
    assert len(set(folder.glob("*")) - before) == 1


def test_more_references_than_sockets_are_taken_ten_at_most(serving):
    ten = [png(np.full((16, 16, 3), 20 * i, np.uint8)) for i in range(10)]
    fields = {"model": "klein-tiny", "prompt": PROMPT, "seed": 5, **SIDE}
    assert len(openai(serving, fields, ten)) == 1
    body, kind = form(
        [*((name, str(value)) for name, value in fields.items()), *(("image[]", each) for each in [*ten, ten[0]])]
    )
    answer = ask(serving, "/v1/images/edits", body, kind=kind)
    assert answer.status == 400 and "at most 10" in answer.error


def test_models_are_those_that_can_run_with_their_licence_and_each_prefix_is_understood(serving):
    listed = {each["id"]: each["license"] for each in ask(serving, "/v1/models").json["data"]}
    assert listed == {
        "flux-2-klein-9b": "FLUX Non-Commercial License", "flux-2-klein-9b-kv": "FLUX Non-Commercial License",
        "flux-2-klein-base-9b": "FLUX Non-Commercial License", "klein-tiny": "Apache-2.0",
    }  # fmt: skip
    found = [
        openai(serving, {"model": prefix + "flux-2-klein-9b", "prompt": PROMPT, "seed": 7, **SIDE})
        for prefix in ("", "bfl/", "black-forest-labs/")
    ]
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_a_model_that_is_not_here_is_refused_with_the_files_to_put_and_where(serving):
    answer = ask(serving, "/v1/images/generations", {"model": "bfl/flux-2-klein-4b", "prompt": PROMPT})
    assert answer.status == 404
    assert "flux-2-klein-4b-fp8.safetensors into models/diffusion_models" in answer.error
    assert "qwen_3_4b.safetensors into models/text_encoders" in answer.error and "vae" not in answer.error


def graph_of(server) -> dict:
    """Inputs by class of the last run."""
    entry = list(ask(server, "/history").json.values())[-1]
    return {node["class_type"]: node["inputs"] for node in entry["prompt"][2].values()}


def test_base_models_take_steps_and_guidance_with_an_empty_negative_and_distilled_ones_no_guidance(serving):
    fields = {"model": "flux-2-klein-base-9b", "prompt": PROMPT, "steps": 6, "guidance": 3.5, **SIDE}
    openai(serving, fields)
    sampler = graph_of(serving)["KleinDistilledSampler"]
    assert (sampler["steps"], sampler["cfg"]) == (6, 3.5) and "negative" in sampler
    openai(serving, fields, [shown(CIRCLE)])
    assert "negative" in graph_of(serving)["KleinMultiReference"]
    answer = ask(serving, "/v1/images/generations", {**fields, "model": MODEL})
    assert answer.status == 400 and answer.error.startswith("guidance is 3.5")
    openai(serving, {**fields, "model": MODEL, "guidance": 1})
    assert graph_of(serving)["KleinDistilledSampler"]["steps"] == 6


def test_answers_name_their_references_by_the_bytes_that_were_sent(serving):
    """As a client does that wants the same host again, behind a proxy: docs/agents.md."""
    one, two = shown(CIRCLE), png(np.full((64, 64, 3), 255, np.uint8))
    digest = hashlib.sha256(one + two).hexdigest()
    body, kind = form([("model", "klein-tiny"), ("prompt", PROMPT), ("image[]", one), ("image[]", two)])
    files = [{"type": "file", "mediaType": "image/png", "data": text(each)} for each in (one, two)]
    given = {"input_image": text(one), "input_image_2": text(two)}
    answers = [
        ask(serving, "/v1/images/edits", body, kind=kind),
        ask(serving, "/v1/ai/image-model", {"prompt": PROMPT, "files": files}, {**KEY, "ai-model-id": "klein-tiny"}),
        ask(serving, "/bfl/v1/klein-tiny", {"prompt": PROMPT, **given}, {**KEY, "x-klein-references": "a b"}),
    ]
    assert [each.headers["x-klein-references"] for each in answers] == [digest] * 3
    polling = answers[-1].json["polling_url"]
    assert polling.endswith("&references=a+b") and sample(serving, polling)["sample"].endswith("?references=a+b")
    assert (
        ask(serving, "/v1/images/generations", {"model": "klein-tiny", "prompt": PROMPT}).headers["x-klein-references"] is None
    )


def test_health_is_told_without_a_key(serving):
    answer = ask(serving, "/v1/health", headers={})
    assert answer.status == 200 and answer.json["status"] == "ok" and answer.json["most"] == 12


def test_preflight_says_what_a_request_would_be_and_what_is_wrong_with_it_and_paints_nothing(serving):
    """A canvas of the first picture's size, in megapixels as Klein Multi Reference counts them, where none is asked for."""
    painted = sorted((serving.base / "output").rglob("*.png"))
    words = {"model": MODEL, "prompt": "image 3 with a (red:1.3) hat", "steps": 4}
    plain = ask(serving, "/v1/preflight", {**words, **SIDE})
    assert plain.status == 200 and plain.json["object"] == "preflight", plain.data
    assert plain.json["report"]["canvas"] == "64x64" and plain.json["report"]["tokens"].startswith("528: text 512 ")
    assert plain.json["report"]["memory"].endswith(" free on cpu") and "work" in plain.json["report"]
    assert plain.json["warnings"] == [
        "the prompt names image 3, but there are 0 references", "(red:1.3) is read as text: klein knows no weights of words",
    ]  # fmt: skip
    again = ask(serving, "/v1/preflight", {**words, **SIDE})
    assert again.status == 200 and again.json == plain.json, again.data
    wide = png(np.zeros((96, 128, 3)))
    body, kind = form([*((name, str(value)) for name, value in words.items()), ("image[]", wide), ("image[]", shown(CIRCLE))])
    said = ask(serving, "/v1/preflight", body, kind=kind).json
    assert said["report"]["canvas"] == "128x96" and "image 2 16 (" in said["report"]["tokens"], said
    assert said["warnings"][0] == "the prompt names image 3, but there are 2 references"
    body, kind = form([("model", MODEL), ("prompt", "x"), ("image", wide), ("mask", wide)])
    refused = ask(serving, "/v1/preflight", body, kind=kind)
    assert refused.status == 400 and "no place for a picture, expected image or image[]" in refused.json["error"]["message"]
    assert sorted((serving.base / "output").rglob("*.png")) == painted


def test_the_kv_model_keeps_references_across_runs(serving):
    openai(serving, {"model": "flux-2-klein-9b-kv", "prompt": PROMPT}, [shown(CIRCLE)])
    assert graph_of(serving)["KleinReferenceCache"]["mode"] == "across_runs"
    openai(serving, {"model": MODEL, "prompt": PROMPT}, [shown(CIRCLE)])
    assert "KleinReferenceCache" not in graph_of(serving)


def test_requests_at_the_same_time_each_get_their_own_picture(serving):
    """Of every family, judged by what each asked for."""
    rng = random.Random(64)
    scenes = [world.unseen_scene(rng) for _ in range(16)]
    prompts = [world.caption(scene, rng) for scene in scenes]
    ways = [openai, bfl, gateway]

    def one(i: int) -> np.ndarray:
        return ways[i % 3](serving, {"model": "klein-tiny", "prompt": prompts[i], "seed": i})[0]

    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(one, range(16)))
    assert np.mean([judge(image, scene).all for image, scene in zip(images, scenes)]) > 0.7
    assert np.mean([judge(image, scene).all for image, scene in zip(images[1:] + images[:1], scenes)]) < 0.2


def test_a_stream_sends_each_picture_as_an_event_as_soon_as_it_is_there(serving, plain):
    body = {"model": MODEL, "prompt": PROMPT, "seed": 7, "n": 2, "stream": True, **SIDE}
    answer = ask(serving, "/v1/images/generations", body)
    assert answer.headers["Content-Type"] == "text/event-stream"
    events = [json.loads(line[6:]) for line in answer.data.decode().splitlines() if line.startswith("data: ")]
    assert [(each["type"], each["seed"]) for each in events] == [
        ("image_generation.completed", 7),
        ("image_generation.completed", 8),
    ]
    assert same([pixels(each["b64_json"]) for each in events], [plain[7], plain[8]])
