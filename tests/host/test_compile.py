"""Core's Torch Compile Model on our MODEL, in this process, by the compiler's own counters of graphs, breaks and compilations.
The graphs are run as they are (backend eager); --long makes machine code of them too."""

import pytest
import torch
from torch._dynamo.utils import counters

from fixtures.lora import written
from tools import inprocess, small, small_gguf


@pytest.fixture
def compiled(parts):
    """compiled(MODEL, backend) as core's node makes it; the compiler begins anew."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    torch._dynamo.reset()
    counters.clear()

    def compiled(model, backend="eager"):
        model = model.clone()
        set_torch_compile_wrapper(model=model, backend=backend)
        return model

    yield compiled
    torch._dynamo.reset()


@pytest.fixture
def sample(parts):
    """sample(MODEL, ...) -> latents."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(1, 64, small.FLOW["context"], generator=generator) for _ in range(3)]

    def sample(model, text=0, seed=7, size=(4, 6), latents=(), steps=4, batch=1, cfg=1.0):
        positive, negative = ([[texts[n], {"reference_latents": list(latents)} if latents else {}]] for n in (text, 2))
        empty = {"samples": torch.zeros(batch, 128, *size)}
        return parts[2].sample(model, positive, negative, empty, seed, steps, cfg, 1.0, "official")[0]["samples"]

    return sample


REFERENCES = [torch.randn(1, 128, *box, generator=torch.Generator().manual_seed(1)) for box in ((3, 5), (4, 2))]
OTHERS = [latent * 1.1 for latent in REFERENCES]


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_a_step_is_one_graph_for_all_steps_prompts_seeds_and_references_of_a_size(parts, compiled, sample):
    model = compiled(parts[1])
    for settings in ({}, {"text": 1}, {"seed": 9}, {"steps": 6}):
        assert torch.equal(sample(model, **settings), sample(parts[1], **settings))
    assert graphs() == 1
    for settings in ({}, {"text": 1}, {"seed": 9}, {"latents": OTHERS}, {"steps": 6}):
        settings = {"latents": REFERENCES, **settings}
        assert torch.equal(sample(model, **settings), sample(parts[1], **settings))
    assert graphs() == 2 and not counters["graph_break"]


@pytest.mark.long
def test_sizes_share_a_graph_after_the_second(parts, compiled, sample):
    """A batch of one is one of its own, and so is a batch."""
    model = compiled(parts[1])
    for settings in ({"size": size, "batch": batch} for batch in (1, 2) for size in ((4, 6), (6, 8), (8, 4), (5, 7), (9, 9))):
        assert torch.equal(sample(model, **settings), sample(parts[1], **settings))
    assert 0 < graphs() <= 3 and not counters["graph_break"]


@pytest.mark.long
def test_with_kept_references_the_only_break_is_before_the_blocks(parts, compiled, sample):
    """Where keys and values are looked up. Steps, prompts, seeds and other references compile nothing again."""
    plain, model = (parts[0].attach(parts[1], "across_runs", "gpu", "model")[0] for _ in range(2))
    model = compiled(model)
    seen = set()
    for settings in ({}, {"text": 1}, {"seed": 9}, {"latents": OTHERS}):
        settings = {"latents": REFERENCES, **settings}
        assert torch.equal(sample(model, **settings), sample(plain, **settings))
        seen.add((graphs(), sum(counters["graph_break"].values())))
    assert len(seen) == 1 and graphs() and all("keys_values" in reason for reason in counters["graph_break"])


@pytest.mark.long
def test_a_lora_is_in_the_graph_of_its_own_weights(parts, compiled, sample):
    name = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    patched = parts[1].clone()
    patched.add_patches({name: (torch.full((768, 256), 1 / 50),)}, 1.0)
    model = compiled(patched)
    assert torch.equal(sample(model), sample(patched)) and graphs() == 1
    assert torch.equal(sample(compiled(parts[1])), sample(parts[1]))
    assert not torch.equal(sample(patched), sample(parts[1]))


@pytest.mark.long
@pytest.mark.parametrize("stored", ["fp8", "Q4_K"])
def test_a_lora_beside_quantised_weights_breaks_no_graph(compiled, sample, tmp_path, stored):
    state = small.flow_state(**small.FLOW)
    if stored == "fp8":
        tensors, metadata, _ = small.fp8_state(state, "metadata")
        path = small.save(tensors, tmp_path / "flow.safetensors", metadata)
    else:
        path = small_gguf.write(small_gguf.state_of(state, stored, lambda name: "_blocks." in name)[0], tmp_path / "flow.gguf")
    file = small.save(written("kohya", state)[0], tmp_path / "style.safetensors")
    model = inprocess.import_adapter("flow").load_model(path)
    patched = inprocess.import_adapter("lora").attach(model, None, file, 1.0, 1.0)[0]
    got = sample(compiled(patched))
    assert graphs() == 1 and not counters["graph_break"]
    assert torch.equal(got, sample(patched)) and not torch.equal(got, sample(model))


@pytest.mark.long
def test_kept_keys_are_given_back_from_a_compiled_model_too(parts, compiled, sample, caplog):
    model = compiled(parts[0].attach(parts[1], "across_runs", "gpu", "model")[0])
    for told in ("computed", "kept from an earlier run"):
        caplog.clear()
        with caplog.at_level("INFO"):
            sample(model, latents=REFERENCES)
        assert told in caplog.text and graphs()
    assert model.partially_unload(model.offload_device, 1) > 0
    caplog.clear()
    with caplog.at_level("INFO"):
        sample(model, latents=REFERENCES)
    assert "computed" in caplog.text


@pytest.mark.long
@pytest.mark.parametrize("mode", ["off", "across_runs"])
def test_machine_code_of_a_step_gives_the_same_within_1e_5(parts, compiled, sample, mode):
    """inductor on the CPU, float32: sums in another order."""
    model = parts[0].attach(parts[1], mode, "gpu", "model")[0]
    fast = compiled(model, "inductor")
    for settings in ({}, {"latents": REFERENCES}):
        assert small.relative(sample(fast, **settings), sample(model, **settings)) < 1e-5 and graphs()
