"""The flow transformer against diffusers' Flux2Transformer2DModel with the same weights, float32 on the CPU.

Tolerance 1e-5 relative: both sum the same products in float32, in another order; what is seen is about 3e-7.
"""

import pytest
import torch

from klein.model_loaders.flow.load import load_flow, read_flow
from klein.model_loaders.flow.model import Flow, QKNorm
from klein.model_loaders.flow.sizes import FlowSizes
from tools import small
from tools.small import relative

SIZES = dict(hidden=256, heads=2, context=96, mlp=768, depth=2, single=3)
TOLERANCE = 1e-5
REFERENCES = {0: [], 1: [(6, 4)], 3: [(6, 4), (3, 9), (1, 1)]}


@pytest.fixture(scope="module")
def state():
    return small.flow_state(seed=1, **SIZES)


@pytest.fixture(scope="module")
def oracle(state):
    return small.flow_oracle(state)


@pytest.fixture(scope="module")
def flow(state, tmp_path_factory):
    return load_flow(small.save(state, tmp_path_factory.mktemp("flow") / "flow.safetensors"))


def inputs(batch, size, references, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    x = noise(batch, 128, *size)
    context = noise(batch, 512, SIZES["context"])
    t = torch.linspace(0.9, 0.3, batch)
    return x, t, context, [noise(1, 128, *box) for box in references]


@pytest.mark.parametrize("count", REFERENCES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (8, 8), (1, 13)])
@torch.no_grad()
def test_velocity_is_that_of_diffusers(flow, oracle, size, batch, count):
    x, t, context, references = inputs(batch, size, REFERENCES[count])
    assert relative(flow(x, t, context, references), small.velocity(oracle, x, t, context, references)) < TOLERANCE


@torch.no_grad()
def test_a_reference_of_each_image_of_the_batch_is_its_own(flow, oracle):
    x, t, context, _ = inputs(2, (4, 4), [])
    reference = torch.randn(2, 128, 3, 5, generator=torch.Generator().manual_seed(5))
    assert relative(flow(x, t, context, [reference]), small.velocity(oracle, x, t, context, [reference])) < TOLERANCE


@torch.no_grad()
def test_the_order_of_references_matters(flow):
    x, t, context, references = inputs(1, (4, 4), [(3, 3), (3, 3)])
    assert relative(flow(x, t, context, references[::-1]), flow(x, t, context, references)) > 1e-3


@torch.no_grad()
def test_all_layouts_and_prefixes_load_as_bit_equal_models(state, oracle, flow, tmp_path):
    oracle.save_pretrained(tmp_path / "pipeline/transformer", max_shard_size="2MB")
    assert len(list((tmp_path / "pipeline/transformer").glob("*.safetensors"))) > 1
    oracle.save_pretrained(tmp_path / "whole")
    paths = [tmp_path / "pipeline", tmp_path / "pipeline/transformer", tmp_path / "whole"]
    for prefix in ("model.diffusion_model.", "diffusion_model.", "transformer."):
        named = {f"{prefix}{name}": tensor for name, tensor in state.items()}
        paths.append(small.save(named, tmp_path / f"{prefix}safetensors"))
    as_weight = {name.replace("norm.scale", "norm.weight"): tensor for name, tensor in state.items()}
    paths.append(small.save(as_weight, tmp_path / "norms.safetensors"))
    diffusers = {f"transformer.{name}": tensor for name, tensor in oracle.state_dict().items()}
    paths.append(small.save(diffusers, tmp_path / "prefixed-diffusers.safetensors"))
    want = flow.state_dict()
    for path in paths:
        got = load_flow(path).state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want), path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_file_is_kept_and_tensors_are_mapped_not_copied(state, tmp_path, dtype):
    path = small.save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "flow.safetensors")
    flow = load_flow(path)
    assert {p.dtype for p in flow.parameters()} == {dtype}
    maps = [line.split() for line in open("/proc/self/maps") if str(path) in line]
    assert maps, "the file is not mapped"
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    inside = [any(low <= p.data_ptr() < high for low, high in spans) for p in flow.parameters()]
    assert all(inside)


@torch.no_grad()
def test_what_overflows_float16_in_a_block_becomes_its_largest_number(state, tmp_path):
    """Both kinds of block: deep ones of the 9B overflow, and an infinity would make every later value NaN."""
    loud = {name: tensor * (2e5 if name.endswith(("mlp.2.weight", "linear2.weight")) else 1) for name, tensor in state.items()}
    flow = load_flow(small.save({name: tensor.half() for name, tensor in loud.items()}, tmp_path / "flow.safetensors"))
    seen = []
    for block in (*flow.double_blocks, *flow.single_blocks):
        block.register_forward_hook(lambda block, args, out: seen.extend(out if isinstance(out, tuple) else [out]))
    x, t, context, references = inputs(1, (4, 4), [(2, 2)])
    flow(x.half(), t, context.half(), [reference.half() for reference in references])
    assert len(seen) == 2 * 2 + 3
    assert [float(out.abs().max()) for out in seen] == [65504] * 7


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_queries_and_keys_keep_the_dtype_of_values_whatever_the_norms_are_stored_in(compute):
    """Files may hold their norms in float32, and attention takes one dtype only."""
    norm = QKNorm(8, torch.nn, dtype=torch.float32)
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0)).to(compute)
    assert [part.dtype for part in norm(q.float(), k.float(), v)] == [compute, compute]


@pytest.mark.parametrize(
    ("name", "sizes", "parameters"),
    [
        ("9B", FlowSizes(128, 12288, 4096, 32, 12288, 8, 24), 9_078_581_248),
        ("4B", FlowSizes(128, 7680, 3072, 24, 9216, 5, 20), 3_875_544_576),
    ],
)
def test_the_full_size_has_the_released_number_of_parameters(name, sizes, parameters):
    assert sum(p.numel() for p in Flow(sizes, device="meta").parameters()) == parameters


def test_the_sizes_of_a_9b_fp8_file_are_read_from_its_header_alone(tmp_path):
    """A file of the released shapes, 9 GB of zeros that take no disk."""
    with torch.device("meta"):
        whole = Flow(FlowSizes(128, 12288, 4096, 32, 12288, 8, 24))
    tensors = {name: ("F8_E4M3", 1, tensor.shape) for name, tensor in whole.state_dict().items()}
    path = small.hollow(tmp_path / "flux-2-klein-9b-fp8.safetensors", tensors)
    assert sum(small.header(tensors)[1]) == 9_078_581_248
    assert read_flow(path).sizes == whole.sizes
