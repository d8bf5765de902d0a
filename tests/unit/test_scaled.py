"""The host's quantised formats as rows of bytes, against comfy-kitchen, which writes and reads them."""

import json

import pytest
import torch

from klein.errors import KleinError
from klein.model_loaders.flow.load import read_flow
from klein.model_loaders.formats import rows
from klein.model_loaders.formats.table import CODECS
from tools import small
from tools.small import relative
from tools.small_scaled import FORMATS, marker, quantised, state_of

FLOW = small.flow_state(**small.FLOW)
LAYER = "single_blocks.0.linear1"
PROJ = "double_blocks.0.img_attn.proj"  # a square matrix
WOVEN = {"w4a8": 68}  # bytes a row with its scale and its 16 levels; of others 4


def dense(plan) -> dict[str, torch.Tensor]:
    """Canonical name -> dense weight."""
    packed = {f"{layer}.weight": codec for layer, codec in plan.quantised.items()}
    return {n: packed[n].dense(t, torch.float32) if n in packed else t for n, t in plan.tensors()}


@pytest.fixture
def read(tmp_path):
    return lambda state, metadata=None: read_flow(small.save(state, tmp_path / "klein.safetensors", metadata)).plan


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("marked", ["by tensor", "by header"])
def test_each_format_has_the_numbers_that_comfy_kitchen_reads(read, form, marked):
    """Within rounding: some multiply the same factors in another order."""
    state, by_hand = state_of(FLOW, form, lambda name: "_blocks." in name)
    metadata = None
    if marked == "by header":
        layers = {n.removesuffix(".comfy_quant"): FORMATS[form][2] for n in state if n.endswith(".comfy_quant")}
        metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".comfy_quant")}
    plan = read(state, metadata)
    assert len(plan.quantised) == 12 and plan.shapes[f"{LAYER}.weight"] == (2304, 256)
    for name, weight in dense(plan).items():
        assert relative(weight, by_hand[name.replace("_norm.weight", "_norm.scale")]) < 5e-7, name
        assert not name.startswith("single_blocks.0.l") or relative(weight, FLOW[name]) > 5e-3


