"""Which images a prompt names, and what is said about it."""

import pytest

from klein.pictures.report import Entry, named_images, read_as_text, report, weighted


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
        ("images 1 to 1000000000", {*range(1, 21), 1000000000}),  # 20 at most are filled in
        ("", set()),
    ],
)
def test_the_numbers_a_prompt_gives_to_images(prompt, numbers):
    assert named_images(prompt) == numbers


def warnings(count: int, prompt: str | None) -> list[str]:
    entries = [Entry((64, 64), (64, 64), 16)] * count
    lines = report(entries, (64, 64), 512, prompt, []).split("\n")
    return [line.removeprefix("Warning: ") for line in lines if line.startswith("Warning")]


def test_the_report_gives_sizes_tokens_and_the_share_of_the_whole_sequence():
    """Of 128 text, 256 image and 640 reference tokens, 576 are 56 %, of the image's own they would be 225 %."""
    entries = [Entry((400, 300), (512, 288), 576, ("strength 0.5",)), Entry(None, (128, 128), 64), Entry((16, 16), (16, 16), 0)]
    assert report(entries, (512, 128), 128, None, ["a warning"]).split("\n") == [
        "image 1: 400x300 to 512x288, 576 tokens, 56 % of the attention's keys, strength 0.5",
        "image 2: 128x128, 64 tokens, 6 % of the attention's keys",
        "image 3: 16x16, 0 tokens, 0 % of the attention's keys",
        "canvas: 512x128, 256 tokens, 1024 with text and references",
        "Warning: a warning",
    ]


def test_images_that_are_not_connected_or_not_named_are_warned_of():
    assert warnings(2, "image 1 on image 3") == [
        "the prompt names image 3, but there are 2 references", "the prompt does not name image 2",
    ]  # fmt: skip
    assert warnings(2, "image 2") == ["the prompt does not name image 1"]
    assert warnings(1, "image 2") == ["the prompt names image 2, but there is 1 reference"]
    assert warnings(1, "images 33, 2 and 0") == [
        f"the prompt names image {number}, but there is 1 reference" for number in (0, 2, 33)
    ]
    assert warnings(4, "combine images 1-4") == warnings(1, "a cat") == warnings(2, None) == []


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("a (red:1.3) cat on a (very old: .5) chair", ["(red:1.3)", "(very old: .5)"]),
        ("a sign (it says: open) at 10:30 (noon:)", []),
        ("((deep:1.1))", ["(deep:1.1)"]),
        ("(" * 50000, []),
        ("", []),
    ],
)
def test_weights_in_a_prompt_are_found(prompt, parts):
    assert weighted(prompt) == parts


def test_a_weight_over_several_lines_is_said_in_one():
    assert read_as_text("(a\nb\r\n c:1.3)") == ["(a b c:1.3) is read as text: klein knows no weights of words"]
