"""Files in int8, w4a4 and w4a8 in the layers of hosts that have them (newer than 0.3.75), as on a card that multiplies in these.

The CPU stands for that card: comfy-kitchen has the same products for it.
"""

import pytest
import torch

from fixtures.lora import velocity, written
from tools import inprocess, small
from tools.small import blocks, relative
from tools.small_scaled import FORMATS, kitchen, state_of

STATE = small.flow_state(**small.FLOW)
FORMS = {
    "int8, one scale": 0.015,
    "int8 by row": 0.015,
    "int8 rotated": 0.015,
    "w4a4": 0.25,
    "w4a8": 0.015,
}  # -> what rounded inputs change


@pytest.fixture(params=[False, True], ids=["without fp8", "with fp8"])
def card(monkeypatch, request):
    """The adapter, as on a card that multiplies in these formats, with fp8 arithmetic or not: hosts take another way then."""
    flow, operations = (inprocess.import_adapter(name) for name in ("flow", "operations"))
    table = flow.comfy.quant_ops.QUANT_ALGOS
    if "int8_tensorwise" not in table:
        pytest.skip("this ComfyUI has no such layers")
    monkeypatch.setattr(operations, "multiplies", lambda form: form in table)
    monkeypatch.setattr(flow.comfy.model_management, "supports_fp8_compute", lambda *_: request.param)
    return flow


def forward(tensors: dict, layer: str, form: str, x: torch.Tensor) -> torch.Tensor:
    """comfy-kitchen's own, of a layer of the file."""
    name, settings, _ = FORMATS[form]
    layout = getattr(kitchen, name)
    leaves = {"weight_scale": "scale", "weight_s_rel": "scale", "weight_s_channel": "s_channel", "weight_codebook": "codebook"}
    given = {part: tensors[f"{layer}.{leaf}"] for leaf, part in leaves.items() if f"{layer}.{leaf}" in tensors}
    rotated, data = {"convrot": True} if settings.get("convrot") else {}, tensors[f"{layer}.weight"]
    shape = (len(data), x.shape[-1])
    weight = kitchen.QuantizedTensor(data, name, layout.Params(**given, orig_dtype=x.dtype, orig_shape=shape, **rotated))
    return torch.nn.functional.linear(x, weight)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_each_layer_is_comfy_kitchens_own_and_stays_quantised_saved_and_loaded_again(card, tmp_path, form):
    import comfy.sd

    tensors, by_hand = state_of(STATE, form, blocks)
    model = card.load_model(small.save(tensors, tmp_path / "flow.safetensors"))
    quantised = [name.removesuffix(".comfy_quant") for name in tensors if name.endswith("comfy_quant")]
    assert len(quantised) == 12
    for name in quantised:
        layer = model.model.diffusion_model.get_submodule(name)
        x = torch.randn(40, by_hand[f"{name}.weight"].shape[1], generator=torch.Generator().manual_seed(1))
        want = forward(tensors, name, form, x)
        assert relative(layer(x), want) < 1e-6
        assert layer.weight._qdata.nbytes == tensors[f"{name}.weight"].nbytes
        assert relative(want, torch.nn.functional.linear(x, by_hand[f"{name}.weight"])) < FORMS[form]
    saved = tmp_path / "saved.safetensors"
    comfy.sd.save_checkpoint(str(saved), model)  # as Save Model does
    held, again = (each.model.diffusion_model.state_dict() for each in (model, card.load_model(saved)))
    assert held.keys() == again.keys() and all(torch.equal(held[name], again[name]) for name in held)
    core = comfy.sd.load_diffusion_model(str(saved))
    # Of the last bits of float32, which differ, int8 makes 0.15 %: a number is rounded up here and down there.
    assert relative(velocity(model), velocity(core)) < 0.005


