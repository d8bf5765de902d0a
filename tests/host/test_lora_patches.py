"""The patches of Klein LoRA Loader in this process, as the host loads, offloads and calls them; quantised weights."""

import os

import pytest
import torch

from fixtures.cache import check
from fixtures.lora import merged, shapes, velocity, written
from klein.model_loaders.formats.lora import read_lora
from tools import inprocess, small
from tools.small import relative

SCHEMES = ["metadata", "comfy_quant", "scaled_fp8"]
LAYER = "double_blocks.0.img_attn.qkv.weight"


@pytest.fixture(scope="module")
def state():
    return small.flow_state(**small.FLOW)


@pytest.fixture
def lora_file(tmp_path, state):
    """lora_file(naming, ...) -> the path of a small LoRA of all layers."""

    def write(naming="kohya", more=(), **settings):
        name = f"{naming}-{settings.get('seed', 5)}-{len(more)}.safetensors"
        return small.save({**written(naming, state, **settings)[0], **dict(more)}, tmp_path / name)

    return write


def attach(patcher, path, strength=1.0):
    return inprocess.import_adapter("lora").attach(patcher, None, path, strength, 1.0)[0]


def load(tmp_path, state, metadata=None, name="flow.safetensors"):
    return inprocess.import_adapter("flow").load_model(small.save(state, tmp_path / name, metadata))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_fp8_a_small_loras_effect_is_within_1_percent_where_the_hosts_own_loses_half(tmp_path, state, lora_file, scheme):
    import_lora = inprocess.import_adapter("lora")
    quantised, metadata, by_hand = small.fp8_state(state, scheme)
    path = lora_file(size=0.02)
    model = load(tmp_path, quantised, metadata)
    lora = read_lora(path, shapes(state))
    plain = velocity(model)
    want = velocity(load(tmp_path, merged(by_hand, lora), name="merged.safetensors")) - velocity(
        load(tmp_path, by_hand, name="dense.safetensors")
    )
    effect = velocity(attach(model, path)) - plain
    assert relative(effect, want) < 0.01
    import comfy.lora

    rounded = model.clone()
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    rounded.add_patches(comfy.lora.load_lora(written("kohya", state, size=0.02)[0], known), 1.0)
    assert relative(velocity(rounded) - plain, want) > 0.3
    assert torch.equal(velocity(model), plain)
    weight = model.model.diffusion_model.get_submodule(LAYER.removesuffix(".weight")).weight
    assert isinstance(weight, import_lora.QuantizedTensor)


@pytest.mark.parametrize("stored", ["dense", "fp8"])
@pytest.mark.parametrize("memory", [1, 2**20])
def test_offloaded_in_whole_and_in_part_it_is_the_same(tmp_path, state, lora_file, stored, memory):
    tensors, metadata, _ = small.fp8_state(state, "metadata") if stored == "fp8" else (state, None, None)
    model = load(tmp_path, tensors, metadata)
    patched = attach(model, lora_file())
    want = velocity(patched)
    assert relative(velocity(patched, memory), want) < 1e-5
    assert relative(velocity(model), want) > 1e-2


def dora(seed, module="double_blocks.0.img_attn.qkv", width=256):
    magnitude = 1 + torch.rand(3 * width, 1, generator=torch.Generator().manual_seed(seed))
    return {f"lora_unet_{module.replace('.', '_')}.dora_scale": magnitude}


