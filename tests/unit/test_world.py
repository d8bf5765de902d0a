"""The world of the tiny Klein, and the judge that reads it back from pixels."""

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from tools.train import data, text, world
from tools.train.judge import CONTRAST, judge, look


def test_the_judge_errs_on_less_than_1_percent_of_clean_pictures():
    rng = random.Random(0)
    drawn = [(world.scene(rng), world.any_size(rng)) for _ in range(500)]
    drawn += [
        (edit.result, edit.size) for edit in (world.training_edit(rng, rng.choice(list(world.EDITS))) for _ in range(100))
    ]
    wrong = [(scene, size) for scene, size in drawn if not judge(world.render(scene, size), scene).all]
    assert len(wrong) < 5, wrong


def test_colours_are_so_far_apart_that_half_an_edge_belongs_to_its_thing():
    """A soft outline is then no other shape; blue on purple once was."""
    apart = [np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(world.COLOURS.values(), 2)]
    assert min(apart) > 2 * CONTRAST


def test_the_judge_forgives_noise_of_8_bits_and_more():
    rng, noise = random.Random(1), np.random.default_rng(1)
    scenes = [world.scene(rng) for _ in range(200)]
    wrong = [s for s in scenes if not judge(np.clip(world.render(s) + noise.normal(0, 0.04, (64, 64, 3)), 0, 1), s).all]
    assert len(wrong) < 4


def test_the_picture_of_another_prompt_is_judged_wrong():
    """The floor of the figures: one picture in a few hundred happens to fit another prompt."""
    rng = random.Random(2)
    scenes = [world.scene(rng) for _ in range(400)]
    verdicts = [judge(world.render(one), other) for one, other in zip(scenes, scenes[1:])]
    assert sum(v.all for v in verdicts) <= 4
    assert sum(v.colour for v in verdicts) / 400 < 0.05
    assert sum(v.shape for v in verdicts) / 400 < 0.25
    assert sum(v.place for v in verdicts) / 400 < 0.25


def test_a_blank_picture_and_noise_show_nothing_that_was_asked_for():
    scene = world.scene(random.Random(3), 1)
    for image in (np.full((64, 64, 3), 0.5), np.random.default_rng(0).random((64, 64, 3))):
        verdict = judge(image, scene)
        assert not (verdict.shape or verdict.colour or verdict.place)


def test_training_shows_no_held_out_combination_and_the_unseen_all_have_one():
    rng = random.Random(4)
    for _ in range(2000):
        assert world.trainable(world.training_scene(rng))
        task = world.training_task(rng)
        assert all(map(world.trainable, (task.result, *task.references)))
        assert world.trainable_task(world.draw(world.masked_task, world.trainable_task, rng))
        edit = world.training_edit(rng, rng.choice(list(world.EDITS)))
        assert all(map(world.trainable, (edit.result, *edit.references)))
    for _ in range(300):
        assert not world.trainable(world.unseen_scene(rng))
        for task in (world.unseen_task(rng, 1), two := world.unseen_task(rng, 2), world.swapped(two)):
            assert not world.trainable(task.result)
        for task in (masked := world.unseen_masked_task(rng), world.other_half(masked)):
            assert not world.trainable(task.result)
        assert not any(world.trainable(world.unseen_edit(rng, kind).result) for kind in world.EDITS)


def test_what_the_flow_is_trained_on_shows_no_held_out_combination():
    """The very tasks of tools/train/data.py, references and results."""
    tasks = data.drawn()
    shown = [scene for task in tasks for scene in (task.result, *task.references)]
    assert len(shown) > 20000 and all(map(world.trainable, shown))
    assert set(map(data.kind, tasks)) == set(data.SHARES)
    rng = random.Random(9)
    new = [world.caption(world.unseen_scene(rng), rng) for _ in range(500)]
    assert not set(new) & {task.prompt for task in tasks}


def combinations(prompt: str) -> list[tuple[str, str, str]]:
    """(shape, colour, ground) of the things that a caption's words name."""
    words = [*re.findall("[a-z]+", prompt), ""]
    pairs = [(one, following) for one, following in zip(words, words[1:]) if one in world.COLOURS]
    grounds = [colour for colour, following in pairs if following not in world.SHAPES]
    return [(shape, colour, ground) for colour, shape in pairs if shape in world.SHAPES for ground in grounds]


def test_no_prompt_that_anything_is_trained_on_says_a_held_out_combination():
    """Of the flow, the encoder and the tokenizer, read back from the words."""
    rng = random.Random(10)
    prompts = [*(task.prompt for task in data.drawn()), *text.corpus(), *(text.a_prompt(rng)[0] for _ in range(3000))]
    named = [names for prompt in prompts for names in combinations(prompt)]
    assert len(named) > 25000 and not any(world.held_out(*names) for names in named)
    for _ in range(300):
        new = world.caption(world.unseen_scene(rng), rng)
        assert any(world.held_out(*names) for names in combinations(new)), new


def test_a_quarter_of_the_combinations_is_held_out_and_every_pair_is_seen():
    names = [(s, c, g) for s in world.SHAPES for c in world.COLOURS for g in world.COLOURS if c != g]
    seen = [name for name in names if not world.held_out(*name)]
    assert 0.2 < 1 - len(seen) / len(names) < 0.3
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert {tuple(name[i] for i in pair) for name in seen} == {tuple(name[i] for i in pair) for name in names}


