"""What is read from files of several kinds, and what is refused before any weight is."""

import json

import pytest
import torch

from klein.errors import KleinError
from klein.model_loaders.flow.load import read_flow
from klein.model_loaders.formats.codecs import quantise
from klein.model_loaders.formats.files import open_checkpoint
from klein.model_loaders.qwen3.encoder import read_encoder
from tools import small

SIZES = dict(hidden=64, heads=2, context=96, mlp=128, depth=1, single=1)
FP8 = torch.float8_e4m3fn


@pytest.fixture
def state():
    return small.flow_state(seed=1, **SIZES)


@pytest.fixture
def save(tmp_path):
    return lambda state, name="model.safetensors": small.save(state, tmp_path / name)


def test_a_folder_that_lacks_shards_is_refused_with_the_first_that_is_missing(tmp_path):
    """Also where the shards that are there hold every tensor of the model."""
    small.save({"a.weight": torch.zeros(2)}, tmp_path / "model-1-of-3.safetensors")
    names = {"a.weight": "model-1-of-3.safetensors", "b": "model-2-of-3.safetensors", "c": "model-3-of-3.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(KleinError, match=r"lacks 2 of its 3 shards \(first: model-2-of-3.safetensors\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        "txt_in", "double_stream_modulation_img.lin", "double_blocks.0.img_attn.norm.key_norm", "double_blocks.0.txt_mlp.2",
        "single_blocks.0.linear1", "final_layer.linear",
    ],
)  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1])
def test_a_flow_layer_of_another_models_shape_is_refused_by_name(state, save, layer, axis):
    name = f"{layer}.scale" if "norm" in layer else f"{layer}.weight"
    if axis < state[name].ndim and (layer, axis) != ("txt_in", 1):  # the width of the text is free
        state[name] = torch.cat([state[name]] * 2, dim=axis)
        with pytest.raises(KleinError, match=f"{layer}.weight in model.safetensors has shape"):
            read_flow(save(state))


@pytest.mark.parametrize("layer", ["layers.0.self_attn.o_proj", "layers.3.input_layernorm", "layers.26.mlp.down_proj"])
def test_an_encoder_layer_of_another_models_shape_is_refused_by_name(save, layer):
    sizes = {**small.ENCODER, "vocabulary": 64}
    state = small.encoder_state(small.encoder_oracle(**sizes))
    state[f"model.{layer}.weight"] = torch.cat([state[f"model.{layer}.weight"]] * 2)
    with pytest.raises(KleinError, match=f"{layer}.weight in model.safetensors has shape"):
        read_encoder(save(state))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux2_dev_is_named_and_refused_under_both_kinds_of_names(state, save, prefix):
    dev = {f"{prefix}{name}": tensor for name, tensor in {**state, "guidance_in.in_layer.weight": torch.zeros(64, 256)}.items()}
    with pytest.raises(KleinError, match=r"is FLUX.2 \[dev\], which is not a klein model"):
        read_flow(save(dev))
    theirs = small.flow_oracle(state).state_dict()
    theirs["time_guidance_embed.guidance_embedder.linear_1.weight"] = torch.zeros(64, 256)
    with pytest.raises(KleinError, match=r"is FLUX.2 \[dev\], which is not a klein model"):
        read_flow(save({f"{prefix}{name}": tensor for name, tensor in theirs.items()}))


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_rounding_to_fp8_uses_its_whole_range_and_keeps_zeros_zero(dtype):
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 1e-6
    for signed in (weight, -weight):  # the largest is above 0, and below
        rounded, scale = quantise(signed, dtype)
        assert rounded.float().abs().max() == torch.finfo(dtype).max
        assert torch.isclose(torch.finfo(dtype).max * scale, weight.abs().max(), rtol=1e-5)  # none is cut down
        assert small.relative(rounded.float() * scale, signed) < 0.1
    for zeros in (torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.bfloat16)):
        rounded, scale = quantise(zeros, dtype)
        assert scale > 0 and torch.equal(rounded.float() * scale, torch.zeros(4, 4))


