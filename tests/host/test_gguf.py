"""GGUF files through the real loaders, in blocks that ggml wrote, against the dense model that the package `gguf` reads.

Tolerance 1e-5 in float32: the very same weights (unit/test_gguf.py), the same sums in another order.
"""

import os
import shutil

import pytest
import torch

from klein.errors import KleinError
from klein.samplers.schedule import sigmas
from klein.store.store import Store
from tools import inprocess, small, small_gguf
from tools.small import blocks, comfy_noise, embed, relative

EXACT = 1e-5
# Hugging Face's names of Qwen3's parts -> llama.cpp's, for a Qwen3 that is wide enough for blocks of 256.
WIDE = dict(hidden=256, heads=8, kv_heads=8, head=32, mlp=256, layers=28, vocabulary=151936)


def velocity(model) -> torch.Tensor:
    x, text = comfy_noise(1), torch.randn(1, 64, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(x, torch.tensor([0.5]), text)


def want(state: dict) -> torch.Tensor:
    x, text = comfy_noise(1), torch.randn(1, 64, small.FLOW["context"], generator=torch.Generator().manual_seed(2))
    return small.velocity(small.flow_oracle(state), x, torch.tensor([0.5]), text)


@pytest.fixture(scope="module")
def flow():
    return small.flow_state(**small.FLOW)


@pytest.fixture
def loaded(flow, tmp_path):
    """loaded(kind) -> (MODEL of a file, its weights dequantised by the package)."""

    def load(kind: str):
        tensors, by_hand = small_gguf.state_of(flow, kind, blocks)
        path = small_gguf.write(tensors, tmp_path / f"flow-{kind}.gguf")
        return inprocess.import_adapter("flow").load_model(path), by_hand

    return load


@pytest.mark.parametrize("kind", small_gguf.KINDS)
def test_a_flow_of_each_type_over_http(comfy, graph, oracle, flow, kind):
    tensors, by_hand = small_gguf.state_of(flow, kind, blocks)
    small_gguf.write(tensors, comfy.base / f"models/diffusion_models/sub/flow-{kind}.gguf")
    graph.without_image().flow["flow_name"] = f"sub/flow-{kind}.gguf"
    got = graph.latents()
    context = embed(oracle, graph.prompt["text"])
    assert relative(got, small.euler(small.flow_oracle(by_hand), comfy_noise(7), sigmas(4, 192), context)) < EXACT * 4  # steps


@pytest.mark.parametrize("kind", small_gguf.KINDS)
def test_one_velocity_is_exact_and_weights_stay_packed_in_memory(loaded, flow, kind):
    model, by_hand = loaded(kind)
    assert relative(velocity(model.model.diffusion_model), want(by_hand)) < EXACT
    packed = sum(small_gguf.packed(kind, tuple(w.shape), 0).nbytes for n, w in flow.items() if blocks(n) and w.ndim == 2)
    plain = sum(w.nbytes for n, w in flow.items() if not blocks(n) or w.ndim == 1)
    kept = sum(weight.nbytes for weight in model.model.diffusion_model.parameters())
    assert kept == packed + plain
    assert kept <= model.model_size() < 1.01 * kept  # what the host reckons with


def test_bf16_weights_of_a_file_are_cast_as_those_of_others(flow, tmp_path):
    tensors, by_hand = small_gguf.state_of(flow, "Q8_0", blocks)
    outer = {n: t.bfloat16() for n, t in flow.items() if not blocks(n)}
    path = small_gguf.write(tensors | outer, tmp_path / "flow.gguf")
    hosted = inprocess.hosted_flow(path)
    assert relative(velocity(hosted), want(by_hand | {n: t.float() for n, t in outer.items()})) < EXACT


NAME = "diffusion_model.single_blocks.0.linear1.weight"


def patched(model, by_hand: dict, strength: float) -> tuple[object, dict]:
    """A MODEL with a patch of the host on a packed weight, and its dense weights with it."""
    own = NAME.removeprefix("diffusion_model.")
    delta = torch.randn(by_hand[own].shape, generator=torch.Generator().manual_seed(5)) / 16
    model = model.clone()
    assert model.add_patches({NAME: (delta,)}, strength)
    return model, {**by_hand, own: by_hand[own] + strength * delta}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_a_patch_of_the_host_is_not_rounded_and_goes_without_a_trace(loaded, kind):
    model, by_hand = loaded(kind)
    before = {name: weight.clone() for name, weight in model.model.diffusion_model.named_parameters()}
    changed, by_patch = patched(model, by_hand, 0.01)
    changed.patch_model(changed.load_device)
    assert relative(velocity(changed.model.diffusion_model), want(by_patch)) < EXACT
    changed.unpatch_model(changed.offload_device)
    after = dict(model.model.diffusion_model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert relative(velocity(model.model.diffusion_model), want(by_hand)) < EXACT


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_partly_offloaded_weights_are_cast_and_patched_when_they_are_used(loaded, kind):
    """As the host does on a card that is too small: nothing is loaded, patches are functions of the weight."""
    model, by_hand = loaded(kind)
    changed, by_patch = patched(model, by_hand, 0.01)
    changed.load(changed.load_device, lowvram_model_memory=1)
    layer = changed.model.diffusion_model.single_blocks[0].linear1
    assert len(layer.weight_function) == 1 and layer.weight.dtype == torch.uint8
    assert relative(velocity(changed.model.diffusion_model), want(by_patch)) < EXACT
    changed.unpatch_model(changed.offload_device)
    assert not layer.weight_function
    assert relative(velocity(model.model.diffusion_model), want(by_hand)) < EXACT


def test_a_lora_over_hooks_is_refused_in_one_sentence(loaded):
    """The host writes the old weight back into the place of the new one, which a packed weight has not."""
    model, by_hand = loaded("Q8_0")
    import comfy.hooks

    model = model.clone()
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.need_weight_init = False
    hook.weights = {NAME: (torch.ones(by_hand["single_blocks.0.linear1.weight"].shape),)}
    model.add_hook_patches(hook, hook.weights, 1.0)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    with pytest.raises(KleinError, match="A LoRA that comes over hooks cannot change weights that stay packed as Q8_0"):
        model.apply_hooks(group)
    model.unpatch_hooks()
    assert relative(velocity(model.model.diffusion_model), want(by_hand)) < EXACT


def test_a_model_that_core_saves_loads_again_with_the_same_bytes(comfy, graph, flow):
    tensors, _ = small_gguf.state_of(flow, "Q4_K", blocks)
    small_gguf.write(tensors, comfy.base / "models/diffusion_models/to-save.gguf")
    graph.without_image().flow["flow_name"] = "to-save.gguf"
    got = graph.latents()
    save = graph.new("ModelSave", model=graph.model, filename_prefix="saved/model")[0]
    comfy.run({name: graph[name] for name in (save, graph.model[0])})
    del graph[save]
    (saved,) = (comfy.base / "output/saved").glob("model*.safetensors")
    assert saved.stat().st_size < 1.02 * (comfy.base / "models/diffusion_models/to-save.gguf").stat().st_size
    shutil.move(saved, comfy.base / "models/diffusion_models/saved.safetensors")
    graph.flow["flow_name"] = "saved.safetensors"
    assert torch.equal(graph.latents(), got)


def encoder_names(state: dict) -> dict:
    from klein.model_loaders.formats.gguf import LLAMA_CPP, LLAMA_CPP_OUTER

    parts = {**LLAMA_CPP, **LLAMA_CPP_OUTER}
    theirs = {ours: name for name, ours in parts.items()}

    def name(ours: str) -> str:
        ours = ours.removeprefix("model.")
        if not ours.startswith("layers."):
            return theirs[ours]
        _, number, part = ours.removesuffix(".weight").split(".", 2)
        return f"blk.{number}.{theirs[part]}.weight"

    return {name(ours): tensor for ours, tensor in state.items()}


@pytest.mark.parametrize(("kind", "embedding"), [("Q4_K", "Q6_K"), ("Q8_0", "Q8_0"), ("IQ4_XS", "Q5_K")])
@torch.no_grad()
def test_an_encoder_is_exact_and_stays_packed_in_memory(tmp_path, oracle, kind, embedding):
    model = small.encoder_oracle(**WIDE)
    state = small.encoder_state(model)
    tensors, by_hand = small_gguf.state_of(state, kind, lambda name: "embed" not in name)
    outer, outer_by_hand = small_gguf.state_of(state, embedding, lambda name: "embed" in name)
    tensors["model.embed_tokens.weight"] = outer["model.embed_tokens.weight"]
    by_hand["model.embed_tokens.weight"] = outer_by_hand["model.embed_tokens.weight"]
    path = small_gguf.write(encoder_names(tensors), tmp_path / "qwen3-8b.gguf", "qwen3")
    clip = inprocess.import_adapter("encoder").load_clip(path)
    got = clip.encode_from_tokens(clip.tokenize("a cat"))
    model.load_state_dict(by_hand, strict=False)
    assert relative(got, oracle._get_qwen3_prompt_embeds(model, oracle.tokenizer, "a cat")) < EXACT
    kept = sum(weight.nbytes for weight in clip.cond_stage_model.parameters())
    used = {name: t for name, t in tensors.items() if ".27." not in name and name != "model.norm.weight"}
    assert kept == sum(t[1].nbytes if isinstance(t, tuple) else t.nbytes for t in used.values())


@torch.no_grad()
def test_a_prompt_is_known_to_another_clip_of_the_same_file(tmp_path, monkeypatch):
    encoder, module, own = *map(inprocess.import_adapter, ("encoder", "store")), Store(tmp_path / "store", 2**30, 0)
    for each in (encoder, module):
        monkeypatch.setattr(each, "store", lambda: own)
    state = small.encoder_state(small.encoder_oracle(**WIDE))
    tensors, _ = small_gguf.state_of(state, "Q4_K", lambda name: "embed" not in name)
    path = small_gguf.write(encoder_names(tensors), tmp_path / "qwen3-8b.gguf", "qwen3")
    first, report = encoder.encode_prompt(encoder.load_clip(path), "a cat")
    assert "known from before" not in report
    clip = encoder.load_clip(path)
    again, report = encoder.encode_prompt(clip, "a cat")
    assert "known from before" in report and torch.equal(again[0][0], first[0][0])
    assert list(clip.cond_stage_model.parameters()) == []


def test_an_encoder_over_http(comfy, graph, oracle):
    import gguf

    state = small.encoder_state(oracle.text_encoder)
    tensors, by_hand = dict(state), dict(state)
    for name, weight in state.items():
        if weight.ndim == 2:
            rows = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
            tensors[name], by_hand[name] = ("Q8_0", rows), small_gguf.dense(rows, "Q8_0")
    small_gguf.write(encoder_names(tensors), comfy.base / "models/text_encoders/Qwen3-8B-Q8_0.gguf", "qwen3")
    graph.without_image().clip["encoder_name"] = "Qwen3-8B-Q8_0.gguf"
    got = graph.latents()
    exact = small.encoder_oracle(**small.ENCODER)
    exact.load_state_dict(by_hand, strict=False)
    context = oracle._get_qwen3_prompt_embeds(exact, oracle.tokenizer, graph.prompt["text"])
    assert relative(got, small.euler(oracle.transformer, comfy_noise(7), sigmas(4, 192), context)) < EXACT * 4


def test_a_file_that_comes_or_goes_is_seen_in_the_list_and_nothing_is_walked_in_between(tmp_path, monkeypatch):
    files = inprocess.import_adapter("files")
    import folder_paths

    walk, walks = folder_paths.recursive_search, []
    monkeypatch.setattr(folder_paths, "recursive_search", lambda *given, **named: walks.append(1) or walk(*given, **named))
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda category: [str(tmp_path)])
    below = tmp_path / "below"
    below.mkdir()
    assert files._gguf("diffusion_models") == files._gguf("diffusion_models") == [] and len(walks) == 1
    for path in (below / "klein.gguf", tmp_path / "other.GGUF"):
        path.write_bytes(b"GGUF")
        os.utime(path.parent, ns=(1, 10**18 + len(walks)))  # clocks of file systems are coarse
    assert files._gguf("diffusion_models") == ["below/klein.gguf", "other.GGUF"] and len(walks) == 2
    shutil.rmtree(below)
    assert files._gguf("diffusion_models") == ["other.GGUF"]
