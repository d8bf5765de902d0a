"""Seeded damage to good files: each ends in one short sentence or in the very model that was saved."""

import json
import random
import time

import pytest
import torch
from safetensors.torch import load_file

from klein.errors import LONGEST, KleinError
from klein.model_loaders.flow.load import read_flow
from klein.model_loaders.qwen3.encoder import read_encoder
from klein.model_loaders.vae.load import read_vae
from tools import small

READ = {"flow": read_flow, "encoder": read_encoder, "vae": read_vae}
REFUSED, SAME, EITHER = "refused", "the same model", "refused, or the same model"
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
STRANGE = (
    "weight_scale_inv",
    "SCB",
    "zero_point",
    "bias",
    "proj_down",
    "weight.absmax",
    "lora",
    "weight_scale_2",
    "scales",
    "é\n",
)
VALUES = ("\ud800", [], {}, None, True, -1, 1e308, "float8_e4m3fn", "int8_tensorwise", "x" * 5000, [[[[]]]], {"format": []})


def bases() -> dict[str, tuple[str, dict, dict]]:
    """name -> (role, tensors of a file, metadata)."""
    flow = small.flow_state(hidden=64, heads=2, context=48, mlp=96, depth=1, single=1)
    encoder = small.encoder_state(
        small.encoder_oracle(hidden=16, heads=2, kv_heads=1, head=8, mlp=24, layers=28, vocabulary=64)
    )
    files = {
        "flow": ("flow", flow, {}),
        "encoder": ("encoder", encoder, {}),
        "vae": ("vae", small.vae_state(small.vae_oracle(widths=(32, 32, 32, 32))), {}),
    }
    for scheme in ("metadata", "comfy_quant", "scaled_fp8"):
        files[f"flow in fp8, {scheme}"] = ("flow", *small.fp8_state(flow, scheme)[:2])
    return files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return {
        name: (
            role,
            state,
            metadata,
            tensors(role, small.save(state, tmp_path_factory.mktemp("good") / "file.safetensors", metadata)),
        )
        for name, (role, state, metadata) in bases().items()
    }


def tensors(role: str, path) -> dict:
    file = READ[role](path)
    return dict((file.plan if hasattr(file, "plan") else file).tensors())


def used(role: str, state: dict, rng) -> str:
    """A tensor that a loader reads."""
    above = ("model.layers.27.", "model.norm", "bn.num_batches", "scaled_fp8")
    return rng.choice([name for name in state if not name.startswith(above)])


def dropped(rng, role, state, metadata):
    name = used(role, state, rng)
    optional = name.endswith("comfy_quant")  # without it the scale beside the weight still speaks
    return {n: t for n, t in state.items() if n != name}, metadata, SAME if optional else REFUSED


def integers(rng, role, state, metadata):
    name = used(role, state, rng)
    dtype = rng.choice([d for d in INTEGERS if d != state[name].dtype])
    return {**state, name: torch.ones(state[name].shape, dtype=dtype)}, metadata, REFUSED


def reshaped(rng, role, state, metadata):
    name = used(role, state, rng)
    shape = list(state[name].shape)
    if name == "txt_in.weight" or not shape:  # any width of the text is a model; a scale in one dimension is a scale
        return state, metadata, SAME
    side = rng.randrange(len(shape))
    shape = rng.choice([[], [*shape, 1], [0, *shape[1:]], [*shape[:side], shape[side] + 8, *shape[side + 1 :]]])
    return {**state, name: torch.ones(shape).to(state[name].dtype)}, metadata, REFUSED


def beside(rng, role, state, metadata):
    name = used(role, {n: t for n, t in state.items() if n.endswith(".weight")}, rng)
    extra = f"{name.removesuffix('.weight')}.{rng.choice(STRANGE)}"
    return state if extra in state else {**state, extra: torch.ones(2)}, metadata, SAME if extra in state else REFUSED


def elsewhere(rng, role, state, metadata):
    letters = "abc.019é\n\x00{}\"'/\\画"
    extra = "".join(rng.choice(letters) for _ in range(rng.randrange(1, 60)))
    if rng.random() < 0.5:
        stack = {"flow": "double_blocks", "encoder": "model.layers", "vae": "encoder.down"}[role]
        extra = f"{stack}.{rng.choice([-1, 10**6, 3 * 10**7, 10**40, '01', 28])}.{extra}"
    return {**state, extra: torch.ones(2)}, metadata, EITHER if role == "encoder" else REFUSED


