"""A world that can be judged without a neural network: one or two coloured shapes on a coloured ground.

A `Scene` is what a picture shows, whatever its size; `render` draws it, `caption` says it, a `Task` asks for it with
reference pictures.
Some combinations of shape, colour and ground are held out: `trainable` scenes have none of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

SIZE = 64  # pixels a side, in which scenes are measured
SIZES = ((64, 96), (96, 64), (80, 80), (96, 96), (64, 128), (128, 64), (112, 112), (128, 128))  # of others: rows, columns
CUTS = (  # of a picture of this size, the part that is there when it is to be continued: top, left, rows, columns
    ((64, 64), (0, 0, 64, 48)), ((64, 64), (0, 16, 64, 48)), ((64, 64), (0, 0, 48, 64)), ((64, 64), (16, 0, 48, 64)),
    ((64, 96), (0, 0, 64, 64)), ((64, 96), (0, 32, 64, 64)), ((96, 64), (0, 0, 64, 64)), ((96, 64), (32, 0, 64, 64)),
    ((96, 96), (16, 16, 64, 64)), ((96, 96), (0, 0, 64, 64)), ((96, 96), (32, 32, 64, 64)), ((128, 128), (32, 32, 64, 64)),
)  # fmt: skip
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (30, 60, 230),
    "yellow": (245, 215, 60),
    "purple": (170, 40, 190),
    "cyan": (70, 210, 225),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
RADII = {"small": 12.0, "large": 16.0}
PLACES = {"center": (32, 32), "left": (20, 32), "right": (44, 32), "top": (32, 20), "bottom": (32, 44)}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # of the first thing to the second
SIDES = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
GAP, DRIFT, JITTER = 16, 1.5, 1.2  # pixels: from the middle to each of two things, across, and of everything
STRETCH = 0.04  # of a radius


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """`place` is the name of a place for one thing, of a relation for two, and empty for none."""

    ground: str
    things: tuple[Thing, ...]
    place: str
    size: str = "small"


@dataclass(frozen=True)
class Task:
    """A prompt, its reference pictures in order, and what the picture should show."""

    prompt: str
    references: tuple[Scene, ...]
    result: Scene
    kind: str
    subject: int  # the number of the image whose object is shown
    keep: str = ""  # the half of the reference that a mask keeps: left, right, top or bottom
    size: tuple[int, int] = (SIZE, SIZE)  # of all pictures: rows, columns
    cut: tuple[int, int, int, int] = ()  # the part of each reference that is there, as in CUTS

    def pictures(self) -> list[np.ndarray]:
        """The result, then the references, each (rows, columns, 3) in [0, 1]."""
        result, *references = (render(shown, self.size) for shown in (self.result, *self.references))
        if self.cut:
            top, left, rows, columns = self.cut
            references = [picture[top : top + rows, left : left + columns] for picture in references]
        return [result, *references]


def held_out(shape: str, colour: str, ground: str) -> bool:
    """Whether a combination is kept from tools.train: a quarter of them, chosen so that every pair of the three is seen."""
    names = list(COLOURS)
    return (SHAPES.index(shape) + names.index(colour) + 2 * names.index(ground)) % 4 == 0


def trainable(scene: Scene) -> bool:
    return not any(held_out(thing.shape, thing.colour, scene.ground) for thing in scene.things)


def scene(rng: random.Random, things: int | None = None) -> Scene:
    """Any scene, with one thing or two."""
    ground, first, second = rng.sample(list(COLOURS), 3)
    if things == 1 or (things is None and rng.random() < 0.5):
        size, place = rng.choice(list(RADII)), rng.choice(list(PLACES))
        x, y = (part + rng.uniform(-JITTER, JITTER) for part in PLACES[place])
        radius = RADII[size] * rng.uniform(1 - STRETCH, 1 + STRETCH)
        return Scene(ground, (Thing(rng.choice(SHAPES), first, x, y, radius),), place, size)
    place = rng.choice(list(RELATIONS))
    (dx, dy), across = RELATIONS[place], rng.uniform(-DRIFT, DRIFT)
    found = []
    for sign, colour in ((1, first), (-1, second)):
        x = 32 + sign * (dx * GAP + dy * across) + rng.uniform(-JITTER, JITTER)
        y = 32 + sign * (dy * GAP + dx * across) + rng.uniform(-JITTER, JITTER)
        found.append(Thing(rng.choice(SHAPES), colour, x, y, RADII["small"] * rng.uniform(1 - STRETCH, 1 + STRETCH)))
    return Scene(ground, tuple(found), place)


def caption(shown: Scene, rng: random.Random) -> str:
    """One of many ways to say a scene."""
    ground = rng.choice(["on a {} background", "on {}", "in front of a {} background", "on a {} ground"]).format(shown.ground)
    names = []
    for thing in shown.things:
        size = f"{shown.size} " if rng.random() < (0.9 if len(shown.things) == 1 else 0.3) else ""
        names.append(f"a {size}{thing.colour} {thing.shape}")
    if len(shown.things) == 1:
        words = {"center": ["in the center", "in the middle"]}
        words |= {side: [f"on the {side}", f"at the {side}", f"near the {side} edge"] for side in ("left", "right")}
        words |= {side: [f"at the {side}", f"near the {side} edge"] for side in ("top", "bottom")}
        place = rng.choice(words[shown.place])
        forms = ["{n} {g}, {p}", "{n} {p}, {g}", "{g}, {n} {p}", "{p}, {n} {g}"]
        return rng.choice(forms).format(n=names[0], g=ground, p=place)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    first, second, relation = (*names, shown.place) if rng.random() < 0.5 else (*names[::-1], opposite[shown.place])
    if relation.endswith("of"):
        relation = rng.choice([relation, f"to the {relation}"])
    forms = ["{a} {r} {b}, {g}", "{a} {g}, {r} {b}", "{g}, {a} {r} {b}"]
    return rng.choice(forms).format(a=first, b=second, r=relation, g=ground)


def captioned(shown: Scene, rng: random.Random) -> Task:
    """A task without references."""
    return Task(caption(shown, rng), (), shown, "text", 0)


PROMPTS = {  # of tasks, by kind; what is filled in: a colour, or the numbers of two images
    "shape in color": ["the shape of image {} in the color of image {}", "image {} in the color of image {}"],
    "object on background": [
        "the object of image {} on the background of image {}", "image {} on the background of image {}"
    ],
    "recolor": ["image 1 but {}", "image 1, but {}", "the object of image 1 in {}"],
    "new background": ["image 1 on a {} background", "the object of image 1 on {}"],
}  # fmt: skip
WITHOUT = ["image 1 without the {}", "image 1, but without the {}", "remove the {} from image 1"]


def task(rng: random.Random) -> Task:
    """A prompt about one or two reference pictures of one thing each."""
    first, second = scene(rng, 1), scene(rng, 1)
    kind = rng.choice(list(PROMPTS))
    if kind in ("recolor", "new background"):
        colour = another_colour(first, rng)
        prompt = rng.choice(PROMPTS[kind]).format(colour)
        return Task(prompt, (first,), changed(kind, first, colour), kind, 1)
    one, other, numbers = (second, first, (2, 1)) if rng.random() < 0.5 else (first, second, (1, 2))
    prompt = rng.choice(PROMPTS[kind]).format(*numbers)
    return Task(prompt, (first, second), mixed(kind, one, other), kind, numbers[0])


def masked_task(rng: random.Random) -> Task:
    """A prompt about a picture of two things, of which a mask keeps the half with one of them."""
    shown = scene(rng, 2)
    keep = rng.choice(("left", "right") if shown.place in ("left of", "right of") else ("top", "bottom"))
    kind = rng.choice(("recolor", "new background"))
    colour = another_colour(half(shown, keep), rng)
    return Task(asked(kind, colour, rng), (shown,), changed(kind, half(shown, keep), colour), kind, 1, keep)


def without_task(rng: random.Random) -> Task:
    """A picture, and one of its things that shall go: by its colour and shape, or by the one that tells it apart."""
    shown = scene(rng, 2 if rng.random() < 0.85 else 1)
    gone = rng.choice(shown.things)
    names = [f"{gone.colour} {gone.shape}"]
    if len({thing.shape for thing in shown.things}) == len(shown.things):
        names.append(gone.shape)
    if len(shown.things) == 1:
        result = Scene(shown.ground, (), "")
    else:
        sides = [keep for keep in OPPOSITE if shown.place in (SIDES[keep], SIDES[OPPOSITE[keep]])]
        result = next(left for left in (half(shown, keep) for keep in sides) if gone not in left.things)
    return Task(rng.choice(WITHOUT).format(rng.choice(names)), (shown,), result, "without", 1)


def repaint_task(rng: random.Random) -> Task:
    """The caption of a picture, and that picture with another thing in the place of one, or none."""
    result = scene(rng)
    new = rng.choice(result.things)
    others = [colour for colour in COLOURS if colour not in (result.ground, *(thing.colour for thing in result.things))]
    old = replace(new, shape=rng.choice(SHAPES), colour=rng.choice([new.colour, *others]))
    before = [old if thing is new else thing for thing in result.things if thing is not new or rng.random() < 0.75]
    return Task(caption(result, rng), (replace(result, things=tuple(before)),), result, "repaint", 1)


def outpaint_task(rng: random.Random) -> Task:
    """The caption of a picture, and a part of it."""
    result, (size, cut) = scene(rng), rng.choice(CUTS)
    return Task(caption(result, rng), (result,), result, "outpaint", 1, size=size, cut=cut)


def recolor_both_task(rng: random.Random) -> Task:
    """A picture of two things, both in another colour: what a mask over either of them then paints is right."""
    shown = scene(rng, 2)
    colour = another_colour(shown, rng)
    return Task(asked("recolor", colour, rng), (shown,), changed("recolor", shown, colour), "recolor both", 1)


EDITS = {"without": without_task, "repaint": repaint_task, "outpaint": outpaint_task, "recolor both": recolor_both_task}


def asked(kind: str, colour: str, rng: random.Random) -> str:
    """Of the whole picture, which may show two things."""
    return rng.choice([prompt for prompt in PROMPTS[kind] if "object" not in prompt]).format(colour)


def another_colour(shown: Scene, rng: random.Random) -> str:
    return rng.choice([name for name in COLOURS if name not in (shown.ground, *(thing.colour for thing in shown.things))])


def half(shown: Scene, keep: str) -> Scene:
    """The one of two things that a mask keeps."""
    (dx, dy), (first, second) = RELATIONS[SIDES[keep]], shown.things
    thing = first if (first.x - second.x) * dx + (first.y - second.y) * dy > 0 else second
    return Scene(shown.ground, (thing,), keep)


def changed(kind: str, shown: Scene, colour: str) -> Scene:
    """A picture's things in this colour, or on a ground of it."""
    if kind in ("recolor", "shape in color"):
        return replace(shown, things=tuple(replace(thing, colour=colour) for thing in shown.things))
    return replace(shown, ground=colour)


