"""What klein-tiny paints, in the real host, judged without a neural network: prompts and tasks held out from training.

The bounds leave room for chance: at the measured shares (tiny/README.md) a sample of this size stays above them in more
than 999 of 1000 draws, and a model that ignores the prompt, the references or their order is far below.
"""

import random

import numpy as np
import pytest

from training import world
from training.evaluate import swapped
from training.studio import FLOW, Job, paint, reference_jobs, text_jobs, verdicts

BOUND, CHANCE = 0.7, 0.2
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def right(images, jobs) -> float:
    return np.mean([verdict.all for verdict in verdicts(images, jobs)])


@pytest.fixture(scope="module")
def text():
    return text_jobs(random.Random(31), 40)


@pytest.fixture(scope="module")
def two():
    return reference_jobs(random.Random(32), 40, 2)


def test_pictures_show_what_unseen_prompts_say_and_not_what_others_say(comfy, text):
    images = paint(comfy, text)
    assert right(images, text) > BOUND
    assert right(images[1:] + images[:1], text) < CHANCE


def test_another_seed_paints_another_picture_of_the_same(comfy, text):
    some = text[:25]
    one, other = paint(comfy, some), paint(comfy, some, seed=50)
    assert right(other, some) > BOUND
    assert not any(np.array_equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("cache", ["off", "within_run", "across_runs"])
def test_two_references_and_their_order_are_followed(comfy, two, cache):
    """Swapped pictures under the same prompt ask for something else; the old answer is then wrong."""
    assert right(paint(comfy, two, cache=cache), two) > BOUND
    exchanged = swapped(two)
    images = paint(comfy, exchanged, cache=cache)
    assert right(images, exchanged) > BOUND
    before = {(job.prompt, job.references[::-1]): job for job in two}
    assert right(images, [before[job.prompt, job.references] for job in exchanged]) < CHANCE


@pytest.mark.parametrize("cache", ["off", "within_run"])
def test_one_reference_is_followed(comfy, cache):
    jobs = reference_jobs(random.Random(33), 30, 1)
    assert right(paint(comfy, jobs, cache=cache), jobs) > BOUND


@pytest.mark.parametrize("cache", ["off", "within_run"])
def test_a_mask_that_hides_one_or_the_other_of_two_things_decides_which_appears(comfy, cache):
    """The same prompt and picture with the one half kept and with the other."""
    rng, jobs = random.Random(34), []
    for _ in range(20):
        task = world.draw(world.masked_task, world.possible, rng)
        jobs.append(Job(task.prompt, task.references, task.result, task.keep))
    assert right(paint(comfy, jobs, cache=cache), jobs) > BOUND
    others = [Job(job.prompt, job.references, job.wanted, OPPOSITE[job.keep]) for job in jobs]
    assert right(paint(comfy, others, cache=cache), jobs) < CHANCE


def test_the_tiny_models_are_listed_beside_the_users_own(comfy):
    nodes = comfy.get("/object_info")
    for node, name, file in (
        ("KleinFlowLoader", "flow_name", FLOW), ("KleinQwen3EncoderLoader", "encoder_name", "klein-tiny"),
        ("KleinVAELoader", "vae_name", "klein-tiny-vae.safetensors"),
    ):  # fmt: skip
        options = nodes[node]["input"]["required"][name]
        listed = options[0] if isinstance(options[0], list) else options[1]["options"]
        assert file in listed and len(listed) > 1
