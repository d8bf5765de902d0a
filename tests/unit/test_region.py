"""What is painted of a picture: the region, the canvas it lies on, and its tokens."""

import math
import random

import pytest
import torch

from klein.pictures.masks import bounds, grown, ramp
from klein.pictures.references import LARGEST
from klein.pictures.region import ENOUGH, MOST, WHOLE, chosen, layout, region, whole_size
from klein.pictures.sizing import GRID, MEGAPIXEL, fit

NONE = (0, 0, 0, 0)


def cases(count=300):
    """Pictures, boxes inside them, context and limit."""
    rng = random.Random(5)
    for _ in range(count):
        width, height = rng.randint(1, 4000), rng.randint(1, 4000)
        left, top = rng.randrange(width), rng.randrange(height)
        box = (left, top, rng.randint(left + 1, width), rng.randint(top + 1, height))
        yield (width, height), box, rng.choice([0.0, 0.1, 0.5, 2.0, 30.0]), rng.choice([0.01, 0.25, 1.0, 4.0])


def blot(height: int, width: int, box) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, box[1] : box[3], box[0] : box[2]] = 1
    return mask


def area(image, mask=None, mode="repaint", context=0.5, grow=0, feather=0, megapixels=1.0, margins=NONE):
    return region(image, mask, mode, context, grow, feather, megapixels, margins)


def test_a_region_holds_the_mask_lies_in_the_picture_and_keeps_the_limit():
    for picture, box, context, limit in cases():
        (left, top, right, bottom), size = layout(box, picture, context, limit)
        assert 0 <= left <= box[0] and box[2] <= right <= picture[0]
        assert 0 <= top <= box[1] and box[3] <= bottom <= picture[1]
        assert size[0] % GRID == size[1] % GRID == 0
        assert size[0] * size[1] <= limit * MEGAPIXEL or max(size) == GRID


def test_both_sides_are_scaled_by_one_factor_within_half_a_pixel_where_the_picture_does_not_end():
    measured = 0
    for picture, box, context, limit in cases():
        (left, top, right, bottom), size = layout(box, picture, context, limit)
        sides = right - left, bottom - top
        if sides[0] < picture[0] and sides[1] < picture[1] and min(sides) > 1:
            low = max(made / (side + 0.5) for made, side in zip(size, sides))
            high = min(made / (side - 0.5) for made, side in zip(size, sides))
            assert low <= high
            measured += 1
    assert measured > 60


def test_a_region_is_never_enlarged_more_than_8_times_and_small_ones_to_a_quarter_of_a_megapixel():
    for picture, box, context, limit in cases():
        (left, top, right, bottom), size = layout(box, picture, context, limit)
        sides, enough = (right - left, bottom - top), min(ENOUGH, limit) * MEGAPIXEL
        for made, side in zip(size, sides):
            assert made <= max(MOST * side, GRID)
        if min(picture) >= 64 and max(sides) < min(picture):
            assert size[0] * size[1] >= 0.8 * enough
        if sides[0] * sides[1] > 1.2 * enough:
            assert size[0] * size[1] <= sides[0] * sides[1] * (1 + GRID / min(sides)) ** 2


def test_what_fits_as_it_is_keeps_its_pixels():
    image = torch.rand(1, 700, 900, 3)
    one = area(image, blot(700, 900, (300, 200, 620, 540)), context=0.5)
    left, top, right, bottom = one.box
    assert one.size == (right - left, bottom - top) and torch.equal(one.pixels(), image[:, top:bottom, left:right])


@pytest.mark.parametrize("context", [0.0, 0.3, WHOLE])
def test_a_place_on_the_canvas_is_that_place_of_the_picture_within_half_a_pixel(context):
    rng = random.Random(3)
    for _ in range(25):
        width, height = rng.randint(60, 500), rng.randint(60, 500)
        left, top = rng.randrange(width - 20), rng.randrange(height - 20)
        mask = blot(height, width, (left, top, left + rng.randint(1, 20), top + rng.randint(1, 20)))
        x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        places = torch.stack(
            [x.expand(height, -1) / width, y[:, None].expand(-1, width) / height, x.expand(height, -1) * 0], -1
        )
        one = area(places[None], mask, context=context, megapixels=0.03)
        shown = one.pixels()[0]
        edge = [
            math.ceil(4 * max(made / whole, 1))
            for made, whole in zip(one.size, (one.box[2] - one.box[0], one.box[3] - one.box[1]))
        ]
        for v in range(edge[1], one.size[1] - edge[1], 7):
            for u in range(edge[0], one.size[0] - edge[0], 7):
                wanted = one.to_source(u + 0.5, v + 0.5)
                assert abs(float(shown[v, u, 0]) * width - wanted[0]) <= 0.5
                assert abs(float(shown[v, u, 1]) * height - wanted[1]) <= 0.5


