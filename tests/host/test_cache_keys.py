"""What the reference cache takes for the same: sampling through the host's guider in this process, with patches, LoRAs,
hooks and wrappers on the MODEL. Each run is compared, bit for bit, with one that has nothing kept."""

import pytest
import torch

from environment import inprocess, small

BOXES = [(3, 5), (4, 2)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Adapters, and a MODEL of the K/V variant."""
    path = small.save(small.flow_state(**small.FLOW), tmp_path_factory.mktemp("flow") / "flow-kv.safetensors")
    cache, flow, sampling = (inprocess.import_adapter(name) for name in ("cache", "flow", "sampling"))
    return cache, flow.load_model(path), sampling


@pytest.fixture
def run(parts, caplog):
    """run(patcher, ...) -> latents and whether keys and values were kept from an earlier run."""
    cache, _, sampling = parts
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 64, small.FLOW["context"], generator=generator)
    references = [torch.randn(1, 128, *box, generator=generator) for box in BOXES]

    def run(patcher, mode="across_runs", latents=references, **klein):
        patcher = cache.attach(patcher, mode, "gpu", "model")[0]
        positive = [[text, {"reference_latents": list(latents), "klein": klein}]]
        caplog.clear()
        with caplog.at_level("INFO"):
            out = sampling.sample(patcher, positive, None, {"samples": torch.zeros(1, 128, 4, 6)}, 7, 2, 1.0, 1.0, "official")
        return out["samples"], "kept from an earlier run" in caplog.text

    run.references = references
    parts[1].model.klein_kept = {}
    return run


def check(run, patcher):
    """Across runs equals within one; returns whether the second run kept what the first computed."""
    want, _ = run(patcher, "within_run")
    first, second = run(patcher), run(patcher)
    assert torch.equal(first[0], want) and torch.equal(second[0], want)
    return second[1]


def test_the_same_model_keeps(run, parts):
    assert check(run, parts[1])


def test_a_lora_on_top_computes_again_and_keeps_its_own(run, parts):
    model = parts[1]
    plain, _ = run(model)
    patched = model.clone()
    name = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    patched.add_patches({name: (torch.ones(768, 256) / 50,)}, 1.0)
    got, kept = run(patched)
    assert not kept and not torch.equal(got, plain)
    assert check(run, patched)
    again, kept = run(model)
    assert torch.equal(again, plain) and not kept


def test_another_model_of_the_same_sizes_never_takes_what_is_not_its_own(run, parts, tmp_path):
    path = small.save(small.flow_state(seed=1, **small.FLOW), tmp_path / "other-kv.safetensors")
    other = inprocess.import_adapter("flow").load_model(path)
    want, _ = run(other, "within_run")
    run(parts[1])
    assert torch.equal(run(other)[0], want)


@pytest.mark.parametrize("kind", ["attn1_patch", "attn1_output_patch", "post_input", "block"])
def test_patches_of_other_packs_keep_it_within_a_run_and_say_so(run, parts, caplog, kind):
    patched = parts[1].clone()
    if kind == "block":
        patched.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    elif kind == "post_input":
        patched.set_model_patch(lambda args: args, kind)
    elif kind == "attn1_patch":
        patched.set_model_patch(lambda q, k, v, pe, attn_mask, extra_options: {"v": v * 1.5}, kind)
    else:
        patched.set_model_patch(lambda x, options: x, kind)
    assert not check(run, patched)
    assert "kept within this run only, as the model has patches of its attention or blocks" in caplog.text


def test_a_hook_lora_keeps_it_within_a_run_and_says_so(run, parts, caplog):
    import comfy.hooks

    model = parts[1].clone()
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.need_weight_init = False
    name = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    model.add_hook_patches(hook, {name: (torch.ones(768, 256) / 50,)}, 1.0)
    assert not check(run, model)
    assert "as the model has a hook LoRA" in caplog.text


def test_a_wrapper_that_changes_the_references_is_followed(run, parts):
    from comfy.patcher_extension import WrappersMP

    factor = [1.0]

    def change(executor, x, timestep, context, y, guidance, ref_latents, *args, **kwargs):
        changed = [latent * factor[0] for latent in ref_latents]
        return executor(x, timestep, context, y, guidance, changed, *args, **kwargs)

    wrapped = parts[1].clone()
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other pack", change)
    assert check(run, wrapped)
    factor[0] = 1.2
    want, _ = run(parts[1], "within_run", [latent * 1.2 for latent in run.references])
    assert torch.equal(run(wrapped)[0], want)


def test_a_replaced_layer_is_another_model(run, parts):
    layer = parts[1].model.diffusion_model.single_blocks[1].linear2
    replaced = parts[1].clone()
    other = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    other.weight = torch.nn.Parameter(layer.weight * 0.5, requires_grad=False)
    plain, _ = run(parts[1])
    replaced.add_object_patch("diffusion_model.single_blocks.1.linear2", other)
    got, kept = run(replaced)
    assert not kept and not torch.equal(got, plain)
    again, kept = run(parts[1])
    assert torch.equal(again, plain) and not kept


def test_rope_options_and_methods_are_part_of_what_is_kept(run, parts):
    want = {}
    for scale in (1.0, 0.5):
        scaled = parts[1].clone()
        scaled.model_options["transformer_options"]["rope_options"] = {"scale_x": scale}
        want[scale] = run(scaled, "within_run")[0], scaled
    for latents, scaled in want.values():
        assert torch.equal(run(scaled)[0], latents)
    assert not torch.equal(want[1.0][0], want[0.5][0])


def test_an_error_in_the_pass_leaves_nothing_half_computed(run, parts):
    model = parts[1]
    block = model.model.diffusion_model.single_blocks[0]
    attention = block.attention

    def stop(*args, **kwargs):
        raise RuntimeError("stopped")

    block.attention = stop
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            run(model)
    finally:
        block.attention = attention
    assert check(run, model)


def test_the_memory_it_will_take_is_asked_of_the_host(run, parts):
    """Keys and values of 15 + 8 tokens in 3 blocks of width 256, float32, once; then they are there."""
    model, asked = parts[1], []
    required = type(model.model).memory_required

    def count(self, *args, **kwargs):
        asked[-1].add(self.klein_kept_bytes)
        return required(self, *args, **kwargs)

    type(model.model).memory_required = count
    try:
        for mode in ("across_runs", "across_runs", "within_run"):
            asked.append(set())
            run(model, mode)
    finally:
        type(model.model).memory_required = required
    size = 2 * 3 * 256 * 4 * 23
    assert [max(of_run) for of_run in asked] == [size, 0, size]
    assert model.model.klein_kept_bytes == 0


def test_it_goes_when_the_host_unloads_the_model_though_no_node_holds_it(parts, run, tmp_path):
    import gc
    import weakref

    import comfy.model_management

    path = small.save(small.flow_state(seed=2, **small.FLOW), tmp_path / "gone-kv.safetensors")
    model = inprocess.import_adapter("flow").load_model(path)
    run(model)
    kept = weakref.ref(next(iter(model.model.klein_kept.values())))
    assert kept() is not None
    comfy.model_management.unload_all_models()
    gc.collect()
    assert kept() is None and not model.model.klein_kept


def test_a_model_of_another_loader_is_refused_in_one_sentence(parts):
    class Other:
        model = object()

    with pytest.raises(Exception, match="^The reference cache needs a model from Klein Flow Loader, and this one is object of"):
        parts[0].attach(Other(), "within_run", "gpu", "model")
