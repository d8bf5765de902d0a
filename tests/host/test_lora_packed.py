"""Klein LoRA Loader on quantised weights, most of which stay packed in memory: its effect is that on the dense model, whole or
offloaded, and in 16 bit too."""

import pytest
import torch

from fixtures.lora import merged, shapes, velocity, written
from klein.model_loaders.formats.lora import read_lora
from tools import inprocess, small, small_gguf, small_scaled
from tools.small import blocks, relative

STATE = small.flow_state(**small.FLOW)
LAYER = "double_blocks.0.img_attn.proj"


def gguf(folder, kind: str):
    tensors, by_hand = small_gguf.state_of(STATE, kind, blocks)
    return small_gguf.write(tensors, folder / "flow.gguf"), by_hand


def scaled(folder, form: str):
    tensors, by_hand = small_scaled.state_of(STATE, form, blocks)
    return small.save(tensors, folder / "flow.safetensors"), by_hand


def fp8(folder, _):
    tensors, metadata, by_hand = small.fp8_state(STATE, "metadata")
    return small.save(tensors, folder / "flow.safetensors", metadata), by_hand


@pytest.mark.parametrize(("write", "form"), [(gguf, "Q4_K"), (gguf, "Q8_0"), (scaled, "nvfp4"), (scaled, "int8 rotated")])
@pytest.mark.parametrize("memory", [None, 1])
def test_a_small_loras_effect_is_within_1_percent_and_weights_stay_packed(tmp_path, write, form, memory):
    path, by_hand = write(tmp_path, form)
    file = small.save(written("kohya", STATE, size=0.02)[0], tmp_path / "style.safetensors")
    adapters = inprocess.import_adapter("flow"), inprocess.import_adapter("lora")
    model = adapters[0].load_model(path)
    changed, _, report = adapters[1].attach(model, None, file, 1.0, 1.0)
    lora = read_lora(file, shapes(STATE))
    assert len(lora.matched) == lora.keys and f"{lora.keys} of {lora.keys} keys matched" in report
    assert "12 quantised weights take it at each call" in report
    dense = adapters[0].load_model(small.save(by_hand, tmp_path / "dense.safetensors"))
    summed = adapters[0].load_model(small.save(merged(by_hand, lora), tmp_path / "summed.safetensors"))
    plain = velocity(model)
    assert relative(velocity(changed, memory) - plain, velocity(summed) - velocity(dense)) < 0.01
    kept = {
        weight.dtype
        for name, weight in changed.model.diffusion_model.named_parameters()
        if "linear" in name and "_blocks" in name
    }
    assert kept == {torch.uint8}
    assert torch.equal(velocity(model), plain)  # nothing of it stays


@torch.no_grad()
def output(patcher, x: torch.Tensor) -> torch.Tensor:
    """Of one layer of a MODEL that the host has loaded."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    out = patcher.model.diffusion_model.get_submodule(LAYER)(x)
    patcher.detach()
    return out.double()


@pytest.mark.parametrize("first", ["the host's", "ours"])
@pytest.mark.parametrize("memory", [None, 1])
def test_a_dora_beside_the_hosts_own_patches_is_of_the_models_own_weight(tmp_path, first, memory):
    generator = torch.Generator().manual_seed(4)
    path, by_hand = gguf(tmp_path, "Q8_0")
    magnitude = 1 + torch.rand(256, 1, generator=generator)
    tensors = {**written("kohya", STATE)[0], f"lora_unet_{LAYER.replace('.', '_')}.dora_scale": magnitude}
    file = small.save(tensors, tmp_path / "style.safetensors")
    extra = torch.randn(256, 256, generator=generator) / 16
    flow, lora = inprocess.import_adapter("flow"), inprocess.import_adapter("lora")
    want = merged(by_hand, read_lora(file, shapes(STATE)))
    want[f"{LAYER}.weight"] = want[f"{LAYER}.weight"] + extra
    want = velocity(flow.load_model(small.save(want, tmp_path / "merged.safetensors")))
    model = flow.load_model(path)
    plain, changed = velocity(model), model.clone()
    for who in (first, "ours" if first == "the host's" else "the host's"):
        if who == "ours":
            changed, *_ = lora.attach(changed, None, file, 1.0, 1.0)
        else:
            changed.add_patches({f"diffusion_model.{LAYER}.weight": (extra,)}, 1.0)
    assert relative(velocity(changed, memory), want) < 1e-5
    assert torch.equal(velocity(model), plain)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LoHa", "difference"])
def test_after_the_hosts_own_lora_it_is_added_once_however_often_the_layer_is_called(tmp_path, kind):
    """What is added to the weight itself, and a weight that is already in its input's dtype."""
    generator = torch.Generator().manual_seed(4)
    sides = {"LoHa": {"hada_w1_a": (256, 4), "hada_w1_b": (4, 256), "hada_w2_a": (256, 4), "hada_w2_b": (4, 256)}}
    parts = sides.get(kind, {"diff": (256, 256)})
    tensors = {
        f"diffusion_model.{LAYER}.{part}": torch.randn(*shape, generator=generator) / 16 for part, shape in parts.items()
    }
    file = small.save(tensors, tmp_path / "style.safetensors")
    model = inprocess.import_adapter("flow").load_model(gguf(tmp_path, "Q8_0")[0])
    model = model.clone()
    model.add_patches({f"diffusion_model.{LAYER}.weight": (torch.randn(256, 256, generator=generator) / 16,)}, 1.0)
    changed, *_ = inprocess.import_adapter("lora").attach(model, None, file, 1.0, 1.0)
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu([changed], force_full_load=True)
    layer = changed.model.diffusion_model.get_submodule(LAYER)
    x = torch.randn(8, 256, generator=generator).to(layer.weight.dtype)
    first, second = layer(x), layer(x)
    changed.detach()
    assert layer.weight.dtype == torch.uint8 and torch.equal(first, second)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.01)], ids=["float32", "bf16"])
@pytest.mark.parametrize(("write", "form"), [(fp8, "fp8"), (gguf, "Q4_K"), (scaled, "nvfp4")])
def test_what_a_layer_gets_of_it_is_within_1_percent_in_bf16_too(tmp_path, monkeypatch, write, form, dtype, bound):
    """A LoRA of 3 % of its weight. An output is rounded to 8 bits, which is 6 % of the effect on it: over so many inputs that
    evens out (to 0.5 %), and what is rounded in a weight does not (found where it is added to the weight: 5 to 6 %)."""
    path, _ = write(tmp_path, form)
    tensors, deltas = written("kohya", STATE, size=0.06)
    file = small.save(tensors, tmp_path / "style.safetensors")
    flow = inprocess.import_adapter("flow")
    monkeypatch.setattr(flow.comfy.model_management, "unet_manual_cast", lambda *_: dtype)  # as GPUs compute, or as this CPU
    model = flow.load_model(path)
    changed, *_ = inprocess.import_adapter("lora").attach(model, None, file, 1.0, 1.0)
    x = torch.randn(2**15, 256, generator=torch.Generator().manual_seed(3)).to(dtype)
    effect, wide = output(changed, x) - output(model, x), x.double()
    fitted = torch.linalg.solve(wide.T @ wide, wide.T @ effect).T
    assert relative(fitted, deltas[LAYER].double()) < bound
