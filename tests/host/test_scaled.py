"""Files in the host's quantised formats through the real loaders, on hosts that have them and on 0.3.75 which has not,
against the dense model that comfy-kitchen reads.

Tolerance 1e-5 in float32: weights that agree within 5e-7 (unit/test_scaled.py), and sums in another order.
"""

import shutil

import pytest
import torch

from klein.samplers.schedule import sigmas
from tools import inprocess, small
from tools.small import blocks, comfy_noise, embed, relative
from tools.small_scaled import FORMATS, state_of

EXACT = 1e-5
WIDE = dict(hidden=256, heads=8, kv_heads=8, head=32, mlp=256, layers=28, vocabulary=151936)
FLOW = small.flow_state(**small.FLOW)


def velocities(path, by_hand: dict) -> tuple:
    """(the hosted flow of a file, its velocity, the oracle's)."""
    hosted = inprocess.hosted_flow(path)
    x, text = comfy_noise(1), torch.randn(1, 64, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = hosted(x, torch.tensor([0.5]), text)
    return hosted, got, small.velocity(small.flow_oracle(by_hand), x, torch.tensor([0.5]), text)


@pytest.mark.parametrize("form", FORMATS)
def test_a_flow_of_each_format_over_http(comfy, graph, oracle, form):
    tensors, by_hand = state_of(FLOW, form, blocks)
    small.save(tensors, comfy.base / f"models/diffusion_models/flow {form}.safetensors")
    graph.without_image().flow["flow_name"] = f"flow {form}.safetensors"
    context = embed(oracle, graph.prompt["text"])
    want = small.euler(small.flow_oracle(by_hand), comfy_noise(7), sigmas(4, 192), context)
    assert relative(graph.latents(), want) < EXACT * 4  # steps


@pytest.mark.parametrize("form", FORMATS)
def test_one_velocity_is_exact_and_weights_stay_quantised_in_memory(tmp_path, form):
    tensors, by_hand = state_of(FLOW, form, blocks)
    hosted, got, want = velocities(small.save(tensors, tmp_path / "flow.safetensors"), by_hand)
    assert relative(got, want) < EXACT
    stored = sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith("comfy_quant"))
    rows = sum(len(tensor) for name, tensor in FLOW.items() if blocks(name) and tensor.ndim == 2)
    woven = 68 if form == "w4a8" else 4  # bytes a row: its scale, and 16 levels
    assert sum(weight.nbytes for weight in hosted.parameters()) <= stored + woven * rows


