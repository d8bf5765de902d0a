"""Colour differences against Sharma's table and scikit-image; the colour match against drifts that are known."""

import pytest
import torch
from skimage import color, data

from klein.errors import KleinError
from klein.pictures.colour import ciede2000, delta_e, fit_colours, lab, uncut

# Sharma, Wu, Dalal 2005, table 1: L*, a*, b* of two colours and their difference to 4 digits.
SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
DRIFTS = [
    dict(gamma=0.8),
    dict(gamma=1.25),
    dict(contrast=1.2),
    dict(contrast=0.8),
    dict(brightness=0.08),
    dict(brightness=-0.08),
    dict(cast=(0.05, -0.03, 0.04)),
    dict(saturation=1.2),
    dict(saturation=0.8),
    dict(gamma=1.25, saturation=1.2, contrast=1.1, cast=(0.04, 0.0, -0.04)),
    dict(gamma=0.8, saturation=0.8, contrast=0.9, brightness=0.05, cast=(-0.04, 0.02, 0.04)),
]

CUBE = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3)  # (729, 3): colours all over


def photograph(name: str = "astronaut", step: int = 4) -> torch.Tensor:
    """(h, w, 3): every so many pixels of one that comes with scikit-image."""
    return torch.from_numpy(getattr(data, name)()[::step, ::step].copy()).float() / 255


def drifted(picture, gamma=1.0, contrast=1.0, brightness=0.0, cast=(0.0, 0.0, 0.0), saturation=1.0):
    picture = picture**gamma
    grey = (picture @ torch.tensor([0.2126, 0.7152, 0.0722]))[..., None]
    picture = grey + (picture - grey) * saturation
    return ((picture - 0.5) * contrast + 0.5 + brightness + torch.tensor(cast)).clamp(0, 1)


def part(picture, share: float = 0.3) -> torch.Tensor:
    """(h, w) bool: a rectangle in the middle, of this share of the picture."""
    height, width = picture.shape[:2]
    mask = torch.zeros(height, width, dtype=torch.bool)
    top, left = (round(side * (1 - share**0.5) / 2) for side in (height, width))
    mask[top : height - top, left : width - left] = True
    return mask


def known(made, source):
    """(h, w) bool: nothing was cut off at 0 or 1, so that the colours can be known."""
    return ((made > 0) & (made < 1) & (source > 0) & (source < 1)).all(-1)


def test_ciede2000_gives_sharmas_table_both_ways():
    """To his 4 digits."""
    table = torch.tensor(
        [[float(number) for number in line.split()] for line in SHARMA.strip().split("\n")], dtype=torch.float64
    )
    a, b, wanted = table.split([3, 3, 1], dim=1)
    assert len(table) == 34
    for found in (ciede2000(a, b), ciede2000(b, a)):
        assert (found - wanted[:, 0]).abs().max() <= 0.5e-4 + 1e-9


def test_lab_and_ciede2000_agree_with_scikit_image():
    """It takes the primaries to 6 digits and the standard to 4, hence 0.05 in L*a*b*; the differences to rounding."""
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(500, 2, 3, generator=generator, dtype=torch.float64)
    rgb[:50] = rgb[:50, :, :1]  # greys
    rgb[50:100, 1] = rgb[50:100, :1, 0]  # a colour and a grey
    rgb[100:110] = rgb[100:110].round()
    ours = lab(rgb)
    assert (ours - torch.from_numpy(color.rgb2lab(rgb.numpy()))).abs().max() < 0.05
    theirs = torch.from_numpy(color.deltaE_ciede2000(ours[:, 0].numpy(), ours[:, 1].numpy()))
    assert (ciede2000(ours[:, 0], ours[:, 1]) - theirs).abs().max() < 1e-5


def test_greys_have_no_chroma_and_white_is_100():
    greys = lab(torch.linspace(0, 1, 256, dtype=torch.float64)[:, None].expand(-1, 3))
    assert greys[:, 1:].abs().max() < 1e-9
    assert greys[[0, -1], 0].tolist() == pytest.approx([0, 100])
    assert (ciede2000(greys, greys) == 0).all()


