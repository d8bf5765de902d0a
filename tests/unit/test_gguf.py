"""GGUF: numbers of every block type against ggml's and the package `gguf`'s; headers that are good, slow, broken, hostile."""

import random
import struct
import time

import gguf
import numpy as np
import pytest
import torch

from klein.errors import LONGEST, KleinError
from klein.model_loaders.flow.load import read_flow
from klein.model_loaders.formats.files import open_checkpoint
from klein.model_loaders.formats.table import CODECS
from klein.model_loaders.qwen3.encoder import read_encoder
from tools import small, small_gguf

FLOW = small.flow_state(hidden=64, heads=2, context=64, mlp=96, depth=1, single=1)
MATRIX = "single_blocks.0.linear1.weight"  # (384, 64)


@pytest.fixture(scope="module")
def encoder():
    sizes = dict(hidden=32, heads=2, kv_heads=1, head=16, mlp=64, layers=28, vocabulary=64)
    return small.encoder_state(small.encoder_oracle(**sizes))


def rounded(state: dict, kind: str) -> dict:
    """A model with its matrices rounded by the package `gguf`."""
    made = {}
    for name, weight in state.items():
        made[name] = weight
        if weight.ndim == 2:
            made[name] = (kind, gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind]))
    return made


def llama_cpp(state: dict) -> dict:
    """Qwen3's tensors under the names of llama.cpp, by the package's own table."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 28)
    return {names.get_name(name, try_suffixes=(".weight",)): tensor for name, tensor in state.items()}


def refusal(path, read=read_flow) -> str:
    started = time.monotonic()
    with pytest.raises(KleinError) as refused:
        dict(read(path).plan.tensors())
    assert time.monotonic() - started < 5
    text = str(refused.value)
    assert text.endswith(".") and "\n" not in text and len(text) <= LONGEST
    return text


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_plan_counts_the_bytes_that_are_kept(tmp_path, kind):
    plan = read_flow(small_gguf.write(rounded(FLOW, kind), tmp_path / "klein.gguf")).plan
    assert plan.nbytes == sum(tensor.nbytes for _, tensor in plan.tensors())


@pytest.mark.parametrize("kind", small_gguf.KINDS)
def test_each_block_type_has_the_very_numbers_of_the_reference(kind):
    codec = CODECS[kind]
    rows = np.random.default_rng(1).integers(0, 256, (48, codec.row(1024)), dtype=np.uint8)  # with not-a-numbers too
    with np.errstate(invalid="ignore"):
        want = small_gguf.dense(rows, kind)
    assert torch.equal(codec.dense(torch.from_numpy(rows), torch.float32).nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(codec.dense(torch.from_numpy(rows[5:9]), torch.float32).nan_to_num(7), want[5:9].nan_to_num(7))


@pytest.mark.parametrize("kind", small_gguf.KINDS)
def test_each_block_type_has_the_very_numbers_that_ggml_reads_from_its_own(kind):
    blocks, numbers = small_gguf.ggml_blocks(kind)
    assert torch.equal(CODECS[kind].dense(torch.from_numpy(blocks[:2]), torch.float32), torch.from_numpy(numbers))


def test_a_matrix_that_is_made_dense_in_several_goes_is_the_same(monkeypatch):
    rows = torch.from_numpy(small_gguf.packed("Q4_K", (40, 512), seed=3))
    want = CODECS["Q4_K"].dense(rows, torch.float32)
    monkeypatch.setattr("klein.model_loaders.formats.table.AT_ONCE", 700)
    assert torch.equal(CODECS["Q4_K"].dense(rows, torch.float32), want)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flow_is_read_as_it_lies_in_the_mapped_file(tmp_path, prefix):
    path = small_gguf.write({f"{prefix}{name}": t for name, t in rounded(FLOW, "Q8_0").items()}, tmp_path / "klein.gguf")
    file = read_flow(path)
    assert file.sizes.hidden_size == 64 and {codec.name for codec in file.plan.quantised.values()} == {"Q8_0"}
    read = dict(file.plan.tensors())
    for name, tensor in rounded(FLOW, "Q8_0").items():
        got = read[name.replace(".scale", ".weight")]
        assert torch.equal(got, torch.from_numpy(tensor[1]) if isinstance(tensor, tuple) else tensor)
        assert got.untyped_storage().nbytes() == path.stat().st_size  # a view of the file, no copy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_types_are_plain_weights(tmp_path, dtype):
    state = {name: weight.to(dtype) if weight.ndim == 2 else weight for name, weight in FLOW.items()}
    file = read_flow(small_gguf.write(state, tmp_path / "klein.gguf"))
    assert file.dtype == dtype and not file.plan.quantised
    assert torch.equal(dict(file.plan.tensors())[MATRIX], state[MATRIX])


def test_an_encoder_has_llama_cpps_names(tmp_path, encoder):
    """The table is checked against the package's own."""
    file = read_encoder(small_gguf.write(llama_cpp(encoder), tmp_path / "qwen.gguf", "qwen3"))
    read = dict(file.plan.tensors())
    assert len(read) == 27 * 11 + 1 and file.sizes.vocabulary == 64
    assert all(torch.equal(tensor, encoder[f"model.{name}"]) for name, tensor in read.items())
    assert {name for name in file.plan.unused if not name.startswith("layers.27.")} == {"norm.weight"}


