"""Sizes of references and the way back to the source."""

import math
import random

import pytest
import torch

from klein.pictures.masks import kept_tokens
from klein.pictures.sizing import GRID, MEGAPIXEL, SIZINGS, Canvas, colours, fit, on_grid, place, resize, restore


def random_sizes(count=200, low=16, high=4000):
    rng = random.Random(0)
    return [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]


def coordinates(width: int, height: int) -> torch.Tensor:
    """(1, height, width, 3): red and green of a pixel are its own middle, as a share of the width and the height."""
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width), torch.zeros(height, width)], dim=-1)[None]


@pytest.mark.parametrize("sizing", SIZINGS)
def test_source_to_canvas_to_source_is_measured_within_half_a_pixel_of_the_source(sizing):
    """200 sizes. The outermost pixels, where bicubic needs neighbours that are not there, apart; under one_megapixel
    smaller pictures are enlarged, so fewer of them."""
    measured = 0
    for width, height in random_sizes(20 if sizing == "one_megapixel" else 200, low=40, high=500):
        picture, canvas = coordinates(width, height), fit((width, height), sizing, max_megapixels=0.05)
        made, back = place(picture, canvas), restore(place(picture, canvas), canvas)
        assert min(canvas.size) >= GRID and canvas.size[0] % GRID == canvas.size[1] % GRID == 0
        assert back.shape == picture.shape
        edge = [max(2, round(3 * whole / scaled)) for whole, scaled in zip(canvas.source, canvas.scaled)]
        for axis, whole in enumerate((width, height)):
            line = made[0, canvas.size[1] // 2, :, 0] if axis == 0 else made[0, :, canvas.size[0] // 2, 1]
            at = torch.arange(3, canvas.size[axis] - 3)
            shown = canvas.to_source(at + 0.5, at + 0.5)[axis]
            assert ((line[at] * whole - shown).abs() <= 0.5).all()
            first = edge[axis] + math.ceil(canvas.to_source(0, 0)[axis])
            last = math.floor(canvas.to_source(*canvas.size)[axis]) - edge[axis]
            error = (back - picture).movedim(2 - axis, 1)[:, first:last, ..., axis].abs()
            if error.numel():  # what is smaller than its own edges has no inside
                assert error.amax() * whole < 0.5
                measured += 1
    assert measured >= (38 if sizing == "one_megapixel" else 380)  # of two axes a picture


def test_exact_cuts_nothing_and_keeps_the_aspect_within_half_a_grid_step():
    for width, height in random_sizes():
        canvas = fit((width, height), "exact", max_megapixels=1.0)
        assert canvas.to_source(0, 0) == (0, 0)
        assert canvas.to_source(*canvas.size) == pytest.approx((width, height))
        factor = min(1, (MEGAPIXEL / (width * height)) ** 0.5)
        for side, made in zip((width, height), canvas.size):
            assert abs(made - side * factor) <= GRID / 2 or made == GRID


@pytest.mark.parametrize("sizing", ["exact", "bfl", "keep"])
def test_never_larger_than_the_source_but_for_the_grid(sizing):
    for size in random_sizes(low=1, high=300):
        for side, made in zip(size, fit(size, sizing, max_megapixels=4.0).size):
            assert made <= max(side + GRID / 2, GRID)


def test_a_size_alone_is_scaled_to_one_megapixel_exactly():
    assert fit((3000, 2000)) == Canvas((3000, 2000), (1248, 832), (0, 0), (1248, 832))
    assert fit((3000, 2000), max_megapixels=0.99).size == (1248, 832) != fit((3000, 2000), max_megapixels=0.97).size


def test_an_unknown_sizing_is_refused():
    with pytest.raises(ValueError, match="sizing is 'stretch', expected one of exact, bfl, one_megapixel, keep"):
        fit((64, 64), "stretch")


def test_bfl_caps_one_reference_at_2024_squared_and_several_at_1024_squared():
    assert fit((4048, 4048), "bfl").scaled == (2024, 2024)
    assert fit((4048, 4048), "bfl").size == (2016, 2016)
    assert fit((4096, 4096), "bfl", several=True).size == (1024, 1024)
    assert fit((4048, 4048), "bfl", several=True).scaled == (1023, 1023)  # 1024 but for rounding, which they cut off too
    assert fit((1920, 1080), "bfl", several=True) == Canvas((1920, 1080), (1365, 768), (2, 0), (1360, 768))
    assert fit((500, 300), "bfl").scaled == (500, 300)
    assert fit((3173, 1783), "bfl", several=True).size == (1360, 752)  # they round down: 1366x767


def test_one_megapixel_also_enlarges_and_keep_only_cuts():
    assert fit((512, 512), "one_megapixel").size == (1024, 1024)
    # 1426.9 x 734.9: rounded as ComfyUI's Image Scale To Total Pixels does, not cut down
    assert fit((1000, 515), "one_megapixel") == Canvas((1000, 515), (1427, 735), (1, 7), (1424, 720))
    assert fit((1000, 515), "keep") == Canvas((1000, 515), (1000, 515), (4, 1), (992, 512))


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (8000, 1000), (10000, 10000), (15, 17)])
@pytest.mark.parametrize("sizing", SIZINGS)
def test_extreme_sizes_have_a_canvas(size, sizing):
    canvas = fit(size, sizing)
    assert min(canvas.size) >= GRID
    assert canvas.tokens * GRID**2 == canvas.size[0] * canvas.size[1]


