"""Klein Preflight in the real host: what it hands on, what it says, what it warns of, and what it stops."""

import types

import pytest
import torch

from klein.model_loaders.flow.work import Sequence, activation_bytes
from tools import inprocess, small
from tools.server import PromptError


@pytest.fixture
def preflight(graph, comfy):
    """preflight(**inputs) -> lines of the report; without inputs those of the example, with the sampler behind it."""

    def run(**inputs):
        graph.without_image()
        number, _ = graph.new("KleinPreflight", **inputs)
        return comfy.run(graph)[number]["text"][0].split("\n")

    run.all = lambda **more: run(
        **{"model": graph.model, "clip": graph.clip_out, "vae": graph.new("KleinVAELoader", **graph.vae),
           "positive": graph.positive, "latent_image": graph.empty, **more}
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def narrow(comfy):
    """The name of an encoder whose text is 96 wide."""
    state = small.encoder_state(small.encoder_oracle(**{**small.ENCODER, "hidden": 32}))
    path = small.save(state, comfy.base / "models/text_encoders/narrow.safetensors")
    comfy.get("/object_info")
    return path.name


def warnings(lines):
    return [line.removeprefix("Warning: ") for line in lines if line.startswith("Warning: ")]


def refused(graph, comfy, **inputs) -> tuple[str, str]:
    """The sentence, and what the server's log says of models since."""
    graph.without_image()
    graph.new("KleinPreflight", **inputs)
    comfy.free()
    before = len(comfy.log.read_text())
    with pytest.raises(PromptError) as error:
        comfy.run(graph)
    return error.value.text, comfy.log.read_text()[before:]


def test_what_it_is_given_goes_on_as_it_was(graph):
    want = graph.without_image().latents()
    chain = graph.reference(graph.new("KleinExamplePicture", picture="red_circle"))
    number, _ = graph.new(
        "KleinPreflight", model=graph.model, clip=graph.clip_out, latent_image=graph.empty, references=chain, steps=4, cfg=1.0
    )
    graph.prompt["clip"] = [number, 1]
    last, _ = graph.new("KleinPreflight", model=[number, 0], positive=graph.positive, latent_image=[number, 4])
    graph.sampler.update(model=[last, 0], positive=[last, 3], latent_image=[last, 4], steps=[number, 6], cfg=[number, 7])
    vae = graph.new("KleinVAELoader", **graph.vae)
    checked, _ = graph.new("KleinPreflight", vae=vae)
    combined, _ = graph.new(
        "KleinMultiReference", positive=[last, 3], vae=[checked, 2], references=[number, 5], width=256, height=192
    )
    got, latent = graph.latents(graph.sampled, [combined, 2])
    assert torch.equal(got, want) and latent.shape == (1, 128, 12, 16)


def test_the_report_names_each_thing(comfy, graph, preflight):
    """The work: 2 h (tokens (4 h + 3 mlp) + 2 tokens^2) in 3 blocks of h 256, and the ends."""
    graph.prompt["text"] = "a cat"
    lines = dict(line.split(": ", 1) for line in preflight.all())
    assert lines["model"] == "klein of hidden size 256, distilled, 1 double and 2 single blocks"
    assert lines["licence"] == "not known"
    assert lines["encoder"] == "a Qwen3 encoder of hidden size 64, 192 wide, as the flow model expects"
    assert lines["canvas"] == "256x192"
    assert lines["tokens"] == "704: text 512 (73 %), image 192 (27 %)"
    step = 3 * 704 * (2 * 256 * (4 * 256 + 3 * 768) + 4 * 256 * 704) + 2 * 256 * (128 * 2 * 192 + 192 * 512 + 256 + 18 * 256)
    assert lines["work"] == f"{step / 1e12:.3g} TFLOP a step, {4 * step / 1e12:.3g} TFLOP in 4 steps"
    assert lines["memory"].startswith("flow ") and lines["memory"].endswith(" free on cpu")
    assert lines["store"].endswith(f" of 4 GB in {comfy.base / 'user/klein_store'}")
    assert lines["steps"] == "4 at cfg 1" and "Warning" not in lines


def test_references_count_where_they_are_there(graph, combined, pictures, preflight):
    """The second one is there for the second half of 4 steps."""
    late = graph.reference(pictures[1], start_percent=0.5)
    number = combined(image_1=pictures[0], references=late)
    lines = dict(line.split(": ", 1) for line in preflight.all(positive=[number, 0], latent_image=[number, 2]))
    assert lines["tokens"] == "768: text 512 (67 %), image 192 (25 %), image 1 24 (3 %), image 2 40 (5 %)"

    def step(n):
        return 3 * n * (2 * 256 * (4 * 256 + 3 * 768) + 4 * 256 * n) + 2 * 256 * (128 * (n - 320) + 192 * 512 + 256 + 18 * 256)

    assert lines["work"].endswith(f"{2 * (step(728) + step(768)) / 1e12:.3g} TFLOP in 4 steps")


def test_loras_are_named_with_their_coverage(graph, comfy, preflight):
    """Two weights that klein has and one that it has not; then core's loader, which says nothing."""
    generator, weights = torch.Generator().manual_seed(3), {}
    for layer, rows in (
        ("double_blocks.0.img_attn.qkv", 768),
        ("single_blocks.0.linear2", 256),
        ("double_blocks.0.img_attn.other", 768),
    ):
        columns = 256 if rows == 768 else 1024
        for name, shape in (("A", (4, columns)), ("B", (rows, 4))):
            weights[f"diffusion_model.{layer}.lora_{name}.weight"] = torch.randn(*shape, generator=generator) / 8
    name = small.save(weights, comfy.base / "models/loras/preflight.safetensors").name
    comfy.get("/object_info")
    ours = graph.new("KleinLoraLoader", model=graph.model, lora_name=name, strength=0.5)
    lines = preflight.all(model=ours)
    assert f"loras: {name} at 0.5, 4 of 6 keys" in lines
    assert warnings(lines) == [f"2 of 6 keys of {name} have no place: see Klein LoRA Loader's report"]
    both = graph.new("LoraLoaderModelOnly", model=ours, lora_name=name, strength_model=1.0)
    assert f"loras: {name} at 0.5, 4 of 6 keys; 2 weights patched by other nodes" in preflight.all(model=both)
    assert "loras: none" in preflight.all()


def test_kept_keys_are_counted(graph, combined, pictures, preflight):
    """24 tokens in 3 blocks of 256, two float32 each."""
    number = combined(image_1=pictures[0])
    cached = graph.new("KleinReferenceCache", model=graph.model, mode="across_runs", device="cpu", dtype="model")
    lines = dict(line.split(": ", 1) for line in preflight.all(model=cached, positive=[number, 0], latent_image=[number, 2]))
    assert f"kept keys {24 * 3 * 256 * 2 * 4 / 2**30:.3g} GB on the cpu" in lines["memory"]
    assert "to read the references once" in lines["work"]


@pytest.mark.parametrize(
    ("text", "settings", "sentence"),
    [
        (
            "a cat",
            {"cfg": 4.0},
            "Klein distilled was trained for cfg 1, this runs at cfg 4: twice the time and harsher colours",
        ),
        ("a cat", {"steps": 20}, "Klein distilled was distilled to 4 steps, this runs 20: 5 times the work"),
        ("a (red:1.3) cat", {}, "(red:1.3) is read as text: klein knows no weights of words"),
        ("the cat of image 2", {}, "the prompt names image 2, but there are 0 references"),
    ],
)
def test_a_warning(graph, preflight, text, settings, sentence):
    graph.prompt["text"] = text
    assert warnings(preflight.all(**settings)) == [sentence]


def test_a_reference_that_the_prompt_does_not_name_is_a_warning(graph, pictures, preflight):
    """Of a chain that is not yet part of the conditioning."""
    graph.prompt["text"] = "the cat of image 1"
    chain = graph.reference(pictures[1], references=graph.reference(pictures[0]))
    assert warnings(preflight.all(references=chain)) == ["the prompt does not name image 2"]


def test_base_with_the_steps_of_distilled_is_a_warning(graph, preflight):
    graph.flow["variant"] = "base"
    assert (
        warnings(preflight.all())[0] == "Klein base was trained for 20 to 50 steps and cfg 4 to 5, this runs 4 steps at cfg 1"
    )


def test_what_is_not_connected_is_not_known(preflight):
    lines = dict(line.split(": ", 1) for line in preflight())
    assert {lines[name] for name in ("model", "licence", "encoder", "vae", "canvas", "tokens")} == {"not known"}
    assert lines["prompt"].startswith("not known") and "work" not in lines


def test_an_encoder_of_another_width_stops_the_run_before_anything_is_loaded(graph, comfy, narrow):
    graph.clip["encoder_name"] = narrow
    text, log = refused(graph, comfy, model=graph.model, clip=graph.clip_out)
    assert text == (
        "The encoder gives text 96 wide, as a Qwen3 encoder of hidden size 32 does, but this flow model expects 192: load a "
        "Qwen3 encoder of hidden size 64 in the encoder loader."
    )
    assert "Requested to load" not in log


def test_a_latent_of_another_model_stops_the_run_before_anything_is_loaded(graph, comfy):
    latent = graph.new("EmptyHunyuanLatentVideo", width=256, height=192, length=1, batch_size=1)
    text, log = refused(graph, comfy, model=graph.model, latent_image=latent)
    assert text.startswith("The latent has shape [1, 16, 1, 24, 32], expected [batch, 128, height/16, width/16]: use Empty")
    assert "Requested to load KleinModel" not in log


def test_an_empty_latent_of_another_model_counts_as_the_sampler_takes_it(graph, preflight):
    latent = graph.new("EmptySD3LatentImage", width=256, height=192, batch_size=2)
    lines = preflight.all(latent_image=latent)
    assert "canvas: 256x192, 2 at once" in lines and "tokens: 704: text 512 (73 %), image 192 (27 %)" in lines


def test_a_conditioning_of_another_encoder_stops_the_run_before_the_flow_model_is_loaded(graph, comfy, narrow):
    graph.clip["encoder_name"] = narrow
    text, log = refused(graph, comfy, model=graph.model, positive=graph.positive)
    assert text.startswith("The encoder gives text 96 wide") and "Requested to load KleinModel" not in log


def test_the_vae_of_another_model_is_refused():
    check = inprocess.import_adapter("preflight").preflight
    with pytest.raises(
        ValueError, match=r"^The VAE has latents of 16 channels, expected 128: load flux2-vae.safetensors in the"
    ):
        check(None, None, types.SimpleNamespace(latent_channels=16), None, None, None, 4, 1.0)


def test_memory_that_will_not_do_is_a_warning(tmp_path, monkeypatch):
    flow, check = (inprocess.import_adapter(name) for name in ("flow", "preflight"))
    model = flow.load_model(small.save(small.flow_state(**small.FLOW), tmp_path / "flow.safetensors"))
    latent = {"samples": torch.zeros(1, 128, 12, 16)}

    def said(free):
        monkeypatch.setattr(check.comfy.model_management, "get_free_memory", lambda device: free)
        return warnings(check.preflight(model, None, None, None, latent, None, 4, 1.0).split("\n"))

    size = model.model_size()
    assert said(10 * size) == []
    assert "fits but in part" in said(size)[0] and "take a smaller picture" in said(1000)[0]


def test_reading_kept_references_counts_where_it_takes_more_than_a_step(tmp_path):
    """4096 tokens of a reference beside 16 of the picture."""
    flow, cache, check = (inprocess.import_adapter(name) for name in ("flow", "cache", "preflight"))
    model = flow.load_model(small.save(small.flow_state(**small.FLOW), tmp_path / "flow.safetensors"))
    model = cache.attach(model, "across_runs", "gpu", "model")[0]
    positive = [[torch.zeros(1, 8, small.FLOW["context"]), {"reference_latents": [torch.zeros(1, 128, 64, 64)]}]]
    report = check.preflight(model, None, None, positive, {"samples": torch.zeros(1, 128, 4, 4)}, None, 4, 1.0)
    reading = activation_bytes(model.model.diffusion_model.sizes, Sequence(0, 0, 4096), 4)
    assert f"activations {reading / 2**30:.3g} GB" in report


def test_keys_that_are_kept_already_are_not_asked_for_again(tmp_path, monkeypatch):
    flow, check = (inprocess.import_adapter(name) for name in ("flow", "preflight"))
    model = flow.load_model(small.save(small.flow_state(**small.FLOW), tmp_path / "flow.safetensors"))
    monkeypatch.setattr(check.comfy.model_management, "get_free_memory", lambda device: model.model_size())

    class Keeper:
        def kept(self, flow):
            return 10 * model.model_size()

    def said():
        return warnings(
            check.preflight(model, None, None, None, {"samples": torch.zeros(1, 128, 12, 16)}, None, 4, 1.0).split("\n")
        )

    assert "fits but in part" in said()[0]
    model.model.beside.add(keeper := Keeper())
    assert said() == [] and keeper
