"""Mutated LoRA files: one sentence, or the right deltas of all that was not touched. No crash, no silent garbage."""

import json
import random
import time

import pytest
import torch

from fixtures.lora import SIZES, merged, shapes, written
from klein.errors import KleinError
from klein.model_loaders.formats.lora import read_lora
from tools import small

ROUNDS = 200
DTYPES = [torch.int8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.uint8, small.FP8]
VALUES = [0, 1, -1, 1e30, "x", None, [], {}, True, float("nan"), 10**400]
STATE = small.flow_state(seed=1, **SIZES)


def spoil(tensors: dict, metadata: dict, draw: random.Random) -> set[str]:
    """Change a file in one way; returns the names of what was touched."""
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    kind = draw.choice(["drop", "rename", "dtype", "shape", "value", "copy", "settings", "more"])
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        cut = draw.randrange(1, len(name))
        tensors[draw.choice([name[:cut], name[cut:], name[:cut] + draw.choice("._x0\n\ud7ff") + name[cut:]])] = tensors.pop(
            name
        )
    elif kind == "dtype":
        tensors[name] = tensor.to(draw.choice(DTYPES))
    elif kind == "shape":
        flat = tensor.flatten()
        tensors[name] = draw.choice(
            [flat, tensor[None], tensor[..., None, None], flat[:0], flat[:1].reshape(()), torch.cat([tensor[None]] * 2)]
        )
    elif kind == "value":
        tensors[name] = torch.full_like(tensor, draw.choice([torch.nan, torch.inf, 1e38, -1e38]))
    elif kind == "copy":
        other = draw.choice(sorted(tensors))
        tensors[name] = tensors[other].clone()
    elif kind == "settings":
        key = draw.choice(["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"])
        metadata["lora_adapter_metadata"] = draw.choice(
            [json.dumps({f"transformer.{key}": draw.choice(VALUES)}), "[", "3", "[" * 9999]
        )
    else:
        end = draw.choice(["lora_mid.weight", "bias", "oft_blocks", "weight", "dora_scale", "lokr_w1", "diff", "lora_up.bias"])
        tensors[f"{name.partition('.')[0]}.{end}"] = torch.ones(draw.choice([(1,), (4, 4), (64, 1), (1, 64)]))
    return {name}


@pytest.mark.parametrize("naming", ["kohya", "ai-toolkit", "SimpleTuner"])
def test_a_mutated_file_is_refused_in_a_line_or_right_where_it_was_not_touched(tmp_path, naming):
    clean, _ = written(naming, STATE)
    whole = read_lora(small.save(clean, tmp_path / "clean.safetensors"), shapes(STATE))
    want = merged(STATE, whole)
    layer_of = {name: f"{module.target.layer}.weight" for module in whole.modules for name in module.names}
    refused = 0
    for seed in range(ROUNDS):
        draw = random.Random(seed)
        tensors, metadata = dict(clean), {}
        touched = set().union(*(spoil(tensors, metadata, draw) for _ in range(draw.choice([1, 1, 2]))))
        path = small.save(tensors, tmp_path / f"{seed}.safetensors", metadata)
        try:
            lora = read_lora(path, shapes(STATE))
        except KleinError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
            continue
        finally:
            path.unlink()
        assert lora.keys == len(tensors)
        got = merged(STATE, lora)
        differ = {name for name in want if not torch.equal(got[name], want[name])}
        new = {f"{module.target.layer}.weight" for module in lora.modules if set(module.names) - clean.keys()}
        if not metadata:  # its alpha would be that of all
            assert differ <= new | {layer_of[name] for name in touched & layer_of.keys()}, seed
    assert 0.2 * ROUNDS < refused < 0.9 * ROUNDS


def test_endless_names_take_no_time(tmp_path):
    good, _ = written("kohya", STATE)
    names = ["te_" * 100_000 + "x.alpha", "a.alpha" * 50_000, "lora_" * 100_000 + "lora_A.weight", "." * 100_000]
    path = small.save({**good, **{name: torch.ones(1) for name in names}}, tmp_path / "long.safetensors")
    start = time.monotonic()
    lora = read_lora(path, shapes(STATE))
    assert time.monotonic() - start < 2 and set(lora.unmatched) == set(names)
