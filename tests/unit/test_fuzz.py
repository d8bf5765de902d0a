"""Seeded damage to good files: each ends in one short sentence or in the very model that was saved."""

import json
import random

import pytest
from safetensors.torch import load_file

from fixtures.damage import EITHER, KINDS, REFUSED, SAME, VALUES, check, check_each, tensors
from tools import small

ROUNDS = [10, pytest.param(40, marks=pytest.mark.long)]  # of each kind on each file


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


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_refused_or_is_the_same_model(good, tmp_path, kind, rounds):
    check_each(good, kind, rounds, tmp_path)


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
