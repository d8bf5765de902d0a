"""The way back: what lies outside the mask is the source's own pixels, whatever came from the model."""

import random

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from klein.pictures.colour import delta_e, fit_colours, uncut
from klein.pictures.masks import ramp
from klein.pictures.paste import BLENDS, Figures, bring_back, differences, figured, paste, percent, seam
from klein.pictures.region import WHOLE, region
from klein.pictures.sizing import Canvas, fit, keeps_aspect, restore

NONE = (0, 0, 0, 0)


def pictures(count: int, largest: int):
    """Pictures and masks of every awkward kind: odd sizes, 1 pixel, at the border, full, thin, 8 to 1, grey, alpha."""
    rng, generator = random.Random(11), torch.Generator().manual_seed(11)
    for number in range(count):
        width, height = rng.randint(1, largest), rng.randint(1, largest)
        if number % 10 == 3:
            width, height = 8 * max(largest // 9, 1), max(largest // 9, 1)
        image = torch.randint(0, 256, (1, height, width, rng.choice([1, 3, 3, 4])), generator=generator) / 255
        mask = torch.zeros(1, height, width)
        left, top = rng.randrange(width), rng.randrange(height)
        right, bottom = rng.randint(left + 1, width), rng.randint(top + 1, height)
        kind = number % 5
        if kind == 0:
            mask[0, top, left] = 1
        elif kind == 1:
            mask[0, top:bottom, left:right] = 1
        elif kind == 2:
            mask[0, :bottom, :right] = 1
        elif kind == 3:
            mask[0, top, :] = 1
        else:
            mask[:] = 1 if number % 10 == 4 else torch.rand(mask.shape, generator=generator).gt(0.99).float()
            mask[0, top, left] = 1
        yield image, mask, rng


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("colour", ["off", "match"])
def test_outside_the_grown_mask_every_pixel_is_the_sources_own(blend, colour):
    """60 pictures; the 100 of every size over HTTP, as saved: tests/host/test_paste.py."""
    changed = 0
    for image, mask, rng in pictures(60, 90):
        area = region(image, mask, "repaint", rng.choice([0.0, 0.5, WHOLE]), rng.choice([0, 3]), rng.choice([0, 4]), 0.01, NONE)
        made = torch.rand(1, area.size[1], area.size[0], 3)
        out, found, text = bring_back(made, area, blend, colour, "off")
        assert out.shape == area.picture.shape and torch.equal(out[0][~area.mask], area.picture[0][~area.mask])
        assert torch.equal(found[0] > 0, area.mask) and text
        changed += not torch.equal(out, area.picture)
    assert changed > 50


def flat(height=64, width=64, colour=(0.2, 0.4, 0.6)):
    return torch.tensor(colour).expand(1, height, width, 3).clone()


def hole(height=64, width=64, box=(20, 16, 44, 40)):
    mask = torch.zeros(1, height, width)
    mask[:, box[1] : box[3], box[0] : box[2]] = 1
    return mask


def test_a_hard_edge_a_feather_and_a_seamless_one():
    source, made = flat(), flat(colour=(0.3, 0.5, 0.7))
    area = region(source, hole(), "repaint", WHOLE, 0, 3, 1.0, NONE)
    inside = area.mask
    hard, _, figures = paste(made, area, "none", "off", "off")
    assert torch.equal(hard[0][inside], made[0][inside])
    assert figures.seam == pytest.approx((25.5, 0.0), abs=1e-3) and figures.identical == 1 - 24 * 24 / 4096
    soft, _, figures = paste(made, area, "feather", "off", "off")
    assert torch.allclose(soft[0, 30, 20:25, 0], 0.2 + 0.1 * torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0]))
    assert figures.seam[0] == pytest.approx(25.5 / 4, abs=1e-3)
    seamless, _, figures = paste(made, area, "seamless", "off", "off")
    assert torch.allclose(seamless, source, atol=2e-3) and figures.seam[0] < 0.5


def test_drift_is_measured_outside_the_mask_before_the_way_back_and_after_the_colours_are_matched():
    generator = torch.Generator().manual_seed(1)
    source = torch.rand(1, 8, 8, 3, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2) * 0.8 + 0.1
    made = source**1.15 * 0.95 + 0.02
    area = region(source, hole(), "repaint", WHOLE, 0, 0, 1.0, NONE)
    _, _, figures = paste(made, area, "none", "match", "off")
    assert figures.drift[0] > 2 and figures.matched[0] < 1
    assert paste(source, area, "none", "off", "off")[2].drift == (0, 0)


