"""What one server computed the next one knows: prompts without the encoder, references without the VAE's encoder, their keys
and values without a pass of the flow model. The
weights on disk are overwritten by NaN in between, so that whoever read them would show."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fixtures.graph import ENCODER, FLOW, ExampleGraph
from klein.store.keys import digest
from klein.store.stamp import source
from klein.store.store import Store
from tools import inprocess, small
from tools.server import Server

FILES = {"encoder": f"text_encoders/{ENCODER}", "vae": "vae/flux2-vae.safetensors"}
PROMPT = "the cat of image 1, in the snow"
SIZE = 2**30


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("known")
    models = base / "models"
    small.save(small.flow_state(**small.FLOW), models / "diffusion_models" / FLOW)
    small.save(small.encoder_state(small.encoder_oracle(**small.ENCODER)), models / FILES["encoder"])
    small.save(small.vae_state(small.vae_oracle()), models / FILES["vae"])
    (base / "input").mkdir()
    for seed, name in enumerate(("cat.png", "dog.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "input" / name)
    return base


def latents(server, prompt=PROMPT, picture="cat.png") -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Of the run with a reference, of the encoded picture, and the lines of Klein Prompt's report."""
    graph = ExampleGraph(server).without_image()
    graph.vae["vae_name"] = "flux2-vae.safetensors"
    graph.prompt["text"] = prompt
    image, vae = graph.new("LoadImage", image=picture), graph.new("KleinVAELoader", **graph.vae)
    number, _ = graph.new("KleinMultiReference", positive=graph.positive, vae=vae, image_1=image, width=128, height=96)
    cached, _ = graph.new("KleinReferenceCache", model=graph.model, mode="on_disk", device="gpu", dtype="model")
    graph.sampler.update(model=[cached, 0], positive=[number, 0], latent_image=[number, 2])
    edit, _ = graph.new("KleinEdit", positive=graph.positive, vae=vae, image=image)
    show, _ = graph.new("PreviewAny", source=[graph.positive[0], 1])
    saves = [graph.new("SaveLatent", samples=link, filename_prefix="known")[0] for link in (graph.sampled, [edit, 2])]
    outputs = server.run(graph)
    files = [server.file(outputs[save]["latents"][0]) for save in saves]
    return *(load_file(file)["latent_tensor"] for file in files), outputs[show]["text"][0].split("\n")


def make_nan(path) -> None:
    """Every byte of every tensor 0xFF, which is NaN in each of the dtypes here, written in place, the times restored."""
    before = path.stat()
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length)
        file.write(b"\xff" * (before.st_size - 8 - length))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def mend_stamp(base, path, before) -> None:
    """What the store says of a file as it was it says of the file as it is: the inode's time cannot be restored."""
    store = Store(base / "user/klein_store", SIZE, 0)
    known = store.get(digest("stamp", identities=before.identities))
    store.put(digest("stamp", identities=source([path]).identities), known, "a stamp")


