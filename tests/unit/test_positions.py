"""Places of tokens, written out by hand, and the angles they turn by."""

import pytest
import torch

from klein.model_loaders.flow.positions import image_ids, rotate, rotations, text_ids

AXES = (32, 32, 32, 32)


def origins(method: str, *references: tuple[int, int], canvas=(4, 4)) -> list[tuple]:
    """(t, row, column) of the first token of each reference."""
    return [tuple(ids[0, 0, :3].int().tolist()) for ids in image_ids([canvas, *references], method)[1:]]


def test_text_counts_along_the_last_axis_and_pictures_row_by_row():
    assert text_ids(3)[0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]
    image, reference = image_ids([(2, 2), (1, 2)])
    assert image[0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    assert reference[0].tolist() == [[10, 0, 0, 0], [10, 0, 1, 0]]


@pytest.mark.parametrize(
    ("method", "references", "wanted"),
    [
        ("index", [(2, 3), (5, 1)], [(10, 0, 0), (20, 0, 0)]),
        ("index_timestep_zero", [(2, 3), (5, 1)], [(10, 0, 0), (20, 0, 0)]),
        ("uxo", [(2, 3), (5, 1)], [(0, 4, 4), (0, 6, 7)]),
        ("offset", [(2, 3), (5, 1)], [(1, 0, 0), (1, 0, 3)]),  # the higher goes beside
        ("offset", [(2, 3), (1, 5)], [(1, 0, 0), (1, 2, 0)]),  # the wider goes below
        ("offset", [(2, 2), (2, 2), (1, 4)], [(1, 0, 0), (1, 2, 0), (1, 4, 0)]),  # a tie goes below, as the host's
        ("offset", [(1, 4), (3, 1), (4, 4)], [(1, 0, 0), (1, 1, 0), (1, 4, 0)]),
    ],
)
def test_references_lie_where_their_method_says(method, references, wanted):
    assert origins(method, *references) == wanted


def test_the_hosts_rope_options_shift_and_scale_every_picture():
    options = {"shift_t": 1.0, "shift_y": 2.0, "shift_x": 3.0, "scale_y": 0.5, "scale_x": 4.0}
    image, reference = image_ids([(2, 2), (2, 2)], "index", options)
    assert image[0].tolist() == [[1, 2, 3, 0], [1, 2, 7, 0], [1, 2.5, 3, 0], [1, 2.5, 7, 0]]
    assert reference[0, 3].tolist() == [11, 2.5, 7, 0]


def test_angles_of_far_places_are_exact_to_float32():
    """Place 4095 turns by 4095 radians: in float32 that angle would be off by 1e-4, and so would be its cosine."""
    ids = torch.tensor([[[40.0, 4095, 2047, 4095]]])
    pe = rotations(ids, AXES)
    assert pe.dtype == torch.float32 and pe.shape == (1, 1, 1, 64, 2, 2)
    frequency = 2000 ** (-torch.arange(16, dtype=torch.float64) / 16)
    angle = (ids[0, 0].double()[:, None] * frequency).flatten()
    torch.testing.assert_close(pe[0, 0, 0, :, 0, 0].double(), angle.cos(), rtol=0, atol=1e-7)
    torch.testing.assert_close(pe[0, 0, 0, :, 1, 0].double(), angle.sin(), rtol=0, atol=1e-7)


def test_a_quarter_turn_takes_the_first_of_each_pair_to_the_second_and_keeps_the_dtype():
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).expand(1, 1, 3, 2, 2, 2)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16).expand(1, 2, 3, 4)
    turned = rotate(x, quarter)
    assert turned.dtype == torch.bfloat16
    assert turned[0, 1, 2].tolist() == [-2, 1, -4, 3]