def test_an_upscaled_result_keeps_its_detail_on_the_way_back():
    """Twice the canvas' size: scaled once, straight to the source."""
    for sizing in ("exact", "bfl"):
        canvas = fit((1000, 750), sizing, max_megapixels=0.25, several=True)
        upscaled = torch.rand(1, 2 * canvas.size[1], 2 * canvas.size[0], 3, generator=torch.Generator().manual_seed(0))
        sharpness = [
            float(image.diff(dim=2).abs().mean()) for image in (restore(upscaled, canvas), resize(upscaled, (1000, 750)))
        ]
        assert sharpness[0] == pytest.approx(sharpness[1], rel=0.1)
    shown = coordinates(2 * canvas.size[0], 2 * canvas.size[1])
    x, y = restore(shown, canvas)[0, 350, 450, :2]
    wanted = canvas.to_source(float(x) * canvas.size[0], float(y) * canvas.size[1])
    assert wanted == pytest.approx((450.5, 350.5), abs=0.5)


def test_what_was_cut_off_an_upscaled_result_is_rounded_to_its_nearest_pixel():
    """16 of 30 pixels across, made 27 wide: 7 pixels on both sides are 11.8 of it."""
    canvas = fit((30, 16), "keep")
    x = float(restore(coordinates(27, 27), canvas)[0, 8, 10, 0]) * 16
    assert canvas.to_source(x, 0)[0] == pytest.approx(10.5, abs=0.1)  # 11 instead of 12 would be 0.14 off


def test_ten_edits_in_a_row_do_not_drift_where_the_template_chain_zooms():
    """An identity stands in for the model. The centre of a dot at the edge of the picture is followed."""
    width, height = 1000, 563
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dot = torch.exp(-((columns - 900) ** 2 + (rows - 500) ** 2) / 200)[None, ..., None].expand(-1, -1, -1, 3)

    def centre(image):
        weight = image[0, ..., 0]
        at = torch.meshgrid(torch.arange(weight.shape[0]) + 0.5, torch.arange(weight.shape[1]) + 0.5, indexing="ij")
        return [float((weight * place).sum() / weight.sum()) for place in at[::-1]]

    ours = template = dot
    for _ in range(10):
        ours = restore(place(ours, fit((width, height), "exact")), fit((width, height), "exact"))
        template = resize(place(template, fit((width, height), "one_megapixel")), (width, height))
    assert centre(ours) == pytest.approx([900, 500], abs=0.5)
    assert abs(centre(template)[0] - 900) > 2