@pytest.mark.parametrize("scheme", ["metadata", "comfy_quant", "scaled_fp8"])
def test_scaled_fp8_under_diffusers_names(tmp_path, scheme):
    """q, k and v with scales of their own are one weight, other layers are the host's own fp8."""
    theirs = small.flow_oracle(FLOW).state_dict()
    theirs = {name: t * (1 + 9 * name.endswith("to_v.weight")) for name, t in theirs.items()}
    state, metadata, by_hand = small.fp8_state(theirs, scheme, layers=r".*transformer_blocks.*")
    hosted = inprocess.hosted_flow(small.save(state, tmp_path / "flow.safetensors", metadata))
    x, text = comfy_noise(1), torch.randn(1, 64, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = hosted(x, torch.tensor([0.5]), text)
    oracle = small.flow_oracle(FLOW)
    oracle.load_state_dict(by_hand)
    assert relative(got, small.velocity(oracle, x, torch.tensor([0.5]), text)) < EXACT
    for name in ("img_attn.qkv", "txt_attn.qkv"):
        weight = hosted.get_submodule(f"double_blocks.0.{name}").weight
        assert weight.nbytes == 768 * (256 + 4)


def test_a_file_with_several_formats_keeps_each(tmp_path):
    """As fp4mixed files have: fp8 beside nvfp4."""
    state, by_hand = state_of(FLOW, "nvfp4", lambda name: name.startswith("single_blocks."))
    fp8, _, more = small.fp8_state(FLOW, "comfy_quant", layers=r"double_blocks.*")
    state |= {name: tensor for name, tensor in fp8.items() if name.startswith("double_blocks.")}
    by_hand |= {name: tensor for name, tensor in more.items() if name.startswith("double_blocks.")}
    hosted, got, want = velocities(small.save(state, tmp_path / "flow.safetensors"), by_hand)
    assert relative(got, want) < EXACT


ENCODERS = ["nvfp4", "int8 by row"]


@pytest.mark.parametrize("form", [pytest.param(form, marks=[pytest.mark.long] * (form not in ENCODERS)) for form in FORMATS])
@torch.no_grad()
def test_an_encoder_with_its_embedding(tmp_path, oracle, form):
    model = small.encoder_oracle(**WIDE)
    tensors, by_hand = state_of(small.encoder_state(model), form, lambda name: ".27." not in name)
    clip = inprocess.import_adapter("encoder").load_clip(small.save(tensors, tmp_path / "qwen_3_8b.safetensors"))
    got = clip.encode_from_tokens(clip.tokenize("a cat"))
    model.load_state_dict(by_hand, strict=False)
    assert relative(got, oracle._get_qwen3_prompt_embeds(model, oracle.tokenizer, "a cat")) < EXACT
    assert clip.cond_stage_model.get_submodule("qwen3").transformer.model.embed_tokens.weight.dtype == torch.uint8


@pytest.mark.parametrize("form", FORMATS)
@torch.no_grad()
def test_in_bf16_a_velocity_is_that_of_the_dense_weights(tmp_path, form):
    """4e-3, half a unit in the last place of bf16: the same products of weights that were rounded once."""
    found = []
    for number, state in enumerate(state_of({name: tensor.bfloat16() for name, tensor in FLOW.items()}, form, blocks)):
        state = {name: tensor.bfloat16() if number else tensor for name, tensor in state.items()}
        hosted = inprocess.hosted_flow(small.save(state, tmp_path / f"flow{number}.safetensors"))
        text = torch.randn(1, 64, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
        found.append(hosted(comfy_noise(1).bfloat16(), torch.tensor([0.5]), text.bfloat16()))
    assert found[0].dtype == torch.bfloat16 and relative(*(each.float() for each in found)) < 4e-3


@pytest.mark.parametrize("form", FORMATS)
@torch.no_grad()
def test_partly_offloaded_weights_are_made_dense_when_they_are_used(tmp_path, form):
    """As the host does on a card that is too small: nothing is loaded."""
    tensors, by_hand = state_of(FLOW, form, blocks)
    model = inprocess.import_adapter("flow").load_model(small.save(tensors, tmp_path / "flow.safetensors"))
    model.load(model.load_device, lowvram_model_memory=1)
    x, text = comfy_noise(1), torch.randn(1, 64, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    got = model.model.diffusion_model(x, torch.tensor([0.5]), text)
    assert relative(got, small.velocity(small.flow_oracle(by_hand), x, torch.tensor([0.5]), text)) < EXACT


@pytest.mark.parametrize("form", [pytest.param(form, marks=[pytest.mark.long] * (form != "nvfp4")) for form in FORMATS])
def test_a_model_that_core_saves_loads_again_and_paints_the_same(comfy, graph, form):
    """1e-6: the same weights lie at other places in the file, and where they are aligned otherwise sums take another order."""
    tensors, _ = state_of(FLOW, form, blocks)
    small.save(tensors, comfy.base / f"models/diffusion_models/before {form}.safetensors")
    graph.without_image().flow["flow_name"] = f"before {form}.safetensors"
    got = graph.latents()
    save = graph.new("ModelSave", model=graph.model, filename_prefix=f"saved/{form}")[0]
    comfy.run({name: graph[name] for name in (save, graph.model[0])})
    del graph[save]
    (saved,) = (comfy.base / "output/saved").glob(f"{form}*.safetensors")
    shutil.move(saved, comfy.base / f"models/diffusion_models/after {form}.safetensors")
    graph.flow["flow_name"] = f"after {form}.safetensors"
    assert relative(graph.latents(), got) < 1e-6


def test_the_log_says_what_packed_weights_cost(tmp_path, caplog):
    tensors, _ = state_of(FLOW, "nvfp4", blocks)
    with caplog.at_level("INFO"):
        inprocess.hosted_flow(small.save(tensors, tmp_path / "flow.safetensors"))
    assert "flow.safetensors: 12 layers stay packed as nvfp4_rows (2 MB) and are made dense one by one" in caplog.text
