"""What the flow model and the reference cache ask of the host's memory, and give back to it."""

from functools import partial

import pytest
import torch

from benchmarks.preflight import KLEIN_9B, Peak, hollow
from fixtures.cache import check
from klein.model_loaders.flow.model import Flow
from klein.model_loaders.flow.work import Sequence, activation_bytes
from tools import inprocess, small


def test_the_memory_it_will_take_is_asked_of_the_host(run, across):
    """Keys and values of 15 + 8 tokens in 3 blocks of width 256, float32, once; then they are there."""
    model, asked = across, []
    required = type(model.model).memory_required

    def count(self, *args, **kwargs):
        asked[-1].add(self.beside.wanted)
        return required(self, *args, **kwargs)

    type(model.model).memory_required = count
    try:
        for fresh in (False, False, True):
            asked.append(set())
            run(model, fresh=fresh)
    finally:
        type(model.model).memory_required = required
    size = 2 * 3 * 256 * 4 * 23
    assert [max(of_run) for of_run in asked] == [size, 0, size]
    assert model.model.beside.wanted == 0


def test_it_goes_when_the_host_unloads_the_model_or_the_node_goes(run, parts):
    """Unloading, whole or in part, reaches it though another MODEL, without the cache, was sampled last."""
    import gc
    import weakref

    import comfy.model_management

    def kept_of(patcher):
        run(patcher)
        last = patcher.wrappers["prepare_sampling"]["klein_reference_cache"][0].__self__.last
        return weakref.ref(next(iter(last.found.values())))

    attached = parts[0].attach(parts[1], "across_runs", "gpu", "model")[0]
    kept = kept_of(attached)
    run(parts[1])
    assert kept() is not None
    comfy.model_management.unload_all_models()
    gc.collect()
    assert kept() is None
    kept = kept_of(attached)
    size = kept().nbytes
    assert attached.clone().partially_unload(attached.offload_device, 1) == size  # of a MODEL that shares the weights
    gc.collect()
    assert kept() is None
    assert attached.partially_unload(attached.offload_device, 1) != size  # now weights have to go
    kept = kept_of(attached)
    comfy.model_management.unload_all_models()
    del attached
    gc.collect()
    assert kept() is None


def test_what_a_running_run_still_holds_is_not_reported_as_freed(run, across):
    freed = []

    def unload(apply_model, args):
        if wanted:
            freed.append(across.model.beside.give_back())
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = across.clone()
    model.set_model_unet_function_wrapper(unload)
    want, wanted = run(across, fresh=True)[0], False
    run(model)
    wanted = True
    got, kept = run(model)
    assert kept and freed == [0, 0] and torch.equal(got, want)
    assert not run(across)[1]  # the host wanted the memory: nothing was kept beyond the run


def test_a_second_model_that_the_host_builds_for_a_copy_gives_back_too(run, parts, across):
    """As `clone(disable_dynamic=True)` does: another model of the same file, with the wrappers of the first."""
    from comfy.patcher_extension import WrappersMP

    build, arguments = parts[1].cached_patcher_init
    second = build(*arguments, disable_dynamic=True)
    prepare = across.wrappers["prepare_sampling"]["klein_reference_cache"][0]
    second.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "klein_reference_cache", prepare)
    assert check(run, second)
    size = next(iter(prepare.__self__.last.found.values())).nbytes
    assert second.partially_unload(second.offload_device, 1) == size and prepare.__self__.last is None


def test_a_copied_model_has_nothing_kept_and_shares_nothing(across):
    import copy

    beside = across.model.beside
    assert copy.deepcopy(beside) is not beside and copy.deepcopy(beside).give_back() == 0


def test_what_is_kept_can_be_given_back_while_a_run_adds_to_it(parts):
    """Several GPUs fill one run; the host unloads from another thread. Here each look at what is kept adds to it."""

    class Last:
        found = {}

    class Kept:
        @property
        def nbytes(self):
            Last.found[flow, len(Last.found)] = self
            return 1

    cache, flow = parts[0].ReferenceCache(True, "gpu", None), parts[1].model.beside.flow
    Last.found.update({(flow, 0): Kept(), (flow, 1): Kept()})
    cache.last = Last
    cache.forget(flow())
    assert len(Last.found) == 4 and cache.last is None


