"""LoRA files of every naming, against B A by hand in the names that the file has: diffusers itself puts its names' weights
into the slices of ours. Tolerance 1e-6: one product in float32."""

import json
import re

import pytest
import torch

from fixtures.lora import NAMINGS, SIZES, apart, matrices, merged, shapes, weights_of, written
from klein.errors import KleinError
from klein.model_loaders.formats.lora import read_lora
from tools import small

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def state():
    return small.flow_state(seed=1, **SIZES)


@pytest.fixture
def read(state, tmp_path):
    """read(tensors, metadata) -> what is read of a file of them for the model `state`."""

    def read(tensors, metadata=None, name="style.safetensors", flow=None, encoder=None):
        return read_lora(small.save(tensors, tmp_path / name, metadata), flow or shapes(state), encoder)

    return read


def by_hand(state, whose, deltas):
    weights = dict(weights_of(state, whose))
    return {**weights, **{f"{module}.weight": weights[f"{module}.weight"] + delta for module, delta in deltas.items()}}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_layer_under_every_naming_is_b_times_a_in_its_slice(state, read, naming):
    tensors, deltas = written(naming, state)
    lora = read(tensors)
    assert (len(lora.matched), lora.unmatched, lora.wrong_size) == (len(tensors), [], [])
    whose = NAMINGS[naming][0]
    assert apart(weights_of(merged(state, lora), whose), by_hand(state, whose, deltas)) < TOLERANCE
    assert {name for name in lora.deltas["flow"]} == {name for name, weight in state.items() if weight.ndim == 2}
    half = weights_of(merged(state, lora, 0.5), whose)
    assert apart(half, by_hand(state, whose, {name: delta / 2 for name, delta in deltas.items()})) < TOLERANCE


def test_slices_and_the_swapped_layer_are_really_apart(state, read):
    """What the test above would not see if diffusers' own conversion did nothing: q alone changes the first third of qkv."""
    tensors, deltas = written("diffusers", state, modules=["transformer_blocks.1.attn.to_v", "norm_out.linear"])
    got = merged(state, read(tensors))
    assert {name for name in state if not torch.equal(got[name], state[name])} == {
        "double_blocks.1.img_attn.qkv.weight", "final_layer.adaLN_modulation.1.weight",
    }  # fmt: skip
    changed = got["double_blocks.1.img_attn.qkv.weight"] - state["double_blocks.1.img_attn.qkv.weight"]
    assert changed[:128].abs().max() == 0
    assert small.relative(changed[128:], deltas["transformer_blocks.1.attn.to_v"]) < 1e-5  # of a difference
    changed = got["final_layer.adaLN_modulation.1.weight"] - state["final_layer.adaLN_modulation.1.weight"]
    assert small.relative(changed, deltas["norm_out.linear"].roll(64, 0)) < 1e-5


@pytest.mark.parametrize(
    ("module", "layer", "rows"),
    [
        ("transformer_blocks.0.attn.to_qkv", "double_blocks.0.img_attn.qkv", (0, 192)),
        ("transformer_blocks.0.attn.to_added_qkv", "double_blocks.0.txt_attn.qkv", (0, 192)),
        ("single_transformer_blocks.1.attn.to_qkv_mlp_proj", "single_blocks.1.linear1", (0, 448)),
        ("single_blocks.1.linear1_qkv", "single_blocks.1.linear1", (0, 192)),
        ("transformer_blocks.1.attn.to_out", "double_blocks.1.img_attn.proj", (0, 64)),
    ],
)
def test_fused_projections_and_parts_of_them(state, read, module, layer, rows):
    up, down = torch.randn(rows[1], 4), torch.randn(4, 64)
    got = merged(state, read({f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}))
    want = {**state, f"{layer}.weight": state[f"{layer}.weight"].clone()}
    want[f"{layer}.weight"][rows[0] : rows[0] + rows[1]] += up @ down
    assert apart(got, want) < TOLERANCE


def pair(module="double_blocks.0.img_attn.proj", rank=4, out=64, into=64, ends=("lora_A.weight", "lora_B.weight")):
    generator = torch.Generator().manual_seed(2)
    name = f"diffusion_model.{module}"
    return {
        f"{name}.{ends[0]}": torch.randn(rank, into, generator=generator),
        f"{name}.{ends[1]}": torch.randn(out, rank, generator=generator),
    }