@torch.no_grad()
@pytest.mark.parametrize("form", ["mxfp8", "nvfp4"])
def test_what_a_cpu_cannot_multiply_is_handed_to_the_host_as_its_own_loader_hands_it(monkeypatch, card, tmp_path, form):
    """As on a card without fp8 arithmetic, where the host makes each layer dense. On one that has these products it takes
    the same tensors, bit for bit."""
    import comfy.sd

    monkeypatch.setattr(card.comfy.model_management, "supports_fp8_compute", lambda *_: False)
    tensors, by_hand = state_of(STATE, form, blocks)
    inputs = {"nvfp4": {"input_scale": torch.tensor(0.25)}, "mxfp8": {}}[form]
    quantised = [name.removesuffix(".comfy_quant") for name in tensors if name.endswith("comfy_quant")]
    tensors |= {f"{layer}.{leaf}": scale.clone() for layer in quantised for leaf, scale in inputs.items()}
    path = small.save(tensors, tmp_path / "flow.safetensors")
    model, core = card.load_model(path), comfy.sd.load_diffusion_model(str(path))
    held, theirs = (each.model.diffusion_model.state_dict() for each in (model, core))
    for layer in quantised:
        names = {name for name in tensors if name.startswith(f"{layer}.") and not name.endswith("comfy_quant")}
        assert all(torch.equal(held[name], theirs[name]) and held[name].dtype == theirs[name].dtype for name in names)
        x = torch.randn(40, by_hand[f"{layer}.weight"].shape[1], generator=torch.Generator().manual_seed(1))
        want = torch.nn.functional.linear(x, by_hand[f"{layer}.weight"])
        assert relative(model.model.diffusion_model.get_submodule(layer)(x), want) < 1e-6
    assert relative(velocity(model), velocity(core)) < 1e-5 and torch.equal(velocity(model), velocity(model, 1))
    check_lora(card, tmp_path, model, by_hand)
    saved = tmp_path / "saved.safetensors"
    comfy.sd.save_checkpoint(str(saved), model)
    again = card.load_model(saved).model.diffusion_model.state_dict()
    assert held.keys() == again.keys() and all(torch.equal(held[name], again[name]) for name in held)


def test_a_weight_of_several_parts_with_scales_of_their_own_stays_packed(card, tmp_path):
    """Under diffusers' names: nvfp4 has one scale for all rows, w4a8 its levels."""
    theirs = small.flow_oracle(STATE).state_dict()
    for form in ("nvfp4", "w4a8", "int8 by row"):
        tensors, _ = state_of(theirs, form, lambda name: ".attn." in name)
        flow = card.load_model(small.save(tensors, tmp_path / "flow.safetensors")).model.diffusion_model
        packed = hasattr(flow.double_blocks[0].img_attn.qkv, "codec")
        assert packed == (form != "int8 by row") and not hasattr(flow.double_blocks[0].img_attn.proj, "codec")


@pytest.mark.parametrize("form", FORMS)
def test_whole_offloaded_and_with_a_lora(card, tmp_path, form):
    """A layer with a LoRA is multiplied as any other, and the LoRA beside it."""
    tensors, by_hand = state_of(STATE, form, blocks)
    model = card.load_model(small.save(tensors, tmp_path / "flow.safetensors"))
    assert torch.equal(velocity(model, 1), velocity(model))
    check_lora(card, tmp_path, model, by_hand)


def check_lora(card, tmp_path, model, by_hand: dict) -> None:
    plain = velocity(model)
    lora, deltas = written("kohya", STATE)
    file = small.save(lora, tmp_path / "style.safetensors")
    changed, *_ = inprocess.import_adapter("lora").attach(model, None, file, 1.0, 1.0)
    summed = {name: w + deltas[name.removesuffix(".weight")] if w.ndim == 2 else w for name, w in by_hand.items()}
    want = velocity(card.load_model(small.save(summed, tmp_path / "summed.safetensors")))
    for memory in (None, 1):
        assert relative(velocity(changed, memory), want) < 1e-5
    assert torch.equal(velocity(model), plain)


def test_references_kept_on_disk_are_told_apart_from_those_of_a_host_without_such_layers(card, tmp_path, monkeypatch):
    kept, operations = (inprocess.import_adapter(name) for name in ("kept", "operations"))
    monkeypatch.setattr(kept.store, "key", lambda kind, of, device, **parts: parts)
    path = small.save(state_of(STATE, "int8 by row", blocks)[0], tmp_path / "flow.safetensors")
    storage = kept.Storage(None, None)
    names = [kept.name_of(card.load_model(path), storage, torch.zeros(1)) for _ in range(2)]
    monkeypatch.setattr(operations, "multiplies", lambda form: False)
    packed = kept.name_of(card.load_model(path), storage, torch.zeros(1))
    assert names[0] == names[1] and {part for part in packed if packed[part] != names[0][part]} == {"layers"}


@pytest.mark.parametrize(("nvidia", "fast"), [(True, True), (True, False), (False, True)])
def test_only_a_card_that_multiplies_in_a_format_is_given_it(monkeypatch, nvidia, fast):
    compat, operations = (inprocess.import_adapter(name) for name in ("compat", "operations"))
    forms = {form.format for form in operations.HOSTED.values()}
    layouts = compat.comfy.quant_ops.QUANT_ALGOS
    known = {form for form in forms if form in layouts}
    monkeypatch.setattr(compat.comfy.model_management, "is_nvidia", lambda: nvidia)
    for form in known:
        layout = compat.comfy.quant_ops.get_layout_class(layouts[form]["comfy_tensor_layout"])
        monkeypatch.setattr(layout, "supports_fast_matmul", classmethod(lambda _: fast))
        monkeypatch.setattr(compat.comfy.model_management, f"supports_{form}_compute", lambda _: fast, raising=False)
    assert {form for form in forms if compat.multiplies(form)} == (known if nvidia and fast else set())
