"""Keys and values of references, kept: against diffusers' transformer in its K/V mode; float32, 1e-5 (the same sums in
another order)."""

import pytest
import torch

from klein.model_loaders.flow.controls import Control
from klein.model_loaders.flow.load import load_flow
from klein.model_loaders.flow.reference_kv import ReferenceSet, Storage
from klein.samplers.schedule import sigmas
from tools import small
from tools.small import relative

SIZES = dict(hidden=256, heads=2, context=96, mlp=768, depth=2, single=3)
TOLERANCE, FREE_RUNNING = 1e-5, 1e-4
BOXES = [(3, 5), (4, 2), (2, 2), (1, 7)]


@pytest.fixture(scope="module")
def state():
    return small.flow_state(seed=1, **SIZES)


@pytest.fixture(scope="module")
def flow(state, tmp_path_factory):
    return load_flow(small.save(state, tmp_path_factory.mktemp("flow") / "flow.safetensors"))


@pytest.fixture(scope="module")
def oracle(state):
    return small.flow_oracle(state)


@pytest.fixture(scope="module")
def references():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(1, 128, *box, generator=generator) for box in BOXES]


def given(batch: int, box=(6, 4)):
    """x and context."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 128, *box, generator=generator), torch.randn(batch, 64, SIZES["context"], generator=generator)


@torch.no_grad()
def step(flow, x, t, context, kv, *controls, **more):
    return flow(x, torch.full((len(x),), float(t)), context, reference_kv=kv, controls=controls, **more)


@torch.no_grad()
def read(flow, references, *controls, **more):
    return flow.read_references(references, controls, **more)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_step_equals_diffusers_kv_mode(flow, oracle, references, count, batch):
    (x, context), schedule = given(batch), sigmas(4, 24)
    kv, cache = read(flow, references[:count]), None
    free = x
    for now, following in zip(schedule[:-1], schedule[1:]):
        want, cache = small.kv_velocity(oracle, x, now, context, references[:count], cache)
        assert relative(step(flow, x, now, context, kv), want) < TOLERANCE
        free = free + (following - now) * step(flow, free, now, context, kv)
        x = x + (following - now) * want
    assert relative(free, x) < FREE_RUNNING


def test_the_cached_mode_is_another_than_the_plain_one(flow, references):
    x, context = given(1)
    with torch.no_grad():
        plain = flow(x, torch.tensor([0.9]), context, references[:2])
    assert relative(step(flow, x, 0.9, context, read(flow, references[:2])), plain) > 1e-3


def test_the_order_of_the_set_matters(flow, references):
    x, context = given(1)
    one, other = (step(flow, x, 0.9, context, read(flow, order)) for order in (references[:2], references[1::-1]))
    assert relative(one, other) > 1e-3


def test_no_references_at_a_step_equal_none_at_all(flow, references):
    x, context = given(1)
    want = step(flow, x, 0.9, context, None)
    for gone in (Control(strength=0.0), Control(keep=bytes(15))):
        assert torch.equal(step(flow, x, 0.9, context, read(flow, references[:1], gone), gone), want)
    late = Control(start=0.5)
    options = {"sample_sigmas": torch.tensor([0.9, 0.4, 0.0])}
    kv = read(flow, references[:1], late)
    assert torch.equal(step(flow, x, 0.9, context, kv, late, transformer_options=options), want)
    assert not torch.equal(
        step(flow, x, 0.4, context, kv, late, transformer_options=options), step(flow, x, 0.4, context, None)
    )


def test_a_last_reference_of_strength_0_is_bit_equal_to_the_set_without_it(flow, references):
    x, context = given(2)
    controls = Control(), Control(strength=0.0)
    got = step(flow, x, 0.9, context, read(flow, references[:2], *controls), *controls)
    assert torch.equal(got, step(flow, x, 0.9, context, read(flow, references[:1])))


def test_strength_and_window_leave_keys_and_values_as_they_are(flow, references):
    plain = read(flow, references[:2])
    kv = read(flow, references[:2], Control(strength=2.0), Control(start=0.5))
    assert kv.spans == plain.spans
    assert all(torch.equal(a, b) for key in plain.blocks for (a, _), (b, _) in zip(plain.blocks[key], kv.blocks[key]))


def test_strength_in_cached_steps_is_a_bias_on_the_keys_of_text_and_image(flow, references):
    """The same as repeating keys and values: a strength of 2 is a reference that is there twice."""
    x, context = given(2)
    kv = read(flow, references[:2])
    strong = Control(strength=2.0)
    got = step(flow, x, 0.9, context, kv, Control(), strong)
    twice = read(flow, references[:2])
    for key, pair in kv.blocks.items():
        twice.blocks[key] = tuple((torch.cat([part, part[:, :, kv.spans[1]]], dim=2), None) for part, _ in pair)
    assert relative(got, step(flow, x, 0.9, context, twice)) < TOLERANCE
    for shape in ((1, 88), (2, 88, 88), (2, 1, 1, 88)):
        mask = torch.zeros(shape)
        assert relative(step(flow, x, 0.9, context, kv, Control(), strong, attention_mask=mask), got) < TOLERANCE


def test_a_windowed_reference_keeps_its_place_and_leaves_the_others_theirs(flow, references):
    """Outside its window a reference's keys are left out; the others' were computed beside it, and stay so."""
    x, context = given(1)
    options = {"sample_sigmas": torch.tensor([0.9, 0.4, 0.0])}
    controls = Control(start=0.5), Control()
    kv = read(flow, references[:2])
    want = read(flow, references[:2])
    for key, pair in kv.blocks.items():
        want.blocks[key] = tuple((part[:, :, kv.spans[1]], None) for part, _ in pair)
    got = step(flow, x, 0.9, context, kv, *controls, transformer_options=options)
    assert torch.equal(got, step(flow, x, 0.9, context, want))


def test_a_mask_keeps_the_places_of_what_it_keeps(flow, oracle, references):
    x, context = given(1)
    keep = torch.rand(15, generator=torch.Generator().manual_seed(3)) > 0.5
    control = Control(keep=bytes(keep.tolist()))
    want, _ = small.kv_velocity(oracle, x, 0.9, context, references[:2], None, [keep, None])
    assert relative(step(flow, x, 0.9, context, read(flow, references[:2], control), control), want) < TOLERANCE


def test_one_set_serves_every_batch_size_prompt_and_canvas(flow, oracle, references):
    kv = read(flow, references[:2])
    for batch, box in ((1, (6, 4)), (3, (2, 9))):
        x, context = given(batch, box)
        want, _ = small.kv_velocity(oracle, x, 0.7, context, references[:2], None)
        assert relative(step(flow, x, 0.7, context, kv), want) < TOLERANCE


def test_rows_with_references_of_their_own_are_read_row_by_row(flow, references):
    x, context = given(2)
    both = torch.randn(2, 128, 3, 5, generator=torch.Generator().manual_seed(8))
    got = step(flow, x, 0.7, context, read(flow, [both]))
    for row in range(2):
        alone = step(flow, x[row : row + 1], 0.7, context[row : row + 1], read(flow, [both[row : row + 1]]))
        assert relative(got[row : row + 1], alone) < TOLERANCE


def test_kept_in_fp8_takes_a_quarter_of_float32_and_is_within_4_percent(flow, references):
    """e4m3 has 3 bits of mantissa: each value is off by up to 1/16, and errors of many keys average out."""
    x, context = given(1)
    kv, rounded = read(flow, references), read(flow, references, storage=Storage(dtype=torch.float8_e4m3fn))
    assert rounded.nbytes * 4 == kv.nbytes == 2 * 5 * 256 * kv.tokens * 4
    error = relative(step(flow, x, 0.9, context, rounded), step(flow, x, 0.9, context, kv))
    assert 0 < error < 0.04


def test_what_is_kept_shares_no_memory_with_the_pass(flow, references):
    kv = read(flow, references)
    assert all(x.untyped_storage().nbytes() == x.nbytes for pair in kv.blocks.values() for x, _ in pair)


def test_sets_are_known_by_content_order_and_membership(references):
    a, b = references[:2]
    key = ReferenceSet([a, b]).key
    assert ReferenceSet([a.clone(), b.clone()]).key == key
    assert ReferenceSet([a, b], (Control(strength=2.0, start=0.5),)).key == key
    others = [
        ReferenceSet([b, a]), ReferenceSet([a]), ReferenceSet([a, b + 1e-3]), ReferenceSet([a.view(1, 128, 5, 3), b]),
        ReferenceSet([a, b], (Control(strength=0.0),)), ReferenceSet([a, b], (Control(keep=bytes([1] * 14 + [0])),)),
    ]  # fmt: skip
    assert len({key, *(other.key for other in others)}) == 7
    assert ReferenceSet([a, b]) == ReferenceSet([a.clone(), b])
    assert ReferenceSet([a, b], (Control(strength=2.0),)) != ReferenceSet([a, b])


def test_latents_of_a_call_are_compared_with_the_set(references):
    a, b = references[:2]
    known = ReferenceSet([a, b])
    assert known.is_content_of([a.expand(3, -1, -1, -1), b.expand(3, -1, -1, -1)])
    assert known.is_content_of([a.bfloat16(), b.bfloat16()])
    assert not known.is_content_of([a, b * 1.01]) and not known.is_content_of([a])
    both = torch.cat([a, a + 1])
    rows = both[[0, 1, 0]].repeat(2, 1, 1, 1)  # two conditionings of three images
    assert ReferenceSet([both]).is_content_of([rows], parts=2) and not ReferenceSet([both]).is_content_of([rows], parts=1)


def test_a_boolean_mask_beside_kept_references_leaves_out_what_is_false(flow, references):
    x, context = given(2)
    there = torch.rand(1, 88, generator=torch.Generator().manual_seed(4)) > 0.3
    there[:, 0] = True
    added = torch.zeros(1, 88).masked_fill(~there, -1e30)
    for controls in ((), (Control(), Control(strength=2.0))):
        kv = read(flow, references[:2])
        got, want = (step(flow, x, 0.9, context, kv, *controls, attention_mask=mask) for mask in (there, added))
        assert relative(got, want) < TOLERANCE
        assert relative(got, step(flow, x, 0.9, context, kv, *controls)) > 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 1, 111), (2, 1, 111, 111)])
def test_a_mask_over_references_too_is_taken_beside_kept_ones(flow, references, shape):
    """ln 2 on the last 8 keys, those of the second reference, is its strength of 2; with the first outside its window,
    its part of the mask is left out too."""
    x, context = given(2)
    kv = read(flow, references[:2])
    mask = torch.zeros(shape)
    mask[..., -8:] = torch.tensor(2.0).log()
    want = step(flow, x, 0.9, context, kv, Control(), Control(strength=2.0))
    assert relative(step(flow, x, 0.9, context, kv, attention_mask=mask), want) < TOLERANCE
    options = {"sample_sigmas": torch.tensor([0.9, 0.4, 0.0])}
    late = Control(start=0.5)
    want = step(flow, x, 0.9, context, kv, late, Control(strength=2.0), transformer_options=options)
    got = step(flow, x, 0.9, context, kv, late, attention_mask=mask, transformer_options=options)
    assert relative(got, want) < TOLERANCE


def test_a_boolean_mask_that_a_patch_puts_in_is_taken_beside_kept_references(flow, references):
    x, context = given(1)
    kv, there = read(flow, references[:2]), torch.ones(1, 1, 1, 88, dtype=torch.bool)
    there[..., 20:40] = False
    want = step(flow, x, 0.9, context, kv, attention_mask=there)
    patch = {"patches": {"attn1_patch": [lambda q, k, v, pe, attn_mask, extra_options: {"attn_mask": there}]}}
    assert relative(step(flow, x, 0.9, context, kv, transformer_options=patch), want) < TOLERANCE


def test_a_mask_of_another_length_beside_kept_references_is_refused(flow, references):
    x, context = given(1)
    sentence = "^The attention mask covers 90 tokens, expected 88 of text and image, or 111 with the references: "
    with pytest.raises(ValueError, match=sentence):
        step(flow, x, 0.9, context, read(flow, references[:2]), attention_mask=torch.zeros(1, 90))