def test_the_whole_picture_lies_as_a_reference_does_and_is_never_enlarged():
    image = torch.rand(1, 70, 90, 3)
    one = area(image, blot(70, 90, (3, 3, 9, 9)), context=WHOLE)
    assert one.box == (0, 0, 90, 70) and one.size == fit((90, 70)).size


def test_no_whole_picture_is_painted_above_the_limit_and_only_what_rounding_puts_above_it_is_smaller_than_a_reference():
    rng, smaller = random.Random(11), 0
    for _ in range(400):
        picture, limit = (rng.randint(1, 8192), rng.randint(1, 1024)), rng.choice([0.001, 0.01, 0.25, 1.0, 4.0])
        size, reference = whole_size(picture, limit), fit(picture, "exact", limit).size
        assert size[0] * size[1] <= limit * MEGAPIXEL or max(size) == GRID
        if reference[0] * reference[1] <= limit * MEGAPIXEL:
            assert size == reference
        else:
            smaller += 1
            assert min(size) < 10 * GRID or size[0] * size[1] >= 0.85 * limit * MEGAPIXEL
    assert smaller > 50
    image = torch.zeros(1, 128, 1024, 3)
    assert fit((1024, 128), "exact", 0.0625).size == (720, 96) and whole_size((1024, 128), 0.0625) == (704, 80)
    assert area(image, None, "edit", megapixels=0.0625).size == whole_size((1024, 128), 0.0625)
    assert area(image, blot(128, 1024, (0, 0, 9, 9)), context=WHOLE, megapixels=0.0625).size == whole_size((1024, 128), 0.0625)


def test_a_mask_in_mode_edit_does_not_narrow_what_is_seen():
    one = area(torch.rand(1, 700, 900, 3), blot(700, 900, (300, 200, 320, 240)), "edit")
    assert one.box == (0, 0, 900, 700) and one.mask.sum() == 20 * 40


@pytest.mark.parametrize("grey, painted", [(0.49, False), (0.5, True), (1.0, True)])
def test_half_grey_and_lighter_is_painted(grey, painted):
    mask = torch.full((1, 48, 64), 0.0)
    mask[0, 10, 20] = grey
    assert (chosen(mask, (64, 48)) is not None) == painted


def test_a_narrow_picture_is_enlarged_only_as_far_as_its_longer_side_allows():
    for picture in ((6000, 4), (4000, 1), (16384, 1)):
        (left, top, right, bottom), size = layout((0, 0, *picture), picture, 0.5, 1.0)
        assert (right - left, bottom - top) == picture and max(size) <= LARGEST and min(size) == GRID


