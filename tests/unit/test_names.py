"""Where each tensor of a model lies in a file, from names and shapes alone: plans of headers, without a file."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from klein.errors import KleinError
from klein.model_loaders.formats.codecs import StoredWeight
from klein.model_loaders.formats.files import Checkpoint, open_checkpoint
from klein.model_loaders.formats.names import (
    Plan,
    block_count,
    encoder_plan,
    encoder_prefix,
    flow_plan,
    flow_prefix,
)
from klein.model_loaders.formats.table import FLOAT8
from tools import small

FLOW = small.flow_state(hidden=8, heads=1, context=8, mlp=8, depth=2, single=1, channels=8)
FLOAT = torch.float32


def header(shapes: dict, dtypes: dict | None = None) -> Checkpoint:
    """A checkpoint of tensors of these shapes, float32 unless a dtype is given."""
    return Checkpoint(Path("model.safetensors"), shapes, {name: (dtypes or {}).get(name, FLOAT) for name in shapes}, {}, {}, {})


def shapes_of(state: dict, prefix: str = "") -> dict:
    return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def theirs():
    """The flow under diffusers' names, as diffusers' own model has it."""
    return small.flow_oracle(FLOW, heads=1).state_dict()


CANONICAL = {name.replace(".scale", ".weight"): tensor for name, tensor in FLOW.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
def test_a_flow_model_under_either_kind_of_names_has_the_same_tensors(tmp_path, theirs, prefix):
    for state in (FLOW, theirs):
        path = small.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "model.safetensors")
        plan = flow_plan(open_checkpoint(path))
        read = dict(plan.tensors())
        assert read.keys() == CANONICAL.keys() and all(torch.equal(read[name], CANONICAL[name]) for name in read)
        assert plan.unused == [] and plan.shapes == shapes_of(CANONICAL)


def test_a_weight_that_a_file_has_whole_is_handed_on_and_never_copied():
    """The file's mapping is the model's memory: a copy of each would be the size of the model again."""
    whole = torch.ones(8, 8)
    held = Checkpoint(Path("x"), {"a": (8, 8)}, {"a": FLOAT}, {}, {}, {"a": SimpleNamespace(read=lambda name: whole)})
    ((name, tensor),) = Plan(held, {"layer": (StoredWeight("a", (8, 8), FLOAT),)}, []).tensors()
    assert name == "layer.weight" and tensor is whole


def test_what_a_plan_is_made_of_does_not_change():
    plan = flow_plan(header(shapes_of(FLOW)))
    for made, name in ((plan, "unused"), (plan.checkpoint, "metadata"), (plan.weights["img_in"][0], "codec"), (FLOAT8, "name")):
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, getattr(made, name))


def test_a_norm_may_be_called_scale_and_nothing_else_may():
    for leaf in ("weight", "scale"):
        shapes = {name.replace("norm.scale", f"norm.{leaf}"): shape for name, shape in shapes_of(FLOW).items()}
        assert flow_plan(header(shapes)).shapes == shapes_of(CANONICAL)
    shapes = {name.replace("img_in.weight", "img_in.scale"): shape for name, shape in shapes_of(FLOW).items()}
    with pytest.raises(KleinError, match=rf"lacks 1 of the {len(FLOW)} tensors of this model \(first: img_in.weight\)"):
        flow_plan(header(shapes))


def test_tensors_of_other_models_beside_the_flow_are_not_part_of_the_plan_and_strange_ones_in_it_are_refused():
    """A whole checkpoint has the encoder and the autoencoder too."""
    prefix = "model.diffusion_model."
    others = ["double_blocks.2.img_attn.qkv.weight", f"{prefix}scaled_fp8", "vae.decoder.conv_in.weight"]
    shapes = {**shapes_of(FLOW, prefix), **dict.fromkeys(others, (8, 8))}
    assert flow_plan(header(shapes)).unused == others
    wanted = rf"holds 1 tensors that no klein model has \(first: {prefix}single_blocks.3.linear1.weight\)"
    with pytest.raises(KleinError, match=wanted):
        flow_plan(header({**shapes, f"{prefix}single_blocks.3.linear1.weight": (8, 8)}))


TO_Q, TO_K = "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_k.weight"


def test_stacked_weights_have_the_sum_of_their_first_sides(theirs):
    shapes = {**shapes_of(theirs), TO_Q: (5, 8), TO_K: (6, 8), TO_K.replace("to_k", "to_v"): (7, 8)}
    assert flow_plan(header(shapes)).shapes["double_blocks.0.img_attn.qkv.weight"] == (18, 8)


@pytest.mark.parametrize("parts", [[(8, 8), (8, 9), (8, 8)], [(8, 8), (8, 8, 1), (8, 8)], [(), (), ()]])
def test_stacked_weights_that_do_not_fit_are_refused(theirs, parts):
    names = [TO_Q.replace("to_q", f"to_{x}") for x in "qkv"]
    plan = flow_plan(header({**shapes_of(theirs), **dict(zip(names, parts))}))
    with pytest.raises(KleinError, match=r"stores double_blocks.0.img_attn.qkv in parts of shapes \[.*\], which do not fit: "):
        _ = plan.shapes


def test_stacked_parts_of_several_formats_are_refused(theirs):
    """One part fp8, the others plain."""
    for part in (TO_Q, TO_K):
        shapes = {**shapes_of(theirs), f"{part}_scale": ()}
        with pytest.raises(KleinError, match="in several formats, which cannot be fused exactly"):
            flow_plan(header(shapes, {part: torch.float8_e4m3fn}))
    alone = "transformer_blocks.0.ff.linear_in.weight"
    plan = flow_plan(header({**shapes_of(theirs), f"{alone}_scale": ()}, {alone: torch.float8_e4m3fn}))
    assert plan.quantised == {"double_blocks.0.img_mlp.0": FLOAT8}


def plan_of(**weights) -> Plan:
    """A plan of weights given as (shape, dtype) or as (shape, dtype, codec)."""
    return Plan(header({}), {name: (StoredWeight(name, *given),) for name, given in weights.items()}, [])


def test_the_dtype_of_a_model_is_that_of_most_elements_of_its_plain_matrices():
    half, fp8 = torch.bfloat16, torch.float8_e4m3fn
    large, small_, wide = ((8, 8), half), ((4, 4), FLOAT), ((99,), FLOAT)
    assert plan_of(a=small_, b=large, c=small_).dtype == half and not plan_of(a=small_, b=large).uniform
    assert plan_of(a=large, b=wide).dtype == half and plan_of(a=large, b=wide).uniform
    assert plan_of(a=small_, b=((64, 64), fp8, FLOAT8)).dtype == FLOAT
    assert plan_of(a=small_, b=((64, 64), fp8, FLOAT8)).uniform
    assert plan_of(a=((99,), FLOAT), b=((8, 8), fp8, FLOAT8)).dtype == torch.bfloat16


def test_the_dtype_of_stacked_weights_counts_each_of_them():
    def stored(side, dtype):
        return StoredWeight("x", (side, side), dtype)

    plan = Plan(header({}), {"a": (stored(4, torch.bfloat16),) * 3, "b": (stored(6, FLOAT),)}, [])
    assert plan.dtype == torch.bfloat16
    assert replace(plan, weights={"a": (stored(4, torch.bfloat16),) * 2, "b": (stored(6, FLOAT),)}).dtype == FLOAT


@pytest.mark.parametrize(
    ("shape", "rank"), [((8, 8), 1), ((8,), 2), ((), 1), ((0, 8), 2), ((8, 0), 2), ((8, 1, 1), 2), ((0,), 1)]
)
def test_a_shape_of_another_rank_or_without_elements_is_refused(shape, rank):
    with pytest.raises(KleinError, match=rf"a.weight in model.safetensors has shape \[.*\], expected {rank} sides above 0"):
        plan_of(a=(shape, FLOAT)).sides("a.weight", rank)


def test_a_shape_of_the_rank_is_given():
    plan = plan_of(a=((8, 1), FLOAT), b=((1,), FLOAT))
    assert plan.sides("a.weight", 2) == (8, 1) and plan.sides("b.weight", 1) == (1,)
    plan.expect({"a.weight": (8, 1)}, "this model")
    with pytest.raises(KleinError, match=r"b.weight in .* has shape \[1\], expected \[2\] for this model"):
        plan.expect({"a.weight": (8, 1), "b.weight": (2,)}, "this model")


def test_prefixes_are_found_and_what_has_none_has_none():
    for prefix in ("", "transformer."):
        for leaf in ("lin", "linear"):
            assert flow_prefix([f"{prefix}double_stream_modulation_img.{leaf}.weight"]) == prefix
    assert flow_prefix(["other.double_stream_modulation_img.lin.weight", "img_in.weight"]) is None
    assert encoder_prefix(["a.weight", "model.embed_tokens.weight"]) == "model."
    assert encoder_prefix(["embed_tokens.weight"]) == "" and encoder_prefix(["a.weight", "embed_tokens.bias"]) is None


def test_what_is_no_model_at_all_lacks_all_of_it():
    with pytest.raises(KleinError, match=r"lacks 9 of the 9 tensors of this model \(first: img_in.weight\)"):
        flow_plan(header({"a.weight": (8, 8)}))
    with pytest.raises(KleinError, match=r"lacks 12 of the 12 tensors of this model \(first: embed_tokens.weight\)"):
        encoder_plan(header({"a.weight": (8, 8)}), 1)


def test_blocks_are_counted_from_0_to_the_first_gap():
    assert block_count([], "a") == 0
    assert block_count(["a.0.w", "a.1.w", "a.1.v", "a.3.w"], "a") == 2
    assert block_count(["a.0.w", "a.01.w", "b.1.w", "xa.1.w", "aa.1.w", "a.1"], "a") == 1
    assert block_count([f"a.{number}.w" for number in range(12)], "a") == 12
    assert block_count(["a.b.0.w", "axb.1.w"], "a.b") == 1
    assert block_count(["a.1.w"], "a") == 0


# transformers' Qwen3: 11 tensors a layer
LAYER = {
    "self_attn.q_proj": (8, 8), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8), "self_attn.o_proj": (8, 8),
    "self_attn.q_norm": (8,), "self_attn.k_norm": (8,), "mlp.gate_proj": (8, 8), "mlp.up_proj": (8, 8), "mlp.down_proj": (8, 8),
    "input_layernorm": (8,), "post_attention_layernorm": (8,),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_encoders_plan_has_its_first_layers_and_nothing_above(prefix):
    wanted = {"embed_tokens.weight": (16, 8)} | {
        f"layers.{i}.{name}.weight": shape for i in (0, 1) for name, shape in LAYER.items()
    }
    above = {f"{prefix}layers.2.strange.weight": (8,), f"{prefix}norm.weight": (8,), "lm_head.weight": (16, 8)}
    held = {f"{prefix}{name}": shape for name, shape in wanted.items()}
    plan = encoder_plan(header({**held, **above}), 2)
    assert plan.shapes == wanted and plan.unused == sorted(above)
    with pytest.raises(
        KleinError, match=rf"holds 1 tensors that Qwen3's layers do not have \(first: {prefix}layers.1.strange.weight\)"
    ):
        encoder_plan(header({**held, f"{prefix}layers.1.strange.weight": (8,)}), 2)
    held.pop(f"{prefix}layers.1.mlp.up_proj.weight")
    with pytest.raises(
        KleinError, match=rf"lacks 1 of the 23 tensors of this model \(first: {prefix}layers.1.mlp.up_proj.weight\)"
    ):
        encoder_plan(header(held), 2)
