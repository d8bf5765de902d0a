"""Strength, mask and window of references in the flow transformer; float32, 1e-5 (the same sums in another order)."""

import math

import pytest
import torch

from klein.model_loaders.flow.controls import Control, progress
from klein.model_loaders.flow.load import load_flow
from klein.samplers.schedule import sigmas
from tools import small
from tools.small import relative

SIZES = dict(hidden=256, heads=2, context=96, mlp=768, depth=2, single=3)
TOLERANCE = 1e-5
BOXES = [(3, 5), (4, 2), (2, 2)]


@pytest.fixture(scope="module")
def state():
    return small.flow_state(seed=1, **SIZES)


@pytest.fixture(scope="module")
def flow(state, tmp_path_factory):
    return load_flow(small.save(state, tmp_path_factory.mktemp("flow") / "flow.safetensors"))


@pytest.fixture(scope="module")
def given():
    """x, t, context, references."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 128, 6, 4, generator=generator)
    context = torch.randn(2, 64, SIZES["context"], generator=generator)
    references = [torch.randn(1, 128, *box, generator=generator) for box in BOXES]
    return x, torch.tensor([0.9, 0.4]), context, references


@torch.no_grad()
def run(flow, given, *controls, references=None, **more):
    x, t, context, latents = given
    return flow(x, t, context, latents if references is None else references, controls=controls, **more)


def kept(*tokens: int) -> bytes:
    return bytes(tokens)


def test_neutral_controls_are_bit_exact(flow, given):
    neutral = Control(strength=1.0, keep=None, start=0.0, end=1.0)
    assert torch.equal(run(flow, given, neutral, neutral, neutral), run(flow, given))
    assert torch.equal(run(flow, given, neutral), run(flow, given))


@pytest.mark.parametrize("gone", [Control(strength=0.0), Control(keep=kept(0, 0, 0, 0)), Control(start=0.5)])
def test_a_last_reference_that_is_gone_equals_the_graph_without_it_bit_for_bit(flow, given, gone):
    got = run(flow, given, Control(), Control(), gone, transformer_options={"sample_sigmas": torch.tensor([0.9, 0.4, 0.0])})
    assert torch.equal(got, run(flow, given, references=given[3][:2]))


def test_masked_tokens_leave_and_the_others_keep_their_places(flow, given, state):
    x, t, context, references = given
    masks = [torch.rand(h * w, generator=torch.Generator().manual_seed(3)) > 0.5 for h, w in BOXES[:2]] + [None]
    controls = [Control(keep=bytes(mask.tolist())) for mask in masks[:2]]
    seen = []

    def look(args):
        seen.append(args["transformer_options"]["reference_image_num_tokens"])
        return args

    got = run(flow, given, *controls, transformer_options={"patches": {"post_input": [look]}})
    want = small.velocity(small.flow_oracle(state), x, t, context, references, masks)
    assert relative(got, want) < TOLERANCE
    assert seen == [[int(masks[0].sum()), int(masks[1].sum()), 4]]


def test_a_first_reference_of_strength_0_leaves_image_2_as_image_2(flow, given, state):
    x, t, context, references = given
    none = torch.zeros(BOXES[0][0] * BOXES[0][1], dtype=torch.bool)
    want = small.velocity(small.flow_oracle(state), x, t, context, references, [none, None, None])
    assert relative(run(flow, given, Control(strength=0.0)), want) < TOLERANCE
    assert relative(run(flow, given, references=references[1:]), want) > 1e-3


def test_strength_multiplies_the_share_of_attention_before_it_is_normalised(flow, given):
    """Attention written out: exp(logits) of the second reference's keys times 2.5, then normalised."""
    strength, first = 2.5, 64 + 24 + 15
    weights = torch.ones(64 + 24 + 15 + 8 + 4)
    weights[first : first + 8] = strength

    def written_out(q, k, v, mask=None, transformer_options=None):
        share = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) - 30) * weights
        out = (share / share.sum(-1, keepdim=True)) @ v
        return out.transpose(1, 2).flatten(2)

    got = run(flow, given, Control(), Control(strength=strength))
    for block in (*flow.double_blocks, *flow.single_blocks):
        block.attention, sdpa = written_out, block.attention
    try:
        want = run(flow, given)
    finally:
        for block in (*flow.double_blocks, *flow.single_blocks):
            block.attention = sdpa
    assert relative(got, want) < TOLERANCE
    assert relative(got, run(flow, given)) > 1e-3


def test_strength_and_a_mask_of_the_host_add_up(flow, given):
    tokens = 64 + 24 + 15 + 8 + 4
    hosts = torch.randn(1, 1, 1, tokens, generator=torch.Generator().manual_seed(4))
    both = hosts.clone()
    both[..., -12:-4] += math.log(2.5)
    want = run(flow, given, attention_mask=both)
    for shape in ((1, tokens), (1, 1, tokens), (1, 1, 1, tokens)):
        got = run(flow, given, Control(), Control(strength=2.5), attention_mask=hosts.view(shape))
        assert relative(got, want) < TOLERANCE


def test_the_window_counts_steps_of_the_samplers_schedule():
    schedule = sigmas(4, 4096)
    window = (Control(start=0.5),)
    assert [progress(schedule[i : i + 1], {"sample_sigmas": schedule}, window) for i in range(4)] == [0, 0.25, 0.5, 0.75]
    between = schedule[1:2] * 0.5 + schedule[2:3] * 0.5  # a second call of the model within step 1
    assert progress(between, {"sample_sigmas": schedule}, window) == 0.25
    assert progress(schedule[3:4], {"sample_sigmas": schedule}, (Control(),)) == 0.0


def test_a_sigma_that_the_host_rounded_still_belongs_to_its_step():
    schedule = sigmas(4, 1024)
    for i in range(4):
        for factor in (1 - 3e-7, 1 + 3e-7):
            assert progress(schedule[i : i + 1] * factor, {"sample_sigmas": schedule}, (Control(end=0.5),)) == i / 4


@pytest.mark.parametrize("shape", [(1, 115), (2, 115, 115), (1, 1, 1, 115)])
@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_a_boolean_mask_leaves_out_what_is_false_beside_any_strength(flow, given, shape, strength):
    there = torch.rand(shape, generator=torch.Generator().manual_seed(4)) > 0.3
    there[..., 0] = True
    there = there.view(shape[0], 1, *shape[1:]) if len(shape) == 3 else there
    added = torch.zeros(there.shape).masked_fill(~there, -1e30)
    got, want = (run(flow, given, Control(), Control(strength=strength), attention_mask=mask) for mask in (there, added))
    assert relative(got, want) < TOLERANCE
    assert relative(got, run(flow, given, Control(), Control(strength=strength))) > 1e-3
