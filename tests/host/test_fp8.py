"""Fp8 files in the three released schemes, and bf16 files rounded on loading, against weights dequantised by hand.

Tolerance 1e-5 in float32: the host dequantises to the same products.
"""

import pytest
import torch

from klein.samplers.schedule import sigmas
from tools import inprocess, small
from tools.small import comfy_noise, embed, relative

SCHEMES = ["metadata", "comfy_quant", "scaled_fp8"]


def stored_bytes(module) -> tuple[int, int]:
    """(bytes of all parameters as stored, number of parameters), fp8 layers counted by their fp8 data."""
    size = count = 0
    for weight in module.parameters():
        data = getattr(weight, "_qdata", weight)
        size, count = size + data.numel() * data.element_size(), count + data.numel()
    return size, count


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flow_files(comfy, graph, oracle, scheme, prefix):
    state, metadata, by_hand = small.fp8_state(small.flow_state(**small.FLOW), scheme)
    if prefix:
        state = {name if name == "scaled_fp8" else prefix + name: tensor for name, tensor in state.items()}
    name = f"flow-{scheme}-{len(prefix)}.safetensors"
    small.save(state, comfy.base / "models/diffusion_models" / name, metadata)
    graph.without_image().flow["flow_name"] = name
    got = graph.latents()
    want = small.euler(small.flow_oracle(by_hand), comfy_noise(7), sigmas(4, 192), embed(oracle, graph.prompt["text"]))
    assert relative(got, want) < 1e-5 * 4  # four steps
    exact = small.euler(oracle.transformer, comfy_noise(7), sigmas(4, 192), embed(oracle, graph.prompt["text"]))
    assert relative(exact, want) > 1e-3  # what rounding to fp8 costs: the scales are really applied


@pytest.mark.parametrize("scheme", SCHEMES)
def test_flow_weights_stay_fp8_in_memory_and_one_velocity_is_exact(tmp_path, scheme):
    flow = small.flow_state(**small.FLOW)
    state, metadata, by_hand = small.fp8_state(flow, scheme)
    hosted = inprocess.hosted_flow(small.save(state, tmp_path / "flow.safetensors", metadata))
    fp8 = sum(w.numel() for name, w in flow.items() if w.ndim == 2 and "_blocks." in name)
    size, count = stored_bytes(hosted)
    scales = sum(1 for name in state if "scale" in name.rpartition(".")[2] and "norm" not in name)
    assert 0 <= count - sum(w.numel() for w in flow.values()) <= scales
    assert size <= fp8 + 4 * (count - fp8)
    x, text = comfy_noise(1), torch.randn(1, 512, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = hosted(x, torch.tensor([0.5]), text)
    assert relative(got, small.velocity(small.flow_oracle(by_hand), x, torch.tensor([0.5]), text)) < 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_encoder_files(tmp_path, oracle, scheme):
    state, metadata, by_hand = small.fp8_state(small.encoder_state(oracle.text_encoder), scheme)
    clip = inprocess.import_adapter("encoder").load_clip(small.save(state, tmp_path / "qwen_3_8b.safetensors", metadata))
    got = clip.encode_from_tokens(clip.tokenize("a cat"))
    quantised = small.encoder_oracle(**small.ENCODER)
    quantised.load_state_dict(by_hand, strict=False)
    want = oracle._get_qwen3_prompt_embeds(quantised, oracle.tokenizer, "a cat")
    assert relative(got, want) < 1e-5
    projections = sum(w.numel() for name, w in state.items() if w.dtype == small.FP8 and ".27." not in name)
    size, count = stored_bytes(clip.cond_stage_model)
    assert size <= projections + 4 * (count - projections)


def test_a_bf16_file_loaded_as_fp8_has_one_scale_per_matrix(tmp_path):
    """Rounded on loading: half the bytes, within fp8's rounding of the exact velocity and far closer than no scale."""
    state = {name: tensor.bfloat16() for name, tensor in small.flow_state(**small.FLOW).items()}
    path = small.save(state, tmp_path / "flow.safetensors")
    hosted = inprocess.import_adapter("flow").load_model(path, "fp8_e4m3fn").model.diffusion_model
    size, count = stored_bytes(hosted)
    blocks = sum(w.numel() for name, w in state.items() if w.ndim == 2 and "_blocks." in name)
    assert size <= blocks + 4 * (count - blocks)  # the rest is float32 on a CPU
    _, _, by_hand = small.fp8_state(state, "metadata")
    x, text = comfy_noise(1), torch.randn(1, 512, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = hosted(x, torch.tensor([0.5]), text)
    want = small.velocity(small.flow_oracle({n: w.float() for n, w in by_hand.items()}), x, torch.tensor([0.5]), text)
    assert relative(got, want) < 1e-5
