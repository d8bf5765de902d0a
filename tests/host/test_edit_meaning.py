"""What klein-tiny makes of Klein Edit, in the real host, judged without a neural network: held-out combinations, each with a
control that must fail. Bounds leave room for chance as in test_meaning.py; --long edits twice as many pictures."""

import itertools
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image

from klein.pictures.colour import delta_e
from tools.train import world
from tools.train.judge import judge
from tools.train.studio import ENCODER, FLOW, VAE, paint
from workflows.graph import Graph, out

COUNT = 20
numbers = itertools.count()


@dataclass
class Edit:
    """A picture (h, w, 3) in [0, 1], what is painted of it (h, w) bool, a prompt, and settings of the nodes."""

    prompt: str
    image: np.ndarray
    mode: str
    mask: np.ndarray | None = None
    references: tuple = ()
    settings: dict = field(default_factory=dict)
    back: dict = field(default_factory=dict)


@pytest.fixture(scope="module")
def count(request) -> int:
    return 2 * COUNT if request.config.getoption("--long") else COUNT


def upload(comfy, picture: np.ndarray, mask: np.ndarray | None = None) -> str:
    """What a mask paints is transparent in the file."""
    pixels = (picture * 255).round().astype(np.uint8)
    if mask is not None:
        pixels = np.dstack([pixels, np.where(mask, 0, 255).astype(np.uint8)])
    name = f"edit{next(numbers)}.png"
    Image.fromarray(pixels).save(comfy.base / "input" / name)
    return name