@pytest.mark.parametrize("count", [1, 2])
def test_a_caption_names_all_that_the_picture_shows(count):
    rng = random.Random(5)
    for _ in range(200):
        scene = world.scene(rng, count)
        text = world.caption(scene, rng)
        assert scene.ground in text
        assert all(f"{thing.colour} {thing.shape}" in text for thing in scene.things)


def test_swapped_references_ask_for_another_picture():
    rng = random.Random(6)
    tasks = [world.unseen_task(rng, 2) for _ in range(200)]
    for task in tasks:
        one, other = task.references if task.subject == 1 else task.references[::-1]
        assert task.result.things[0].shape == one.things[0].shape
        assert f"image {task.subject}" in task.prompt.split(" in the ")[0].split(" on the ")[0]
        if task.kind == "shape in color":
            assert (task.result.things[0].colour, task.result.ground) == (other.things[0].colour, one.ground)
        else:
            assert (task.result.things[0].colour, task.result.ground) == (one.things[0].colour, other.ground)


def test_a_masked_task_shows_the_one_thing_in_the_half_that_is_kept():
    rng = random.Random(7)
    for _ in range(200):
        task = world.draw(world.masked_task, world.trainable_task, rng)
        (shown,), (thing,) = task.references, task.result.things
        kept = np.frombuffer(world.kept_tokens(task.keep), dtype=np.uint8).reshape(4, 4)
        inside = [kept[int(one.y) // 16, int(one.x) // 16] for one in shown.things]
        assert sum(inside) == 1 and kept.sum() == 8
        (source,) = [one for one, there in zip(shown.things, inside) if there]
        assert (thing.shape, thing.x, thing.y) == (source.shape, source.x, source.y)
        assert judge(world.render(task.result), task.result).all


def test_a_picture_without_a_thing_shows_the_others_and_its_prompt_names_the_one_that_went():
    rng = random.Random(11)
    for _ in range(200):
        task = world.without_task(rng)
        (gone,) = set(task.references[0].things) - set(task.result.things)
        assert gone.shape in task.prompt and task.result.ground == task.references[0].ground
        assert not any(f"{left.colour} {left.shape}" in task.prompt for left in task.result.things)
        if gone.colour not in task.prompt.split():
            assert gone.shape not in [left.shape for left in task.result.things]
        assert judge(task.pictures()[0], task.result).all
        assert not judge(task.pictures()[1], task.result).all


def test_both_things_of_a_picture_take_the_one_colour_that_is_asked_for_and_nothing_else_changes():
    rng = random.Random(14)
    for _ in range(200):
        task = world.recolor_both_task(rng)
        (reference,) = task.references
        (colour,) = {thing.colour for thing in task.result.things}
        assert colour in task.prompt.split() and colour not in (reference.ground, *(thing.colour for thing in reference.things))
        assert "object" not in task.prompt
        as_before = (replace(new, colour=old.colour) for new, old in zip(task.result.things, reference.things, strict=True))
        assert replace(task.result, things=tuple(as_before)) == reference
        assert judge(task.pictures()[0], task.result).all
        for only in (0, 1):  # a picture of which one thing alone is recoloured
            things = [new if i == only else old for i, (new, old) in enumerate(zip(task.result.things, reference.things))]
            assert not judge(world.render(replace(reference, things=tuple(things))), task.result).colour


def test_a_repainted_picture_is_its_reference_but_for_one_thing():
    rng = random.Random(12)
    for _ in range(200):
        task = world.repaint_task(rng)
        (reference,) = task.references
        assert len(set(task.result.things) - set(reference.things)) <= 1
        assert len(set(reference.things) - set(task.result.things)) <= 1
        assert (reference.ground, reference.place) == (task.result.ground, task.result.place)


def test_what_is_to_be_continued_is_a_part_of_the_picture():
    rng = random.Random(13)
    for _ in range(100):
        task = world.outpaint_task(rng)
        whole, part = task.pictures()
        top, left, rows, columns = task.cut
        assert whole.shape[:2] == task.size and part.shape[:2] == (rows, columns) != task.size
        assert np.array_equal(whole[top : top + rows, left : left + columns], part)


def test_swapping_the_references_or_the_mask_swaps_what_is_wanted():
    rng = random.Random(8)
    for make, swap in (
        (lambda: world.unseen_task(rng, 2), world.swapped),
        (lambda: world.unseen_masked_task(rng), world.other_half),
    ):
        for task in (make() for _ in range(100)):
            other = swap(task)
            assert other.prompt == task.prompt and swap(other) == task
            assert judge(world.render(other.result), other.result).all
            assert not judge(world.render(task.result), other.result).all


def test_the_judge_sees_what_was_drawn():
    thing = world.Thing("triangle", "red", 20, 32, 10.5)
    ground, (seen,) = look(world.render(world.Scene("white", (thing,), "left")))
    assert (ground, seen.shape, seen.colour) == ("white", "triangle", "red")
    assert abs(seen.x - 20) < 1 and abs(seen.y - 32) < 1
