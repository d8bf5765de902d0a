"""Files that are wrong, broken or hostile: one short sentence in process, before or while tensors are read; and files that
look wrong and are right."""

import json
import os
import re
import time

import pytest
import torch
from safetensors import safe_open

from fixtures import bad_files
from klein.errors import LONGEST, KleinError
from klein.model_loaders.flow.load import load_flow, read_flow
from klein.model_loaders.qwen3.encoder import read_encoder
from klein.model_loaders.vae.load import read_vae
from tools import small

READ = {"flow": read_flow, "encoder": read_encoder, "vae": read_vae}
CASES = bad_files.bad_files()
FLOW = small.flow_state(hidden=64, heads=2, context=48, mlp=96, depth=1, single=1)
QKV = "double_blocks.0.img_attn.qkv"
PROJ = "double_blocks.0.img_attn.proj"  # a square matrix


def everything(file) -> dict:
    """All tensors of a file, as a loader would take them."""
    return dict((file.plan if hasattr(file, "plan") else file).tensors())


def refusal(role: str, path) -> str:
    started = time.monotonic()
    with pytest.raises(KleinError) as refused:
        everything(READ[role](path))
    assert time.monotonic() - started < 5
    text = str(refused.value)
    assert text.endswith(".") and "\n" not in text and len(text) <= LONGEST
    return text


def fp8(layer: str, **more) -> dict:
    """The flow with one fp8 layer and what lies beside it."""
    weight = FLOW[f"{layer}.weight"]
    scale = weight.abs().max() / 448
    return {**FLOW, f"{layer}.weight": (weight / scale).to(small.FP8), **{f"{layer}.{k}": v for k, v in more.items()}}


def marker(**settings) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, name):
    role, write, sentence = CASES[name]
    write(tmp_path / name)
    text = refusal(role, tmp_path / name)
    assert text == sentence or re.fullmatch(sentence, text), text


