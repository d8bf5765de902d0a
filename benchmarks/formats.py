"""One step of a flow in each format against the same model dense, and how long a file takes from its name to a MODEL; a
GGUF header with Qwen3's vocabulary in our reader and in the package `gguf`'s. float32 on a CPU."""

from __future__ import annotations

import logging
import time
from functools import partial

import gguf
import torch

from klein.model_loaders.formats.files import open_checkpoint
from tools import inprocess, small, small_gguf, small_scaled
from tools.small import blocks

from .table import Row, interleaved

SIZES = dict(hidden=1536, heads=12, context=2304, mlp=4608, depth=1, single=3)
TEXT, CANVAS = 512, (16, 16)
VOCABULARY = 151_936


@torch.no_grad()
def measure(folder, rounds: int) -> list[Row]:
    load = inprocess.import_adapter("flow").load_model
    state = small.flow_state(**SIZES)
    files = {"dense": small.save(state, folder / "flow.safetensors")}
    tensors, metadata, _ = small.fp8_state(state, "metadata")
    files["fp8"] = small.save(tensors, folder / "fp8.safetensors", metadata)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    for kind in small_gguf.KINDS:
        files[kind] = small_gguf.write(small_gguf.state_of(state, kind, blocks)[0], folder / f"{kind}.gguf")
    for form in small_scaled.FORMATS:
        files[form] = small.save(small_scaled.state_of(state, form, blocks)[0], folder / f"{form}.safetensors")
    rows, models = [], {}
    for name, path in files.items():
        started = time.perf_counter()
        models[name] = load(path).model.diffusion_model
        rows.append(Row(f"load {path.stat().st_size / 1e6:.0f} MB, {name}", time.perf_counter() - started))
    x, text, t = torch.randn(1, 128, *CANVAS), torch.randn(1, TEXT, SIZES["context"]), torch.tensor([0.7])
    times = interleaved({name: partial(model, x, t, text) for name, model in models.items()}, rounds)
    rows += [Row(f"step of {TEXT} + 256 tokens, {name}", seconds, seconds / times["dense"]) for name, seconds in times.items()]
    return rows + header(folder)


def header(folder) -> list[Row]:
    flow = small.flow_state(hidden=64, heads=2, context=64, mlp=96, depth=1, single=1)
    path = small_gguf.write(flow, folder / "vocabulary.gguf", vocabulary=VOCABULARY)
    seconds = {}
    for name, read in {"ours": open_checkpoint, "the package gguf": gguf.GGUFReader}.items():
        started = time.perf_counter()
        read(path)
        seconds[name] = time.perf_counter() - started
    return [
        Row("GGUF header with 151,936 words and merges: ours", seconds["ours"], seconds["ours"] / 0.1, "0.1 s wanted"),
        Row("GGUF header: the package gguf", seconds["the package gguf"]),
    ]