@pytest.mark.parametrize(
    ("side", "references", "cached"), [(1024, 0, False), (1024, 1, False), (1024, 2, False), (1024, 2, True), (2048, 2, False)]
)
def test_the_host_is_told_what_a_step_of_9b_takes_and_at_most_25_percent_more(nine, monkeypatch, side, references, cached):
    """Of shapes alone: the tensors of a step that live at once, in bf16, with each fp8 matrix cast while it is used, against the
    estimate; an attention kernel that holds no matrix of all tokens by all tokens."""
    import comfy.model_management

    hosted, flow, cells = *nine, side // 16
    empty = partial(torch.empty, dtype=torch.bfloat16, device="meta")
    latents = [empty(1, 128, 64, 64) for _ in range(references)]
    inputs = empty(1, 128, cells, cells), torch.empty(1, device="meta"), empty(1, 512, 12288)
    kept, most = None, 0
    if cached:
        with Peak([*flow.parameters(), *latents]) as reading:
            kept = flow.read_references(latents)
        most = reading.most - kept.nbytes
    before = [each for pair in kept.blocks.values() for each, _ in pair] if kept else []
    with Peak([*flow.parameters(), *inputs, *latents, *before]) as step:
        flow(*inputs, ref_latents=latents, reference_kv=kept)
    needed = max(most, step.most)
    conditions = [hosted.extra_conds_shapes(cross_attn=inputs[2], reference_latents=latents or None)]
    shapes = {name: [shapes[name] for shapes in conditions] for name in conditions[0]}
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    monkeypatch.setattr(hosted.beside, "cached", cached)
    estimate = hosted.memory_required([1, 128, cells, cells], shapes)
    assert needed <= estimate <= 1.25 * needed, (needed, estimate)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """9B as the host has it, in fp8 (of a file that is a hole), and its transformer on no device."""

    def fused(q, k, v, mask=None, transformer_options=None):
        return q.new_empty(len(q), q.shape[2], q.shape[1] * q.shape[3])

    import comfy.ops

    path = hollow(tmp_path_factory.mktemp("nine") / "flux-2-klein-9b.safetensors", KLEIN_9B)
    hosted = inprocess.import_adapter("flow").load_model(path).model
    hosted.manual_cast_dtype = torch.bfloat16
    flow = Flow(KLEIN_9B, comfy.ops.manual_cast, fused, dtype=torch.float8_e4m3fn, device="meta")
    return hosted, flow.requires_grad_(False)


@pytest.mark.parametrize(("hidden", "side", "references"), [(512, 256, 0), (512, 256, 1), (256, 512, 2)])
def test_preflights_estimate_for_an_fp8_file_is_within_10_percent_of_what_a_step_takes(tmp_path, hidden, side, references):
    state = small.flow_state(hidden=hidden, heads=hidden // 128, context=3 * hidden, mlp=3 * hidden, depth=1, single=2)
    state, metadata, _ = small.fp8_state({name: weight.bfloat16() for name, weight in state.items()}, "metadata")
    model = inprocess.import_adapter("flow").load_model(small.save(state, tmp_path / "fp8.safetensors", metadata)).model
    flow, cells = model.diffusion_model, side // 16
    latents = [torch.randn(1, 128, cells, cells) for _ in range(references)]
    inputs = torch.randn(1, 128, cells, cells), torch.full((1,), 0.5), torch.randn(1, 512, 3 * hidden)
    with torch.no_grad(), Peak([*flow.parameters(), *inputs, *latents]) as step:
        flow(*inputs, ref_latents=latents)
    tokens = Sequence(512, cells**2, references * cells**2)
    there = 4 * (3 * hidden * 512 + 2 * 128 * cells**2)  # text and latent, before and after
    estimate = activation_bytes(flow.sizes, tokens, 4, cast=model.manual_cast_dtype is not None) - there
    assert model.manual_cast_dtype and abs(estimate / step.most - 1) < 0.1, (estimate, step.most)