def test_delta_e_of_pictures_is_that_of_their_colours_whatever_the_strips():
    generator = torch.Generator().manual_seed(0)
    for height, width in ((1, 1), (333, 331), (2, 40_000)):
        a, b = torch.rand(2, height, width, 3, generator=generator)
        # float32, where hues and powers of 7 leave 3 or 4 digits
        assert (delta_e(a, b) - ciede2000(lab(a.double()), lab(b.double()))).abs().max() < 0.01


def test_what_lies_outside_of_0_to_1_counts_as_its_edge():
    wild = torch.tensor([[[-3.0, 0.5, 7.0]]])
    assert delta_e(wild, wild.clamp(0, 1)) == 0
    assert torch.equal(fit_colours(wild, wild, torch.ones(1, 1))(wild), wild.clamp(0, 1))


@pytest.mark.parametrize("drift", DRIFTS, ids=str)
@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_a_drift_is_undone_below_1_delta_e_and_what_changed_within_it_stays_changed(name, drift):
    """Red, green and blue trade places in a third of the picture, which the fit does not see."""
    source = photograph(name)
    inside = part(source)
    edited = torch.where(inside[..., None], source.roll(1, dims=-1), source)
    made = drifted(edited, **drift)
    found = delta_e(fit_colours(made, source, ~inside)(made), edited)
    assert delta_e(made, edited)[~inside].mean() > 1
    assert found[~inside & known(made, source)].mean() < 1
    assert found[inside & known(made, edited)].mean() < 2.5


@pytest.mark.parametrize("drift", DRIFTS, ids=str)
def test_a_red_thing_turned_blue_stays_blue(drift):
    source = photograph()
    inside = part(source, 0.1)
    source[inside] = torch.tensor([0.75, 0.15, 0.15])
    edited = source.clone()
    edited[inside] = torch.tensor([0.2, 0.25, 0.7])
    made = drifted(edited, **drift)
    assert delta_e(fit_colours(made, source, ~inside)(made), edited)[inside].mean() < 3


@pytest.mark.parametrize("drift", [{}, DRIFTS[0], DRIFTS[2], DRIFTS[-2], DRIFTS[-1]], ids=str)
@pytest.mark.parametrize("change", ["traded", "painted"])
def test_up_to_30_percent_of_changed_pixels_do_not_spoil_the_fit(change, drift):
    source = photograph()
    inside = part(source, 0.3)
    changed = source.roll(1, dims=-1) if change == "traded" else torch.tensor([0.15, 0.2, 0.8])
    edited = torch.where(inside[..., None], changed, source)
    made = drifted(edited, **drift)
    found = delta_e(fit_colours(made, source, torch.ones_like(inside))(made), edited)
    assert found[~inside & known(made, source)].mean() < 1
    if not drift and change == "painted":  # some of what trades places is near its own colour, and counts
        again = fit_colours(made, source, torch.ones_like(inside))(made)
        assert (again - made).abs().max() < 1e-4


def test_noise_in_the_made_picture_does_not_pull_its_colours_together():
    """Errors of the regressor flatten a fit: by noise of 0.02 next to a spread of 0.25, below 1 delta E."""
    source = photograph()
    made = drifted(source, contrast=0.9)
    noisy = made + 0.02 * torch.randn(made.shape, generator=torch.Generator().manual_seed(0))
    found = fit_colours(noisy, source, torch.ones(source.shape[:2]))
    assert delta_e(found(made), source)[known(made, source)].mean() < 1