@pytest.mark.parametrize(
    ("architecture", "more", "words"),
    [
        ("qwen3vl", {}, "is a vision-language model"),
        ("qwen2", {"blk.0.attn_q.bias": torch.ones(32)}, "Qwen2.5 text encoder"),
        ("llama", {}, "Mistral or Llama"),
    ],
)
def test_another_text_model_is_named(tmp_path, encoder, architecture, more, words):
    state = {**llama_cpp(encoder), **more}
    if architecture != "qwen3vl":
        state = {name: tensor for name, tensor in state.items() if "_norm.weight" not in name or "attn_q" not in name}
    assert words in refusal(small_gguf.write(state, tmp_path / "text.gguf", architecture), read_encoder)


def test_a_header_with_qwens_vocabulary_is_read_in_a_moment(tmp_path):
    """300 thousand words and merges; the package's own reader takes above ten seconds."""
    path = small_gguf.write(FLOW, tmp_path / "klein.gguf", vocabulary=151_936)
    assert path.stat().st_size > 4_000_000
    started = time.monotonic()
    checkpoint = open_checkpoint(path)
    assert time.monotonic() - started < 1  # 0.1 s on a quiet machine
    assert torch.equal(checkpoint[MATRIX], FLOW[MATRIX])


def test_rows_that_were_saved_by_a_host_say_what_they_are(tmp_path):
    """As our layers are saved: bytes, and the codec beside them."""
    rows = torch.from_numpy(rounded(FLOW, "Q4_0")[MATRIX][1])
    marker = torch.tensor(list(b'{"format": "Q4_0"}'), dtype=torch.uint8)
    state = {**FLOW, MATRIX: rows, MATRIX.replace("weight", "comfy_quant"): marker}
    plan = read_flow(small.save(state, tmp_path / "saved.safetensors")).plan
    assert plan.quantised == {MATRIX.removesuffix(".weight"): CODECS["Q4_0"]} and plan.shapes[MATRIX] == (384, 64)
    assert torch.equal(dict(plan.tensors())[MATRIX], rows)
    del state[MATRIX.replace("weight", "comfy_quant")]
    assert "as uint8 and does not say how" in refusal(small.save(state, tmp_path / "saved.safetensors"))


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(pairs: bytes = b"", tensors: bytes = b"", version=3, count=None, pair_count=None) -> bytes:
    count = (1 if tensors else 0) if count is None else count
    pair_count = (1 if pairs else 0) if pair_count is None else pair_count
    return b"GGUF" + struct.pack("<IQQ", version, count, pair_count) + pairs + tensors + bytes(64)