def test_unchanged_is_kept_with_and_without_a_mask():
    source = flat(96, 96)
    made = source.clone()
    made[:, 20:40, 20:40] = torch.tensor([0.9, 0.1, 0.1])
    made = made * 0.97 + 0.01
    area = region(source, None, "edit", WHOLE, 0, 0, 1.0, NONE)
    out, found, text = bring_back(made, area, "none", "match", "unchanged")
    wanted = torch.zeros(96, 96, dtype=torch.bool)
    wanted[20:40, 20:40] = True
    found = found[0] > 0
    assert (found & wanted).sum() / (found | wanted).sum() > 0.8
    assert torch.equal(out[0][~found], source[0][~found]) and "delta E" in text
    limited = region(source, hole(96, 96, (0, 0, 30, 96)), "edit", WHOLE, 0, 0, 1.0, NONE)
    _, found, _ = bring_back(made, limited, "none", "off", "unchanged")
    assert not found[0, :, 30:].any() and found[0, 20:40, 20:30].all()


def test_without_a_mask_the_picture_comes_back_as_from_a_plain_canvas_bit_for_bit():
    image, made = torch.rand(1, 70, 90, 3), torch.rand(2, 64, 96, 3)
    area = region(image, None, "edit", 0.5, 16, 16, 1.0, NONE)
    assert torch.equal(bring_back(made, area, "feather", "off", "off")[0], restore(made, fit((90, 70))))


def test_each_picture_of_a_batch_has_its_own_figures():
    area = region(flat(), hole(), "repaint", WHOLE, 0, 0, 1.0, NONE)
    out, found, text = bring_back(torch.cat([flat(), flat(colour=(0.9, 0.1, 0.1))]), area, "none", "off", "off")
    assert out.shape == (2, 64, 64, 3) and found.shape == (2, 64, 64)
    assert "image 1: outside the mask the model itself drifted by delta E 0.00" in text and "image 2: " in text


def test_an_enlarged_result_is_brought_back_and_one_of_another_shape_refused():
    area = region(flat(), hole(), "repaint", WHOLE, 0, 0, 1.0, NONE)
    assert bring_back(flat(128, 128), area, "none", "off", "off")[0].shape == (1, 64, 64, 3)
    with pytest.raises(
        ValueError, match="^The image is 128x64, but the canvas 64x64: connect what was made on this canvas, whole.$"
    ):
        bring_back(flat(64, 128), area, "none", "off", "off")
    with pytest.raises(ValueError, match="^The image is 16x16, but the canvas 64x64: connect what was made on this canvas"):
        bring_back(flat(16, 16), area, "none", "off", "off")
    with pytest.raises(ValueError, match="^The image holds NaN or infinity, expected colours: change the node that made it.$"):
        bring_back(flat() * float("nan"), area, "none", "off", "off")


@pytest.mark.parametrize("blend", BLENDS)
def test_a_picture_in_half_precision_is_brought_back(blend):
    area = region(flat(), hole(), "repaint", WHOLE, 0, 3, 1.0, NONE)
    out, _, _ = bring_back(flat(colour=(0.25, 0.5, 0.75)).half(), area, blend, "match", "off")
    assert out.dtype == torch.float32 and torch.equal(out[0][~area.mask], area.picture[0][~area.mask])


def test_an_image_made_on_the_canvas_of_another_picture_is_told_from_a_model_that_drifts():
    area = region(flat(), hole(), "repaint", WHOLE, 0, 0, 1.0, NONE)
    made = torch.cat([flat(colour=(0.26, 0.44, 0.62)), flat(colour=(0.9, 0.1, 0.1))])
    assert "Warning" not in bring_back(made[:1], area, "none", "off", "off")[2]
    *_, last = bring_back(made, area, "none", "off", "off")[2].split("\n")
    assert last.startswith("Warning: outside the mask the image differs by delta E ")
    assert last.endswith(" on the mean, as another picture would: see that it was made on this canvas")