def mixed(kind: str, one: Scene, other: Scene) -> Scene:
    """The one picture's thing in the colour of the other's thing, or on the other's ground."""
    return changed(kind, one, other.things[0].colour if kind == "shape in color" else other.ground)


def swapped(task: Task) -> Task:
    """The same prompt with the two pictures in the other order, and what it then asks for."""
    one, other = task.references if task.subject == 2 else task.references[::-1]
    return replace(task, references=task.references[::-1], result=mixed(task.kind, one, other))


def other_half(task: Task) -> Task:
    """The same prompt with the other half of the picture, and what it then asks for."""
    keep = OPPOSITE[task.keep]
    colour = task.result.things[0].colour if task.kind == "recolor" else task.result.ground
    return replace(task, result=changed(task.kind, half(task.references[0], keep), colour), keep=keep)


def possible(task: Task) -> bool:
    """Whether the result can be seen: no thing in the colour of its ground."""
    return all(thing.colour != task.result.ground for thing in task.result.things)


def draw(make, accept, rng: random.Random):
    """The first of `make(rng)` that is accepted."""
    while True:
        found = make(rng)
        if accept(found):
            return found


def training_scene(rng: random.Random) -> Scene:
    return draw(scene, trainable, rng)


def training_task(rng: random.Random) -> Task:
    """Neither the references nor the result show a held-out combination."""
    return draw(task, trainable_task, rng)


