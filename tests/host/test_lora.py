"""Klein LoRA Loader in a real host: over HTTP against the model with merged weights, and its patches called as the host does.

Tolerance 1e-5 a step in float32: the same sum of products.
"""

import pytest
import torch

from fixtures.lora import merged, shapes, written
from klein.model_loaders.formats.lora import read_lora
from tools import small
from tools.server import PromptError
from tools.small import relative

STATE = small.flow_state(**small.FLOW)
STEPS = 4


@pytest.fixture(scope="module")
def loras(comfy):
    """name -> its tensors; files in models/loras, and the flow with each merged by hand in models/diffusion_models."""
    files = {
        "ours.safetensors": written("diffusers", STATE, seed=1)[0],
        "kohya.safetensors": written("kohya", STATE, seed=2)[0],
        "peft.safetensors": written("peft", STATE, seed=3)[0],
    }
    for name, tensors in files.items():
        path = small.save(tensors, comfy.base / "models/loras" / name)
        state = merged(STATE, read_lora(path, shapes(STATE)), 0.7)
        small.save(state, comfy.base / "models/diffusion_models" / f"merged-{name}")
    return files


def with_lora(graph, model, name, **inputs):
    return graph.new("KleinLoraLoader", model=model, lora_name=name, **{"strength": 0.7, **inputs})


def sampled(graph, model):
    return graph.new("KleinDistilledSampler", **{**graph.sampler, "model": model})


def flow(graph, name):
    return graph.new("KleinFlowLoader", flow_name=name, weight_dtype="default", variant="auto")


@pytest.mark.parametrize("name", ["ours.safetensors", "kohya.safetensors", "peft.safetensors"])
def test_a_lora_is_the_model_with_merged_weights(graph, loras, name):
    graph.without_image()
    links = sampled(graph, with_lora(graph, graph.model, name)), sampled(graph, flow(graph, f"merged-{name}")), graph.sampled
    got, want, plain = graph.latents(*links)
    assert relative(got, want) < 1e-5 * STEPS
    assert relative(plain, want) > 1e-2


def test_strength_0_is_the_same_model_and_unloading_leaves_no_trace(graph, loras):
    graph.without_image()
    plain = graph.latents(graph.sampled)[0]
    off = with_lora(graph, graph.model, "kohya.safetensors", strength=0.0)
    on = with_lora(graph, off, "kohya.safetensors")
    got, changed, after = graph.latents(sampled(graph, off), sampled(graph, on), sampled(graph, graph.model))
    assert torch.equal(got, plain) and torch.equal(after, plain) and not torch.equal(changed, plain)


