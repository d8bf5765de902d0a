"""The patches of Klein LoRA Loader in this process, as the host loads, offloads and calls them; quantised weights."""

import pytest
import torch

from fixtures.cache import check
from fixtures.lora import merged, shapes, written
from klein.model_loaders.formats.lora import read_lora
from tools import inprocess, small
from tools.small import comfy_noise, relative

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


@torch.no_grad()
def velocity(patcher, memory=None):
    """Of a MODEL loaded by the host, whole or with so many bytes of its weights."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    if memory is None:
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    else:
        patcher.partially_load(patcher.load_device, memory)
    x, text = comfy_noise(1), torch.randn(1, 512, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    out = patcher.model.diffusion_model(x, torch.tensor([0.5]), text)
    patcher.detach()
    return out


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