def training_edit(rng: random.Random, kind: str) -> Task:
    return draw(EDITS[kind], trainable_task, rng)


def trainable_task(task: Task) -> bool:
    return possible(task) and all(map(trainable, (task.result, *task.references)))


def unseen_scene(rng: random.Random, things: int | None = None) -> Scene:
    """A scene with a held-out combination."""
    return draw(lambda rng: scene(rng, things), lambda s: not trainable(s), rng)


def unseen_text(rng: random.Random, things: int | None = None) -> Task:
    return captioned(unseen_scene(rng, things), rng)


def unseen_task(rng: random.Random, references: int) -> Task:
    """A task whose result has a held-out combination; of two references, in either order."""

    def accept(task: Task) -> bool:
        return len(task.references) == references and unseen(task) and (references == 1 or unseen(swapped(task)))

    return draw(task, accept, rng)


def unseen_masked_task(rng: random.Random) -> Task:
    """A masked task whose result has a held-out combination, whichever half is kept."""
    return draw(masked_task, lambda task: unseen(task) and unseen(other_half(task)), rng)


def unseen_edit(rng: random.Random, kind: str) -> Task:
    """A task of EDITS whose result has a held-out combination."""
    return draw(EDITS[kind], unseen, rng)


def unseen(task: Task) -> bool:
    return possible(task) and not trainable(task.result)