def test_three_spoilt_keys_are_counted_and_the_rest_is_applied(state, read):
    tensors, deltas = written("ComfyUI", state)
    lost = ["double_blocks.0.img_attn.proj", "double_blocks.1.txt_mlp.2"]
    for module, new in zip(lost, ("double_blocks.0.img_attn.prj", "double_blocks.1.txt_mlp.3")):
        for end in ("lora_down.weight", "lora_up.weight", "alpha"):
            tensors[f"diffusion_model.{new}.{end}"] = tensors.pop(f"diffusion_model.{module}.{end}")
    wrong = "diffusion_model.single_blocks.1.linear2.lora_up.weight"
    tensors[wrong] = torch.cat([tensors[wrong]] * 2)
    lora = read(tensors)
    assert len(lora.unmatched) == 6 and all("prj" in name or "mlp.3" in name for name in lora.unmatched)
    assert len(lora.wrong_size) == 3 and all("single_blocks.1.linear2" in name for name in lora.wrong_size)
    assert len(lora.matched) == len(tensors) - 9
    for module in (*lost, "single_blocks.1.linear2"):
        del deltas[module]
    assert apart(merged(state, lora), by_hand(state, "bfl", deltas)) < TOLERANCE


def test_a_whole_difference_of_a_matrix_and_of_a_norm(state, read):
    tensors = {
        "diffusion_model.double_blocks.0.img_attn.proj.diff": torch.randn(64, 64),
        "lycoris_transformer_blocks_1_attn_norm_q.w_norm": torch.randn(32),
    }
    got = merged(state, read(tensors))
    want = dict(state)
    want["double_blocks.0.img_attn.proj.weight"] = want["double_blocks.0.img_attn.proj.weight"] + tensors[min(tensors)]
    norm = "double_blocks.1.img_attn.norm.query_norm.scale"
    want[norm] = want[norm] + tensors[max(tensors)]
    assert apart(got, want) < TOLERANCE


@pytest.mark.parametrize(("axis", "flat"), [(0, False), (1, False), (1, True)])  # one dimension is the output's
@pytest.mark.parametrize("module", ["double_blocks.0.img_attn.proj", "transformer_blocks.1.attn.to_k", "norm_out.linear"])
def test_dora_is_the_formula_on_each_axis_per_slice(state, read, axis, flat, module):
    whose = "bfl" if module.startswith("double") else "diffusers"
    weight = weights_of(state, whose)[f"{module}.weight"]
    tensors = pair(module, out=weight.shape[0])
    down, up = tensors.values()
    total = weight + up @ down * 0.5
    norm = total.pow(2).sum(dim=axis, keepdim=True).sqrt()
    magnitude = torch.rand(norm.shape, generator=torch.Generator().manual_seed(3)) + 0.5
    tensors[f"diffusion_model.{module}.dora_scale"] = magnitude.flatten() if flat else magnitude
    tensors[f"diffusion_model.{module}.alpha"] = torch.tensor(2.0)
    lora = read(tensors)
    full = magnitude * total / norm
    for strength in (1.0, 0.3):
        want = by_hand(state, whose, {module: strength * (full - weight)})
        assert apart(weights_of(merged(state, lora, strength), whose), want) < TOLERANCE


def test_alpha_is_taken_from_the_file_the_header_or_the_rank(state, read, tmp_path):
    layer = "double_blocks.0.img_attn.proj"
    tensors = pair(layer)
    delta = tensors[f"diffusion_model.{layer}.lora_B.weight"] @ tensors[f"diffusion_model.{layer}.lora_A.weight"]

    def scale(lora):
        return float(((merged(state, lora)[f"{layer}.weight"] - state[f"{layer}.weight"]) / delta).median())

    assert scale(read(tensors)) == pytest.approx(1, 1e-4)
    assert scale(read({**tensors, f"diffusion_model.{layer}.alpha": torch.tensor([2.0])})) == pytest.approx(0.5, 1e-4)
    header = {"transformer.r": 4, "transformer.lora_alpha": 12}
    said = [
        (header, 3),
        ({**header, "transformer.use_rslora": True}, 6),
        (
            {
                "transformer.r": 4,
                "transformer.lora_alpha": None,
                "transformer.rank_pattern": [],
                "transformer.alpha_pattern": None,
            },
            1,
        ),
        ({"transformer.r": None, "transformer.lora_alpha": 12}, 1),
        ({"text_encoder.r": 4, "text_encoder.lora_alpha": 12}, 1),
        ({**header, "transformer.alpha_pattern": {"img_attn.proj": 2}}, 0.5),
        ({**header, "transformer.alpha_pattern": {"txt_attn.proj": 2}}, 3),
        ({**header, "transformer.alpha_pattern": {r"double_blocks\.\d+\.img_attn\.proj": 2}}, 0.5),
        ({**header, "transformer.alpha_pattern": {r"^double_blocks\.(0|1)\.(img|txt)_attn\.proj": 2}}, 0.5),
        ({**header, "transformer.alpha_pattern": {r"^img_attn\.proj": 2, "mg_attn.proj": 2, "img_attn": 2}}, 3),
    ]
    for settings, want in said:
        assert scale(read(tensors, {"lora_adapter_metadata": json.dumps(settings)})) == pytest.approx(want, 1e-4)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    assert scale(read(tensors, name="adapter_model.safetensors")) == pytest.approx(0.5, 1e-4)
    assert scale(read(tensors, name="another.safetensors")) == pytest.approx(1, 1e-4)