@pytest.mark.parametrize("stored", ["dense", "fp8"])
def test_doras_and_loras_in_any_order_are_each_of_the_models_own_weight(tmp_path, state, lora_file, stored):
    tensors, metadata, by_hand = small.fp8_state(state, "metadata") if stored == "fp8" else (state, None, state)
    paths = [
        lora_file(seed=1),
        lora_file(seed=2, more=dora(1)),
        lora_file(seed=3, more=dora(2)),
        lora_file("diffusers", seed=4),
    ]
    want = dict(by_hand)
    for strength, path in zip((1.0, 0.5, -0.3, 0.8), paths):
        one = merged(by_hand, read_lora(path, shapes(state)), strength)
        want = {name: want[name] + one[name] - by_hand[name] for name in want}
    want = velocity(load(tmp_path, want, name="merged.safetensors"))
    model = load(tmp_path, tensors, metadata)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
        patched = model
        for place in order:
            patched = attach(patched, paths[place], (1.0, 0.5, -0.3, 0.8)[place])
        assert relative(velocity(patched), want) < 1e-5
    assert not model.patches and not model.weight_wrapper_patches


def test_a_merge_after_it_scales_it_and_one_before_does_not(tmp_path, state, lora_file):
    model, path = load(tmp_path, state), lora_file(more=dora(1))
    other = small.flow_state(seed=1, **small.FLOW)
    lora = read_lora(path, shapes(state))
    key = f"diffusion_model.{LAYER}"
    after = attach(model, path).clone()
    after.add_patches({key: (other[LAYER],)}, 0.5, 0.5)
    before = model.clone()
    before.add_patches({key: (other[LAYER],)}, 0.5, 0.5)
    before = attach(before, path)
    mixed = {**state, LAYER: 0.5 * state[LAYER] + 0.5 * other[LAYER]}
    want = merged(mixed, lora)
    assert relative(velocity(before), velocity(load(tmp_path, want, name="before.safetensors"))) < 1e-5
    want = merged(state, lora)
    want[LAYER] = 0.5 * want[LAYER] + 0.5 * other[LAYER]
    assert relative(velocity(after), velocity(load(tmp_path, want, name="after.safetensors"))) < 1e-5


@pytest.mark.parametrize("stored", ["dense", "fp8"])
def test_the_reference_caches_key_changes_with_it(tmp_path, state, lora_file, run, stored):
    cache = inprocess.import_adapter("cache")
    tensors, metadata, _ = small.fp8_state(state, "metadata") if stored == "fp8" else (state, None, None)
    model = cache.attach(load(tmp_path, tensors, metadata), "across_runs", "gpu", "model")[0]
    plain, _ = run(model)
    patched = attach(model, lora_file())
    got, kept = run(patched)
    assert not kept and not torch.equal(got, plain)
    assert check(run, patched)
    stronger = attach(model, lora_file(), 0.5)
    assert not run(stronger)[1]
    assert torch.equal(run(model)[0], plain)


def test_hook_loras_of_the_host_go_on_top(tmp_path, state, lora_file, run):
    import comfy.hooks

    model = attach(load(tmp_path, state), lora_file())
    key = f"diffusion_model.{LAYER}"
    extra = torch.ones(768, 256) / 50
    want = model.clone()
    want.add_patches({key: (extra,)}, 1.0)
    want, _ = run(want)
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.need_weight_init, hook.weights = False, {key: (extra,)}
    hooked = model.clone()
    hooked.add_hook_patches(hook, hook.weights, 1.0)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    assert relative(run(hooked, hooks=group)[0], want) < 1e-5
    assert relative(run(model)[0], want) > 1e-3


def test_the_host_can_rebuild_its_patches_and_count_their_bytes(tmp_path, state, lora_file):
    """As newer hosts do when they stream weights: type(patch)(loaded_keys, weights with tensors elsewhere)."""
    adapters = inprocess.import_adapter("lora")
    patched = attach(load(tmp_path, state), lora_file())
    ((_, adapter, *_),) = patched.patches[f"diffusion_model.{LAYER}"]
    import comfy.lora

    prepare = getattr(comfy.lora, "prefetch_prepared_value", None)  # of such hosts
    again = prepare(adapter, [0], None, None, False) if prepare else type(adapter)(adapter.loaded_keys, adapter.weights)
    zeros = torch.zeros(768, 256)
    got = again.calculate_weight(zeros.clone(), LAYER, 2.0, 1.0, None, None, torch.float32, None)
    assert torch.equal(got, adapter.calculate_weight(zeros.clone(), LAYER, 2.0, 1.0, None, None)) and got.abs().max() > 0
    late = adapters.CallTime(adapter.weights)
    assert late.move_to("cpu") == 4 * 4 * (768 + 256)
    assert torch.equal(late(zeros.clone()) * 2, got)
    assert late(zeros.to(small.FP8)).dtype == small.FP8


