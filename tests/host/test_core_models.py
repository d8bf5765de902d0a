"""A MODEL that core nodes load, beside ours of the same file, under our combiner and sampler.

0.3.75 knows FLUX.2 with 48 heads only, so its file has two blocks of that width; newer hosts load klein's own shapes.
Tolerance 1e-4: bf16 weights cast to float32 on both sides, the same sums in another order, after two steps.
"""

import pytest

from environment import provision, small
from environment.server import PromptError
from environment.small import relative

TOLERANCE = 1e-4
OLD = dict(hidden=6144, heads=48, context=192, mlp=18432, depth=1, single=1)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(comfy):
    import torch

    host = (provision.comfyui() / "comfyui_version.py").read_text()
    sizes = OLD if '"0.3.75"' in host else small.FLOW
    path = comfy.base / "models/diffusion_models/core.safetensors"
    small.save(small.flow_state(seed=4, **sizes, dtype=torch.bfloat16), path)
    yield path.name
    comfy.free()
    path.unlink()


@pytest.fixture
def models(graph, file):
    """Links to the MODELs of the core loader and of ours, computing in float32."""
    core = graph.new("UNETLoader", unet_name=file, weight_dtype="default")
    ours = graph.new("KleinFlowLoader", flow_name=file, weight_dtype="default", variant="auto")
    graph.sampler["steps"] = 2
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