@pytest.mark.parametrize(
    ("metadata", "tensors", "trainer"),
    [
        ({"software": json.dumps({"name": "ai-toolkit"}), "ss_output_name": "x"}, {}, "ai-toolkit (by its metadata)"),
        ({"ss_network_module": "networks.lora_flux_2"}, {}, "musubi-tuner (by its metadata)"),
        ({"ss_network_module": "lycoris.kohya"}, {}, "lycoris (by its metadata)"),
        ({"ot_revision": "abc"}, {}, "OneTrainer (by its metadata)"),
        (None, {}, "ai-toolkit (by its names)"),
    ],
)
def test_the_trainer_is_named(read, metadata, tensors, trainer):
    assert read({**pair(), **tensors}, metadata).trainer == trainer


def test_the_size_that_it_was_made_for_is_named(read):
    """By the width of the layers: 4096 is 9B, 3072 is 4B, 6144 is FLUX.2 [dev]."""
    wide = {
        f"double_blocks.0.img_attn.{part}.weight": shape for part, shape in (("qkv", (12288, 4096)), ("proj", (4096, 4096)))
    }
    nine = {**wide, "img_in.weight": (4096, 128)}
    assert read(pair(out=4096, into=4096), flow=nine).size == "FLUX.2 [klein] 9B of hidden size 4096"
    for width, name in ((3072, "FLUX.2 [klein] 4B"), (6144, "FLUX.2 [dev]"), (2048, "a model")):
        with pytest.raises(KleinError) as refused:
            read(pair(out=width, into=width), flow=nine)
        assert str(refused.value) == (
            f"style.safetensors is a LoRA for {name} of hidden size {width}, and this model is FLUX.2 [klein] 9B of hidden size 4096: "
            f"load the model that it was made for, or choose a LoRA for this one."
        )


def sized(hidden, double, single):
    """Shapes of a klein of this width and depth."""
    layers = {f"double_blocks.{number}.img_attn.proj": (hidden, hidden) for number in range(double)}
    layers |= {f"single_blocks.{number}.linear2": (hidden, 4 * hidden) for number in range(single)}
    return {**{f"{layer}.weight": shape for layer, shape in layers.items()}, "img_in.weight": (hidden, 128)}


