"""Finding what an edit changed, in pictures whose colours drifted and that carry noise."""

import numpy as np
import pytest
import torch
from skimage import data

from klein.errors import KleinError
from klein.pictures import changes
from klein.pictures.changes import changed, patches
from klein.pictures.colour import delta_e

DRIFTS = {
    "none": lambda picture: picture,
    "contrast": lambda picture: (picture - 0.5) * 1.15 + 0.5,
    "gamma and cast": lambda picture: picture**0.8 + torch.tensor([0.03, 0.0, -0.03]),
    "faded": lambda picture: 0.85 * (0.85 * picture + 0.15 * picture.mean(-1, keepdim=True)) + 0.1,
}
GREY, RED, BLUE, YELLOW, GREEN = (0.6, 0.6, 0.65), (0.8, 0.15, 0.15), (0.15, 0.2, 0.8), (0.8, 0.75, 0.2), (0.2, 0.6, 0.2)
every_drift = pytest.mark.parametrize("drift", DRIFTS)


def photograph(name: str, step: int = 4) -> torch.Tensor:
    """(h, w, 3): every so many pixels of one that comes with scikit-image."""
    return torch.from_numpy(getattr(data, name)()[::step, ::step].copy()).float() / 255


def drifted(picture, drift: str, noise: float = 0.02):
    made = DRIFTS[drift](picture)
    return (made + noise * torch.randn(made.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def disc(picture, radius: float = 0.2):
    """(h, w) bool: left of the middle; the radius is a share of the height."""
    height, width = picture.shape[:2]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return ((y - 0.5 * height) ** 2 + (x - 0.4 * width) ** 2) ** 0.5 < radius * height


def overlap(a, b) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


def shapes(*colours):
    """(64, 64, 3): squares of 20 pixels on grey."""
    picture = torch.tensor(GREY).expand(64, 64, 3).clone()
    for number, colour in enumerate(colours):
        top, left = 8 + 28 * (number // 2), 8 + 28 * (number % 2)
        picture[top : top + 20, left : left + 20] = torch.tensor(colour)
    return picture


@every_drift
@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
@pytest.mark.parametrize("edit", ["recoloured", "painted"])
def test_an_edit_is_found_through_drift_and_noise(edit, name, drift):
    source = photograph(name)
    blob = disc(source)
    source[blob] = source[blob] * 0.4 + torch.tensor([0.4, 0.1, 0.1])  # something with a colour to change
    new = source.roll(1, dims=-1) if edit == "recoloured" else torch.tensor(GREEN)
    made = drifted(torch.where(blob[..., None], new, source), drift)
    assert overlap(changed(made, source).mask, blob) > 0.8


@every_drift
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_where_nothing_changed_but_colours_and_noise_the_mask_is_empty(name, drift):
    source = photograph(name)
    for noise in (0.0, 0.02):
        assert changed(drifted(source, drift, noise), source).mask.float().mean() < 0.001


@every_drift
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize(("before", "after"), [([RED], [BLUE]), ([GREEN], [RED]), ([RED, BLUE, YELLOW], [RED, GREEN, YELLOW])])
def test_one_shape_recoloured_in_a_plain_scene_is_found(before, after, noise, drift):
    source, edited = shapes(*before), shapes(*after)
    where = (source != edited).any(-1)
    assert overlap(changed(drifted(edited, drift, noise), source).mask, where) > 0.8


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_a_faint_edit_is_found_through_noise_larger_than_itself(name):
    """4 to 8 delta E; the noise of a pixel makes about as much, and its blur a quarter."""
    source = photograph(name, 2) * 0.7 + 0.15
    blob = disc(source)
    edited = source + blob[..., None] * torch.tensor([0.03, -0.03, 0.0])
    assert 4 < delta_e(edited, source)[blob].mean() < 8
    assert overlap(changed(drifted(edited, "none"), source).mask, blob) > 0.6


@every_drift
def test_in_a_plain_scene_where_nothing_changed_the_mask_is_empty(drift):
    source = shapes(RED, BLUE, YELLOW)
    for noise in (0.0, 0.01, 0.02):
        assert not changed(drifted(source, drift, noise), source).mask.any()


def test_the_map_undoes_the_drift_outside_the_change():
    source = photograph("chelsea")
    blob = disc(source)
    edited = torch.where(blob[..., None], torch.tensor(BLUE), source)
    made = drifted(edited, "faded", 0.0)
    found = changed(made, source)
    assert delta_e(made, edited).mean() > 4
    assert delta_e(found.colours(made), edited)[~blob].mean() < 1


def test_equal_pictures_give_an_empty_mask_and_the_identity():
    source = photograph("astronaut")
    found = changed(source, source)
    assert not found.mask.any() and found.threshold == changes.FLOOR
    assert torch.equal(found.colours(source), source)


def test_where_everything_changed_all_is_masked():
    source = photograph("chelsea")
    for made in (1 - source, torch.tensor(BLUE).expand_as(source)):
        found = changed(made, source)
        assert found.mask.float().mean() > 0.95 and found.threshold == changes.CAP
    red = torch.tensor(RED).expand(40, 40, 3)
    assert changed(torch.tensor(BLUE).expand(40, 40, 3), red).mask.all()


def test_a_threshold_that_is_given_is_taken():
    source = photograph("astronaut")
    blob = disc(source)
    made = source.clone()
    made[blob] = (made[blob] * 0.9 + torch.tensor([0.06, 0.0, 0.0])).clamp(0, 1)
    low, high = changed(made, source, 2.0), changed(made, source, 30.0)
    assert (low.threshold, high.threshold) == (2.0, 30.0)
    assert overlap(low.mask, blob) > 0.6 and not high.mask.any()


def test_a_large_picture_is_decided_on_a_reduced_copy_and_masked_at_its_own_size(monkeypatch):
    monkeypatch.setattr(changes, "MEGAPIXEL", 128 * 128)
    source = photograph("astronaut", 2)
    blob = disc(source)
    made = drifted(torch.where(blob[..., None], torch.tensor(BLUE), source), "faded")
    mask = changed(made, source).mask
    assert mask.shape == (256, 256) and mask.dtype == torch.bool
    assert overlap(mask, blob) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2)])
def test_tiny_and_constant_pictures_have_an_answer(size):
    black, white = torch.zeros(*size, 3), torch.ones(*size, 3)
    assert not changed(black, black).mask.any()
    assert changed(black, white).mask.all()
    assert changed(black - 7, white + 7).mask.all()


def test_specks_go_and_small_holes_close_but_large_ones_stay():
    apart = np.zeros((200, 200), dtype=np.float32)
    apart[20:180, 20:180] = 10
    apart[60:64, 60:64] = 0
    apart[90:150, 90:150] = 0
    apart[5:7, 5:7] = 10
    mask = patches(apart, 4.0)
    assert mask[62, 62] and mask[30, 30]
    assert not mask[120, 120] and not mask[6, 6] and not mask[190, 190]


def test_a_change_that_fades_out_is_followed_to_half_of_the_threshold():
    apart = np.tile(np.linspace(10, 0, 201, dtype=np.float32), (50, 1))
    mask = patches(apart, 4.0)
    assert mask[:, :159].all() and not mask[:, 162:].any()


def test_nan_is_refused_in_a_sentence():
    source = photograph("astronaut")
    broken = source.clone()
    broken[3, 4, 1] = torch.nan
    for pictures in ((broken, source), (source, broken)):
        with pytest.raises(KleinError, match="picture holds NaN or infinity, expected numbers from 0 to 1: change the node"):
            changed(*pictures)