ONE = torch.tensor(0.01)
WRONG_WITHOUT_A_WORD = {
    "block-scaled fp8": (fp8(QKV, weight_scale_inv=torch.ones(2, 1)), "weight_scale_inv"),
    "int8 of bitsandbytes": ({**FLOW, f"{QKV}.weight": torch.ones(192, 64, dtype=torch.int8), f"{QKV}.SCB": torch.ones(192)}, "SCB"),
    "nf4 of bitsandbytes": (
        {**FLOW, f"{QKV}.weight.quant_state.bitsandbytes__nf4": torch.ones(4, dtype=torch.uint8)}, "quant_state.bitsandbytes__nf4",
    ),
    "SVDQuant": ({**FLOW, f"{QKV}.proj_down": torch.ones(64, 8)}, "proj_down"),
    "SDNQ": ({**FLOW, f"{QKV}.zero_point": torch.ones(64)}, "zero_point"),
    "a bias that klein does not have": ({**FLOW, f"{QKV}.bias": torch.ones(192)}, f"{QKV}.bias"),
    "scaled_fp8 without a scale": ({**fp8(QKV), "scaled_fp8": torch.zeros(2, dtype=small.FP8)}, f"lacks the scale of its fp8 layer {QKV}"),
    "an fp8 layer without a scale among others with one": (
        {**fp8(QKV, weight_scale=ONE), f"{PROJ}.weight": torch.ones(64, 64).to(small.FP8)}, f"lacks the scale of its fp8 layer {PROJ}",
    ),
    "one int8 layer with a scale": ({**FLOW, f"{QKV}.weight": torch.ones(192, 64, dtype=torch.int8), f"{QKV}.weight_scale": ONE}, "int8"),
    "an integer weight": ({**FLOW, "img_in.weight": torch.ones(64, 128, dtype=torch.int64)}, "int64"),
    "scales by row on a square matrix": (fp8(PROJ, weight_scale=torch.ones(64, 1)), "one floating-point number"),
    "scales by row in one dimension": (fp8(PROJ, weight_scale=torch.ones(64)), "one floating-point number"),
    "a scale in integers": (fp8(PROJ, weight_scale=torch.ones((), dtype=torch.int32)), "one floating-point number"),
    "a scale that is not a number": (fp8(PROJ, weight_scale=torch.tensor(float("nan"))), "expected a scale above 0"),
    "a scale of zero": (fp8(PROJ, weight_scale=torch.zeros(())), "expected a scale above 0"),
    "a format that is a list": (fp8(PROJ, weight_scale=ONE, comfy_quant=marker(format=["float8_e4m3fn"])), "holds ['float8_e4m3fn']"),
    "a format with a lone surrogate": (fp8(PROJ, weight_scale=ONE, comfy_quant=marker(format="\ud800")), r"holds \ud800 weights"),
    "a format that is missing": (fp8(PROJ, weight_scale=ONE, comfy_quant=marker(layers=1)), "holds None weights with layers"),
    "rotated weights": (fp8(PROJ, weight_scale=ONE, comfy_quant=marker(format="float8_e4m3fn", convrot=True)), "with convrot"),
    "a marker that is one huge number": (fp8(PROJ, weight_scale=ONE, comfy_quant=torch.tensor(10**12)), "bytes of JSON"),
    "a marker that is not JSON": (fp8(PROJ, weight_scale=ONE, comfy_quant=torch.tensor([1], dtype=torch.uint8)), "is not JSON"),
    "a marker of deep JSON": (fp8(PROJ, weight_scale=ONE, comfy_quant=torch.tensor([91] * 4000, dtype=torch.uint8)), "is not JSON"),
    "a marker on a plain weight": ({**FLOW, f"{PROJ}.comfy_quant": marker(format="float8_e4m3fn")}, "but stores it as float32"),
    "block ten million": ({**FLOW, "double_blocks.30000000.img_attn.qkv.weight": torch.ones(1)}, "double_blocks.30000000."),
    "a block number of 5000 digits": ({**FLOW, f"double_blocks.{'9' * 5000}.x.weight": torch.ones(1)}, "no klein model has"),
    "a block that is missing": ({**FLOW, "single_blocks.2.linear1.weight": torch.ones(1)}, "single_blocks.2.linear1.weight"),
    "no rank": ({**FLOW, "img_in.weight": torch.ones(())}, "img_in.weight"),
    "another rank": ({**FLOW, "img_in.weight": torch.ones(64, 128, 1)}, "expected 2 sides"),
    "no size": ({**FLOW, "img_in.weight": torch.ones(0, 128)}, "expected 2 sides above 0"),
    "an empty head": ({**FLOW, "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(0)}, "expected 1 sides above 0"),
    "an odd head": ({**FLOW, "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(4)}, "a multiple of 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_WITHOUT_A_WORD)
def test_a_weight_that_is_not_understood_is_refused_by_name(tmp_path, name):
    state, words = WRONG_WITHOUT_A_WORD[name]
    assert words in refusal("flow", small.save(state, tmp_path / "klein.safetensors"))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"layers": {PROJ: {}}}, "holds None weights"),
        ({"layers": [1]}, "cannot be read"),
        ({"layers": {PROJ: {"format": "int8_blockwise"}}}, "holds int8_blockwise weights"),
    ],
)
def test_a_header_that_does_not_name_a_known_format_is_refused(tmp_path, metadata, words):
    path = small.save(FLOW, tmp_path / "klein.safetensors", {"_quantization_metadata": json.dumps(metadata)})
    assert words in refusal("flow", path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"layers": ' + "9" * 5000 + "}", "\ud800".encode("utf-8", "replace").decode()]
)
def test_hostile_json_in_the_header_is_refused(tmp_path, text):
    assert "cannot be read" in refusal("flow", small.save(FLOW, tmp_path / "k.safetensors", {"_quantization_metadata": text}))