def test_greys_with_more_contrast_teach_nothing_of_colours():
    """Those of the whole cube move no further than the greys did."""
    source = (torch.rand(64, 64, 1, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3).expand(-1, -1, 3)
    made = drifted(source, contrast=1.2, brightness=0.05)
    found = fit_colours(made, source, torch.ones(64, 64))
    assert (found(made) - source).abs().max() < 0.004
    assert (found(CUBE) - CUBE).abs().max() < (made - source).abs().max() + 0.02


def test_colours_beyond_those_of_the_fit_move_as_the_nearest_within_their_range():
    """Pale colours, made stronger: carried on to pure ones, the map would move them by up to 0.25."""
    grey, colour = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    source = grey[..., :1] * 0.4 + 0.3 + 0.1 * (colour - 0.5)
    made = drifted(source, saturation=1.3)
    found = fit_colours(made, source, torch.ones(64, 64))
    assert (found(made) - source).abs().max() < 0.004
    inside = CUBE.clamp(made.amin((0, 1)), made.amax((0, 1)))
    assert ((found(CUBE) - CUBE).abs() <= (found(inside) - inside).abs() + 1e-3).all()  # less where they would leave 0 to 1


def test_clipped_pixels_do_not_spoil_the_fit():
    """A quarter is cut off at white; all that is not comes back as if it were not there."""
    source = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    source[:32] += 0.35
    made = drifted(source, brightness=0.1)
    source = source.clamp(0, 1)
    assert not known(made, source).float().mean() > 0.75
    found = fit_colours(made, source, uncut(made) & uncut(source))
    assert torch.equal(uncut(made) & uncut(source), known(made, source))
    assert (found(made) - source)[known(made, source)].abs().max() < 0.004


def test_a_neutral_pair_gives_the_identity_bit_by_bit():
    source = photograph()
    inside = part(source)
    made = torch.where(inside[..., None], 1 - source, source)
    found = fit_colours(made, source, ~inside)
    assert torch.equal(found(made), made)
    assert found(made).shape == made.shape and torch.equal(found(made[5, 7]), made[5, 7])


def test_fewer_than_16_usable_pixels_give_the_identity():
    source = photograph()
    made = drifted(source, brightness=0.05)
    usable = known(made, source).flatten().nonzero()[:, 0]
    for count, moved in ((15, False), (60, True)):
        where = torch.zeros(source.shape[:2], dtype=torch.bool)
        where.view(-1)[usable[:: len(usable) // 60][:count]] = True
        assert where.sum() == count
        assert torch.equal(fit_colours(made, source, where)(made), made) != moved
    black = torch.zeros(50, 50, 3)
    assert torch.equal(fit_colours(black, black + 1, torch.ones(50, 50))(made), made)


def test_a_weight_of_zero_leaves_a_pixel_out():
    """Half of the picture has another drift."""
    source = photograph()
    half = part(source, 0.5)
    made = torch.where(half[..., None], drifted(source, contrast=0.9), drifted(source, cast=(0.1, 0.0, -0.1)))
    weighted = fit_colours(made, source, torch.ones_like(half), half.float())
    assert (weighted(made) - fit_colours(made, source, half)(made)).abs().max() < 0.01
    assert (weighted(made) - fit_colours(made, source, ~half)(made)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a, b, m: (a.fill_(torch.nan), b, m), "The made picture holds NaN or infinity, expected numbers"),
        (lambda a, b, m: (a, b.index_fill(0, torch.tensor(3), torch.inf), m), "The source picture holds NaN or infinity"),
        (lambda a, b, m: (a, b[:4], m), "The made picture has 9x8 pixels and the source 9x4, expected one size"),
        (lambda a, b, m: (a[..., :2], b, m), r"The made picture is a tensor of \(8, 9, 2\), torch.float32, expected"),
        (lambda a, b, m: (a[:0], b, m), r"The made picture is a tensor of \(0, 9, 3\)"),
        (lambda a, b, m: (a, b.int(), m), r"The source picture is a tensor of \(8, 9, 3\), torch.int32, expected"),
        (lambda a, b, m: (a, b, m[:3]), r"The mask is a tensor of \(3, 9\), expected \(8, 9\)"),
        (lambda a, b, m: (a, b, m, -m.float()), "The weight holds NaN, infinity or negative numbers"),
        (lambda a, b, m: (a, b, m, m * torch.nan), "The weight holds NaN, infinity or negative numbers"),
    ],
)
def test_what_is_no_pair_of_pictures_is_refused_in_a_sentence(change, sentence):
    with pytest.raises(KleinError, match=sentence):
        fit_colours(*change(torch.rand(8, 9, 3), torch.rand(8, 9, 3), torch.ones(8, 9, dtype=torch.bool)))
