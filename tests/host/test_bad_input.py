"""Bad input is refused in one sentence; nothing is kept in memory, and the next prompt works."""

import json
import re
import time

import pytest
import torch
from PIL import Image
from websocket import WebSocketTimeoutException, create_connection

from fixtures import bad_files
from tools import small
from tools.server import PromptError, anonymous_bytes, held_files

CASES = {name: case[::2] for name, case in bad_files.bad_files().items()}
# Over HTTP one that is cut short, one of another role, a folder, and one that is refused late; with --long the rest too.
HTTP = ("truncated.safetensors", "flow.safetensors", "shards", "half-vae.safetensors")
INPUTS = {"flow": "flow_name", "encoder": "encoder_name", "vae": "vae_name"}


@pytest.fixture(scope="module")
def spoilt(comfy):
    bad_files.write_all(comfy.base / "models")
    comfy.get("/object_info")


def refusal(graph, comfy) -> str:
    with pytest.raises(PromptError) as refused:
        comfy.run(graph)
    return refused.value.text


def choose(graph, role, name) -> str:
    """Returns what was chosen before."""
    loader = {"flow": graph.flow, "encoder": graph.clip, "vae": graph.vae}[role]
    before, loader[INPUTS[role]] = loader[INPUTS[role]], name
    return before


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in HTTP else pytest.mark.long) for name in CASES])
def test_a_bad_file_is_refused_in_one_sentence(comfy, graph, spoilt, name):
    role, sentence = CASES[name]
    choose(graph, role, name)
    text = refusal(graph, comfy)
    assert text == sentence or re.fullmatch(sentence, text), text
    assert text.endswith(".") and "\n" not in text


def test_files_that_were_refused_are_let_go_and_the_one_in_use_is_seen_to_be_held(comfy, graph, spoilt):
    """The host collects what an error's frames hold within 10 s. Weights of the flow that runs are mapped from its file."""
    models = (comfy.base / "models").resolve()
    good = models / "diffusion_models" / graph.flow["flow_name"]
    comfy.run(graph)
    assert held_files(comfy.process.pid, good) == {str(good)}
    refused = []
    for name in HTTP:
        role, _ = CASES[name]
        kept = choose(graph, role, name)
        refusal(graph, comfy)
        choose(graph, role, kept)
        refused.append(models / bad_files.CATEGORIES[role] / name)
    deadline = time.monotonic() + 60
    while held := {file for path in refused for file in held_files(comfy.process.pid, path)}:
        assert time.monotonic() < deadline, held
        time.sleep(0.5)


def test_a_vae_of_85_mb_that_is_refused_is_given_back_and_the_same_one_whole_is_seen_in_memory(comfy, graph):
    """Its weights are copied into the host's modules, so they would show."""
    state = small.vae_state(small.vae_oracle(widths=(64, 128, 256, 256)))
    size = sum(tensor.nbytes for tensor in state.values())
    assert size > 80e6
    folder = comfy.base / "models/vae"
    small.save(state, folder / "large.safetensors")
    lacking = {name: tensor for name, tensor in state.items() if name != "encoder.norm_out.bias"}
    small.save(lacking, folder / "large-half.safetensors")
    comfy.get("/object_info")
    good = graph.vae["vae_name"]
    comfy.run(graph)  # what good files need is in memory before and after
    before = anonymous_bytes(comfy.process.pid)
    graph.vae["vae_name"] = "large-half.safetensors"
    assert "lacks" in refusal(graph, comfy)
    graph.vae["vae_name"] = good
    comfy.run(graph)
    grown = anonymous_bytes(comfy.process.pid) - before
    assert grown < 50e6, f"{grown / 1e6:.0f} MB more"
    graph.vae["vae_name"] = "large.safetensors"
    comfy.run(graph)
    assert anonymous_bytes(comfy.process.pid) - before > 50e6
    graph.vae["vae_name"] = good
    comfy.free()


@pytest.mark.parametrize("role", INPUTS)
def test_a_file_that_is_not_there_is_refused_before_anything_runs(comfy, graph, role):
    choose(graph, role, "gone.safetensors")
    text = refusal(graph, comfy)
    assert f"gone.safetensors was not found in models/{bad_files.CATEGORIES[role]}: download it there" in text
    assert "download it there" in text


def test_a_file_deleted_after_the_list_was_read_is_refused(comfy, graph):
    path = small.save(small.flow_state(**small.FLOW), comfy.base / "models/diffusion_models/deleted.safetensors")
    choose(graph, "flow", "deleted.safetensors")
    comfy.get("/object_info")
    path.unlink()
    assert "deleted.safetensors" in refusal(graph, comfy)


EMPTY = {"EmptyLatentImage": 4, "EmptySD3LatentImage": 16}


@pytest.mark.parametrize("kind", EMPTY)
def test_the_empty_latent_of_another_model_becomes_kleins_of_the_same_picture_and_the_report_says_so(graph, comfy, kind):
    """To the bit what Empty Flux 2 Latent gives, with its batch and a noise mask of the picture's size."""
    graph.without_image().canvas["batch_size"] = 2
    mask = graph.new("SolidMask", value=1.0, width=256, height=192)

    def run(empty):
        graph.sampler["latent_image"] = graph.new("SetLatentNoiseMask", samples=empty, mask=mask)
        return graph.latents()

    want = run(graph.empty)
    got = run(graph.new(kind, width=256, height=192, batch_size=2))
    assert torch.equal(got, want) and got.shape == (2, 128, 12, 16)
    report = graph.new("PreviewAny", source=[graph.sampled[0], 1])[0]
    assert comfy.run(graph)[report]["text"][0] == (
        f"256x192, 2 at once, 4 steps at cfg 1\nThe empty latent had {EMPTY[kind]} channels, as another model's: it was made "
        "klein's, for 256x192"
    )