def test_a_canvas_of_another_aspect_is_returned_as_it_is_with_a_line():
    canvas = Canvas((1920, 1080), (1024, 1024), (0, 0), (1024, 1024))
    made = torch.rand(1, 64, 64, 3)
    out, found, text = bring_back(made, canvas, "feather", "off", "off")
    assert out is made and found.shape == (1, 64, 64) and "another aspect" in text
    rng = random.Random(2)
    for _ in range(300):
        size = rng.randint(1, 5000), rng.randint(1, 5000)
        for sizing in ("exact", "bfl", "one_megapixel", "keep"):
            assert keeps_aspect(fit(size, sizing, 0.25))


def test_a_canvas_without_its_picture_cannot_match_colours():
    with pytest.raises(
        ValueError, match="^colour and keep need the picture that was edited, which only Klein Edit's canvas has"
    ):
        bring_back(torch.rand(1, 64, 64, 3), fit((64, 64)), "feather", "match", "off")


def toned_with_another_thing(generator):
    """A picture of flat blocks, and the same as a model may have it: other tones, a few wild pixels at the left outside the
    mask, another thing under it."""
    source = torch.rand(1, 8, 8, 3, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2) * 0.8 + 0.1
    made = source**1.1 * 0.97 + 0.01
    made[:, 16:40, 20:44] = torch.tensor([0.9, 0.1, 0.1])
    made[:, 60:, 0] = torch.tensor([0.0, 0.0, 1.0])
    return source, made


def test_the_figures_are_those_of_numpy_and_scikit_image_outside_the_mask_alone():
    source, made = toned_with_another_thing(torch.Generator().manual_seed(2))
    area = region(source, hole(), "repaint", WHOLE, 0, 0, 1.0, NONE)
    made[:, 16:20, 20:44] = source[:, 16:20, 20:44]  # painted as it was: identical, though under the mask
    _, _, figures = paste(made, area, "none", "off", "off")
    apart = deltaE_ciede2000(*(rgb2lab(each[0].double().numpy()) for each in (source, made)))[~area.mask.numpy()]
    assert figures.drift[0] == pytest.approx(apart.mean(), rel=1e-3)
    assert figures.drift[1] == pytest.approx(np.percentile(apart, 99, method="inverted_cdf"), rel=1e-3)
    assert np.median(apart) < 0.9 * figures.drift[1] < 0.5 * apart.max()
    assert figures.identical == pytest.approx(1 - 20 * 24 / 4096)


def test_colours_are_fitted_on_what_the_mask_leaves_and_the_match_is_measured_after_it():
    """What is painted under the mask has no say, however far it is from what was there."""
    source, made = toned_with_another_thing(torch.Generator().manual_seed(3))
    area = region(source, hole(), "repaint", WHOLE, 0, 0, 1.0, NONE)
    out, _, figures = paste(made, area, "none", "match", "off")
    another = made.clone()
    another[:, 16:40, 20:44] = torch.tensor([0.1, 0.9, 0.2])
    assert paste(another, area, "none", "match", "off")[2].matched == figures.matched
    matched = fit_colours(made[0], source[0], ~area.mask & uncut(made[0]))(made)
    assert figures.matched == differences(source, matched, ~area.mask) and figures.matched[0] < 0.5 * figures.drift[0]
    assert torch.equal(out[0][area.mask], matched[0][area.mask])
    plain = paste(made, area, "none", "off", "off")[0]
    assert not torch.equal(out, plain) and paste(made, area, "none", "off", "off")[2].matched is None


def product(generator):
    """On pure white, as shops have it: an object outside the mask, and the same as a model may have it."""
    source = flat(128, 128, (1.0, 1.0, 1.0))
    source[:, 8:40, 8:60] = torch.tensor([0.6, 0.3, 0.2])
    source[:, 40:60, 8:60] = torch.tensor([0.2, 0.4, 0.5])
    made = 0.92 * source + 0.01 + 0.005 * torch.randn(source.shape, generator=generator)
    return source, made


def test_a_pure_white_ground_comes_back_white_under_the_mask_too():
    source, made = product(torch.Generator().manual_seed(5))
    area = region(source, hole(128, 128, (70, 70, 120, 120)), "repaint", WHOLE, 0, 0, 1.0, NONE)
    out, _, figures = paste(made, area, "none", "match", "off")
    assert figures.drift[0] > 3 and figures.matched[0] < 1
    assert (out[0][area.mask] - 1).abs().max() < 0.02