@pytest.mark.parametrize(("n", "k"), [(1, 32), (130, 160), (128, 512)])
@pytest.mark.parametrize("block", [16, 32])
def test_scales_are_found_where_the_specification_puts_them(n, k, block):
    """((r // 128) * ceil(C / 4) + c // 4) * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4."""
    c = k // block
    shape = rows.swizzled_shape(n, c)
    flat = torch.arange(shape[0] * shape[1]).reshape(shape)
    got = rows.unswizzled(flat, n, c)
    row, column = torch.arange(n)[:, None], torch.arange(c)[None]
    want = (row // 128 * -(-c // 4) + column // 4) * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4
    assert torch.equal(got, want)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_take_hardly_more_than_the_file_and_stand_for_themselves(read, form):
    state, by_hand = state_of(FLOW, form, lambda name: name == f"{LAYER}.weight")
    plan = read(state)
    codec, packed = plan.quantised[LAYER], dict(plan.tensors())[f"{LAYER}.weight"]
    stored = sum(tensor.nbytes for name, tensor in state.items() if name.startswith(f"{LAYER}.weight"))
    assert packed.nbytes <= stored + WOVEN.get(form, 4) * len(packed)
    assert plan.nbytes == sum(tensor.nbytes for name, tensor in plan.tensors() if name.endswith(".weight"))
    assert relative(codec.dense(packed[5:9], torch.float32), by_hand[f"{LAYER}.weight"][5:9]) < 5e-7
    assert codec.columns(packed.shape[1]) == 256 and CODECS[codec.name] is codec


def test_rows_of_w4a8_can_be_taken_apart_again():
    made, _ = quantised(FLOW[f"{PROJ}.weight"], "w4a8")
    given = [made[f"weight{suffix}"] for suffix in ("", "_s_rel", "_s_channel", "_codebook")]
    assert all(map(torch.equal, rows.split_grouped(rows.pack_grouped(*given)), given))


@pytest.mark.parametrize(("n", "k"), [(1, 32), (130, 160), (128, 512)])
def test_scales_as_tensor_cores_read_them_can_be_put_back(n, k):
    scales = torch.randint(0, 255, (n, k // 16), dtype=torch.uint8)
    assert torch.equal(rows.unswizzled(rows.swizzled(scales), n, k // 16), scales)


@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_rows_of_blocks_can_be_taken_apart_again(form):
    made, _ = quantised(FLOW[f"{PROJ}.weight"], form)
    pack, split = (getattr(rows, f"{way}_{form}") for way in ("pack", "split"))
    names = sorted(name for name in made if name != "comfy_quant")  # weight, weight_scale, weight_scale_2
    given = [made[name] for name in names]
    assert all(torch.equal(a.view(b.dtype), b) for a, b in zip(split(pack(*given)), given, strict=True))


def test_rows_of_integers_can_be_taken_apart_again():
    data = torch.randint(-128, 128, (5, 12), dtype=torch.int8)
    for scale in (torch.rand(5), torch.rand(5, 1), torch.tensor(0.3)):
        numbers, scales = rows.split_scaled(rows.pack_scaled(data, scale))
        assert torch.equal(numbers, data) and torch.equal(scales, scale.reshape(-1, 1).expand(5, 1))


def test_what_the_tensor_says_of_a_layer_is_the_last_word(read):
    """Headers often say int8 without its rotation."""
    state, by_hand = state_of(FLOW, "int8 rotated", lambda name: name == f"{LAYER}.weight")
    header = {"_quantization_metadata": json.dumps({"layers": {LAYER: {"format": "int8_tensorwise"}}})}
    assert relative(dense(read(state, header))[f"{LAYER}.weight"], by_hand[f"{LAYER}.weight"]) < 5e-7


def test_a_rotation_may_be_written_among_parameters(read):
    state, by_hand = state_of(FLOW, "int8 rotated", lambda name: name == f"{LAYER}.weight")
    state[f"{LAYER}.comfy_quant"] = marker({"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 256}})
    assert relative(dense(read(state))[f"{LAYER}.weight"], by_hand[f"{LAYER}.weight"]) < 5e-7


@pytest.mark.parametrize("form", FORMATS)
def test_q_k_and_v_with_scales_of_their_own_are_one_weight(read, form):
    """Under diffusers' names."""
    theirs = small.flow_oracle(FLOW).state_dict()
    state, by_hand = state_of(theirs, form, lambda name: ".attn." in name)
    plan = read(state)
    got = dense(plan)["double_blocks.0.img_attn.qkv.weight"]
    want = torch.cat([by_hand[f"transformer_blocks.0.attn.to_{part}.weight"] for part in "qkv"])
    assert relative(got, want) < 5e-7 and "double_blocks.0.img_attn.qkv" in plan.quantised


@pytest.mark.parametrize("scheme", ["metadata", "comfy_quant", "scaled_fp8"])
def test_fp8_q_k_and_v_with_scales_of_their_own_are_one_weight(read, scheme):
    theirs = small.flow_oracle(FLOW).state_dict()
    for number, part in enumerate("qkv"):
        theirs[f"transformer_blocks.0.attn.to_{part}.weight"] *= 10**number
    state, metadata, by_hand = small.fp8_state(theirs, scheme, layers=r"transformer_blocks.*(to|add)_.*")
    plan = read(state, metadata)
    got = dense_of(plan, "double_blocks.0.img_attn.qkv")
    assert torch.equal(got, torch.cat([by_hand[f"transformer_blocks.0.attn.to_{part}.weight"] for part in "qkv"]))
    assert plan.quantised["double_blocks.0.img_attn.qkv"].name == "float8_rows"
    assert plan.quantised["double_blocks.0.img_attn.proj"].name == "float8_e4m3fn"  # alone: the host's own


def dense_of(plan, layer: str) -> torch.Tensor:
    return plan.quantised[layer].dense(dict(plan.tensors())[f"{layer}.weight"], torch.float32)


def test_parts_in_several_formats_are_refused(read):
    theirs = small.flow_oracle(FLOW).state_dict()
    state, _ = state_of(theirs, "nvfp4", lambda name: name.endswith("attn.to_q.weight"))
    with pytest.raises(KleinError, match="stores the parts of double_blocks.0.img_attn.qkv in several formats"):
        read(state)


def spoilt(form: str, **changes) -> dict:
    """The flow with one layer in a format, and some of its tensors changed (None: taken away)."""
    made, _ = quantised(FLOW[f"{PROJ}.weight"], form)
    made = {leaf: tensor for leaf, tensor in {**made, **changes}.items() if tensor is not None}
    return {**FLOW, **{f"{PROJ}.{leaf}": tensor for leaf, tensor in made.items()}}


WRONG = {
    "nvfp4 without its second scale": (spoilt("nvfp4", weight_scale_2=None), "weight_scale_2 that is missing"),
    "nvfp4 without scales": (spoilt("nvfp4", weight_scale=None), "weight_scale that is missing"),
    "nvfp4 with smoothed inputs": (spoilt("nvfp4", pre_quant_scale=torch.ones(256)), "pre_quant_scale that is strange"),
    "nvfp4 with scales by row": (spoilt("nvfp4", weight_scale_2=torch.ones(256)), "of shape [256], expected float32 of shape [] or"),
    "scales of another shape": (spoilt("mxfp8", weight_scale=torch.zeros(256, 4, dtype=torch.uint8)), "of shape [256, 8]"),
    "scales of another dtype": (spoilt("mxfp8", weight_scale=torch.zeros(256, 8)), "is float32 of shape"),
    "an exponent that is no number": (spoilt("mxfp8", weight_scale=torch.full((256, 8), 255, dtype=torch.uint8)), "that are no numbers"),
    "a scale that is no number": (spoilt("int8 by row", weight_scale=torch.full((256, 1), float("nan"))), "holds 256 scales that are no"),
    "a scale below 0": (spoilt("int8, one scale", weight_scale=torch.tensor(-1.0)), "holds 1 scales that are no numbers above 0"),
    "int8 in blocks": (spoilt("int8 by row", weight_scale=torch.ones(256, 2)), "of shape [256, 2]"),
    "int8 with a zero point": (spoilt("int8 by row", zero_point=torch.ones(256)), "zero_point that is strange"),
    "another rotation": (
        spoilt("int8 rotated", comfy_quant=marker({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64})),
        "with convrot_groupsize",
    ),
    "rotation that is no truth": (spoilt("int8 rotated", comfy_quant=marker({"format": "int8_tensorwise", "convrot": 7})), "with convrot"),
    "a format on another dtype": (spoilt("int8 by row", comfy_quant=marker({"format": "mxfp8"})), "is mxfp8, but stores it as int8"),
    "a negative scale in bytes": (spoilt("nvfp4", weight_scale=torch.full((256, 16), 0x81, dtype=torch.uint8)), "holds 4096 scales"),
    "w4a8 in groups of 32": (
        spoilt("w4a8", comfy_quant=marker({"format": "asym_w4a8_int8", "group_size": 32})), "asym_w4a8_int8 weights with group_size"
    ),
    "w4a8 without levels": (spoilt("w4a8", weight_codebook=None), "weight_codebook that is missing"),
    "w4a8 with a correction": (spoilt("w4a8", weight_correction=torch.ones(16, 256)), "weight_correction that is strange"),
    "w4a8 in 6 bits": (spoilt("w4a8", weight=torch.zeros(256, 192, dtype=torch.int8)), "int4_grouped_rows layer"),
    "w4a8 with a level that is no number": (
        spoilt("w4a8", weight_codebook=torch.full((16,), float("nan"))), "holds 16 scales that are no numbers"
    ),
    "w4a8 with a scale below 0": (spoilt("w4a8", weight_s_channel=-torch.ones(256)), "holds 256 scales that are no numbers above 0"),
    "hybrid mxfp8": (spoilt("mxfp8", comfy_quant=marker({"format": "hybrid_mxfp8"})), "holds hybrid_mxfp8 weights"),
    "our own rows of another length": (
        {**FLOW, f"{PROJ}.weight": torch.ones(256, 9, dtype=torch.uint8), f"{PROJ}.comfy_quant": marker({"format": "Q4_K"})},
        "has shape [256, 9] for its Q4_K weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_is_refused_by_name(read, case):
    state, words = WRONG[case]
    with pytest.raises(KleinError) as refused:
        dict(read(state).tensors())
    assert words in str(refused.value) and PROJ in str(refused.value)