def tensor(name=b"a", shape=(32,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "nothing but its name": (b"GGUF", "ends within its header"),
    "an old version": (header(version=1), "of GGUF version 1, expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "of GGUF version 50331648"),
    "more tensors than bytes": (header(count=2**60), "says that it has 1152921504606846976 tensors"),
    "more pairs than bytes": (header(pair_count=2**63), "says that it has 9223372036854775808 pairs"),
    "a key without end": (header(struct.pack("<Q", 2**62)), "gives a key 4611686018427387904 bytes"),
    "a text without end": (header(text(b"k") + struct.pack("<IQ", 8, 2**62)), "ends within its header"),
    "an array without end": (header(text(b"k") + struct.pack("<IIQ", 9, 6, 2**62)), "ends within its header"),
    "an array of texts without end": (header(text(b"k") + struct.pack("<IIQ", 9, 8, 2**62)), "ends within its header"),
    "arrays in arrays": (header(text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "arrays of type 9"),
    "a strange type": (header(text(b"k") + struct.pack("<I", 77)), "metadata of type 77"),
    "no alignment": (header(text(b"general.alignment") + struct.pack("<II", 4, 0)), "aligns tensors to 0 bytes"),
    "an odd alignment": (header(text(b"general.alignment") + struct.pack("<II", 4, 12)), "aligns tensors to 12 bytes"),
    "no dimensions": (header(tensors=tensor(shape=())), "gives a 0 dimensions"),
    "nine dimensions": (header(tensors=tensor(shape=(1,) * 9)), "gives a 9 dimensions"),
    "a type that klein does not read": (header(tensors=tensor(kind=19)), "stores a as ggml type 19, expected one of F32, F16"),
    "rows that are no blocks": (header(tensors=tensor(shape=(33,), kind=8)), "rows of a multiple of 32 numbers"),
    "an empty side": (header(tensors=tensor(shape=(32, 0))), r"gives a shape [0, 32]"),
    "a huge shape": (header(tensors=tensor(shape=(2**62, 2**62))), "ends before its tensor a does"),
    "an offset elsewhere": (header(tensors=tensor(offset=2**40)), "puts a at byte 1099511627776, expected 0"),
    "two of a name": (header(tensors=tensor(shape=(1,)) + tensor(shape=(1,), offset=32), count=2), "has a twice"),
    "a name in no alphabet": (header(tensors=tensor(b"\xff\n\x00", shape=(1,))), "is an unknown model"),
    "nothing": (header(), "holds no tensors"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_in_one_sentence(tmp_path, case):
    data, words = HOSTILE[case]
    (tmp_path / "klein.gguf").write_bytes(data)
    assert words in refusal(tmp_path / "klein.gguf")


def test_a_header_of_a_gigabyte_of_texts_is_refused_at_once(tmp_path):
    with (tmp_path / "klein.gguf").open("wb") as stream:
        stream.write(header(text(b"k") + struct.pack("<IIQ", 9, 8, 2**40)))
        stream.truncate(2**30)  # empty texts, one after the other
    assert "has a header of more than" in refusal(tmp_path / "klein.gguf")


def test_a_norm_in_blocks_is_refused_by_name(tmp_path):
    rows = gguf.quants.quantize(np.ones((1, 32), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)[0]
    name = "single_blocks.0.norm.query_norm.scale"
    assert "its Q8_0 weight single_blocks.0.norm.query_norm.scale" in refusal(
        small_gguf.write({**FLOW, name: ("Q8_0", rows)}, tmp_path / "klein.gguf")
    )


def test_a_packed_weight_with_a_scale_beside_it_is_refused_by_name(tmp_path):
    state = {**rounded(FLOW, "Q8_0"), "single_blocks.0.linear1.weight_scale": torch.ones(1)}
    assert "has single_blocks.0.linear1.weight_scale beside its Q8_0 weight" in refusal(
        small_gguf.write(state, tmp_path / "klein.gguf")
    )


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_truncated_data_is_refused(tmp_path, cut):
    path = small_gguf.write(rounded(FLOW, "Q8_0"), tmp_path / "klein.gguf")
    path.write_bytes(path.read_bytes()[: -cut - 64])
    assert "ends before its tensor" in refusal(path)


ROUNDS = [100, pytest.param(1500, marks=pytest.mark.long)]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("role", ["flow", "encoder"])
def test_a_damaged_header_is_refused_or_is_the_same_model(tmp_path, encoder, role, rounds):
    """One to three bytes changed, or the file cut short. What no reader can know is left out: a type that was exchanged for
    another of the same size."""
    state, read = (rounded(FLOW, "Q4_1"), read_flow) if role == "flow" else (llama_cpp(encoder), read_encoder)
    path = small_gguf.write(state, tmp_path / "good.gguf", vocabulary=20)
    want = dict(read(path).plan.tensors())
    checkpoint, whole = open_checkpoint(path), path.read_bytes()
    end = len(whole) - sum(checkpoint[name].nbytes for name in checkpoint.shapes)
    outcomes = {"refused": 0, "loaded": 0}
    for seed in range(rounds):
        rng = random.Random(f"{role} {seed}")
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(end)] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
        if seed % 5 == 0:
            damaged = damaged[: rng.randrange(len(damaged))]
        (tmp_path / "bad.gguf").write_bytes(damaged)
        started = time.monotonic()
        try:
            got = dict(read(tmp_path / "bad.gguf").plan.tensors())
        except KleinError as error:
            outcomes["refused"] += 1
            assert str(error).endswith(".") and len(str(error)) <= LONGEST and str(error).isprintable(), seed
        else:
            outcomes["loaded"] += 1
            assert seed % 5 and got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want), seed
        assert time.monotonic() - started < 5, seed
    assert min(outcomes.values()) > 0, outcomes
