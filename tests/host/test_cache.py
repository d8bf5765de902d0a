"""Klein Reference Cache in the real host: against diffusers' K/V pipeline, and against itself without anything kept.

Tolerance 1e-4: four steps of 1e-5 each. What is kept must change nothing: compared bit for bit.
"""

import random
import time

import pytest
import torch
from PIL import Image

from fixtures.graph import picture
from tools import small
from tools.server import Server
from tools.small import comfy_noise, relative

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def kv_oracle(oracle):
    """diffusers' K/V pipeline with the weights of the float32 files; it wants its transformer for itself."""
    flow = small.flow_oracle(small.flow_state(**small.FLOW))
    return small.pipeline(flow, oracle.text_encoder, oracle.tokenizer, oracle.vae, "Flux2KleinKVPipeline")


@torch.no_grad()
def kv_latents(pipe, prompt, images, seed=7, batch=1) -> torch.Tensor:
    seen = {}

    def keep(pipe, step, t, tensors):
        seen["latents"] = tensors["latents"]
        return tensors

    pipe(
        image=images, prompt=[prompt] * batch, width=256, height=192, num_inference_steps=4,
        latents=comfy_noise(seed, batch), output_type="np", callback_on_step_end=keep,
    )  # fmt: skip
    return seen["latents"].transpose(1, 2).reshape(batch, 128, 12, 16)


def cached(graph, model=None, **settings) -> str:
    """Put the cache before the sampler; returns its node's number."""
    settings = {**dict(mode="within_run", device="gpu", dtype="model"), **settings}
    graph.sampler["model"] = graph.new("KleinReferenceCache", model=model or graph.model, **settings)
    return graph.sampler["model"][0]


def log_of(comfy, mark: int = 0) -> str:
    return comfy.log.read_text()[mark:]


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (2, 2), (3, 1), (4, 1)])
def test_within_a_run_it_is_the_kv_pipeline_of_diffusers(graph, comfy, combined, kv_oracle, count, batch):
    sizes = [(96, 64), (64, 160), (112, 80), (64, 64)][:count]
    names = [picture(comfy, f"kv{seed}.png", *size, seed) for seed, size in enumerate(sizes)]
    images = {f"image_{i}": graph.new("LoadImage", image=name) for i, name in enumerate(names, start=1)}
    combined(**images, batch_size=batch)
    plain = graph.latents()
    cached(graph)
    got = graph.latents()
    files = [Image.open(comfy.base / "input" / name) for name in names]
    assert relative(got, kv_latents(kv_oracle, graph.prompt["text"], files, batch=batch)) < TOLERANCE
    assert relative(plain, got) > 10 * TOLERANCE


def test_comfyuis_own_cache_on_our_model_is_not_the_kv_pipeline(graph, comfy, combined, kv_oracle):
    """FluxKVCache of newer hosts lets references attend to everything in the first step, and keeps what they were then:
    its first step is that of no cache with references modulated as at t = 0."""
    if "FluxKVCache" not in comfy.get("/object_info"):
        pytest.skip("this ComfyUI has no FluxKVCache")
    name = picture(comfy, "kv0.png", 96, 64, 0)
    combined(image_1=graph.new("LoadImage", image=name))
    plain = graph.latents()
    graph.sampler["model"] = graph.new("FluxKVCache", model=graph.model)
    theirs = graph.latents()
    graph.sampler["steps"] = 1
    theirs_once = graph.latents()
    graph.sampler["model"] = graph.model
    plain_once = graph.latents()
    graph.sampler["positive"] = graph.new(
        "FluxKontextMultiReferenceLatentMethod",
        conditioning=graph.sampler["positive"],
        reference_latents_method="index_timestep_zero",
    )
    at_zero_once = graph.latents()
    graph.sampler["steps"] = 4
    at_zero = graph.latents()
    want = kv_latents(kv_oracle, graph.prompt["text"], [Image.open(comfy.base / "input" / name)])
    for what, got in (("FluxKVCache", theirs), ("no cache", plain), ("no cache, references as at t = 0", at_zero)):
        print(f"distance to the K/V pipeline: {what} {relative(got, want):.1e}")
    assert relative(theirs_once, at_zero_once) < TOLERANCE
    assert relative(theirs_once, plain_once) > 10 * TOLERANCE
    assert all(relative(got, want) > 10 * TOLERANCE for got in (theirs, plain, at_zero))