@pytest.mark.parametrize(
    "name",
    [
        "flux-3d-style-klein",
        "flux-30steps-klein",
        "flux-2-klein-9b-v3",
        "my-flux-3-steps-klein",
        "portrait_flux_3",
        "klein_flux3_9b",
    ],
)
def test_a_name_with_flux_and_3_in_it_is_no_flux_3(tmp_path, name):
    assert read_flow(small.save(FLOW, tmp_path / f"{name}.safetensors")).sizes.hidden_size == 64


@pytest.mark.parametrize("name", ["flux-3-klein", "FLUX.3-klein-9b", "flux3", "flux_3_dev", "flux-3.1-klein"])
def test_flux_3_is_known_by_its_name(tmp_path, name):
    assert "FLUX 3" in refusal("flow", small.save(FLOW, tmp_path / f"{name}.safetensors"))


@pytest.mark.parametrize("length", [66176, 3132, 19280])  # first bytes: a pickle's, a web page's, a zip archive's
def test_a_file_whose_first_bytes_look_foreign_and_are_its_headers_length_loads(tmp_path, length):
    path = small.save(FLOW, tmp_path / "plain.safetensors")
    data = path.read_bytes()
    (old,) = (int.from_bytes(data[:8], "little"),)
    header = data[8 : 8 + old].ljust(length)
    assert len(header) == length
    path.write_bytes(length.to_bytes(8, "little") + header + data[8 + old :])
    assert path.read_bytes()[:8] == length.to_bytes(8, "little")
    assert read_flow(path).sizes.depth == 1


def test_a_file_that_was_saved_anew_in_a_plain_dtype_keeps_its_old_header_and_loads(tmp_path):
    header = {"_quantization_metadata": json.dumps({"layers": {PROJ: {"format": "float8_e4m3fn"}}})}
    flow = load_flow(small.save(FLOW, tmp_path / "klein.safetensors", header))
    assert torch.equal(flow.double_blocks[0].img_attn.proj.weight, FLOW[f"{PROJ}.weight"])


def test_fp8_without_any_scale_is_a_plain_cast(tmp_path):
    state = {name: tensor.to(small.FP8) if tensor.ndim == 2 else tensor for name, tensor in FLOW.items()}
    flow = load_flow(small.save(state, tmp_path / "klein.safetensors"), dtype=torch.float32)
    assert torch.equal(flow.img_in.weight, state["img_in.weight"].float())


def test_a_file_that_changed_since_its_header_was_read_is_refused(tmp_path):
    file = read_flow(small.save(FLOW, tmp_path / "klein.safetensors"))
    small.save({name: tensor + 1 for name, tensor in FLOW.items()}, file.plan.checkpoint.path)
    with pytest.raises(KleinError, match=r"klein.safetensors has changed since its header was read: load it again\."):
        everything(file)


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is no regular file" in refusal("flow", tmp_path / "pipe.safetensors")


def test_a_name_that_is_too_long_to_open_is_refused(tmp_path):
    refusal("flow", tmp_path / ("x" * 5000))


@pytest.mark.parametrize("name", ["\udcff.safetensors", "null\0.safetensors"])
def test_a_file_name_that_is_not_utf_8_is_refused_in_a_line_that_can_be_logged(tmp_path, name):
    if "\0" not in name:
        os.write(
            os.open(os.fsencode(tmp_path / name), os.O_CREAT | os.O_WRONLY),
            small.save(FLOW, tmp_path / "a.safetensors").read_bytes(),
        )
    refusal("flow", tmp_path / name).encode()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "../outside.safetensors"}}, "expected files of its own folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "expected files of its own folder"),
        ({"weight_map": {"a": 5}}, "is not a safetensors index"),
        ({"weight_map": {"a": "\ud800"}}, r"lacks 1 of its 1 shards (first: \ud800)"),
        ({"weight_map": {}}, "none is named"),
        ([], "is not a safetensors index"),
    ],
)
def test_an_index_that_is_wrong_or_leads_elsewhere_is_refused(tmp_path, index, words):
    small.save(FLOW, tmp_path / "outside.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/model.safetensors.index.json").write_text(json.dumps(index))
    assert words in refusal("flow", tmp_path / "folder")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for name in ("a", "b"):
        small.save(FLOW, tmp_path / f"{name}.safetensors")
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"1": "a.safetensors", "2": "b.safetensors"}}))
    assert "expected it once" in refusal("flow", tmp_path)


