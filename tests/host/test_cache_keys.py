"""What the reference cache takes for the same: sampling through the host's guider in this process, with patches, LoRAs,
hooks and wrappers on the MODEL. Each run is compared, bit for bit, with one that has nothing kept."""

import pytest
import torch

from tools import inprocess, small

BOXES = [(3, 5), (4, 2)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Adapters, and a MODEL of the K/V variant."""
    path = small.save(small.flow_state(**small.FLOW), tmp_path_factory.mktemp("flow") / "flow-kv.safetensors")
    cache, flow, sampling = (inprocess.import_adapter(name) for name in ("cache", "flow", "sampling"))
    return cache, flow.load_model(path), sampling


@pytest.fixture
def run(parts, caplog):
    """run(patcher, ...) -> latents and whether keys and values were kept from an earlier run. Patchers come from `across`,
    so that runs share what one cache node keeps; fresh=True samples with a cache node of its own, which has nothing."""
    cache, _, sampling = parts
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 64, small.FLOW["context"], generator=generator)
    references = [torch.randn(1, 128, *box, generator=generator) for box in BOXES]

    def run(patcher, fresh=False, latents=references, batch=1, cfg=1.0, **values):
        if fresh:
            patcher = cache.attach(patcher, "within_run", "gpu", "model")[0]
        positive = [[text, {"reference_latents": list(latents), **values}]]
        negative = [[text * 0.5, {"reference_latents": list(latents), **values}]]
        latent = {"samples": torch.zeros(batch, 128, 4, 6)}
        caplog.clear()
        with caplog.at_level("INFO"):
            out = sampling.sample(patcher, positive, negative, latent, 7, 2, cfg, 1.0, "official")
        return out["samples"], "kept from an earlier run" in caplog.text

    run.references = references
    return run


@pytest.fixture
def across(parts):
    """The MODEL with a cache across runs that has nothing yet."""
    return parts[0].attach(parts[1], "across_runs", "gpu", "model")[0]


def check(run, patcher, **settings):
    """Across runs equals within one; returns whether the second run kept what the first computed."""
    want, _ = run(patcher, fresh=True, **settings)
    first, second = run(patcher, **settings), run(patcher, **settings)
    assert torch.equal(first[0], want) and torch.equal(second[0], want)
    return second[1]


def test_the_same_model_keeps(run, across):
    assert check(run, across)


def test_a_lora_on_top_computes_again_and_keeps_its_own(run, across):
    model = across
    plain, _ = run(model)
    patched = model.clone()
    name = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    patched.add_patches({name: (torch.ones(768, 256) / 50,)}, 1.0)
    got, kept = run(patched)
    assert not kept and not torch.equal(got, plain)
    assert check(run, patched)
    again, kept = run(model)
    assert torch.equal(again, plain) and not kept


def test_two_models_under_one_guider_have_keys_and_values_of_their_own(run, parts, across, tmp_path):
    """As Dual Model Guider does: the negative on another model, with the options of the first."""
    from comfy.patcher_extension import WrappersMP

    path = small.save(small.flow_state(seed=1, **small.FLOW), tmp_path / "other-kv.safetensors")
    other = inprocess.import_adapter("flow").load_model(path)
    seen = []

    def through_both(executor, model, conds, x, t, options):
        seen.append([executor(m, conds, x, t, options)[0] for m in (model, other.model)])
        return executor(model, conds, x, t, options)

    both = across.clone()
    both.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "both", through_both)
    other.pre_run()
    run(both)
    other.cleanup()
    alone = []

    def keep(executor, model, conds, x, t, options):
        out = executor(model, conds, x, t, options)
        alone.append(out[0])
        return out

    single = other.clone()
    single.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "keep", keep)
    run(single, fresh=True)
    assert torch.equal(seen[0][1], alone[0]) and not torch.equal(seen[0][0], alone[0])


@pytest.mark.parametrize("kind", ["attn1_patch", "attn1_output_patch", "post_input", "block"])
def test_patches_of_other_packs_keep_it_within_a_run_and_say_so(run, across, caplog, kind):
    patched = across.clone()
    if kind == "block":
        patched.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)
    elif kind == "post_input":
        patched.set_model_patch(lambda args: args, kind)
    elif kind == "attn1_patch":
        patched.set_model_patch(lambda q, k, v, pe, attn_mask, extra_options: {"v": v * 1.5}, kind)
    else:
        patched.set_model_patch(lambda x, options: x, kind)
    run(across)
    assert not check(run, patched)
    assert "kept within this run only, as the model has patches of its attention or blocks" in caplog.text


def hooks(patcher, strength=1.0):
    """A group of one hook LoRA, whose patches are on the MODEL."""
    import comfy.hooks

    name = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    hook = comfy.hooks.WeightHook(strength_model=strength)
    hook.need_weight_init = False
    hook.weights = {name: (torch.ones(768, 256) / 50,)}
    patcher.add_hook_patches(hook, hook.weights, strength)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return group


def test_conditionings_with_a_hook_lora_and_without_have_their_own(run, parts, across, caplog):
    """Two in one run over the same references: each as when it is sampled alone, and nothing kept for the next run."""
    _, _, sampling = parts
    model = across.clone()
    group = hooks(model)
    want = {"hooked": run(model, fresh=True, hooks=group)[0], "plain": run(model, fresh=True)[0]}
    assert not torch.equal(want["hooked"], want["plain"])
    seen = {}

    def look(executor, of, conds, x, t, options):
        out = executor(of, conds, x, t, options)
        seen.setdefault("first", out)
        return out

    from comfy.patcher_extension import WrappersMP

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "look", look)
    text = torch.randn(1, 64, small.FLOW["context"], generator=torch.Generator().manual_seed(0))
    latents = {"reference_latents": run.references}
    positive, negative = [[text, {**latents, "hooks": group}]], [[text, dict(latents)]]
    empty = {"samples": torch.zeros(1, 128, 4, 6)}
    caplog.clear()
    with caplog.at_level("INFO"):
        sampling.sample(model, positive, negative, empty, 7, 1, 2.0, 1.0, "official")
    assert "as the model has a hook LoRA" in caplog.text
    assert caplog.text.count("computed") == 2
    firsts = []
    for conditioning in (positive, negative):
        seen.clear()
        alone = parts[0].attach(model, "within_run", "gpu", "model")[0]
        sampling.sample(alone, conditioning, None, empty, 7, 1, 1.0, 1.0, "official")
        firsts.append(seen["first"][0])
    seen.clear()
    sampling.sample(model, positive, negative, empty, 7, 1, 2.0, 1.0, "official")
    assert all(map(torch.equal, seen["first"], firsts))


def test_a_wrapper_that_changes_the_references_or_takes_them_away_is_followed(run, across):
    from comfy.patcher_extension import WrappersMP

    factor = [1.0]

    def change(executor, x, timestep, context, y, guidance, ref_latents, *args, **kwargs):
        changed = [latent * factor[0] for latent in ref_latents] if factor[0] else None
        return executor(x, timestep, context, y, guidance, changed, *args, **kwargs)

    wrapped = across.clone()
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other pack", change)
    assert check(run, wrapped)
    factor[0] = 1.2
    want, _ = run(across, fresh=True, latents=[latent * 1.2 for latent in run.references])
    assert torch.equal(run(wrapped)[0], want)
    factor[0] = 0
    assert torch.equal(run(wrapped)[0], run(across, fresh=True, latents=[])[0])


def test_a_change_that_no_wrapper_of_the_host_announces_is_followed(run, across):
    def change(apply_model, args):
        args["c"]["ref_latents"] = [latent * 1.2 for latent in args["c"]["ref_latents"]]
        return apply_model(args["input"], args["timestep"], **args["c"])

    changed = across.clone()
    run(across)
    changed.set_model_unet_function_wrapper(change)
    want, _ = run(across, fresh=True, latents=[latent * 1.2 for latent in run.references])
    assert torch.equal(run(changed)[0], want)


def test_a_replaced_layer_is_another_model(run, across):
    layer = across.model.diffusion_model.single_blocks[1].linear2
    replaced = across.clone()
    other = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    other.weight = torch.nn.Parameter(layer.weight * 0.5, requires_grad=False)
    plain, _ = run(across)
    replaced.add_object_patch("diffusion_model.single_blocks.1.linear2", other)
    got, kept = run(replaced)
    assert not kept and not torch.equal(got, plain)
    again, kept = run(across)
    assert torch.equal(again, plain) and not kept


def test_rope_options_and_methods_are_part_of_what_is_kept(run, across):
    """All in turn on one cache, each with its own places; under `uxo` those depend on the canvas."""
    variants = []
    for scale in (1.0, 0.5):
        scaled = across.clone()
        scaled.model_options["transformer_options"]["rope_options"] = {"scale_x": scale}
        variants.append((scaled, {}))
    methods = [{"reference_latents_method": method} for method in ("offset", "uxo", "index_timestep_zero")]
    variants += [(across, method) for method in methods]
    want = [run(patcher, fresh=True, **values)[0] for patcher, values in variants]
    for _ in range(2):
        for (patcher, values), latents in zip(variants, want):
            assert torch.equal(run(patcher, **values)[0], latents)
    assert not any(torch.equal(want[0], other) for other in want[1:4])


def test_another_default_method_of_the_model_is_another_key(run, across):
    """What a conditioning that names no method gets."""
    params = across.model.diffusion_model.params
    index, _ = run(across)
    try:
        params.default_ref_method = "uxo"
        assert check(run, across)
        named, _ = run(across, fresh=True, reference_latents_method="uxo")
        got, _ = run(across)
    finally:
        params.default_ref_method = "index"
    assert torch.equal(got, named) and not torch.equal(got, index)


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_references_of_a_batch_are_kept_row_by_row(run, across, batch, cfg):
    """Latents of batch 2 with images of batch 2 and 4, cond and uncond in one batch at cfg 3."""
    both = [torch.randn(2, 128, *box, generator=torch.Generator().manual_seed(9)) for box in BOXES]
    assert check(run, across, latents=both, batch=batch, cfg=cfg)
    plain = run(across, fresh=True, batch=batch, cfg=cfg)[0]
    assert not torch.equal(run(across, fresh=True, latents=both, batch=batch, cfg=cfg)[0], plain)


def test_one_set_serves_both_conditionings_of_a_guided_run(run, across, caplog):
    assert check(run, across, cfg=3.0)
    assert caplog.text.count("Klein reference cache:") == 1


def test_only_what_the_last_run_used_is_carried_over(run, across, parts):
    wrapper = across.wrappers["prepare_sampling"]["klein_reference_cache"][0]
    cache = wrapper.__self__
    for method in ("offset", "index_timestep_zero", None):
        run(across, **({"reference_latents_method": method} if method else {}))
    assert len(cache.last.found) == 1 + 1  # the last and the one before it, which the next run drops
    run(across)
    assert len(cache.last.found) == 1


def test_an_error_in_the_pass_leaves_nothing_half_computed(run, across):
    model = across
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


def test_a_copy_of_the_options_shares_the_run(run, across):
    import copy

    cache = inprocess.import_adapter("cache")
    found = []

    def look(apply_model, args):
        found.append(copy.deepcopy(args["c"]["transformer_options"])["klein_reference_cache"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    looked = across.clone()
    looked.set_model_unet_function_wrapper(look)
    run(looked)
    assert isinstance(found[0], cache.Run) and found[0] is found[1]


def test_a_model_of_another_loader_is_refused_in_one_sentence(parts):
    class Other:
        model = object()

    with pytest.raises(Exception, match="^The reference cache needs a model from Klein Flow Loader, and this one is object of"):
        parts[0].attach(Other(), "within_run", "gpu", "model")


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
            Last.found[len(Last.found)] = self
            return 1

    cache = parts[0].ReferenceCache(True, "gpu", None)
    Last.found.update({0: Kept(), 1: Kept()})
    cache.last = Last
    cache.forget()
    assert len(Last.found) == 4 and cache.last is None