def test_rounding_on_loading_takes_the_matrices_of_the_blocks_and_nothing_else(state, save):
    tensors = dict(read_flow(save(state)).tensors(FP8))
    rounded = {name for name, tensor in tensors.items() if tensor.dtype == FP8}
    assert rounded == {name for name, tensor in state.items() if "_blocks." in name and tensor.ndim == 2}
    assert {name for name in tensors if name.endswith("_scale")} == {f"{name}_scale" for name in rounded}
    assert torch.equal(tensors["img_in.weight"], state["img_in.weight"])


def test_a_plain_weight_with_a_scale_is_multiplied_by_it(state, save):
    """As files are that were made from fp8 ones by casting each tensor by itself."""
    name = "double_blocks.0.img_attn.qkv"
    scaled = {**state, f"{name}.weight": state[f"{name}.weight"] / 4, f"{name}.weight_scale": torch.tensor(4.0)}
    tensors = dict(read_flow(save(scaled)).tensors())
    assert torch.equal(tensors[f"{name}.weight"], state[f"{name}.weight"])
    assert f"{name}.weight_scale" not in tensors


SCALE = {"metadata": "weight_scale", "comfy_quant": "weight_scale", "scaled_fp8": "scale_weight"}
INPUT = {"metadata": "input_scale", "comfy_quant": "input_scale", "scaled_fp8": "scale_input"}
LAYER = "single_blocks.0.linear1"


def fp8_parts(tmp_path, scheme: str, *, precise: bool = False, **inputs) -> tuple[dict, dict]:
    """What is read of one layer of an fp8 flow, and what the host is told of it; inputs: more tensors of the layer."""
    state, metadata, _ = small.fp8_state(small.flow_state(hidden=64, heads=2, context=48, mlp=96, depth=1, single=1), scheme)
    if precise and scheme == "scaled_fp8":
        state["scaled_fp8"] = torch.zeros(2, dtype=small.FP8)
    if precise and scheme == "comfy_quant":
        said = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
        state[f"{LAYER}.comfy_quant"] = torch.tensor(list(said.encode()), dtype=torch.uint8)
    state |= {f"{LAYER}.{name}": torch.tensor(value) for name, value in inputs.items()}
    plan = read_flow(small.save(state, tmp_path / "flow.safetensors", metadata)).plan
    read = {name.removeprefix(f"{LAYER}."): t for name, t in plan.tensors() if name.startswith(f"{LAYER}.")}
    assert torch.equal(read["weight"].float(), state[f"{LAYER}.weight"].float()) and read["weight"].dtype == small.FP8
    assert torch.equal(read["weight_scale"], state[f"{LAYER}.{SCALE[scheme]}"].float())
    return read, plan.quantised[LAYER].settings


@pytest.mark.parametrize("scheme", SCALE)
def test_fp8_of_each_scheme_is_the_files_weight_and_scales(tmp_path, scheme):
    read, settings = fp8_parts(tmp_path, scheme)
    assert read.keys() == {"weight", "weight_scale"} and settings == {"format": "float8_e4m3fn"}
    read, _ = fp8_parts(tmp_path, scheme, **{INPUT[scheme]: 0.5})
    assert read["input_scale"] == 0.5 and read["input_scale"].dtype == torch.float32


def test_an_input_scale_of_1_is_unknown_to_the_older_scheme_only(tmp_path):
    assert "input_scale" not in fp8_parts(tmp_path, "scaled_fp8", scale_input=1.0)[0]
    assert fp8_parts(tmp_path, "metadata", input_scale=1.0)[0]["input_scale"] == 1


@pytest.mark.parametrize("scheme", ["comfy_quant", "scaled_fp8"])
def test_a_layer_to_be_multiplied_in_full_precision_has_no_input_scale(tmp_path, scheme):
    read, settings = fp8_parts(tmp_path, scheme, precise=True, **{INPUT[scheme]: 0.5})
    assert "input_scale" not in read
    assert settings == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