def test_the_sigmas_for_the_empty_latent_of_another_model_are_those_of_its_picture(graph):
    def run(empty):
        sigmas = graph.new("KleinSchedule", steps=4, schedule="official", denoise=1.0, latent=empty)
        return graph.latents(graph.new("KleinDistilledSampler", **{**graph.sampler, "sigmas": sigmas}))[0]

    other = graph.without_image().new("EmptyLatentImage", width=256, height=192, batch_size=1)
    assert torch.equal(run(other), run(graph.empty))


@pytest.mark.parametrize("kind", EMPTY)
def test_a_latent_of_another_model_that_is_not_empty_is_refused(comfy, graph, kind):
    found = [1, EMPTY[kind], 24, 32]
    full = torch.zeros(found)
    full[0, -1, -1, -1] = 1e-6
    small.save({"latent_tensor": full, "latent_format_version_0": torch.tensor([])}, comfy.base / f"input/{kind}.latent")
    graph.sampler["latent_image"] = graph.new("LoadLatent", latent=f"{kind}.latent")
    assert refusal(graph, comfy) == (
        f"The latent has shape {found}, expected [batch, 128, height/16, width/16]: use Empty Flux 2 Latent, or encode the "
        f"image with the FLUX.2 VAE."
    )


def test_cfg_without_a_negative_is_refused(comfy, graph):
    """When it is queued: nothing is loaded for it, and the node is marked."""
    sentence = "cfg is 4, which needs a negative conditioning, and none is connected: connect one, or set cfg to 1."
    graph.sampler["cfg"] = 4.0
    with pytest.raises(PromptError) as error:
        comfy.queue(graph)
    assert error.value.kind == "refused" and error.value.text.endswith(f": cfg - {sentence}")


def test_cfg_over_a_link_without_a_negative_is_refused_when_it_runs(comfy, graph):
    graph.sampler["cfg"] = graph.new("PrimitiveFloat", value=4.0)
    assert refusal(graph, comfy).startswith("cfg is 4, which needs a negative conditioning, and none is connected")


@pytest.mark.parametrize("cfg", [0.5, 101.0])
def test_cfg_out_of_its_bounds_is_refused_when_it_is_queued(comfy, graph, cfg):
    graph.sampler["cfg"] = cfg
    with pytest.raises(PromptError) as error:
        comfy.queue(graph)
    assert error.value.kind == "refused" and f"cfg is {cfg}, expected a number from 1.0 to 100.0" in error.value.text


@pytest.mark.parametrize("prompt", ["", " ", "<|endoftext|>", "\u0000"])
def test_an_empty_prompt_gives_an_image(comfy, graph, prompt):
    graph.prompt["text"] = prompt
    assert comfy.run(graph)[graph.save]["images"]


@pytest.mark.parametrize(("width", "height"), [(16, 16), (16, 512), (272, 48), (1000, 24)])
def test_odd_sizes_give_an_image_of_that_size(comfy, graph, width, height):
    graph.canvas.update(width=width, height=height)
    image = comfy.run(graph)[graph.save]["images"][0]
    assert Image.open(comfy.file(image)).size == (width // 16 * 16, height // 16 * 16)


def test_a_batch_is_the_same_as_its_images_alone(graph):
    """The first of a batch of three, and the last drawn alone by its batch_index."""
    graph.without_image().canvas["batch_size"] = 3
    last = graph.new("LatentFromBatch", samples=graph.empty, batch_index=2, length=1)
    alone = graph.new("KleinDistilledSampler", **{**graph.sampler, "latent_image": last})
    three, one = graph.latents(graph.sampled, alone)
    assert three.shape[0] == 3 and ((three[2:] - one).norm() / one.norm()).item() < 1e-5
    assert not torch.allclose(three[0], three[1])


def test_an_interrupt_in_step_2_of_4_leaves_the_host_usable(comfy, graph):
    want = graph.without_image().latents()
    graph.canvas.update(width=1024, height=1024)
    graph.latents()  # what a whole run of this size leaves to the allocator is in `before`
    before = anonymous_bytes(comfy.process.pid)
    graph.interrupt_after(step=1)
    graph.canvas.update(width=256, height=192)
    assert torch.equal(graph.latents(), want)
    assert anonymous_bytes(comfy.process.pid) - before < 50e6


def test_previews_and_progress_of_each_step_arrive(comfy, graph):
    """Frames are JPEG previews (binary), progress counts to 4; newer hosts throttle, so the last must come."""
    events = create_connection(f"ws://127.0.0.1:{comfy.port}/ws?clientId={comfy.client}", timeout=5)
    graph.sampler["seed"] = int(time.time())
    prompt = comfy.queue(graph)
    comfy.wait(prompt)
    progress, frames = set(), 0
    try:
        while True:
            message = events.recv()
            if isinstance(message, bytes):
                frames += b"\xff\xd8\xff" in message[:40]
            elif json.loads(message)["type"] == "progress" and json.loads(message)["data"]["max"] == 4:
                progress.add(json.loads(message)["data"]["value"])
            elif json.loads(message)["type"] == "execution_success":
                break
    except WebSocketTimeoutException:
        pass
    events.close()
    assert 4 in progress
    assert frames >= 1
