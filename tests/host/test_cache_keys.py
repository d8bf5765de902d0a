"""What the reference cache takes for the same: sampling through the host's guider in this process, with patches, LoRAs,
hooks and wrappers on the MODEL. Each run is compared, bit for bit, with one that has nothing kept."""

import pytest
import torch

from fixtures.cache import BOXES, check
from tools import inprocess, small


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