def scales(rng, role, state, metadata):
    names = [name for name in state if "scale" in name.rpartition(".")[2] and state[name].numel() == 1]
    if not names:
        return state, metadata, SAME
    bad = torch.tensor([rng.choice([0.0, -1.0, float("nan"), float("inf")])])
    bad = rng.choice([bad, torch.ones(2), torch.ones(0), torch.ones(64, 1), torch.ones((), dtype=torch.int64)])
    return {**state, rng.choice(names): bad}, metadata, REFUSED


def header(rng, role, state, metadata):
    value = rng.choice(VALUES)
    layer = used(role, state, rng).rpartition(".")[0]
    whole = rng.choice([value, {"layers": value}, {"layers": {layer: value}}, {"layers": {layer: {"format": value}}}])
    text = json.dumps(whole).replace("Infinity", "1e999")
    if rng.random() < 0.2:
        text = text[: rng.randrange(len(text))]
    return state, {**metadata, "_quantization_metadata": text}, EITHER


def markers(rng, role, state, metadata):
    layer = used(role, state, rng).rpartition(".")[0]
    text = json.dumps(rng.choice([rng.choice(VALUES), {"format": rng.choice(VALUES)}, {rng.choice("abc"): 1}])).encode()
    made = torch.tensor(list(text), dtype=torch.uint8)
    made = rng.choice([made, made[: len(made) // 2], torch.tensor(2**60), made[None], torch.rand(3)])
    return {**state, f"{layer}.comfy_quant": made}, metadata, EITHER


KINDS = [dropped, integers, reshaped, beside, elsewhere, scales, header, markers]
ROUNDS = [10, pytest.param(40, marks=pytest.mark.long)]  # of each kind on each file


def check(role: str, path, want: dict, expected: str, what: str) -> None:
    started = time.monotonic()
    try:
        got = tensors(role, path)
    except KleinError as error:
        text = str(error)
        assert expected != SAME, f"{what}: {text}"
        assert text.endswith(".") and len(text) <= LONGEST and text.isprintable(), f"{what}: {text}"
        text.encode()
    else:
        assert expected != REFUSED, f"{what} was loaded"
        assert got.keys() == want.keys() and all(same(got[n], want[n]) for n in want), f"{what} became another model"
    assert time.monotonic() - started < 5, f"{what} took {time.monotonic() - started:.0f} s"


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_refused_or_is_the_same_model(good, tmp_path, kind, rounds):
    for name, (role, state, metadata, want) in good.items():
        for seed in range(rounds):
            rng = random.Random(f"{kind.__name__} {name} {seed}")
            damaged, more, expected = kind(rng, role, state, metadata)
            path = small.save(damaged, tmp_path / "model.safetensors", more)
            check(role, path, want, expected, f"{name}, {kind.__name__} {seed}")


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_file_with_damaged_bytes_is_refused_or_is_the_same_model(good, tmp_path, rounds):
    """Cut short, or one byte of its header changed."""
    for name, (role, state, metadata, want) in good.items():
        path = small.save(state, tmp_path / "model.safetensors", metadata)
        whole = path.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        for seed in range(2 * rounds):
            rng = random.Random(f"{name} {seed}")
            damaged = bytearray(whole)
            if seed % 2:
                damaged = damaged[: rng.randrange(len(damaged))]
            else:
                damaged[rng.randrange(end)] = rng.randrange(256)
            path.write_bytes(damaged)
            check(role, path, want, REFUSED if seed % 2 else EITHER, f"{name}, bytes {seed}")


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_folder_with_a_damaged_index_is_refused_or_is_the_same_model(good, tmp_path, rounds):
    role, state, _, want = good["flow"]
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = small.save({name: state[name] for name in part}, tmp_path / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, file.name)
    index = tmp_path / "model.safetensors.index.json"
    for seed in range(5 * rounds):
        rng = random.Random(seed)
        damaged, key = dict(weight_map), rng.choice(names)
        damaged[key] = rng.choice([*VALUES, "", ".", "..", "../x", "/", "gone", weight_map[key], "model-0.safetensors\0"])
        text = json.dumps(rng.choice([{"weight_map": damaged}, damaged, [damaged], {"weight_map": rng.choice(VALUES)}]))
        index.write_text(text if rng.random() < 0.7 else text[: rng.randrange(len(text))])
        check(role, tmp_path, want, EITHER, f"index {seed}")


def test_the_undamaged_files_load_as_they_were_saved(good, tmp_path):
    for name, (role, state, metadata, want) in good.items():
        path = small.save(state, tmp_path / "model.safetensors", metadata)
        check(role, path, want, SAME, name)
        assert len(want) >= len([n for n in load_file(path) if n.startswith("single_blocks.") and n.endswith(".weight")])