def test_a_fresh_server_with_a_warm_store_reads_neither_encoder_and_gives_the_same_latents(base):
    paths = [base / "models" / file for file in FILES.values()]
    cold = Server(base).start()
    try:
        want = latents(cold)
        log = cold.log.read_text()
        assert "Klein encoder" in log and "tokens, 0.1 MB, computed" in log and len(want[2]) == 1
    finally:
        cold.stop()
    assert {entry.what for entry in Store(base / "user/klein_store", SIZE, 0).entries()} >= {
        f"text by {ENCODER}: {PROMPT}", "a picture of 96x64, encoded", "keys and values of references, double 0"
    }  # fmt: skip
    for path in paths:
        before = source([path])
        make_nan(path)
        mend_stamp(base, path, before)

    warm = Server(base).start()
    try:
        got = latents(warm)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        assert got[2] == [want[2][0], "known from before: the encoder was not needed"]
        log = warm.log.read_text()
        assert "tokens, 0.1 MB, read from disk" in log
        assert "Klein encoder" not in log and "Requested to load HostedEncoder" not in log
        assert latents(warm, "a dog")[0].isnan().all()  # what is not known is encoded, and NaN would have shown
        assert latents(warm, picture="dog.png")[1].isnan().all()
    finally:
        warm.stop()


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """The adapter, with a store of its own."""
    adapter, module = inprocess.import_adapter("encoder"), inprocess.import_adapter("store")
    own = Store(tmp_path / "store", SIZE, 0)
    for each in (adapter, module):
        monkeypatch.setattr(each, "store", lambda: own)
    return adapter


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    state = small.encoder_state(small.encoder_oracle(**small.ENCODER))
    return small.save(state, tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


def known(report: str) -> bool:
    return "known from before" in report


def test_the_loader_reads_no_weight_and_the_host_finds_them_when_it_asks(encoder, path):
    """For LoRA keys, for saving, for the device, and for what core's own CLIPTextEncode calls."""
    import comfy.lora
    import comfy.model_management

    def loaded():
        clip = encoder.load_clip(path)
        assert list(clip.cond_stage_model.parameters()) == []
        return clip

    count = 1 + 27 * 11
    assert len(loaded().get_sd()) == count
    build, arguments = loaded().patcher.cached_patcher_init
    assert len(list(build(*arguments, disable_dynamic=True).model.parameters())) == count
    assert any("q_proj" in name for name in comfy.lora.model_lora_keys_clip(loaded().cond_stage_model, {}).values())
    clip = loaded()
    comfy.model_management.load_models_gpu([clip.patcher])
    assert len(list(clip.cond_stage_model.parameters())) == count
    core = loaded().clone()
    ((want, _),) = core.encode_from_tokens_scheduled(core.tokenize("a cat"))
    ((got, values),), report = encoder.encode_prompt(loaded(), "a cat")
    assert torch.equal(got, want) and not known(report) and values["pooled_output"] is None


def test_a_prompt_is_known_to_another_clip_of_the_same_content_and_to_no_other(encoder, path, tmp_path):
    copy = small.save(load_file(path), tmp_path / "copy.safetensors")
    state = {name: tensor * (1.5 if "layers.3.mlp.up" in name else 1) for name, tensor in load_file(path).items()}
    other = small.save(state, tmp_path / "other.safetensors")
    first, report = encoder.encode_prompt(encoder.load_clip(path), "a cat")
    assert not known(report)
    again, report = encoder.encode_prompt(encoder.load_clip(copy), "a cat")
    assert known(report) and torch.equal(again[0][0], first[0][0]) and again[0][1] == first[0][1]
    different, report = encoder.encode_prompt(encoder.load_clip(other), "a cat")
    assert not known(report) and not torch.equal(different[0][0], first[0][0])
    assert not known(encoder.encode_prompt(encoder.load_clip(path), "a dog")[1])


def test_a_clip_with_a_lora_is_known_by_what_the_lora_does(encoder, path):
    clip = encoder.load_clip(path)
    want, _ = encoder.encode_prompt(clip, "a cat")
    name = next(name for name in clip.get_sd() if name.endswith("layers.3.mlp.up_proj.weight"))

    def encoded(strength: float, value: float = 1.0):
        patched = encoder.load_clip(path)
        assert patched.add_patches({name: (torch.full_like(patched.get_sd()[name], value),)}, strength)
        found, report = encoder.encode_prompt(patched, "a cat")
        return found[0][0], known(report)

    first, was_known = encoded(1.0)
    assert not was_known and not torch.equal(first, want[0][0])
    again, was_known = encoded(1.0)
    assert was_known and torch.equal(again, first)
    assert not encoded(0.5)[1] and not encoded(1.0, 2.0)[1]
    assert known(encoder.encode_prompt(clip, "a cat")[1])


def test_a_clip_with_a_patch_of_an_unknown_kind_is_neither_known_nor_kept(encoder, path):
    clip = encoder.load_clip(path)
    name = next(name for name in clip.get_sd() if name.endswith("layers.3.mlp.up_proj.weight"))
    for _ in range(2):
        patched = clip.clone()
        assert patched.add_patches({name: (torch.ones_like(clip.get_sd()[name]),)}, 1.0)
        patched.patcher.weight_wrapper_patches = {name: [lambda weight: weight]}
        assert encoder._key(patched, patched.tokenize("a cat")) is None


def test_an_encoder_that_was_replaced_on_disk_is_not_known_by_its_old_name(encoder, path, tmp_path):
    mine = small.save(load_file(path), tmp_path / "mine.safetensors")
    clip = encoder.load_clip(mine)
    encoder.encode_prompt(clip, "a cat")
    os.replace(small.save(load_file(path), tmp_path / "new.safetensors"), mine)
    assert not known(encoder.encode_prompt(clip, "a cat")[1])
    assert known(encoder.encode_prompt(encoder.load_clip(mine), "a cat")[1])  # the content is the same


def test_a_picture_is_known_to_another_vae_of_the_same_file_and_to_no_patched_one(encoder, monkeypatch, tmp_path):
    combine, vae = inprocess.import_adapter("combine"), inprocess.import_adapter("vae")
    monkeypatch.setattr(combine, "store", encoder.store)
    file = small.save(small.vae_state(small.vae_oracle()), tmp_path / "vae.safetensors")
    image = torch.rand(1, 64, 96, 3)
    encodings = []

    def encoded(patched=False, picture=image):
        """By a VAE of its own."""
        model = vae.load_vae(file)
        if patched:
            model.patcher.patches = {"encoder.conv_in.weight": []}
        monkeypatch.setattr(model, "encode", lambda pixels, encode=model.encode: encodings.append(1) or encode(pixels))
        return combine.encode(model, picture)

    want = encoded()
    assert torch.equal(encoded(), want) and len(encodings) == 1
    assert not torch.equal(encoded(picture=1 - image), want) and len(encodings) == 2
    assert torch.equal(encoded(patched=True), want) and len(encodings) == 3


def circular(model) -> None:
    """As nodes for seamless tiles do it: in place."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [layer.padding[0]] * 4


def test_a_vae_whose_layers_were_changed_is_neither_known_nor_kept(encoder, monkeypatch, tmp_path):
    combine, vae = inprocess.import_adapter("combine"), inprocess.import_adapter("vae")
    monkeypatch.setattr(combine, "store", encoder.store)
    file = small.save(small.vae_state(small.vae_oracle()), tmp_path / "vae.safetensors")
    image, entries = torch.rand(1, 64, 96, 3), encoder.store().entries
    changed = vae.load_vae(file)
    plain = combine.encode(changed, image)
    before = len(entries())
    circular(changed.first_stage_model)
    assert not torch.equal(combine.encode(changed, image), plain)
    assert len(entries()) == before and torch.equal(combine.encode(vae.load_vae(file), image), plain)


@torch.inference_mode()
def test_what_was_encoded_in_tiles_for_want_of_memory_is_not_kept_on_disk(encoder, monkeypatch, tmp_path):
    combine, vae = inprocess.import_adapter("combine"), inprocess.import_adapter("vae")
    monkeypatch.setattr(combine, "store", encoder.store)
    model = vae.load_vae(small.save(small.vae_state(small.vae_oracle()), tmp_path / "vae.safetensors"))
    encode = model.first_stage_model.encode

    def out_of_memory(pixels):
        if pixels.shape[-1] > 1024:
            raise torch.cuda.OutOfMemoryError("as a GPU says it")
        return encode(pixels)

    monkeypatch.setattr(model.first_stage_model, "encode", out_of_memory)
    setattr(model.first_stage_model, vae.LOADED, vae.structure(model.first_stage_model))
    combine.encode(model, torch.rand(1, 64, 1536, 3))
    assert not any("picture" in each.what for each in encoder.store().entries())
    combine.encode(model, torch.rand(1, 64, 96, 3))
    assert any("picture" in each.what for each in encoder.store().entries())


def test_place_and_size_of_the_store_and_its_switch(monkeypatch, tmp_path, caplog):
    module = inprocess.import_adapter("store")

    def made(**settings):
        for name in (module.PLACE, module.SIZE):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return module.store.__wrapped__().disk

    import folder_paths

    assert made().folder == Path(folder_paths.get_user_directory()) / "klein_store" and made().most == 4 * 2**30
    disk = made(KLEIN_STORE=str(tmp_path), KLEIN_STORE_GB="0.5")
    assert (disk.folder, disk.most) == (tmp_path, 2**29)
    assert made(KLEIN_STORE="off") is None
    for wrong in ("much", "-1", "nan", "inf"):
        caplog.clear()
        assert made(KLEIN_STORE_GB=wrong).most == 4 * 2**30 and "expected a number of gigabytes" in caplog.text