def contrast(scene: Scene) -> float:
    """The smallest distance in RGB between a thing and the ground."""
    ground = np.array(COLOURS[scene.ground], dtype=float)
    return min(float(np.linalg.norm(ground - COLOURS[thing.colour])) for thing in scene.things)


def kept_tokens(keep: str) -> bytes:
    """Which of the 4x4 tokens of a picture are in a half, as a mask of a reference has it."""
    side = SIZE // 16
    inside = {"left": lambda y, x: x < side // 2, "top": lambda y, x: y < side // 2}
    inside |= {"right": lambda y, x: x >= side // 2, "bottom": lambda y, x: y >= side // 2}
    return bytes(inside[keep](y, x) for y in range(side) for x in range(side))


def any_size(rng: random.Random) -> tuple[int, int]:
    """Half of all pictures are 64x64."""
    return (SIZE, SIZE) if rng.random() < 0.5 else rng.choice(SIZES)


def coverage(shape: str, x: float, y: float, radius: float, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """(rows, columns) float32 in [0, 1]: how much of each pixel the shape covers."""
    down, right = np.mgrid[: size[0], : size[1]].astype(np.float32) + 0.5
    dx, dy = right - x, down - y
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(abs(dx), abs(dy)) - 0.88 * radius
    elif shape == "triangle":  # upright, its bounding box in the middle
        lowered = dy - 0.3 * radius
        distance = np.maximum(lowered - 0.6 * radius, (abs(dx) * 1.732 - lowered) / 2 - 0.6 * radius)
    else:
        arm, length = 0.34 * radius, 1.0 * radius
        distance = np.minimum(np.maximum(abs(dx) - length, abs(dy) - arm), np.maximum(abs(dx) - arm, abs(dy) - length))
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def render(scene: Scene, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """(rows, columns, 3) float32 in [0, 1]. Places are stretched to the size, shapes grow with its shorter side."""
    down, right = (side / SIZE for side in size)
    image = np.broadcast_to(np.float32(COLOURS[scene.ground]), (*size, 3))
    for thing in scene.things:
        cover = coverage(thing.shape, thing.x * right, thing.y * down, thing.radius * min(down, right), size)[..., None]
        image = image * (1 - cover) + cover * np.float32(COLOURS[thing.colour])
    return (image / 255).astype(np.float32)