NINE, FOUR = sized(4096, 8, 24), sized(3072, 5, 20)
TOLD = {
    "all of 9B on 4B": (4096, ("double_blocks.0.img_attn.proj", "double_blocks.5.img_attn.proj"), FOUR, "FLUX.2 [klein] 9B"),
    "only what 4B has not": (4096, ("double_blocks.5.img_attn.proj",), FOUR, "FLUX.2 [klein] 9B"),
    "4B on 9B": (3072, ("double_blocks.4.img_attn.proj",), NINE, "FLUX.2 [klein] 4B"),
    "as wide as 4B and deeper": (3072, ("double_blocks.0.img_attn.proj", "double_blocks.18.img_attn.proj"), NINE, "a model"),
    "FLUX.2 [dev]": (6144, ("double_blocks.7.img_attn.proj", "single_blocks.47.linear1"), FOUR, "FLUX.2 [dev]"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_a_lora_of_another_klein_is_told_from_one_of_another_model(read, case):
    width, modules, flow, name = TOLD[case]
    tensors = {key: tensor for module in modules for key, tensor in pair(module, out=width, into=width).items()}
    with pytest.raises(
        KleinError, match=re.escape(f"is a LoRA for {name} of hidden size {width}, and this model is FLUX.2 [klein]")
    ):
        read(tensors, flow=flow)


NAME = "diffusion_model.double_blocks.0.img_attn.proj"
BROKEN = {
    "other ranks": ({**pair(), f"{NAME}.lora_B.weight": torch.zeros(64, 3)}, f"style.safetensors has {NAME} with ranks 3 and 4, expected the same: "),
    "no up": ({f"{NAME}.lora_A.weight": torch.zeros(4, 64)}, f"style.safetensors lacks the up matrix of {NAME}: it is incomplete, "),
    "no down": ({f"{NAME}.lora_B.weight": torch.zeros(64, 4)}, f"style.safetensors lacks the down matrix of {NAME}: it is incomplete, "),
    "not a number": ({**pair(), f"{NAME}.lora_B.weight": torch.full((64, 4), torch.nan)}, f"{NAME}.lora_B.weight in style.safetensors holds numbers that are not finite (its training diverged): "),
    "infinite alpha": ({**pair(), f"{NAME}.alpha": torch.tensor(torch.inf)}, f"{NAME}.alpha in style.safetensors holds numbers that are not finite (its training diverged): "),
    "integers": ({**pair(), f"{NAME}.lora_B.weight": torch.zeros(64, 4, dtype=torch.int8)}, f"style.safetensors stores {NAME}.lora_B.weight as int8, expected floating-point numbers: "),
    "huge rank": (pair(rank=65), f"style.safetensors has {NAME} with rank 65 for a weight of 64x64: "),
    "rank 0": ({**pair(), f"{NAME}.lora_A.weight": torch.zeros(0, 64)}, f"{NAME}.lora_A.weight in style.safetensors has shape [0, 64], expected sides above 0: "),
    "many alphas": ({**pair(), f"{NAME}.alpha": torch.ones(3)}, f"{NAME}.alpha in style.safetensors has shape [3], expected one number: "),
    "vectors": ({**pair(), f"{NAME}.lora_B.weight": torch.zeros(64)}, f"{NAME}.lora_A.weight in style.safetensors is not a matrix: "),
    "half a LoKr": ({f"{NAME}.lokr_w1": torch.zeros(8, 8), f"{NAME}.lokr_w2_a": torch.zeros(8, 2)}, f"style.safetensors lacks the lokr_w2 matrix of {NAME}: it is incomplete, "),
    "two kinds": ({**pair(), f"{NAME}.lokr_w1": torch.zeros(8, 8)}, f"style.safetensors has lokr_w1 beside other matrices of {NAME}: it is incomplete, "),
    "LoHa products": ({f"{NAME}.hada_w{i}_{x}": torch.zeros(*s) for i, x, s in ((1, "a", (64, 2)), (1, "b", (2, 64)), (2, "a", (32, 2)), (2, "b", (2, 64)))}, f"style.safetensors has {NAME} with products of shapes [(32, 64), (64, 64)], expected the same: "),
    "twice": ({**pair(), **{n.replace("diffusion_model.", ""): t for n, t in pair().items()}}, f"style.safetensors changes double_blocks.0.img_attn.proj twice, by {NAME}.lora_A.weight and by double_blocks.0.img_attn.proj.lora_A.weight, and nothing says which of them counts: "),
    "Tucker": ({f"{NAME}.lokr_w1": torch.zeros(8, 8), f"{NAME}.lokr_w2_a": torch.zeros(8, 8), f"{NAME}.lokr_w2_b": torch.zeros(8, 8), f"{NAME}.lokr_t2": torch.zeros(8, 8, 1, 1)}, f"style.safetensors holds Tucker-decomposed weights ({NAME}.lokr_t2), expected LoRA, LoKr, LoHa or DoRA: "),
    "OFT": ({f"{NAME}.oft_blocks": torch.zeros(2, 4, 4)}, f"style.safetensors holds OFT weights ({NAME}.oft_blocks), expected LoRA, LoKr, LoHa or DoRA: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(read, case):
    tensors, sentence = BROKEN[case]
    with pytest.raises(KleinError) as refused:
        read(tensors)
    assert str(refused.value) == f"{sentence}export it from the trainer again, or download it again."


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"transformer.r": 0}', '{"transformer.r": "x"}', '{"transformer.r": 4, "transformer.lora_alpha": NaN}', '{"transformer.alpha_pattern": 3}',
     *(json.dumps({"transformer.rank_pattern": {key: 3}}) for key in ("(a", "(?i)a", "a{99999999999999999999}", "(a+)+", "a*" * 5, "a?" * 9, "a" * 301))],
)  # fmt: skip
def test_settings_that_cannot_be_read_are_refused(read, text):
    with pytest.raises(KleinError, match="The LoRA settings in the header of style.safetensors cannot be read"):
        read(pair(), {"lora_adapter_metadata": text})


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_double_blocks_0_img_mod_lin.lora_up.weight", "FLUX.1"),
        ("transformer.single_transformer_blocks.3.proj_mlp.lora_A.weight", "FLUX.1"),
        ("transformer.transformer_blocks.3.ff.net.0.proj.lora_A.weight", "FLUX.1"),
        ("transformer_blocks.3.img_mlp.net.2.lora_A.weight", "Qwen-Image"),
        ("lora_unet_input_blocks_1_1_proj_in.lora_up.weight", "Stable Diffusion"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight", "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan"),
        ("diffusion_model.layers.0.attention.qkv.lora_A.weight", "Z-Image"),
    ],
)
def test_a_lora_of_another_model_is_named(read, key, model):
    with pytest.raises(KleinError) as refused:
        read({**pair(), key: torch.zeros(4, 4)})
    assert str(refused.value) == (
        f"style.safetensors is a LoRA for {model} (it has {key}), expected one for FLUX.2 [klein]: choose another file."
    )


