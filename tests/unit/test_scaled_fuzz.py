"""Seeded damage to files in the host's quantised formats, as in test_fuzz.py, and to the scales of their blocks."""

import pytest
import torch

from fixtures.damage import KINDS, REFUSED, SAME, check_each, tensors
from tools import small
from tools.small_scaled import FORMATS, state_of

ROUNDS = [5, pytest.param(15, marks=pytest.mark.long)]  # of each kind on each file


def block_scales(rng, role, state, metadata):
    """Of a tensor of scales one is no number, or the tensor is another."""
    names = [name for name in state if name.endswith(".weight_scale") and state[name].numel() > 1]
    if not names:
        return state, metadata, SAME
    name = rng.choice(names)
    scale = state[name].clone()
    if rng.random() < 0.5:
        place = rng.randrange(scale.numel())
        if scale.is_floating_point() and scale.itemsize > 1:
            scale.view(-1)[place] = rng.choice([float("nan"), float("inf"), -1.0])
        else:
            scale.view(torch.uint8).view(-1)[place] = 0xFF  # NaN of e8m0 and of e4m3
    else:
        scale = rng.choice([scale[:-1], scale[:0], scale[None], torch.ones(scale.shape, dtype=torch.int32)])
    return {**state, name: scale}, metadata, REFUSED


def zero_scale(rng, role, state, metadata):
    """One scale of a whole tensor, which would make it vanish without a word."""
    names = [name for name in state if "weight_scale" in name and state[name].numel() == 1]
    if not names:
        return state, metadata, SAME
    name = rng.choice(names)
    return {**state, name: torch.zeros_like(state[name])}, metadata, REFUSED


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    flow = small.flow_state(hidden=256, heads=2, context=48, mlp=256, depth=1, single=1)
    found = {}
    for form in FORMATS:
        state, _ = state_of(flow, form, lambda name: "single_blocks" in name)
        path = small.save(state, tmp_path_factory.mktemp("good") / "file.safetensors")
        found[form] = "flow", state, {}, tensors("flow", path)
    return found


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", [*KINDS, block_scales, zero_scale], ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_refused_or_is_the_same_model(good, tmp_path, kind, rounds):
    check_each(good, kind, rounds, tmp_path)
