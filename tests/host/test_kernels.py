"""The host's kernels in our transformer: its attention, its RMSNorm and, where it has one, its fused rotation of queries and
keys (comfy-kitchen). On the CPU all of them compute what the engine's own do, operation by operation: bit-equal."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from klein.model_loaders.flow.load import load_flow
from klein.model_loaders.flow.positions import rotate, rotations, text_ids
from tools import inprocess, small

flow = inprocess.import_adapter("flow")
fused = pytest.mark.skipif(flow.FUSED is None, reason="this ComfyUI has no fused rotation")
BLOCKS = 3


class Called(TorchDispatchMode):
    """Counts of operators by their name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.name()] = self.counts.get(function.name(), 0) + 1
        return function(*args, **kwargs or {})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small.save(small.flow_state(**small.FLOW), tmp_path_factory.mktemp("flow") / "flow.safetensors")


@pytest.fixture(scope="module")
def hosted(path):
    return flow.load_model(path).model.diffusion_model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 128, 4, 6), (2, 9, small.FLOW["context"]), (1, 128, 3, 5)
    x, text, reference = (torch.randn(*shape, generator=generator) for shape in shapes)
    return {"x": x, "timestep": torch.full((2,), 0.7), "context": text, "ref_latents": [reference]}


@torch.no_grad()
def test_a_step_with_the_hosts_kernels_is_the_engines_own_bit_for_bit(path, hosted, inputs):
    assert torch.equal(hosted(**inputs), load_flow(path)(**inputs))


@torch.no_grad()
def test_the_hosts_kernels_are_what_runs(hosted, inputs, monkeypatch):
    import comfy.ops

    norms = [layer for name, layer in hosted.named_modules() if name.endswith(("query_norm", "key_norm"))]
    assert len(norms) == 2 * (2 + BLOCKS - 1) and all(isinstance(norm, comfy.ops.disable_weight_init.RMSNorm) for norm in norms)
    attended, attention = [], flow.optimized_attention
    monkeypatch.setattr(flow, "optimized_attention", lambda *args, **kwargs: attended.append(1) or attention(*args, **kwargs))
    with Called() as called:
        hosted(**inputs)
    assert len(attended) == BLOCKS
    assert called.counts.get("comfy_kitchen::apply_rope1", 0) == (2 * BLOCKS if flow.FUSED else 0)  # queries and keys


@torch.no_grad()
def test_a_host_without_a_fused_rotation_runs_the_engines_own(path, hosted, inputs, monkeypatch):
    monkeypatch.setattr(flow, "FUSED", None)
    with Called() as called:
        got = hosted(**inputs)
    assert not any("comfy_kitchen" in name for name in called.counts)
    assert torch.equal(got, load_flow(path)(**inputs))


@fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_fused_rotation_is_ours_in_every_dtype(dtype, rows):
    """Of keys that lie as the projection left them, with rotations for all images or for each."""
    pe = rotations(text_ids(9).repeat(rows, 1, 1) + torch.arange(rows)[:, None, None], (32, 32, 32, 32))
    x = torch.randn(2, 9, 3, 128, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(1, 2)
    assert torch.equal(flow.host_rotation(x, pe), rotate(x, pe))
    assert torch.equal(flow.host_rotation(x[:, :, :5], pe[:, :, :5]), rotate(x[:, :, :5], pe[:, :, :5]))


def test_gradients_pass_through_the_rotation(hosted, inputs):
    """The host's kernel has none."""
    x = inputs["x"].requires_grad_()
    hosted(**inputs).sum().backward()
    assert x.grad.abs().sum() > 0