def test_cut_edges_come_back_as_their_nearest_pixels_at_the_source_size():
    canvas = fit((500, 300), "keep")
    picture = torch.rand(1, 300, 500, 3)
    back = restore(place(picture, canvas), canvas)
    (left, top), (w, h) = canvas.offset, canvas.size
    assert torch.equal(back[:, top : top + h, left : left + w], picture[:, top : top + h, left : left + w])
    assert torch.equal(back[:, :, 0], back[:, :, left])


def test_fine_lines_become_their_mean_when_a_picture_gets_smaller():
    """Black and white in turn, at a third of the size: without antialiasing every line would be all one or the other."""
    lines = (torch.arange(96) % 2).float()[None, None, :, None].expand(1, 96, -1, 3)
    assert (resize(lines, (32, 32))[:, :, 2:-2] - 0.5).abs().max() < 0.05


def test_hard_edges_do_not_leave_the_range_of_a_picture():
    """Bicubic overshoots on both sides of an edge."""
    edge = (torch.arange(64) >= 32).float()[None, None, :, None].expand(1, 64, -1, 3)
    for size in ((96, 96), (40, 40)):
        made = resize(edge, size)
        assert made.min() == 0 and made.max() == 1


def test_a_picture_that_fits_is_not_touched():
    picture = torch.rand(1, 256, 512, 3)
    for sizing in ("exact", "bfl", "keep"):
        assert torch.equal(place(picture, fit((512, 256), sizing)), picture)
    assert resize(picture, (512, 256)) is picture


def test_grey_becomes_three_colours_and_alpha_is_left_out():
    assert colours(torch.rand(2, 4, 5, 1)).shape == colours(torch.rand(2, 4, 5, 2)).shape == (2, 4, 5, 3)
    rgba = torch.rand(2, 4, 5, 4)
    assert torch.equal(colours(rgba), rgba[..., :3])
    canvas = fit((5, 4))
    assert torch.equal(place(rgba, canvas), place(rgba[..., :3], canvas))
    assert torch.equal(place(rgba[..., :1], canvas), place(rgba[..., :1].expand(-1, -1, -1, 3), canvas))


def test_on_grid_rounds_halves_up():
    assert [on_grid(side) for side in (1, 16, 23.99, 24, 40)] == [16, 16, 16, 32, 48]


def test_a_token_is_kept_when_at_least_half_of_its_cell_is_masked():
    canvas = fit((64, 48), "exact")
    mask = torch.zeros(1, 48, 64)
    mask[:, :, :24] = 1  # one and a half columns of cells
    assert kept_tokens(mask, canvas).view(3, 4).int().tolist() == [[1, 1, 0, 0]] * 3
    mask[:, :, 23] = 0
    assert kept_tokens(mask, canvas).view(3, 4).int().tolist() == [[1, 0, 0, 0]] * 3


def test_a_mask_is_measured_by_area_however_it_is_scaled():
    """Stripes of 16 of 40 pixels, at half their size: cells with exactly half of their area masked are kept."""
    canvas = fit((2048, 32), "exact", max_megapixels=1024 * 16 / MEGAPIXEL)
    mask = (torch.arange(2048) % 40 < 16).float().expand(1, 32, -1)
    assert canvas.size == (1024, 16)
    assert torch.equal(kept_tokens(mask, canvas), mask[0, 0].view(-1, 32).mean(1) >= 0.5)


def test_a_mask_of_one_half_keeps_every_token_at_any_scale():
    """Exactly at the limit: single precision would leave out some."""
    for size in random_sizes(20):
        mask = torch.full((1, size[1] // 3 + 1, size[0]), 0.5)
        assert kept_tokens(mask, fit(size, "bfl", several=True)).all()


def test_a_mask_of_another_size_covers_the_whole_source():
    canvas = fit((1000, 700), "bfl", several=True)
    mask = torch.zeros(1, 70, 100)
    mask[:, :35] = 1
    rows = kept_tokens(mask, canvas).view(canvas.size[1] // GRID, -1).float().mean(1)
    assert rows.tolist() == [1.0 if canvas.to_source(0, 16 * i + 8)[1] <= 350 else 0.0 for i in range(len(rows))]
