"""Pasting without a seam, against scipy's direct solution of the equations as they are written, pixel by pixel."""

import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu

from klein.errors import KleinError
from klein.pictures import seamless as module
from klein.pictures.seamless import seamless

CLOSE = 1e-4  # the solver's own promise; a quarter of an 8-bit step is 1e-3


def picture(*shape, seed=0, low=0.3, high=0.7):
    """Noise that no correction here takes out of [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def places(height, width):
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


def direct(made, source, mask):
    """One equation for each pixel: outside, the offset is known; inside, it is the mean of the neighbours there are."""
    height, width = mask.shape
    entries = []
    for y in range(height):
        for x in range(width):
            here = y * width + x
            if not mask[y, x]:
                entries.append((here, here, 1))
                continue
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            beside = [v * width + u for v, u in beside if 0 <= v < height and 0 <= u < width]
            entries += [(here, here, len(beside)), *((here, there, -1) for there in beside)]
    rows, columns, values = zip(*entries)
    solver = splu(coo_array((torch.tensor(values).double().numpy(), (rows, columns))).tocsc())
    offset = torch.where(mask[..., None], 0, source - made).double()
    planes = offset.movedim(3, 1).flatten(0, 1).flatten(1).T.numpy()
    found = torch.from_numpy(solver.solve(planes)).T.reshape(len(made), 3, height, width).movedim(1, 3)
    return torch.where(mask[..., None], (made + found).clamp(0, 1), source)


def shapes():
    y, x = places(72, 80)
    far = ((y - 35.5) ** 2 + (x - 39.5) ** 2).sqrt()
    none = torch.zeros(72, 80, dtype=torch.bool)
    lines = none.clone()
    lines[10, 5:70] = lines[20:60, 30] = lines[0, 8:] = lines[:, 79] = True
    odd = none.clone()  # lone pixels and one pair at an edge: smoothed as the pair is best, the lone ones would vanish
    odd[::2, ::2] = odd[0, 3] = True
    odd[0, 2] = False
    alone = ~none
    alone[50, 20] = False
    walls = (x % 5 != 3) | (y < 3)
    return {
        "disk": far < 34,
        "ring": (far < 34) & (far > 20),
        "ring one pixel wide": (far < 30) & (far > 29),
        "corner": (y < 50) & (x < 60),
        "two whole edges": (x < 25) | (x > 55),
        "strip and disk": (x < 25) | (far < 12),
        "all but one pixel": alone,
        "all but a corner": (y > 0) | (x > 0),
        "holes": torch.rand(72, 80, generator=torch.Generator().manual_seed(1)) > 0.1,
        "crumbs": torch.rand(72, 80, generator=torch.Generator().manual_seed(1)) > 0.6,
        "checkerboard": (x + y) % 2 == 0,
        "lines": lines,
        "odd pixels": odd,
        "corridors": walls,
        "one pixel": (x == 79) & (y == 71),
    }


@pytest.mark.parametrize("name", shapes())
def test_the_picture_is_that_of_the_direct_solution(name, monkeypatch):
    """Fewer pixels solved for by the inverse than usual, so that there are levels of multigrid."""
    monkeypatch.setattr(module, "DIRECT", 30)
    mask = shapes()[name]
    made, source = picture(2, *mask.shape, 3), picture(1, *mask.shape, 3, seed=1, low=0.2, high=0.9)
    pasted = seamless(made, source, mask)
    assert pasted.shape == made.shape and pasted.dtype == made.dtype
    assert (pasted - direct(made, source, mask)).abs().max() < CLOSE
    assert torch.equal(pasted[:, ~mask], source.expand(2, -1, -1, -1)[:, ~mask])


def test_a_cycle_is_what_the_end_of_the_steps_relies_on(monkeypatch):
    """Symmetric, and of the matrix times it, no eigenvalue above 1 or near 0: else its energy would say little of errors."""
    monkeypatch.setattr(module, "DIRECT", 10)
    mask = torch.rand(20, 22, generator=torch.Generator().manual_seed(0)) > 0.02
    matrix, _, _ = module.equations(mask.numpy())
    levels = module.hierarchy(matrix, *mask.numpy().nonzero())
    assert len(levels.fine) == 2
    cycles = torch.tensor([list(module.cycle(levels, unit)) for unit in torch.eye(matrix.shape[0]).numpy()]).double()
    assert (cycles - cycles.T).abs().max() < 1e-5
    eigenvalues = torch.linalg.eigvals(cycles @ torch.from_numpy(matrix.toarray())).real
    assert 0.15 < eigenvalues.min() and eigenvalues.max() < 1.0001


def test_pictures_one_pixel_high_are_a_line_between_two_ends():
    mask = torch.ones(1, 2001, dtype=torch.bool)
    mask[0, 0] = mask[0, -1] = False
    source = torch.zeros(1, 1, 2001, 1)
    source[..., -1, :] = 1
    pasted = seamless(torch.zeros_like(source), source, mask)
    assert (pasted[0, 0, :, 0] - torch.linspace(0, 1, 2001)).abs().max() < CLOSE


@pytest.mark.parametrize("holes", [0, 0.01])
def test_smooth_offsets_over_a_large_mask_are_found_in_few_steps(holes, monkeypatch):
    """x^3 - 3 x y^2 and the like are harmonic on the grid too, so the answer is the source, at any size. Smooth errors
    are those that leave a small residual."""
    monkeypatch.setattr(module, "MOST_STEPS", 20)
    y, x = (at / 191.5 - 1 for at in places(384, 384))
    offset = torch.stack([x * y, x**2 - y**2, x**3 - 3 * x * y**2], dim=-1)[None] / 5
    mask = torch.zeros(384, 384, dtype=torch.bool)
    mask[1:-1, 1:-1] = torch.rand(382, 382, generator=torch.Generator().manual_seed(0)) >= holes
    source = picture(1, 384, 384, 3, low=0.45, high=0.55)
    assert (seamless(source - offset, source, mask) - source).abs().max() < CLOSE


@pytest.mark.parametrize("name", shapes())
def test_a_constant_offset_goes_away_also_at_the_edges_of_the_picture(name):
    mask = shapes()[name]
    source = picture(1, *mask.shape, 3)
    offset = torch.tensor([0.1, -0.2, 0.05])
    assert (seamless(source + offset, source, mask) - source).abs().max() < 1e-5


def test_what_is_the_source_already_stays_bit_for_bit():
    source = picture(1, 72, 80, 3)
    for mask in shapes().values():
        assert torch.equal(seamless(source, source, mask), source)


def test_a_seam_meets_the_source_and_keeps_the_detail_inside():
    """A darker copy with a dot: the step at the border is gone, the dot is as bright against its neighbours as before."""
    source = torch.full((1, 64, 64, 1), 0.6)
    made = torch.full((1, 64, 64, 1), 0.4)
    made[0, 32, 32] = 0.5
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:56, 8:56] = True
    pasted = seamless(made, source, mask)
    assert pasted[0, 32, 32] - pasted[0, 32, 33] == pytest.approx(0.1, abs=1e-4)
    assert pasted[0, 20, 20] == pytest.approx(0.6, abs=1e-4)


def test_two_places_of_a_mask_do_not_know_of_each_other():
    made, source = picture(1, 72, 80, 3), picture(1, 72, 80, 3, seed=1)
    y, x = places(72, 80)
    left, right = (x < 35) & (y > 10), (x > 36) & (y < 60)
    both = seamless(made, source, left | right)
    assert (both - seamless(made, seamless(made, source, left), right)).abs().max() < CLOSE


def test_no_mask_is_the_source_and_a_mask_of_all_is_what_was_made():
    made, source = picture(2, 20, 30, 3), picture(1, 20, 30, 3, seed=1)
    everything = torch.ones(20, 30, dtype=torch.bool)
    assert torch.equal(seamless(made, source, ~everything), source.expand(2, -1, -1, -1))
    assert torch.equal(seamless(made, source, everything), made)
    assert torch.equal(seamless(made[:, :1, :1], source[:, :1, :1], everything[:1, :1]), made[:, :1, :1])


def test_neither_picture_is_changed_and_only_the_inside_is_cut_to_the_range():
    made, source = picture(1, 40, 40, 3, low=0.5, high=1), picture(1, 40, 40, 3, seed=1, low=1, high=1.5)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[10:30, 10:30] = True
    before = made.clone(), source.clone()
    pasted = seamless(made, source, mask)
    assert torch.equal(made, before[0]) and torch.equal(source, before[1])
    assert pasted[:, mask].max() == 1 and torch.equal(pasted[:, ~mask], source[:, ~mask])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["made, inside", "made, at the border", "source, at the border", "made, all masked"])
def test_values_that_are_no_numbers_are_refused_where_they_count(value, where):
    made, source = picture(1, 20, 20, 3), picture(1, 20, 20, 3, seed=1)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:15, 5:15] = True
    if where == "made, all masked":
        mask[:] = True
    spoilt = source if where.startswith("source") else made
    spoilt[0, 10, 4 if "border" in where else 10, 0] = value
    with pytest.raises(KleinError, match="no finite numbers.* expected colours from 0 to 1: look for"):
        seamless(made, source, mask)


def test_values_that_are_no_numbers_elsewhere_do_not_matter():
    made, source = picture(1, 20, 20, 3), picture(1, 20, 20, 3, seed=1)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:15, 5:15] = True
    expected = seamless(made, source, mask)
    made[0, 0, 0] = source[0, 10, 10] = float("nan")  # far outside, and under what is pasted
    assert torch.equal(seamless(made, source, mask), expected)