def test_two_loras_in_either_order_and_beside_the_hosts_own_loader(graph, loras):
    graph.without_image()
    first, second = "kohya.safetensors", "peft.safetensors"

    def core(model, name):
        return graph.new("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.7)

    one = with_lora(graph, with_lora(graph, graph.model, first), second)
    other = with_lora(graph, with_lora(graph, graph.model, second), first)
    before, after = with_lora(graph, core(graph.model, first), second), core(with_lora(graph, graph.model, second), first)
    merged_first = with_lora(graph, flow(graph, f"merged-{first}"), second)
    want, *all_got = graph.latents(*(sampled(graph, model) for model in (merged_first, one, other, before, after)))
    for got in all_got:
        assert relative(got, want) < 1e-5 * STEPS


def test_the_report_counts_and_names_what_the_hosts_loader_would_drop(graph, comfy, loras):
    report = graph.new("PreviewAny", source=[with_lora(graph, graph.model, "peft.safetensors")[0], 2])
    (text,) = comfy.run(graph)[report[0]]["text"]
    tensors = loras["peft.safetensors"]
    assert text.splitlines() == [
        "peft.safetensors: LoRA for a model of hidden size 256, written by peft (by its names)",
        "rank 4, alpha 4 (none in the file: the rank)",
        f"{len(tensors)} of {len(tensors)} keys matched, 0 unmatched, 0 of the wrong size",
        f"ComfyUI's own LoRA loader would drop {len(tensors)} of them (first: {min(tensors)})",
    ]


def test_a_lora_for_another_size_is_refused_in_the_queue(graph, comfy):
    tensors = written("kohya", small.flow_state(hidden=128, heads=2, context=192, mlp=256, depth=1, single=1))[0]
    small.save(tensors, comfy.base / "models/loras/other.safetensors")
    out = sampled(graph.without_image(), with_lora(graph, graph.model, "other.safetensors"))
    with pytest.raises(PromptError) as refused:
        graph.latents(out)
    assert refused.value.text == (
        "other.safetensors is a LoRA for a model of hidden size 128, and this model is a model of hidden size "
        "256: load the model that it was made for, or choose a LoRA for this one."
    )


def test_a_file_that_was_written_anew_is_read_anew(graph, comfy):
    graph.without_image()
    path = comfy.base / "models/loras/again.safetensors"
    results = []
    for seed in (1, 2):
        small.save(written("kohya", STATE, seed=seed)[0], path)
        model = with_lora(graph, graph.model, "again.safetensors")
        results.append(graph.latents(sampled(graph, model))[0])
    assert not torch.equal(*results)


@pytest.mark.parametrize("stored", ["dense", "fp8"])
def test_the_part_of_the_text_encoder_goes_to_clip(graph, comfy, oracle, stored):
    """Against the encoder with merged weights; both parts in one file, each with a strength of its own."""
    state = small.encoder_state(oracle.text_encoder)
    generator = torch.Generator().manual_seed(6)
    tensors = written("kohya", STATE, seed=6)[0]
    by_hand = small.fp8_state(state, "comfy_quant")[2] if stored == "fp8" else dict(state)
    for layer in ("layers.0.self_attn.q_proj", "layers.5.mlp.down_proj", "layers.26.self_attn.o_proj"):
        out, into = state[f"model.{layer}.weight"].shape
        up, down = torch.randn(out, 4, generator=generator) / 8, torch.randn(4, into, generator=generator) / 8
        tensors[f"text_encoder.{layer}.lora_B.weight"], tensors[f"text_encoder.{layer}.lora_A.weight"] = up, down
        by_hand[f"model.{layer}.weight"] = by_hand[f"model.{layer}.weight"].float() + 0.5 * up @ down
    small.save(tensors, comfy.base / "models/loras/both.safetensors")
    if stored == "fp8":
        small.save(small.fp8_state(state, "comfy_quant")[0], comfy.base / "models/text_encoders/quantised.safetensors")
        graph.clip["encoder_name"] = "quantised.safetensors"
    small.save(by_hand, comfy.base / f"models/text_encoders/merged-{stored}.safetensors")
    text = graph.prompt["text"]
    graph.without_image()

    def through(clip):
        return graph.new(
            "KleinDistilledSampler", **{**graph.sampler, "positive": graph.new("KleinPrompt", clip=clip, text=text)}
        )

    both = with_lora(graph, graph.model, "both.safetensors", strength=0.0, clip=graph.clip_out, clip_strength=0.5)
    off = with_lora(graph, graph.model, "both.safetensors", clip=graph.clip_out, clip_strength=0.0)
    merged_clip = graph.new("KleinQwen3EncoderLoader", encoder_name=f"merged-{stored}.safetensors", device="default")
    got, want, plain, same = graph.latents(
        through([both[0], 1]), through(merged_clip), through(graph.clip_out), through([off[0], 1])
    )
    assert relative(got, want) < 1e-5 * STEPS
    assert relative(plain, want) > 1e-3 and torch.equal(same, plain)


def test_without_clip_the_report_asks_for_it(graph, comfy, loras):
    tensors = {**loras["kohya.safetensors"], "lora_te_layers_0_mlp_up_proj.lora_up.weight": torch.zeros(128, 2)}
    tensors["lora_te_layers_0_mlp_up_proj.lora_down.weight"] = torch.zeros(2, 64)
    small.save(tensors, comfy.base / "models/loras/te.safetensors")
    report = graph.new("PreviewAny", source=[with_lora(graph, graph.model, "te.safetensors")[0], 2])
    (text,) = comfy.run(graph)[report[0]]["text"]
    assert "Warning: 2 keys are for the text encoder: connect clip" in text.splitlines()
