"""Which images a prompt names, and what is said about it."""

import pytest

from klein.pictures.report import Entry, named_images, report


@pytest.mark.parametrize(
    "prompt, numbers",
    [
        ("the cat of image 1 in the style of Image 2", {1, 2}),
        ("images 1 and 3", {1, 3}),
        ("images 1, 2 and 4", {1, 2, 4}),
        ("combine images 1-4", {1, 2, 3, 4}),
        ("blend images 2 to 4 into image 1", {1, 2, 3, 4}),
        ("from image 1 to image 3", {1, 2, 3}),
        ("image #2", {2}),
        ("an imagery of 3 cats, imagine 2", set()),
        ("images 3-1", {1, 3}),
        ("image " + "1" * 5000, {int("1" * 18)}),
        ("image 2 to " + "9" * 5000, set(range(2, 22)) | {int("9" * 18)}),
        ("", set()),
    ],
)
def test_the_numbers_a_prompt_gives_to_images(prompt, numbers):
    assert named_images(prompt) == numbers


def warnings(count: int, prompt: str | None) -> list[str]:
    entries = [Entry((64, 64), (64, 64), 16)] * count
    lines = report(entries, (64, 64), 512, prompt, []).split("\n")
    return [line.removeprefix("Warning: ") for line in lines if line.startswith("Warning")]


def test_images_that_are_not_connected_or_not_named_are_warned_of():
    assert warnings(2, "image 1 on image 3") == [
        "the prompt names image 3, but there are 2 references", "the prompt does not name image 2",
    ]  # fmt: skip
    assert warnings(1, "image 2") == ["the prompt names image 2, but there is 1 reference"]
    assert warnings(4, "combine images 1-4") == warnings(1, "a cat") == warnings(2, None) == []