def test_colours_that_no_map_brings_nearer_are_left_as_they_were_made():
    """On a ground that was cut off at black, the colours of a small thing say nothing."""
    source, made = flat(colour=(0.0, 0.0, 0.0)), flat(colour=(0.0, 0.0, 0.0))
    source[:, 50:60, 4:24] = torch.rand(10, 20, 3, generator=torch.Generator().manual_seed(6)) * 0.1 + 0.5
    made[:, 50:60, 4:24] = source[:, 50:60, 4:24] - 0.08
    area = region(source, hole(), "repaint", WHOLE, 0, 0, 1.0, NONE)
    out, _, text = bring_back(made, area, "none", "match", "off")
    assert torch.equal(out, bring_back(made, area, "none", "off", "off")[0])
    assert "the colours are left as they were made: no map of them brings what lies outside nearer" in text


@pytest.mark.parametrize("box", [(96, 96, 160, 160), (40, 96, 200, 160)])
@pytest.mark.parametrize("blend, most", [("feather", 2), ("seamless", 0.5)])
def test_where_the_region_ends_with_its_mask_the_border_is_one_inside_the_picture(box, blend, most):
    """context 0: nothing of the picture about the mask was made; the border is as soft as with some, and measured."""
    area = region(flat(256, 256), hole(256, 256, box), "repaint", 0.0, 0, 16, 1.0, NONE)
    assert any(side == own for side, own in zip(area.box, box))
    out, _, figures = paste(flat(area.size[1], area.size[0], (0.3, 0.5, 0.7)), area, blend, "off", "off")
    for inside, outside in (
        (out[0, 96, 128], out[0, 95, 128]),
        (out[0, 159, 128], out[0, 160, 128]),
        (out[0, 128, box[0]], out[0, 128, box[0] - 1]),
    ):
        assert 255 * (inside - outside).abs().max() < most
    assert figures.seam[0] < most


def test_with_nothing_about_the_mask_no_colours_are_matched_and_the_report_says_so():
    """What was asked for would be taken for a drift, and undone."""
    source = flat(128, 128)
    source[:, 32:96, 32:96] = torch.tensor([0.7, 0.6, 0.2])
    made = source.clone()
    made[:, 32:96, 32:96] = torch.tensor([0.2, 0.6, 0.7])
    for context, mask in ((0.0, hole(128, 128, (32, 32, 96, 96))), (WHOLE, torch.ones(1, 128, 128))):
        area = region(source, mask, "repaint", context, 0, 0, 0.015, NONE)
        out, _, text = bring_back(area.pixels() * 0 + torch.tensor([0.2, 0.6, 0.7]), area, "none", "match", "off")
        assert (out[0, 64, 64] - torch.tensor([0.2, 0.6, 0.7])).abs().max() < 0.01
        assert "Warning: nothing about the mask was made, so that its colours cannot be matched: raise context" in text


@pytest.mark.parametrize("blend", ["feather", "seamless", "none"])
def test_nothing_is_left_of_a_thing_that_changed_wherever_the_change_is_found(blend):
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc = (y - 64) ** 2 + (x - 64) ** 2 < 30**2
    source, made = flat(128, 128, (0.8, 0.8, 0.8)), flat(128, 128, (0.8, 0.8, 0.8))
    source[0][disc], made[0][disc] = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.8])
    area = region(source, None, "edit", WHOLE, 16, 16, 1.0, NONE)
    out, found, text = bring_back(made, area, blend, "match", "unchanged")
    assert delta_e(out[0], made[0])[disc].mean() < 1 and not found[0, :20].any()
    assert "outside what changed the model itself drifted by" in text


def test_each_patch_of_a_mask_fades_in_over_its_own_thickness():
    mask = torch.zeros(64, 128, dtype=torch.bool)
    mask[:, :64] = True
    mask[20:24, 80:120] = True
    soft = ramp(mask, 16)
    assert soft[:, :40].min() == 1 and soft[22, 100] == 1 and soft[20, 100] == 0.5
    assert torch.equal(ramp(mask[:, 70:], 16), soft[:, 70:])