def test_every_token_that_the_mask_touches_is_painted_by_its_share_and_no_other():
    rng, generator = random.Random(7), torch.Generator().manual_seed(7)
    for _ in range(60):
        width, height = rng.randint(40, 300), rng.randint(40, 300)
        mask = torch.rand(1, height, width, generator=generator).gt(0.999).float()
        mask[0, rng.randrange(height), rng.randrange(width)] = 1
        one = area(torch.zeros(1, height, width, 3), mask, context=rng.choice([0.0, 0.5, WHOLE]))
        got = one.painted()[0, 0]
        left, top, right, bottom = one.box
        want = torch.zeros(one.size[1] // GRID, one.size[0] // GRID, dtype=torch.float64)
        across, down = (right - left) * GRID / one.size[0], (bottom - top) * GRID / one.size[1]
        for y, x in mask[0].nonzero().tolist():
            for i in range(want.shape[0]):
                for j in range(want.shape[1]):
                    tall = min(y + 1, top + (i + 1) * down) - max(y, top + i * down)
                    wide = min(x + 1, left + (j + 1) * across) - max(x, left + j * across)
                    if min(tall, wide) > 1e-9:
                        want[i, j] += tall * wide / (across * down)
        assert torch.equal(got > 0, want > 0) and torch.allclose(got.double(), want, atol=1e-6)


def test_several_places_and_several_masks_are_one_region():
    masks = torch.cat([blot(400, 400, (20, 30, 60, 50)), blot(400, 400, (300, 310, 350, 380))])
    one = area(torch.zeros(1, 400, 400, 3), masks, context=0.0)
    assert one.box[0] <= 20 and one.box[1] <= 30 and one.box[2] >= 350 and one.box[3] >= 380
    assert torch.equal(one.mask, masks.amax(0) > 0)


def test_a_mask_grows_by_pixels_in_all_directions_and_fades_in_inside():
    mask = blot(60, 60, (30, 30, 31, 31))[0] > 0
    large = grown(mask, 10)
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    assert torch.equal(large, (y - 30) ** 2 + (x - 30) ** 2 <= 100)
    square = blot(60, 60, (10, 10, 50, 50))[0] > 0
    soft = ramp(square, 5)
    assert torch.equal(soft > 0, square) and soft[30, 30] == 1
    assert [round(float(v), 3) for v in soft[30, 10:16]] == [round(k / 6, 3) for k in range(1, 7)]


def test_a_mask_thinner_than_the_feather_still_shows_in_full_at_its_thickest():
    line = blot(64, 64, (0, 30, 64, 33))[0] > 0
    assert [float(v) for v in ramp(line, 16)[28:35, 32]] == [0, 0, 0.5, 1, 0.5, 0, 0]


def test_an_edge_of_the_picture_is_no_edge_of_the_mask():
    half = blot(64, 64, (0, 0, 32, 64))[0] > 0
    assert (ramp(half, 8)[:, :20] == 1).all() and (ramp(half, 8)[:, 31] < 0.2).all()
    full = torch.ones(8, 8, dtype=torch.bool)
    assert (ramp(full, 8) == 1).all() and grown(full, 9).all()


def test_what_is_added_to_a_transparent_picture_is_seen():
    image = torch.rand(1, 48, 64, 4)
    image[..., 3] = 0
    one = area(image, None, "outpaint", margins=(0, 0, 32, 0))
    assert (one.picture[:, :, 64:, 3] == 1).all() and torch.equal(one.picture[:, :, :64], image)


def test_outpaint_adds_pixels_that_the_mask_covers_and_the_picture_stays_beside_them():
    image = torch.rand(1, 48, 64, 3)
    one = area(image, None, "outpaint", context=WHOLE, margins=(16, 0, 32, 8))
    assert one.picture.shape == (1, 56, 112, 3) and torch.equal(one.picture[:, :48, 16:80], image)
    assert not one.mask[:48, 16:80].any() and bounds(~one.mask) == (16, 0, 80, 48)
    assert torch.equal(one.picture[:, :48, 0], image[:, :, 0])  # its nearest pixels
    seam = area(image, blot(48, 64, (0, 0, 4, 4)), "outpaint", context=WHOLE, grow=3, margins=(16, 0, 0, 0))
    assert seam.mask[:4, 16:20].all() and seam.mask[40, 18] and not seam.mask[40, 19]


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (1, 1)])
def test_a_mask_on_which_nothing_is_painted_is_none_whatever_its_size(size):
    assert chosen(torch.zeros(1, *size), (64, 48)) is None
    assert area(torch.rand(1, 48, 64, 3), torch.zeros(1, *size), "edit").mask is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(mask=None), "repaint needs a mask of what to paint, and none is painted: paint one, or use mode edit."),
        (dict(mask=torch.zeros(1, 64, 64), mode="replace"), "replace needs a mask"),
        (dict(mask=torch.ones(1, 64, 64)), "The mask is 64x64 and the picture 64x48, expected the same size"),
        (dict(mask=torch.full((1, 48, 64), float("nan"))), "holds NaN or infinity, expected masks x height x width"),
        (dict(mask=torch.ones(0, 48, 64)), "The mask is a tensor of 0x48x64"),
        (dict(mode="outpaint"), "outpaint has 0 pixels at all four sides: set left, top, right or bottom"),
        (dict(mode="outpaint", margins=(8192, 0, 8192, 0)), "The picture would be larger than 16384 pixels a side"),
    ],
)
def test_what_cannot_be_painted_is_refused_in_one_sentence(given, sentence):
    with pytest.raises(ValueError) as error:
        area(torch.rand(1, 48, 64, 3), **given)
    assert sentence in str(error.value)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_has_three_colours_and_alpha_stays_with_the_picture(channels):
    one = area(torch.rand(1, 48, 64, channels), torch.ones(1, 48, 64))
    assert one.picture.shape[-1] == max(channels, 3) and one.pixels().shape[-1] == 3
