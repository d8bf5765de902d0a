"""A MODEL that core nodes load, beside ours of the same file, under our combiner and sampler.

0.3.75 knows FLUX.2 with 48 heads only, so its file has two blocks of that width, 4 GB, which take minutes (--long); newer
hosts load klein's own shapes.
Tolerance 1e-4: bf16 weights cast to float32 on both sides, the same sums in another order.
"""

import pytest
import torch

from klein.model_loaders.flow.sizes import FlowSizes, expected_shapes
from tools import provision, small
from tools.server import PromptError
from tools.small import relative

TOLERANCE = 1e-4
OLD = FlowSizes(128, 192, hidden_size=6144, num_heads=48, mlp_hidden=18432, depth=1, depth_single_blocks=1)
NEW = FlowSizes(128, 192, hidden_size=256, num_heads=2, mlp_hidden=768, depth=1, depth_single_blocks=2)
IS_OLD = '"0.3.75"' in (provision.comfyui() / "comfyui_version.py").read_text()
pytestmark = [pytest.mark.long] if IS_OLD else []


@pytest.fixture(scope="module")
def file(comfy):
    path = comfy.base / "models/diffusion_models/core.safetensors"
    small.save(tiled_state(OLD if IS_OLD else NEW), path)
    yield path.name
    comfy.free()
    path.unlink()


def tiled_state(sizes: FlowSizes) -> dict:
    """bf16 weights under BFL names: one random tile, as two thousand million random numbers would take a minute."""
    tile = torch.randn(509, 521, generator=torch.Generator().manual_seed(4))
    state = {}
    for name, shape in expected_shapes(sizes).items():
        if len(shape) == 1:
            state[name.replace("_norm.weight", "_norm.scale")] = (1 + tile[0, : shape[0]].abs()).bfloat16()
        else:
            repeats = [-(-side // part) for side, part in zip(shape, tile.shape)]
            state[name] = (tile / shape[1] ** 0.5).bfloat16().repeat(*repeats)[: shape[0], : shape[1]]
    return state


@pytest.fixture
def models(graph, file):
    """Links to the MODELs of the core loader and of ours, computing in float32."""
    core = graph.new("UNETLoader", unet_name=file, weight_dtype="default")
    ours = graph.new("KleinFlowLoader", flow_name=file, weight_dtype="default", variant="auto")
    graph.sampler["steps"] = 1
    return core, ours


def sampled(graph, model):
    return graph.new("KleinDistilledSampler", **{**graph.sampler, "model": model})


def test_our_combiner_with_a_core_loaded_model_is_what_it_is_with_ours(graph, combined, pictures, models):
    """Order and geometry of two references: swapped they give something else."""
    combined(image_1=pictures[0], image_2=pictures[1], width=64, height=64)
    core, ours = graph.latents(*(sampled(graph, model) for model in models))
    assert relative(core, ours) < TOLERANCE
    combined(image_1=pictures[1], image_2=pictures[0], width=64, height=64)
    assert relative(graph.latents(sampled(graph, models[0]))[0], core) > 10 * TOLERANCE


def test_options_that_need_our_model_say_so(graph, combined, pictures, models):
    combined(references=graph.reference(pictures[0], strength=2.0), width=64, height=64)
    with pytest.raises(PromptError, match="^A reference has a strength, mask or window, which needs a model from Klein Flow"):
        graph.latents(sampled(graph, models[0]))
    combined(image_1=pictures[0], width=64, height=64)
    cached = graph.new("KleinReferenceCache", model=models[0], mode="within_run", device="gpu", dtype="model")
    with pytest.raises(PromptError, match="^The reference cache needs a model from Klein Flow Loader, and this one is Flux2"):
        graph.latents(sampled(graph, cached))
