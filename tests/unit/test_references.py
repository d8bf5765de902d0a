"""Reference pictures in order: what a chain holds, which tokens a mask keeps, and the canvas of the picture to be made."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from klein.errors import KleinError
from klein.pictures.references import (
    LARGEST,
    SOCKETS,
    Reference,
    chain,
    enters,
    gaps,
    kept,
    known_by_latent,
    output_canvas,
    pictures,
    unpainted,
)
from klein.pictures.report import Entry
from klein.pictures.sizing import Canvas, fit

IMAGE = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))
ALL, NONE = torch.ones(1, 32, 48), torch.zeros(1, 32, 48)
LEFT = torch.zeros(1, 32, 48)
LEFT[..., :16] = 1


def settings(reference: Reference) -> tuple:
    return reference.strength, reference.start, reference.end


def test_a_reference_has_full_strength_in_all_steps_unless_it_is_told_otherwise():
    (only,) = chain(IMAGE)
    assert only.mask is None and only.source == (48, 32)
    assert settings(only) == settings(Reference(IMAGE)) == (1.0, 0.0, 1.0)
    (only,) = chain(IMAGE, strength=0.5, start=0.25, end=0.75)
    assert settings(only) == (0.5, 0.25, 0.75)


def test_what_describes_a_picture_does_not_change_once_it_is_made():
    """Nodes hand one description to several others, and the host keeps it between runs."""
    for made, name in ((Reference(IMAGE), "strength"), (fit((48, 32)), "size"), (Entry(None, (16, 16), 1), "tokens")):
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, getattr(made, name))


def test_references_are_compared_by_which_they_are_and_not_by_their_pixels():
    first = Reference(IMAGE)
    assert first != Reference(IMAGE) and first == first and len({first, Reference(IMAGE)}) == 2


def test_a_chain_is_what_was_given_and_then_each_picture_of_the_batch():
    batch = torch.rand(2, 32, 48, 3)
    first = chain(IMAGE)
    made = chain(batch, first, ALL)
    assert made[0] is first[0] and len(made) == 3
    for number in (0, 1):
        assert torch.equal(made[1 + number].image, batch[number : number + 1]) and torch.equal(made[1 + number].mask, ALL)


@pytest.mark.parametrize("shape", [(32, 48), (1, 32, 48), (1, 1, 32, 48)])
def test_a_mask_of_any_rank_is_one_mask_of_its_last_two_sides(shape):
    (only,) = chain(IMAGE, mask=LEFT.reshape(shape))
    assert torch.equal(only.mask, LEFT)


def test_a_batch_of_masks_gives_each_picture_its_own():
    first, second = chain(torch.rand(2, 32, 48, 3), mask=torch.cat([LEFT, NONE]))
    assert torch.equal(first.mask, LEFT) and torch.equal(second.mask, NONE)
    with pytest.raises(KleinError, match="^There are 2 masks for 3 images: give one for all, or one for each.$"):
        chain(torch.rand(3, 32, 48, 3), mask=torch.cat([LEFT, NONE]))
    with pytest.raises(KleinError, match="^There are 2 masks for 1 images"):
        chain(IMAGE, mask=torch.cat([LEFT, NONE]))


@pytest.mark.parametrize(("shape", "said"), [((48,), "48"), ((1, 0, 48), "1x0x48")])
def test_what_is_no_mask_is_refused(shape, said):
    with pytest.raises(KleinError, match=f"^The mask is a tensor of {said}, expected masks x height x width: connect a MASK.$"):
        chain(IMAGE, mask=torch.ones(shape))


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.5)])
def test_a_window_without_a_step_is_refused(start, end):
    with pytest.raises(KleinError, match=f"^start_percent is {start} and end_percent 0.5, which leaves no step: "):
        chain(IMAGE, start=start, end=end)


@pytest.mark.parametrize("colours", [1, 2, 3, 4])
def test_pictures_of_one_to_four_colours_are_taken_apart_in_float32(colours):
    image = torch.rand(2, 8, 4, colours).half()
    one, other = pictures(image)
    assert one.dtype == torch.float32 and torch.equal(torch.cat([one, other]), image.float())


@pytest.mark.parametrize(
    ("shape", "said"), [((8, 4, 3), "8x4x3"), ((1, 8, 4, 0), "1x8x4x0"), ((1, 0, 4, 3), "1x0x4x3"), ((1, 8, 4, 5), "1x8x4x5")]
)
def test_what_is_no_image_is_refused(shape, said):
    with pytest.raises(
        KleinError, match=f"^The reference is a tensor of {said}, expected .* 1 to 4 colours: connect an IMAGE.$"
    ):
        pictures(torch.ones(shape))


def test_a_reference_counts_unless_its_strength_is_0_and_a_mask_on_which_nothing_is_painted_is_none():
    assert all(map(enters, (Reference(IMAGE), Reference(IMAGE, ALL), Reference(IMAGE, NONE), Reference(IMAGE, strength=0.01))))
    assert not any(map(enters, (Reference(IMAGE, strength=0.0), Reference(IMAGE, ALL, 0.0))))
    assert unpainted(Reference(IMAGE, NONE)) and not any(map(unpainted, (Reference(IMAGE), Reference(IMAGE, LEFT))))


def test_the_tokens_a_mask_keeps_are_one_byte_each_and_nothing_where_all_are():
    canvas = fit((48, 32))
    assert kept(Reference(IMAGE), canvas) is None and kept(Reference(IMAGE, ALL), canvas) is None
    assert kept(Reference(IMAGE, LEFT), canvas) == bytes([1, 0, 0, 1, 0, 0])
    assert kept(Reference(IMAGE, NONE), canvas) is None


@pytest.mark.parametrize("mask", [[[0.0, 1.0]], [[1.0, 0.0]], [[0.0], [1.0]]])
def test_each_pixel_of_a_mask_is_measured_to_the_last(mask):
    """Two pixels on two tokens, side by side or on top of each other."""
    canvas = fit((32, 16) if len(mask) == 1 else (16, 32))
    assert kept(Reference(IMAGE, torch.tensor([mask])), canvas) == bytes(int(share) for row in mask for share in row)


def test_a_socket_whose_image_has_another_number_is_warned_of_with_the_cause():
    one, two = [IMAGE], [IMAGE, IMAGE]
    assert SOCKETS == ("image_1", "image_2", "image_3", "image_4")
    assert gaps({"image_1": one, "image_2": one, "image_3": one, "image_4": two}, 1) == []
    assert gaps({"image_2": one}, 1) == ["image_2 is image 1, as a socket before it is empty"]
    assert gaps({"image_1": two, "image_2": one}, 1) == ["image_2 is image 3, as a socket before it holds several"]


def test_references_of_before_shift_all_numbers_alike_and_are_no_gap():
    assert gaps({"image_1": [IMAGE], "image_2": [IMAGE]}, 4) == []
    assert gaps({"image_1": [IMAGE], "image_3": [IMAGE]}, 4) == ["image_3 is image 5, as a socket before it is empty"]


def test_a_latent_alone_stands_for_a_picture_of_16_times_its_size():
    for shape in ((1, 128, 2, 3), (128, 2, 3)):
        assert known_by_latent(torch.zeros(shape)) == Canvas((48, 32), (48, 32), (0, 0), (48, 32))


def test_without_a_size_the_picture_is_made_on_the_canvas_of_image_1_or_a_square():
    first = fit((3000, 2000), "bfl", several=True)
    assert output_canvas([first, fit((64, 64))], 0, 0) is first
    assert output_canvas([], 0, 0) == Canvas((1024, 1024), (1024, 1024), (0, 0), (1024, 1024))


@pytest.mark.parametrize(
    ("width", "height", "size"), [(640, 0, (640, 320)), (0, 640, (1280, 640)), (640, 480, (640, 480)), (500, 300, (496, 304))]
)
def test_a_size_asked_for_stands_for_the_whole_of_image_1(width, height, size):
    """The side that is not given follows its aspect, 2 to 1."""
    assert output_canvas([fit((200, 100))], width, height) == Canvas((200, 100), size, (0, 0), size)


@pytest.mark.parametrize(("width", "height", "size"), [(512, 0, (512, 512)), (0, 256, (256, 256)), (512, 256, (512, 256))])
def test_a_size_without_references_is_a_canvas_of_its_own(width, height, size):
    assert output_canvas([], width, height) == Canvas(size, size, (0, 0), size)


def test_a_picture_may_have_16384_pixels_a_side_and_no_more():
    assert LARGEST == 16384
    assert output_canvas([fit((64, 64))], 16384, 16384).size == (16384, 16384)
    wanted = "^The image would be 16384x16400 by the aspect of image 1, expected 16384 a side at most: give both sides.$"
    with pytest.raises(KleinError, match=wanted):
        output_canvas([fit((64, 64))], 16384, 16400)
