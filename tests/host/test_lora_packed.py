"""Klein LoRA Loader on weights that stay packed in memory: its effect is that on the dense model, whole or offloaded."""

import pytest
import torch

from fixtures.lora import merged, shapes, velocity, written
from klein.model_loaders.formats.lora import read_lora
from tools import inprocess, small, small_gguf, small_scaled
from tools.small import relative

STATE = small.flow_state(**small.FLOW)


def blocks(name: str) -> bool:
    return "_blocks." in name


def gguf(folder, kind: str):
    tensors, by_hand = small_gguf.state_of(STATE, kind, blocks)
    return small_gguf.write(tensors, folder / "flow.gguf"), by_hand


def scaled(folder, form: str):
    tensors, by_hand = small_scaled.state_of(STATE, form, blocks)
    return small.save(tensors, folder / "flow.safetensors"), by_hand


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