def test_what_it_keeps_on_the_gpu_for_quantised_weights_goes_with_the_model(tmp_path, state, lora_file):
    """The meta device stands for a GPU."""
    quantised, metadata, _ = small.fp8_state(state, "metadata")
    patched = attach(load(tmp_path, quantised, metadata), lora_file())
    wrappers = [wrapper for each in patched.weight_wrapper_patches.values() for wrapper in each]
    moved = sum(wrapper.move_to("meta") for wrapper in wrappers)
    assert moved == sum(t.nbytes for wrapper in wrappers for *_, tensors in wrapper.terms for t in tensors) > 0
    assert patched.partially_unload(patched.offload_device, 1) == moved
    assert {t.device.type for wrapper in wrappers for *_, tensors in wrapper.moved for t in tensors} == {"cpu"}
    wrappers[0].move_to("meta")
    patched.detach()
    assert wrappers[0].moved is wrappers[0].terms


def test_at_strength_0_not_even_the_file_is_looked_at(tmp_path, state, lora_file, oracle):
    module = inprocess.import_adapter("lora")
    model = load(tmp_path, state)
    encoder = small.save(small.encoder_state(oracle.text_encoder), tmp_path / "encoder.safetensors")
    clip = inprocess.import_adapter("encoder").load_clip(encoder)
    absent = tmp_path / "absent.safetensors"
    for given in (None, clip):
        got = module.attach(model, given, absent, 0.0, 0.0)
        assert got[0] is model and got[1] is given and got[2] == "absent.safetensors: strength 0, nothing is changed"
    assert module.attach(model, clip, lora_file(), 1.0, 0.0)[1] is clip
    assert module.attach(model, clip, lora_file(), 0.0, 1.0)[0] is model


def test_a_graph_runs_anew_when_the_settings_beside_a_peft_lora_are_others(tmp_path, monkeypatch):
    files = inprocess.import_adapter("files")
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_full_path", lambda category, name: str(tmp_path / name))
    (tmp_path / "adapter_model.safetensors").touch()
    settings, stamps = tmp_path / "adapter_config.json", []
    for time in (None, 1, 2, 2):
        if time:
            settings.touch()
            os.utime(settings, (time, time))
        stamps.append(files.stamp("loras", "adapter_model.safetensors"))
    assert len({*stamps}) == 3 and stamps[2] == stamps[3]


def test_a_dora_after_the_hosts_own_patches_is_of_the_models_own_weight(tmp_path, state, lora_file):
    model, path = load(tmp_path, state), lora_file(more=dora(1))
    extra = torch.randn(768, 256, generator=torch.Generator().manual_seed(8)) / 16
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{LAYER}": (extra,)}, 1.0)
    want = merged(state, read_lora(path, shapes(state)))
    want[LAYER] = want[LAYER] + extra
    assert relative(velocity(attach(patched, path)), velocity(load(tmp_path, want, name="merged.safetensors"))) < 1e-5


def test_on_fp8_it_goes_with_the_hosts_own_patches_loaded_or_not(tmp_path, state, lora_file):
    """The host's own are rounded to fp8, loaded and offloaded alike."""
    quantised, metadata, by_hand = small.fp8_state(state, "metadata")
    model, path = load(tmp_path, quantised, metadata), lora_file()
    extra = torch.randn(768, 256, generator=torch.Generator().manual_seed(8)) / 16
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{LAYER}": (extra,)}, 1.0)
    patched = attach(patched, path)
    want = merged(by_hand, read_lora(path, shapes(state)))
    want[LAYER] = want[LAYER] + extra
    want = velocity(load(tmp_path, want, name="merged.safetensors"))
    for memory in (None, 1):
        assert relative(velocity(patched, memory), want) < 0.02