@pytest.mark.parametrize("keep", ["off", "unchanged"])
def test_what_outpaint_adds_is_what_was_made_and_no_smear_of_the_edge(keep):
    """Also where it is as flat as the picture's edge, or the feather is wider than the growth."""
    ground = torch.linspace(0.3, 0.6, 192).expand(96, 192)[..., None].expand(-1, -1, 3)[None].clone()
    area = region(ground[:, :, :128], None, "outpaint", WHOLE, 0, 64, 1.0, (0, 0, 64, 0))
    out, found, text = bring_back(ground, area, "feather", "off", keep)
    assert found[0, :, 128:].all() and torch.equal(out[0, :, 128:], ground[0, :, 128:])
    assert torch.equal(out[0, :, :128], ground[0, :, :128]) and "identical to the source: 100 % of the pixels" in text


def test_the_colours_of_a_picture_that_was_made_four_times_as_wide_are_matched_by_what_was_there():
    generator = torch.Generator().manual_seed(7)
    truth = torch.rand(1, 12, 48, 3, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2) * 0.8 + 0.1
    area = region(truth[:, :, :96], None, "outpaint", WHOLE, 0, 0, 1.0, (0, 0, 288, 0))
    made = truth**1.1 * 0.97 + 0.01
    out, _, text = bring_back(made, area, "none", "match", "unchanged")
    assert delta_e(out[0], truth[0]).mean() < 1 < delta_e(made[0], truth[0])[:, 96:].mean()


def test_an_upscaled_result_may_have_its_sides_rounded():
    area = region(torch.rand(1, 880, 1184, 3), None, "edit", WHOLE, 0, 0, 1.0, NONE)
    assert bring_back(torch.rand(1, 1248, 1680, 3), area, "none", "off", "off")[0].shape == (1, 880, 1184, 3)
    with pytest.raises(ValueError, match="^The image is 1680x1200, but the canvas 1184x880: connect what was made"):
        bring_back(torch.rand(1, 1200, 1680, 3), area, "none", "off", "off")


def test_each_figure_has_its_line():
    figures = Figures((2.5, 9.25), (0.5, 3.75), 0.75, (12.0, 3.0), 4.5)
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[:2] = True
    assert figured(figures, mask) == [
        "may have changed: 20.00 % of the picture, which differs by more than delta E 4.5",
        "identical to the source: 75.00 % of the pixels",
        "outside what changed the model itself drifted by delta E 2.50 (99th percentile 9.25)",
        "after the colours were matched: 0.50 (3.75)",
        "seam: steps of 12.0 levels across it, 3.0 beside it",
    ]
    assert figured(Figures(None, None, 1.0, None, None), ~mask & mask) == [
        "may have changed: 0 % of the picture",
        "identical to the source: 100 % of the pixels",
    ]


def test_from_a_plain_canvas_all_may_have_changed():
    out, found, text = bring_back(torch.rand(2, 64, 96, 3), fit((90, 70)), "feather", "off", "off")
    assert out.shape == (2, 70, 90, 3) and torch.equal(found, torch.ones(2, 70, 90))
    assert text == "canvas 96x64, brought back to 90x70"


def test_large_pictures_are_measured_at_a_part_of_their_pixels():
    source = torch.zeros(1, 1500, 1500, 3)
    where = torch.ones(1500, 1500, dtype=torch.bool)
    mean, most = differences(source, source + 0.1, where)
    small = differences(source[:, :10, :10], source[:, :10, :10] + 0.1, where[:10, :10])
    assert (mean, most) == pytest.approx(small, rel=1e-4)
    assert differences(source, source, ~where) is None


def test_a_seam_is_measured_on_the_lines_that_cross_it():
    """Steps of 2 levels everywhere, and 10 across the border."""
    x = torch.arange(40.0)
    row = (2 * x + 8 * (x >= 20)) / 255
    picture = row[None, :, None].expand(30, 40, 3)
    mask = (x >= 20).expand(30, 40)
    assert seam(picture, mask) == pytest.approx((10, 2), abs=1e-3)
    assert seam(picture, torch.ones(30, 40, dtype=torch.bool)) is None


def test_only_all_is_100_percent():
    assert [percent(share) for share in (0, 1e-9, 0.5, 1 - 1e-9, 1)] == ["0 %", "0.01 %", "50.00 %", "99.99 %", "100 %"]