def test_blocks_beyond_the_model_and_files_with_nothing_that_fits(read, state):
    with pytest.raises(KleinError, match=r"is a LoRA for another model \(it has .*18.*, and this one has 2 double_blocks\)"):
        read({**pair(), **pair("double_blocks.18.img_attn.proj")})
    with pytest.raises(
        KleinError,
        match=r"^Nothing of style.safetensors fits this model: none of its 2 keys has a place \(first: a.lora_A.weight\)",
    ):
        read({"a.lora_A.weight": torch.zeros(4, 4), "a.lora_B.weight": torch.zeros(4, 4)})
    with pytest.raises(KleinError, match="Nothing of .* none of its 2 keys has a place, 2 of them for weights of another size"):
        read(pair(out=32))
    with pytest.raises(
        KleinError, match=re.escape("style.safetensors is a FLUX.2 [klein] flow model of hidden size 64, expected a LoRA")
    ):
        read(state)


def test_the_text_encoders_part_asks_for_the_encoder(read):
    weight = "layers.3.self_attn.q_proj.weight"
    names = [
        "text_encoder.layers.3.self_attn.q_proj",
        "lora_te_layers_3_self_attn_q_proj",
        "text_encoders.qwen3_8b.transformer.model.layers.3.self_attn.q_proj",
    ]
    for name in names:
        own = {f"{name}.lora_down.weight": torch.randn(2, 32), f"{name}.lora_up.weight": torch.randn(48, 2)}
        assert set(read({**pair(), **own}).unread) == own.keys()
        with pytest.raises(KleinError, match="is a LoRA for the text encoder alone: connect clip"):
            read(own)
        lora = read(own, encoder={weight: (48, 32)})
        assert lora.matched and list(lora.deltas["encoder"]) == [weight]
        above = {key.replace("3_self", "30_self").replace("3.self", "30.self"): tensor.clone() for key, tensor in own.items()}
        assert len(read({**own, **above}, encoder={weight: (48, 32)}).unmatched) == 2


def test_names_that_share_an_end_are_told_apart(state, read):
    """A pack of 1x1 convolutions is the same as matrices."""
    tensors = pair()
    conv = {name: tensor[..., None, None] for name, tensor in tensors.items()}
    assert apart(merged(state, read(conv)), merged(state, read(tensors))) == 0
    assert matrices(state).keys() > {"img_in"}


def test_the_rank_is_that_of_the_matrices_whatever_settings_say(state, read):
    settings = {"lora_adapter_metadata": json.dumps({"transformer.r": 8, "transformer.lora_alpha": 8})}
    (changes,) = read(pair(), settings).deltas["flow"].values()
    assert changes[0][0].scale == 2


def test_an_alpha_says_nothing_of_a_lokr_of_whole_matrices(state, read):
    first, second = torch.randn(8, 16), torch.randn(8, 4)
    tensors = {f"{NAME}.lokr_w1": first, f"{NAME}.lokr_w2": second, f"{NAME}.alpha": torch.tensor(9999999999.0)}
    got = merged(state, read(tensors))
    want = by_hand(state, "bfl", {"double_blocks.0.img_attn.proj": torch.kron(first, second)})
    assert apart(got, want) < TOLERANCE


def test_an_alpha_or_a_magnitude_alone_is_counted_as_without_a_place(read):
    lone = {"lora_unet_single_blocks_0_linear2.alpha": torch.tensor(1.0), "transformer.proj_out.dora_scale": torch.ones(128, 1)}
    assert set(read({**pair(), **lone}).unmatched) == lone.keys()


def test_a_file_that_is_overwritten_changes_nothing_that_was_read(state, read, tmp_path):
    lora = read(pair())
    want = merged(state, lora)
    path = tmp_path / "style.safetensors"
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size - 512)
        stream.write(bytes(512))
    assert apart(merged(state, lora), want) == 0
