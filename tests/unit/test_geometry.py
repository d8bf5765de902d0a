"""Sizes of references and the way back to the source."""

import random

import pytest
import torch

from samplers.geometry import GRID, MEGAPIXEL, SIZINGS, Canvas, colours, fit, kept_tokens, on_grid, place, resize, restore


def random_sizes(count=200, low=16, high=4000):
    rng = random.Random(0)
    return [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]


def cells(canvas: Canvas):
    """Corners and centres of a sample of the canvas' cells."""
    for x in {0, GRID / 2, canvas.size[0] / 2, canvas.size[0] - GRID / 2, canvas.size[0]}:
        for y in {0, GRID / 2, canvas.size[1] / 2, canvas.size[1] - GRID / 2, canvas.size[1]}:
            yield x, y


@pytest.mark.parametrize("sizing", SIZINGS)
def test_the_map_to_the_source_and_back_is_the_identity(sizing):
    for size in random_sizes():
        canvas = fit(size, sizing)
        for x, y in cells(canvas):
            assert canvas.from_source(*canvas.to_source(x, y)) == pytest.approx((x, y), abs=1e-6)
            assert canvas.size[0] % GRID == canvas.size[1] % GRID == 0


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


def test_bfl_caps_one_reference_at_2024_squared_and_several_at_1024_squared():
    assert fit((4048, 4048), "bfl").scaled == (2024, 2024)
    assert fit((4048, 4048), "bfl").size == (2016, 2016)
    assert fit((4048, 4048), "bfl", several=True).size == (1024, 1024)
    assert fit((1920, 1080), "bfl", several=True) == Canvas((1920, 1080), (1365, 768), (2, 0), (1360, 768))
    assert fit((500, 300), "bfl").scaled == (500, 300)


def test_one_megapixel_also_enlarges_and_keep_only_cuts():
    assert fit((512, 512), "one_megapixel").size == (1024, 1024)
    assert fit((1000, 515), "keep") == Canvas((1000, 515), (1000, 515), (4, 1), (992, 512))


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (8000, 1000), (10000, 10000), (15, 17)])
@pytest.mark.parametrize("sizing", SIZINGS)
def test_extreme_sizes_have_a_canvas(size, sizing):
    canvas = fit(size, sizing)
    assert min(canvas.size) >= GRID
    assert canvas.tokens * GRID**2 == canvas.size[0] * canvas.size[1]


@pytest.mark.parametrize("size", random_sizes(12, low=200, high=1500))
def test_a_smooth_pattern_comes_back_within_half_a_pixel_of_the_source(size):
    """Each colour is the pixel's own coordinate: after a resize to the canvas it must be that of the source's place,
    and after restoring its own again. The outermost pixels, where bicubic needs neighbours that are not there, apart."""
    width, height = size
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    picture = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width), x.expand(height, -1) * 0], dim=-1)[None]
    canvas = fit(size, "exact", max_megapixels=0.3)
    made = place(picture, canvas)[0]
    for column in range(4, canvas.size[0] - 4, 7):
        assert made[0, column, 0] * width == pytest.approx(canvas.to_source(column + 0.5, 0)[0], abs=0.5)
    for row in range(4, canvas.size[1] - 4, 7):
        assert made[row, 0, 1] * height == pytest.approx(canvas.to_source(0, row + 0.5)[1], abs=0.5)
    back = restore(made[None], canvas)
    assert back.shape == picture.shape
    inside = (slice(None), slice(8, -8), slice(8, -8))
    error = (back - picture)[inside].abs().amax((0, 1, 2))
    assert error[0] * width < 0.5 and error[1] * height < 0.5


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


def test_a_picture_that_fits_is_not_touched():
    picture = torch.rand(1, 256, 512, 3)
    for sizing in ("exact", "bfl", "keep"):
        assert torch.equal(place(picture, fit((512, 256), sizing)), picture)


def test_grey_becomes_three_colours_and_alpha_is_left_out():
    assert colours(torch.rand(2, 4, 5, 1)).shape == (2, 4, 5, 3)
    rgba = torch.rand(2, 4, 5, 4)
    assert torch.equal(colours(rgba), rgba[..., :3])


def test_on_grid_rounds_halves_up():
    assert [on_grid(side) for side in (1, 16, 23.9, 24, 40)] == [16, 16, 16, 32, 48]


def test_a_token_is_kept_when_at_least_half_of_its_cell_is_masked():
    canvas = fit((64, 48), "exact")
    mask = torch.zeros(1, 48, 64)
    mask[:, :, :24] = 1  # one and a half columns of cells
    assert kept_tokens(mask, canvas).view(3, 4).int().tolist() == [[1, 1, 0, 0]] * 3
    mask[:, :, 23] = 0
    assert kept_tokens(mask, canvas).view(3, 4).int().tolist() == [[1, 0, 0, 0]] * 3


def test_a_mask_of_another_size_covers_the_whole_source():
    canvas = fit((1000, 700), "bfl", several=True)
    mask = torch.zeros(1, 70, 100)
    mask[:, :35] = 1
    rows = kept_tokens(mask, canvas).view(canvas.size[1] // GRID, -1).float().mean(1)
    assert rows.tolist() == [1.0 if canvas.to_source(0, 16 * i + 8)[1] <= 350 else 0.0 for i in range(len(rows))]