def run(comfy, edits: list[Edit]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(picture (h, w, 3) in [0, 1], what may have changed (h, w) bool) of each."""
    graph, saves = Graph("edits", "edits"), []

    model, clip = graph.put("KleinFlowLoader", flow_name=FLOW), graph.put("KleinQwen3EncoderLoader", encoder_name=ENCODER)
    vae = graph.put("KleinVAELoader", vae_name=VAE)
    for seed, each in enumerate(edits):
        source = graph.add("LoadImage", image=upload(comfy, each.image, each.mask))
        mask = {} if each.mask is None else {"mask": out(graph, source, 1)}
        images = {
            f"image_{i}": graph.put("LoadImage", image=upload(comfy, world.render(scene)))
            for i, scene in enumerate(each.references, start=2)
        }
        settings = {"context": -1.0, "grow": 0, "feather": 0, "max_megapixels": 1.0, **each.settings}
        edit = graph.add(
            "KleinEdit", positive=graph.put("KleinPrompt", clip=clip, text=each.prompt), vae=vae, image=out(graph, source),
            mode=each.mode, **mask, **images, **settings,
        )  # fmt: skip
        latent = graph.put(
            "KleinDistilledSampler", model=model, positive=out(graph, edit), latent_image=out(graph, edit, 2), seed=seed
        )
        image = graph.put("VAEDecode", samples=latent, vae=vae)
        back = graph.add("KleinCanvasRestore", image=image, canvas=out(graph, edit, 3), **{"blend": "none", **each.back})
        saves.append([graph.add("SaveImage", images=out(graph, back), filename_prefix="edited")])
        changed = graph.put("MaskToImage", mask=out(graph, back, 1))
        saves[-1].append(graph.add("SaveImage", images=changed, filename_prefix="changed"))
    outputs = comfy.run(graph.api())
    files = [[comfy.file(outputs[str(save)]["images"][0]) for save in pair] for pair in saves]
    return [tuple(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in pair) for pair in files]


def half(keep: str) -> np.ndarray:
    tokens = np.frombuffer(world.kept_tokens(keep), dtype=np.uint8).reshape(4, 4)
    return tokens.repeat(16, 0).repeat(16, 1).astype(bool)


def bytes_of(picture: np.ndarray) -> np.ndarray:
    return (picture * 255).round().astype(np.uint8)


def share(images: list[np.ndarray], wanted: list[world.Scene]) -> float:
    return float(np.mean([judge(image, scene).all for image, scene in zip(images, wanted, strict=True)]))


def one_of_two(rng: random.Random):
    """A scene of two things, the half with one of them, its new colour, and the scene with that, a held-out one."""
    while True:
        shown = world.scene(rng, 2)
        place = rng.choice(("left", "right") if shown.place in ("left of", "right of") else ("top", "bottom"))
        old = world.half(shown, place).things[0]
        colour = rng.choice([c for c in world.COLOURS if c not in (shown.ground, *(thing.colour for thing in shown.things))])
        new = replace(old, colour=colour)
        if world.held_out(new.shape, new.colour, shown.ground):
            return shown, place, colour, replace(shown, things=tuple(new if thing is old else thing for thing in shown.things))


@pytest.mark.parametrize("asked", ["colour", pytest.param("result", marks=pytest.mark.long)])
def test_repaint_changes_the_thing_under_the_mask_and_no_pixel_of_the_other(comfy, count, asked):
    """Asked for as "image 1 but green", and by a caption of the result."""
    rng, words = random.Random(41), random.Random(1)
    cases = [one_of_two(rng) for _ in range(count)]
    edits = [
        Edit(
            world.caption(new, words) if asked == "result" else f"image 1 but {colour}",
            world.render(old),
            "repaint",
            half(place),
        )
        for old, place, colour, new in cases
    ]
    found = run(comfy, edits)
    assert share([image for image, _ in found], [new for *_, new in cases]) >= 0.9
    assert share([image for image, _ in found], [old for old, *_ in cases]) <= 0.1
    for (image, changed), (old, place, *_) in zip(found, cases):
        outside = ~half(place)
        assert np.array_equal(bytes_of(image)[outside], bytes_of(world.render(old))[outside])
        assert np.array_equal(changed[..., 0] > 0, half(place))


def in_the_middle(rng: random.Random, ground: str) -> world.Scene:
    return world.draw(lambda rng: world.scene(rng, 1), lambda s: s.ground == ground and s.place == "center", rng)


def test_replace_shows_the_object_of_the_reference_and_keeps_the_ground(comfy, count):
    rng, cases = random.Random(42), []
    while len(cases) < count:
        ground, other = rng.sample(list(world.COLOURS), 2)
        source, reference = in_the_middle(rng, ground), in_the_middle(rng, other)
        wanted = replace(reference, ground=ground)
        new = wanted.things[0]
        different = new.shape != source.things[0].shape and new.colour not in (ground, source.things[0].colour)
        if different and world.held_out(new.shape, new.colour, ground):
            cases.append((source, reference, wanted))
    middle = np.zeros((64, 64), dtype=bool)
    middle[16:48, 16:48] = True
    edits = [
        Edit(f"image 1 on a {source.ground} background", world.render(source), "replace", middle, (reference,))
        for source, reference, _ in cases
    ]
    images = [image for image, _ in run(comfy, edits)]
    assert share(images, [wanted for _, _, wanted in cases]) >= 0.8
    assert share(images, [source for source, _, _ in cases]) == 0
    for image, (source, _, _) in zip(images, cases):
        assert np.array_equal(bytes_of(image)[~middle], bytes_of(world.render(source))[~middle])


CUT = {"left": np.s_[:, :48], "right": np.s_[:, 16:], "top": np.s_[:48], "bottom": np.s_[16:]}  # of a thing at that side


def test_outpaint_continues_the_ground_and_keeps_the_picture(comfy, count):
    """At the seam, against the same strip of a picture painted from the same prompt, set beside the source: both hard, so
    that no feather hides what does not fit."""
    rng = random.Random(43)
    scenes = [world.draw(lambda rng: world.unseen_scene(rng, 1), lambda s: s.place != "center", rng) for _ in range(count)]
    prompts = [world.caption(scene, rng) for scene in scenes]
    edits = [
        Edit(
            prompt,
            world.render(scene)[CUT[scene.place]],
            "outpaint",
            settings={world.OPPOSITE[scene.place]: 16},
        )
        for prompt, scene in zip(prompts, scenes)
    ]
    images = [image for image, _ in run(comfy, edits)]
    assert share(images, scenes) >= 0.9
    renders = paint(comfy, [world.Task(prompt, (), scene, "text", 0) for prompt, scene in zip(prompts, scenes)])
    ours, pasted = [], []
    for image, other, scene in zip(images, renders, scenes):
        whole = other.copy()
        whole[CUT[scene.place]] = world.render(scene)[CUT[scene.place]]
        ours.append(seam(image, scene.place))
        pasted.append(seam(whole, scene.place))
        kept = CUT[scene.place]
        assert np.array_equal(bytes_of(image)[kept], bytes_of(world.render(scene))[kept])
    assert np.mean(ours) < np.mean(pasted), (np.mean(ours), np.mean(pasted))


def seam(image: np.ndarray, place: str) -> float:
    """Mean delta E between the last line of the source and the first that was added."""
    turned = {"left": image, "right": image[:, ::-1], "top": image.transpose(1, 0, 2), "bottom": image[::-1].transpose(1, 0, 2)}
    lines = torch.from_numpy(np.ascontiguousarray(turned[place][:, 47:49]))
    return float(delta_e(lines[:, :1], lines[:, 1:]).mean())


def test_keep_unchanged_finds_the_thing_that_an_instruction_changed(comfy, count):
    rng, cases = random.Random(44), []
    while len(cases) < count:
        task = world.unseen_task(rng, 1)
        if task.kind == "recolor":
            cases.append(task)
    edits = [Edit(task.prompt, world.render(task.references[0]), "edit", back={"keep": "unchanged"}) for task in cases]
    found = run(comfy, edits)
    assert share([image for image, _ in found], [task.result for task in cases]) >= 0.9
    own, other = [], []
    for i, (image, changed) in enumerate(found):
        mask, source = changed[..., 0] > 0, world.render(cases[i].references[0])
        own.append(overlap(mask, thing(cases[i].references[0])))
        other.append(overlap(mask, thing(cases[i - 1].references[0])))
        assert np.array_equal(bytes_of(image)[~mask], bytes_of(source)[~mask])
    assert np.mean(own) > 0.8 and np.mean(other) < 0.6, (np.mean(own), np.mean(other))


def without_one_of_two(rng: random.Random) -> world.Task:
    return world.draw(lambda rng: world.unseen_edit(rng, "without"), lambda task: len(task.references[0].things) == 2, rng)


def other_gone(task: world.Task) -> world.Scene:
    """The picture without the other one of its two things, which `without` leaves at this side."""
    return world.half(task.references[0], world.OPPOSITE[task.result.place])


@pytest.mark.parametrize("mode", ["edit", pytest.param("repaint", marks=pytest.mark.long)])
def test_image_1_is_painted_without_the_thing_that_is_named_and_not_without_the_other(comfy, count, mode):
    rng = random.Random(45)
    tasks = [without_one_of_two(rng) for _ in range(count)]
    pictures = [world.render(task.references[0]) for task in tasks]
    masks = [half(world.OPPOSITE[task.result.place]) if mode == "repaint" else None for task in tasks]
    found = run(comfy, [Edit(task.prompt, picture, mode, mask) for task, picture, mask in zip(tasks, pictures, masks)])
    images = [image for image, _ in found]
    assert share(images, [task.result for task in tasks]) >= 0.8
    assert share(images, [other_gone(task) for task in tasks]) <= 0.1
    assert share(images, [task.references[0] for task in tasks]) == 0


def thing(scene: world.Scene) -> np.ndarray:
    only = scene.things[0]
    return world.coverage(only.shape, only.x, only.y, only.radius) > 0.5


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()
