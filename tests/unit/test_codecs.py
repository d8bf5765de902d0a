"""How one weight is stored: what its layer's tensors and marks are read as, layer by layer, on files of a few tensors."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from klein.errors import KleinError
from klein.model_loaders.formats.codecs import LONGEST_MARKER, Markers
from klein.model_loaders.formats.files import open_checkpoint
from klein.model_loaders.formats.table import FLOAT8, Codec
from tools import small

FP8, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
WEIGHT = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).to(FP8)
PLAIN = WEIGHT.bfloat16()
SCALE, HALF, ONE = torch.tensor(0.25), torch.tensor(0.5), torch.tensor(1.0)
FORMAT = {"format": "float8_e4m3fn"}
PRECISE = {**FORMAT, "full_precision_matrix_mult": True}


def marker(settings, length: int | None = None) -> torch.Tensor:
    """A `comfy_quant` tensor, filled up with blanks to a length."""
    return torch.tensor(list(json.dumps(settings).ljust(length or 0).encode()), dtype=torch.uint8)


@pytest.fixture
def stored(tmp_path):
    """stored({tensors}, header of layers) -> the layer `a` and its tensors as they are read."""

    def stored(state, layers=None, prefix="", layer="a"):
        metadata = None if layers is None else {"_quantization_metadata": json.dumps({"layers": layers})}
        state = {name: tensor.clone() for name, tensor in state.items()}  # a file has no tensor under two names
        checkpoint = open_checkpoint(small.save(state, tmp_path / "x.safetensors", metadata))
        weight = Markers(checkpoint).stored(prefix, layer)
        return weight, weight.read(checkpoint)

    return stored


def test_a_plain_weight_is_itself(stored):
    weight, read = stored({"a.weight": PLAIN, "b.weight": PLAIN, "ab.weight_scale_inv": ONE})
    assert (weight.data, weight.shape, weight.dtype, weight.codec) == ("a.weight", (8, 4), torch.bfloat16, None)
    assert read.keys() == {"weight"} and torch.equal(read["weight"], PLAIN)


def test_a_plain_weight_with_scales_is_multiplied_by_its_own_in_its_own_dtype(stored):
    weight, read = stored({"a.weight": PLAIN, "a.weight_scale": torch.tensor(3.0), "a.input_scale": HALF})
    assert weight.codec is None and read.keys() == {"weight"}
    assert torch.equal(read["weight"], (PLAIN.float() * 3).bfloat16())


@pytest.mark.parametrize(("prefix", "named"), [("", "a"), ("model.", "a"), ("model.", "model.a")])
def test_the_header_may_name_a_layer_with_its_prefix_or_without(stored, prefix, named):
    weight, read = stored({f"{prefix}a.weight": WEIGHT, f"{prefix}a.weight_scale": SCALE}, {named: PRECISE}, prefix)
    assert weight.codec == Codec("float8_e4m3fn", FP8, True)
    assert torch.equal(read["weight"].float(), WEIGHT.float()) and read["weight_scale"] == 0.25


def test_a_layers_own_tensor_has_the_last_word(stored):
    state = {"a.weight": WEIGHT, "a.weight_scale": SCALE, "a.input_scale": HALF, "a.comfy_quant": marker(FORMAT)}
    weight, read = stored(state, {"a": PRECISE})
    assert weight.codec == FLOAT8 and read["input_scale"] == 0.5
    weight, read = stored({**state, "a.comfy_quant": marker(PRECISE)}, {"a": FORMAT})
    assert weight.codec != FLOAT8 and read.keys() == {"weight", "weight_scale"}


def test_what_the_host_is_told_of_a_layer():
    assert FLOAT8.settings == FORMAT and Codec("float8_e4m3fn", FP8, True).settings == PRECISE


def test_how_a_weight_is_stored_does_not_change_once_it_is_read(stored):
    weight, _ = stored({"a.weight": PLAIN})
    for made, name in ((weight, "data"), (FLOAT8, "name")):
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, getattr(made, name))


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("elements", [0, 1, 2, 3])
def test_a_marker_of_two_elements_asks_for_full_precision_in_the_older_scheme(stored, prefix, elements):
    state = {f"{prefix}a.weight": WEIGHT, f"{prefix}a.scale_weight": SCALE, f"{prefix}a.scale_input": HALF}
    weight, read = stored({**state, f"{prefix}scaled_fp8": torch.zeros(elements, dtype=FP8)}, prefix=prefix)
    assert weight.codec == Codec("float8_e4m3fn", FP8, elements == 2)
    assert read.get("input_scale") == (None if elements == 2 else 0.5)


@pytest.mark.parametrize(("name", "known"), [("scale_input", False), ("input_scale", True)])
def test_an_input_scale_of_1_is_unknown_under_the_older_name(stored, name, known):
    state = {"a.weight": WEIGHT, "a.weight_scale": SCALE}
    assert ("input_scale" in stored({**state, f"a.{name}": ONE})[1]) == known
    assert stored({**state, f"a.{name}": HALF})[1]["input_scale"] == 0.5
    assert stored({**state, f"a.{name}": 2 * ONE})[1]["input_scale"] == 2


def test_scales_of_any_shape_and_float_are_float32_scalars(stored):
    for scale in (torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25]]).bfloat16(), torch.tensor(0.25).double()):
        read = stored({"a.weight": WEIGHT, "a.weight_scale": scale})[1]
        assert read["weight_scale"].dtype == torch.float32 and read["weight_scale"].shape == () and read["weight_scale"] == 0.25


def test_fp8_without_any_scale_in_the_file_is_plain(stored):
    for dtype in (FP8, E5M2):
        weight, read = stored({"a.weight": WEIGHT.float().to(dtype), "b.weight": PLAIN})
        assert weight.codec is None and read.keys() == {"weight"} and read["weight"].dtype == dtype


@pytest.mark.parametrize(
    ("more", "layers"),
    [
        ({"scaled_fp8": torch.zeros(0, dtype=FP8)}, None),
        ({"b.weight_scale": ONE}, None),
        ({"b.scale_weight": ONE}, None),
        ({"b.comfy_quant": marker(FORMAT)}, None),
        ({"b.weight": PLAIN}, {"b": FORMAT}),
        ({}, {"a": FORMAT}),
        ({"a.comfy_quant": marker(FORMAT)}, None),
        ({"a.input_scale": ONE, "b.weight_scale": ONE}, None),
    ],
)
def test_fp8_without_its_scale_is_incomplete_where_the_file_speaks_of_scales_anywhere(stored, more, layers):
    with pytest.raises(
        KleinError, match="^x.safetensors lacks the scale of its fp8 layer a: it is incomplete, download it again.$"
    ):
        stored({"a.weight": WEIGHT, **more}, layers)


def test_a_layer_that_was_saved_anew_in_a_plain_dtype_is_plain_though_the_header_says_fp8(stored):
    weight, read = stored({"a.weight": PLAIN}, {"a": FORMAT})
    assert weight.codec is None and torch.equal(read["weight"], PLAIN)


@pytest.mark.parametrize(
    ("state", "layers", "is_stored"),
    [
        ({"a.weight": PLAIN, "a.comfy_quant": marker(FORMAT)}, None, "bfloat16"),
        ({"a.weight": WEIGHT.float().to(E5M2), "a.weight_scale": SCALE}, {"a": FORMAT}, "float8_e5m2"),
        ({"a.weight": torch.ones(8, 4, dtype=torch.int8), "a.weight_scale": SCALE}, {"a": FORMAT}, "int8"),
    ],
)
def test_a_layer_that_is_not_stored_as_its_mark_says_is_refused(stored, state, layers, is_stored):
    with pytest.raises(KleinError, match=f"^x.safetensors says that a is float8_e4m3fn, but stores it as {is_stored}: "):
        stored(state, layers)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"format": "nvfp5"}, "nvfp5 weights"),
        ({"format": None}, "None weights"),
        ({"format": ["float8_e4m3fn"]}, r"\['float8_e4m3fn'\] weights"),
        ({**FORMAT, "full_precision_matrix_mult": 1}, "float8_e4m3fn weights"),
        ({**FORMAT, "rotated": True, "other": 1}, "float8_e4m3fn weights with other"),
    ],
)
def test_a_format_that_is_not_known_to_the_last_setting_is_refused(stored, settings, what):
    state, expected = (
        {"a.weight": WEIGHT, "a.weight_scale": SCALE},
        "expected bf16, fp16, fp32, fp8, mxfp8, nvfp4, int8, w4a4, w4a8 or GGUF: load the bf16 or the fp8 file",
    )
    for marked, layers in (({"a.comfy_quant": marker(settings)}, None), ({}, {"a": settings})):
        with pytest.raises(KleinError, match=rf"^x.safetensors holds {what} \(a\), {expected} of this model instead.$"):
            stored({**state, **marked}, layers)


def test_a_setting_that_is_off_is_as_if_it_were_not_there(stored):
    state = {"a.weight": WEIGHT, "a.weight_scale": SCALE}
    settings = {**FORMAT, "rotated": False, "group": None, "full_precision_matrix_mult": False}
    assert stored({**state, "a.comfy_quant": marker(settings)})[0].codec == FLOAT8


def test_scaled_fp8_of_five_bits_is_refused_and_never_read_as_the_other(stored):
    state = {"a.weight": WEIGHT.float().to(E5M2), "a.scale_weight": SCALE, "scaled_fp8": torch.zeros(0, dtype=FP8)}
    with pytest.raises(KleinError, match="holds float8_e5m2 weights"):
        stored(state)


@pytest.mark.parametrize("leaf", ["bias", "weight_scale_inv", "weight.quant_state.bitsandbytes__nf4"])
def test_whatever_lies_beside_a_weight_and_is_not_understood_is_refused_by_name(stored, leaf):
    for state in ({"a.weight": PLAIN}, {"a.weight": WEIGHT, "a.weight_scale": SCALE, "a.comfy_quant": marker(FORMAT)}):
        with pytest.raises(
            KleinError, match=f"^x.safetensors has a.{leaf} beside a weight, which is no part of a plain or fp8 layer"
        ):
            stored({**state, f"a.{leaf}": ONE})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_integers_without_a_mark_are_refused(stored, dtype):
    for scale in ({}, {"a.weight_scale": SCALE}):
        with pytest.raises(KleinError, match=f"stores a.weight as {str(dtype)[6:]} and does not say how it is to be read"):
            stored({"a.weight": torch.ones(8, 4, dtype=dtype), **scale})


@pytest.mark.parametrize("leaf", ["weight_scale", "scale_weight", "input_scale", "scale_input"])
@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (torch.ones(8), r"float32 of shape \[8\]"),
        (torch.ones(0), r"float32 of shape \[0\]"),
        (torch.ones((), dtype=torch.int32), r"int32 of shape \[\]"),
        (torch.ones(()).to(FP8), r"float8_e4m3fn of shape \[\]"),
    ],
)
def test_a_scale_that_is_not_one_number_a_layer_is_refused(stored, leaf, scale, said):
    state = {"a.weight": WEIGHT, f"a.{leaf}": scale} | ({"a.weight_scale": SCALE} if "input" in leaf else {})
    with pytest.raises(KleinError, match=f"^a.{leaf} in x.safetensors is {said}, expected one floating-point number a layer"):
        stored(state)


@pytest.mark.parametrize("number", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("leaf", ["weight_scale", "input_scale"])
def test_a_scale_that_is_no_number_above_0_is_refused(stored, leaf, number):
    state = {"a.weight": WEIGHT, "a.weight_scale": SCALE, f"a.{leaf}": torch.tensor(number)}
    with pytest.raises(
        KleinError, match=f"^a.{leaf} in x.safetensors is {number}, expected a scale above 0: download it again.$"
    ):
        stored(state)


def test_a_mark_has_4096_bytes_at_most(stored):
    state = {"a.weight": WEIGHT, "a.weight_scale": SCALE}
    assert stored({**state, "a.comfy_quant": marker(FORMAT, 4096)})[0].codec == FLOAT8
    with pytest.raises(
        KleinError, match=r"a.comfy_quant in x.safetensors is uint8 of shape \[4097\], expected at most 4096 bytes"
    ):
        stored({**state, "a.comfy_quant": marker(FORMAT, LONGEST_MARKER + 1)})


@pytest.mark.parametrize("wrong", [marker(FORMAT)[None], marker(FORMAT).long(), torch.tensor(91, dtype=torch.uint8)])
def test_a_mark_is_a_row_of_bytes(stored, wrong):
    with pytest.raises(
        KleinError, match="^a.comfy_quant in x.safetensors is .* of shape .*, expected at most 4096 bytes of JSON"
    ):
        stored({"a.weight": WEIGHT, "a.weight_scale": SCALE, "a.comfy_quant": wrong})


@pytest.mark.parametrize("settings", [[1], "text", 1])
def test_a_mark_that_is_no_json_object_is_refused(stored, settings):
    with pytest.raises(KleinError, match="^a.comfy_quant in x.safetensors is not JSON"):
        stored({"a.weight": WEIGHT, "a.weight_scale": SCALE, "a.comfy_quant": marker(settings)})