@pytest.fixture(scope="module")
def vae():
    return small.vae_state(small.vae_oracle(widths=(32, 32, 32, 32)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {n: (t * 9).to(torch.int8) for n, t in s.items()}, "int8"),
        (lambda s: {**s, "encoder.down.0.block.10000.conv1.weight": torch.ones(1)}, "encoder.down.0.block.10000"),
        (lambda s: {**s, "decoder.conv_in.weight": torch.ones(())}, "decoder.conv_in.weight"),
        (lambda s: {**s, "decoder.conv_in.weight": torch.ones(32, 0, 3, 3)}, "expected 4 sides above 0"),
        (lambda s: {**s, "encoder.down.1.block.0.conv1.weight": torch.ones(48, 32, 3, 3)}, "is no FLUX.2 VAE"),
        (lambda s: {**s, "encoder.conv_out.weight": torch.ones(3, 3)}, "encoder.conv_out.weight"),
        (lambda s: {**s, "decoder.mid.attn_1.q.weight_scale": torch.ones(())}, "does not have"),
    ],
)
def test_a_vae_that_is_not_understood_is_refused_by_name(tmp_path, vae, change, words):
    assert words in refusal("vae", small.save(change(vae), tmp_path / "vae.safetensors"))


def test_a_vae_under_diffusers_names_has_the_same_tensors(tmp_path):
    oracle = small.vae_oracle(widths=(32, 32, 32, 32), decoder=(32, 64, 64, 64))
    oracle.save_pretrained(tmp_path / "folder")
    one = dict(read_vae(small.save(small.vae_state(oracle), tmp_path / "vae.safetensors")).tensors())
    other = dict(read_vae(tmp_path / "folder").tensors())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with safe_open(tmp_path / "vae.safetensors", "pt") as file:
        assert one.keys() == set(file.keys()) - {"bn.num_batches_tracked"}


ENCODER = dict(hidden=16, heads=2, kv_heads=1, head=8, mlp=24, layers=28, vocabulary=64)


@pytest.fixture(scope="module")
def encoder():
    return small.encoder_state(small.encoder_oracle(**ENCODER))


Q = "model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({f"{Q}.weight_scale_inv": torch.ones(1, 1)}, "weight_scale_inv"),
        ({f"{Q}.bias": torch.ones(16)}, f"{Q}.bias"),
        ({"model.layers.3.self_attn.strange.weight": torch.ones(16)}, "strange"),
        ({"model.embed_tokens.weight": torch.ones(())}, "embed_tokens"),
        ({"model.embed_tokens.weight": torch.ones(64, 16, dtype=torch.uint8)}, "uint8"),
        ({"model.layers.0.self_attn.q_norm.weight": torch.ones(0)}, "expected 1 sides above 0"),
        ({"model.layers.0.self_attn.q_norm.weight": torch.ones(7)}, "heads of 7"),
        ({"model.layers.0.self_attn.k_proj.weight": torch.ones(24, 16)}, "queries a multiple of keys"),
    ],
)
def test_an_encoder_that_is_not_understood_is_refused_by_name(tmp_path, encoder, more, words):
    assert words in refusal("encoder", small.save({**encoder, **more}, tmp_path / "qwen.safetensors"))


def test_an_encoder_may_hold_anything_above_the_layers_that_klein_reads(tmp_path, encoder):
    more = {"model.layers.27.self_attn.q_proj.weight_scale_inv": torch.ones(1), "lm_head.weight": torch.ones(64, 16)}
    file = read_encoder(small.save({**encoder, **more}, tmp_path / "qwen.safetensors"))
    assert file.sizes.layers == 27 and "lm_head.weight" in file.plan.unused
