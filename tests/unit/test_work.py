"""What a step costs, against torch's own counter of operations, and the numbers that the model card's sizes give."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.preflight import peak
from klein.model_loaders.flow.model import Flow
from klein.model_loaders.flow.sizes import FlowSizes
from klein.model_loaders.flow.work import Sequence, activation_bytes, kept_bytes, reading_operations, step_operations
from tools import small

SMALL = FlowSizes(128, 192, 256, 2, 768, 1, 2)
KLEIN_9B = FlowSizes(128, 12288, 4096, 32, 12288, 8, 24)
REFERENCES = [(3, 5), (4, 2)]


def spelled_out(q, k, v, mask=None, transformer_options=None):
    """Attention as two products, which the counter knows on every device."""
    weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.fixture(scope="module")
def flow():
    model = Flow(SMALL, attention=spelled_out)
    model.load_state_dict(
        {n.replace("norm.scale", "norm.weight"): t for n, t in small.flow_state(**small.FLOW).items()}, strict=False
    )
    return model.requires_grad_(False)


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def inputs(rows=1):
    return torch.randn(rows, 128, 4, 6), torch.full((rows,), 0.5), torch.randn(rows, 40, 192)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("boxes", [[], REFERENCES])
def test_operations_of_a_step_are_those_that_torch_counts(flow, rows, boxes):
    latents = [torch.randn(1, 128, *box) for box in boxes]
    got = step_operations(SMALL, Sequence(40, 24, sum(h * w for h, w in boxes)), rows)
    want = counted(lambda: flow(*inputs(rows), ref_latents=latents))
    assert abs(got / want - 1) < 0.01


def test_operations_with_kept_keys_are_those_that_torch_counts(flow):
    latents = [torch.randn(1, 128, *box) for box in REFERENCES]
    kept = flow.read_references(latents)
    want = counted(lambda: flow(*inputs(), ref_latents=latents, reference_kv=kept))
    assert abs(step_operations(SMALL, Sequence(40, 24, kept=23)) / want - 1) < 0.01
    want = counted(lambda: flow.read_references(latents))
    assert abs(reading_operations(SMALL, 23) / want - 1) < 0.01


def test_the_work_of_9b_is_what_the_documentation_says():
    """klein-facts, section 4: TFLOP of 4 steps at 1024x1024 without, with one, and with two references."""
    plain = [4 * step_operations(KLEIN_9B, Sequence(512, 4096, 4096 * count)) / 1e12 for count in range(3)]
    assert plain == pytest.approx([302, 645, 1058], abs=1)
    cached = 4 * step_operations(KLEIN_9B, Sequence(512, 4096, kept=4096)) + reading_operations(KLEIN_9B, 4096)
    assert cached / 1e12 == pytest.approx(407, abs=1)


def test_kept_keys_of_9b_are_half_a_megabyte_a_token():
    assert kept_bytes(KLEIN_9B, 2) == 2**19


def test_more_tokens_rows_and_kept_keys_need_more_memory():
    one = activation_bytes(KLEIN_9B, Sequence(512, 4096), 2)
    assert activation_bytes(KLEIN_9B, Sequence(512, 4096, 4096), 2) > 1.8 * one
    assert activation_bytes(KLEIN_9B, Sequence(512, 4096), 2, rows=2) > 1.9 * one
    assert activation_bytes(KLEIN_9B, Sequence(512, 4096, kept=4 * 4096), 2) > one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("references", "kept"), [(0, False), (2, False), (6, True)])
def test_memory_of_activations_is_within_5_percent_of_the_tensors_that_lived_at_once(dtype, references, kept):
    estimate, measured = peak(256, dtype, 256, references, kept)
    assert abs(estimate / measured - 1) < 0.05, (estimate, measured)