def test_off_and_zero_references_are_bit_equal_to_the_graph_without_it(graph, combined, pictures):
    combined(image_1=pictures[0])
    want = graph.latents()
    cached(graph, mode="off")
    assert torch.equal(graph.latents(), want)
    cached(graph, mode="off", model=cached(graph) and graph.sampler["model"])
    assert torch.equal(graph.latents(), want)
    combined()
    cached(graph)
    got = graph.latents()
    graph.sampler["model"] = graph.model
    assert torch.equal(graph.latents(), got)


def test_across_runs_nothing_is_computed_again_for_a_new_prompt_seed_or_size(graph, comfy, combined, pictures):
    """(text, seed, width, batch): the first run computes, all later ones keep."""
    runs = [("a fox", 7, 256, 1), ("a lighthouse", 7, 256, 1), ("a lighthouse", 9, 256, 1), ("a lighthouse", 9, 128, 3)]
    results = {}
    for mode in ("within_run", "across_runs"):
        cached(graph, mode=mode)
        for text, seed, width, batch in runs:
            graph.prompt["text"], graph.sampler["seed"] = text, seed
            combined(image_1=pictures[0], image_2=pictures[1], width=width, batch_size=batch)
            mark = len(log_of(comfy))
            results.setdefault(mode, []).append((graph.latents(), "kept from an earlier run" in log_of(comfy, mark)))
    assert [kept for _, kept in results["within_run"]] == [False] * 4
    assert [kept for _, kept in results["across_runs"]] == [False, True, True, True]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(results["within_run"], results["across_runs"]))


def test_another_set_is_computed_and_the_old_one_let_go(graph, comfy, combined, pictures):
    cached(graph, mode="across_runs")
    told = []
    for images in (pictures[:1], pictures[:2], pictures[1::-1], pictures[:1]):
        combined(**{f"image_{i}": image for i, image in enumerate(images, start=1)})
        mark = len(log_of(comfy))
        graph.latents()
        told.append("computed" in log_of(comfy, mark))
    assert told == [True] * 4


def test_a_negative_with_references_of_its_own_has_its_own(graph, combined, pictures, oracle):
    """One guided step, by hand from diffusers' transformer in its K/V mode."""
    graph.flow["variant"] = "base"
    negative = graph.new("KleinPrompt", clip=graph.clip_out, text="")
    other = combined(positive=negative, image_1=pictures[1])
    combined(image_1=pictures[0])
    graph.sampler.update(cfg=3.0, negative=[other, 0], steps=1)
    cached(graph)
    latents = [graph.new("VAEEncode", pixels=image, vae=combined.vae) for image in pictures[:2]]
    got, *latents = graph.latents(graph.sampled, *latents)
    flow, x, v = small.flow_oracle(small.flow_state(**small.FLOW)), comfy_noise(7), []
    for text, latent in zip((graph.prompt["text"], ""), latents):
        v.append(small.kv_velocity(flow, x, 1.0, small.embed(oracle, text), [latent], None)[0])
    assert relative(got, x - (v[1] + 3.0 * (v[0] - v[1]))) < TOLERANCE


def test_on_the_cpu_it_is_bit_equal_and_in_8_bits_close(graph, combined, pictures):
    combined(image_1=pictures[0], image_2=pictures[1])
    cached(graph)
    want = graph.latents()
    cached(graph, device="cpu")
    assert torch.equal(graph.latents(), want)
    cached(graph, dtype="float8_e4m3fn")
    assert 0 < relative(graph.latents(), want) < 0.1


def test_strength_mask_and_window_work_with_it(graph, comfy, combined, pictures):
    """Strength 0 is the set without the reference; strength and window keep what was computed."""
    combined(image_1=pictures[0])
    cached(graph)
    want = graph.latents()
    combined(image_1=pictures[0], references=graph.reference(pictures[1], strength=0.0))
    assert torch.equal(graph.latents(), want)
    cached(graph, mode="across_runs")
    seen = []
    for settings in ({}, {"strength": 2.0}, {"start_percent": 0.5}):
        combined(image_1=pictures[0], references=graph.reference(pictures[1], **settings))
        mark = len(log_of(comfy))
        seen.append((graph.latents(), "computed" in log_of(comfy, mark)))
    assert [computed for _, computed in seen] == [True, False, False]
    assert relative(seen[1][0], seen[0][0]) > 1e-3 and relative(seen[2][0], seen[0][0]) > 1e-3


