"""LoRA files written by peft, diffusers and lycoris themselves, against the weights that each makes of them itself.

Tolerance 2e-6: a product and a norm in float32.
"""

import peft
import pytest
import torch
from lycoris import create_lycoris
from torch.nn.functional import linear

from fixtures.lora import SIZES, apart, matrices, merged, shapes, weights_of
from klein.model_loaders.flow.load import load_flow
from klein.model_loaders.formats.lora import read_lora
from klein.model_loaders.formats.lora_delta import add_beside, apply, is_beside
from tools import small

TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def state():
    return small.flow_state(seed=1, **SIZES)


@pytest.fixture
def model(state, tmp_path):
    """model(whose) -> a new transformer with these weights, diffusers' own or ours."""

    def make(whose):
        return small.flow_oracle(state) if whose == "diffusers" else load_flow(small.save(state, tmp_path / "flow.safetensors"))

    return make


def randomise(module):
    """As after training: no matrix is zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if any(mark in name for mark in ("lora_A", "lora_B", "lokr_", "hada_", "lora_up", "lora_down", "w_norm")):
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
            elif "magnitude" in name or "dora_scale" in name:
                weight.mul_(1 + 0.3 * torch.rand(weight.shape, generator=generator))


def compare(state, whose, lora, want):
    assert not lora.unmatched and not lora.wrong_size
    got = weights_of(merged(state, lora), whose)
    got = {name.replace(".scale", ".weight"): weight for name, weight in got.items()}
    assert apart(got, {name.replace(".scale", ".weight"): weight for name, weight in want.items()}) < TOLERANCE
    plain = {name.replace(".scale", ".weight"): weight for name, weight in weights_of(state, whose).items()}
    changed = {name for name in got if not torch.equal(got[name], plain[name])}
    assert changed >= {name for name in got if got[name].ndim == 2}
    compare_beside(state, lora)


def compare_beside(state, lora):
    """What a layer adds beside its weight is what the weight with the LoRA gives; of LoRA and LoKr alone, and not their DoRA."""
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(6))
    weights = {f"{name.rpartition('.')[0]}.weight": weight for name, weight in state.items()}
    can = set()
    for layer, changes in lora.deltas["flow"].items():
        terms, weight = tuple((0.7, *each) for each in changes), weights[layer]
        can |= {is_beside(delta) for _, delta, _ in terms}
        if all(is_beside(delta) for _, delta, _ in terms):
            inputs = x[..., : weight.shape[1]]
            got = add_beside(linear(inputs, weight), inputs, terms)
            assert small.relative(got, linear(inputs, apply(weight.clone(), terms))) < TOLERANCE
    assert can == {bool(lora.kinds.keys() & {"LoRA", "LoKr"})}


PEFT = {
    "LoRA": lambda names: peft.LoraConfig(r=4, lora_alpha=8, target_modules=names),
    "rslora": lambda names: peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, use_rslora=True),
    "patterns": lambda names: peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=names, rank_pattern={names[3]: 6}, alpha_pattern={names[3]: 3, names[-1]: 1}
    ),
    "DoRA": lambda names: peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, use_dora=True),
    "LoHa": lambda names: peft.LoHaConfig(r=4, alpha=8, target_modules=names),
    "LoKr": lambda names: peft.LoKrConfig(r=4, alpha=8, target_modules=names, decompose_both=True),
    "whole LoKr": lambda names: peft.LoKrConfig(r=64, alpha=16, target_modules=names),
}


@pytest.mark.parametrize("kind", PEFT)
@pytest.mark.parametrize("whose", ["bfl", "diffusers"])
def test_files_of_peft(state, model, tmp_path, whose, kind):
    names = list(matrices(weights_of(state, whose)))
    wrapped = peft.get_peft_model(model(whose), PEFT[kind](names))
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path / "peft")
    lora = read_lora(tmp_path / "peft/adapter_model.safetensors", shapes(state))
    own = {"LoHa": "LoHa", "LoKr": "LoKr", "whole LoKr": "LoKr", "DoRA": "LoRA with DoRA"}
    assert dict(lora.kinds) == {own.get(kind, "LoRA"): len(names)}
    assert lora.alpha_from == "in adapter_config.json" and lora.trainer == "peft (by its names)"
    compare(state, whose, lora, wrapped.merge_and_unload().state_dict())


@pytest.mark.parametrize("dora", [False, True])
def test_files_of_diffusers(state, model, tmp_path, dora):
    """Alpha stands in the header alone."""
    from diffusers import Flux2KleinPipeline

    transformer = model("diffusers")
    names = list(matrices(transformer.state_dict()))
    transformer.add_adapter(peft.LoraConfig(r=4, lora_alpha=2, target_modules=names, use_dora=dora))
    randomise(transformer)
    layers = peft.get_peft_model_state_dict(transformer)
    settings = {**transformer.peft_config["default"].to_dict(), "target_modules": names}
    Flux2KleinPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=settings)
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors", shapes(state))
    assert (lora.alpha_from, dict(lora.alphas), dict(lora.ranks)) == ("in the header", {2: len(names)}, {4: len(names)})
    assert lora.trainer == "diffusers (by its metadata)"
    transformer.fuse_lora()
    transformer.unload_lora()
    compare(state, "diffusers", lora, transformer.state_dict())


LYCORIS = {
    "LoCon": dict(algo="lora"),
    "DoRA": dict(algo="lora", dora_wd=True),
    "DoRA on inputs": dict(algo="lora", dora_wd=True, wd_on_output=False),
    "LoHa": dict(algo="loha"),
    "LoHa with DoRA": dict(algo="loha", dora_wd=True),
    "LoKr": dict(algo="lokr", factor=4, decompose_both=True),
    "LoKr whole": dict(algo="lokr", factor=4, full_matrix=True),
    "LoKr with DoRA": dict(algo="lokr", factor=4, dora_wd=True, wd_on_output=False),
    "rslora": dict(algo="lora", rs_lora=True),
}


@pytest.mark.parametrize("kind", LYCORIS)
@pytest.mark.parametrize("whose", ["bfl", "diffusers"])
def test_files_of_lycoris(state, model, tmp_path, whose, kind):
    bare = model(whose)
    network = create_lycoris(bare, 1.0, linear_dim=4, linear_alpha=2, preset="full", **LYCORIS[kind])
    network.apply_to()
    randomise(network)
    path = tmp_path / "lycoris.safetensors"
    network.save_weights(str(path), torch.float32, {"ss_network_module": "lycoris.kohya"})
    lora = read_lora(path, shapes(state))
    assert lora.trainer == "lycoris (by its metadata)"
    with torch.no_grad():  # what it trains with; its own merge multiplies LoHa and LoKr by their scale twice (4.1.3)
        want = {name: weight for name, weight in bare.state_dict().items() if weight.ndim == 1}
        for name, layer in bare.named_modules():
            if isinstance(layer, torch.nn.Linear):
                want[f"{name}.weight"] = layer(torch.eye(layer.in_features)).T
    compare(state, whose, lora, want)