def test_what_others_do_to_a_quantised_weight_they_do_to_its_sum_with_a_lora(tmp_path, state, lora_file):
    """Another pack's wrapper, after ours, may make something else of the weight, or change it in place."""
    quantised, metadata, by_hand = small.fp8_state(state, "metadata")
    want = merged(by_hand, read_lora(lora_file(), shapes(state)))
    want[LAYER] = 0.5 * want[LAYER] + 0.01
    patched = attach(load(tmp_path, quantised, metadata), lora_file())

    def in_place(weight):
        assert (weight.dtype, weight.device.type, weight.shape) == (torch.float32, "cpu", (768, 256))
        weight.mul_(0.5)
        return weight

    for function in (in_place, lambda weight: torch.add(weight, other=torch.full_like(weight, 0.01))):
        patched.add_weight_wrapper(f"diffusion_model.{LAYER}", function)
    assert relative(velocity(patched), velocity(load(tmp_path, want, name="merged.safetensors"))) < 1e-5


def test_the_hosts_loader_takes_all_of_its_own_names_and_misreads_dora(tmp_path, state, lora_file):
    model = load(tmp_path, state)
    *_, report = inprocess.import_adapter("lora").attach(model, None, lora_file(), 1.0, 1.0)
    assert report.splitlines()[-1] == "ComfyUI's own LoRA loader would take all of them"
    *_, report = inprocess.import_adapter("lora").attach(model, None, lora_file(more=dora(1)), 1.0, 1.0)
    assert report.splitlines()[-1] == "ComfyUI's own LoRA loader would divide DoRA by another norm"
    path = small.save(
        written("ai-toolkit", state)[0],
        tmp_path / "header.safetensors",
        {"lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 2}'},
    )
    *_, report = inprocess.import_adapter("lora").attach(model, None, path, 1.0, 1.0)
    assert report.splitlines()[-1] == "ComfyUI's own LoRA loader would not read their alpha"


def test_a_file_that_the_hosts_loader_fails_on_is_applied(tmp_path, state):
    tensors = {name.replace("lora_down.weight", "lora_down"): tensor for name, tensor in written("kohya", state)[0].items()}
    path = small.save(tensors, tmp_path / "bare.safetensors")
    *_, report = inprocess.import_adapter("lora").attach(load(tmp_path, state), None, path, 1.0, 1.0)
    assert f"{len(tensors)} of {len(tensors)} keys matched, 0 unmatched, 0 of the wrong size" in report.splitlines()
    assert report.splitlines()[-1].startswith("ComfyUI's own LoRA loader would fail on this file (KeyError(")


def test_the_hosts_names_of_the_text_encoder_are_known(tmp_path, state, oracle):
    encoder = small.save(small.encoder_state(oracle.text_encoder), tmp_path / "encoder.safetensors")
    clip = inprocess.import_adapter("encoder").load_clip(encoder)
    key = next(name for name in clip.cond_stage_model.state_dict() if name.endswith("5.mlp.up_proj.weight"))
    name = f"text_encoders.{key.removesuffix('.weight')}"
    tensors = {f"{name}.lora_up.weight": torch.zeros(128, 2), f"{name}.lora_down.weight": torch.zeros(2, 64)}
    path = small.save(tensors, tmp_path / "te.safetensors")
    *_, report = inprocess.import_adapter("lora").attach(load(tmp_path, state), clip, path, 1.0, 1.0)
    assert "2 of 2 keys matched, 0 unmatched, 0 of the wrong size" in report.splitlines()
    assert report.splitlines()[-1] == "ComfyUI's own LoRA loader would take all of them"