def test_the_report_states_the_memory_and_warns_of_a_model_not_trained_for_it(graph, comfy, combined, pictures):
    combined(image_1=pictures[0])
    for variant, lines in (("kv", 1), ("distilled", 2)):
        graph.flow["variant"] = variant
        number = cached(graph)
        show = graph.new("PreviewAny", source=[number, 1])[0]
        text = comfy.run(graph)[show]["text"][0].split("\n")
        assert len(text) == lines
        # keys and values, 3 blocks, width 256, float32
        assert text[0] == "within_run, on the gpu: 0.00586 MB a token of the references, 0.0234 GB for one of 1024x1024"
        if lines == 2:
            assert text[1].startswith(
                "Warning: this model is distilled, and only the KV variant was trained for cached references"
            )


def test_it_goes_when_the_host_unloads_models_unless_it_lies_on_the_cpu(graph, comfy, combined, pictures):
    combined(image_1=pictures[0])
    for device, computed in (("gpu", True), ("cpu", False)):
        cached(graph, mode="across_runs", device=device)
        graph.latents()
        comfy.post("/free", {"unload_models": True, "free_memory": False})
        time.sleep(1.5)
        graph.sampler["seed"] += 1
        mark = len(log_of(comfy))
        graph.latents()
        assert ("computed" in log_of(comfy, mark)) == computed


def lora(comfy) -> str:
    generator = torch.Generator().manual_seed(3)
    pairs = {"A": (4, 256), "B": (768, 4)}
    layer = "diffusion_model.double_blocks.0.img_attn.qkv"
    weights = {f"{layer}.lora_{n}.weight": torch.randn(*s, generator=generator) / 8 for n, s in pairs.items()}
    small.save(weights, comfy.base / "models/loras/cache.safetensors")
    return "cache.safetensors"


def test_alternating_runs_are_bit_equal_to_runs_with_nothing_kept(graph, comfy, combined, pictures, tmp_path, request):
    """Prompts, sets, sizes, LoRA, models and interrupts alternate, in 24 runs, with --long in 50; each tenth of the runs
    also on a fresh server."""
    rng, count = random.Random(0), 50 if request.config.getoption("--long") else 24
    small.save(small.flow_state(seed=1, **small.FLOW), comfy.base / "models/diffusion_models/second.safetensors")
    second = graph.new("KleinFlowLoader", flow_name="second.safetensors", weight_dtype="default", variant="kv")
    patched = graph.new("LoraLoaderModelOnly", model=graph.model, lora_name=lora(comfy), strength_model=0.7)
    models = {"plain": graph.model, "second": second, "lora": patched}
    sets = [[0], [0, 1], [1, 0], [2, 1, 0]]
    prompts, widths = ["a fox", "a lighthouse"], [128, 256]

    def prepare(config, mode):
        model, chosen, prompt, width = config
        graph.prompt["text"] = prompt
        combined(**{f"image_{i}": pictures[n] for i, n in enumerate(chosen, start=1)}, width=width)
        cached(graph, model=models[model], mode=mode)

    factors = [list(models), sets, prompts, widths]
    configs = [tuple(rng.choice(options) for options in factors)]
    while len(configs) < count:  # one thing changes at a time, so that sets often stay
        changed = rng.randrange(4)
        configs.append(tuple(rng.choice(f) if i == changed else old for i, (f, old) in enumerate(zip(factors, configs[-1]))))
    wanted, fresh = {}, configs[::10]
    for config in configs:
        key = repr(config)
        if key not in wanted:
            prepare(config, "within_run")
            wanted[key] = graph.latents()
    mark = len(log_of(comfy))
    for number, config in enumerate(configs):
        prepare(config, "across_runs")
        if number % 10 == 9:
            graph.sampler["steps"] = 200
            graph.interrupt_after(step=1)
            graph.sampler["steps"] = 4
        assert torch.equal(graph.latents(), wanted[repr(config)]), (number, config)

    assert log_of(comfy, mark).count("kept from an earlier run") >= 0.3 * count

    server = Server(tmp_path, "--use-pytorch-cross-attention")
    for folder in ("models", "input"):
        target = tmp_path / folder
        target.rmdir()
        target.symlink_to(comfy.base / folder, target_is_directory=True)
    graph.comfy = server.start()
    try:
        for config in fresh:
            prepare(config, "within_run")
            assert torch.equal(graph.latents(), wanted[repr(config)])
    finally:
        server.stop()
