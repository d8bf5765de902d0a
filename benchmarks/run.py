"""python3 dev.py bench : every measurement of the pack, one table. Medians of interleaved rounds, float32 on the CPU.

ratio: ours to what the row is held against (the faster of the peers for a step; the whole encoder; the bytes kept; four
steps without references).
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from tools import inprocess

from . import editing, encode, formats, full, known, load, preflight, references, serving, step
from .table import markdown

PARTS = ("step", "references", "encode", "load", "formats", "editing", "preflight", "known", "full", "serving")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)} (default: all)")
    options.add_argument("--rounds", type=int, default=5)
    options = options.parse_args()
    inprocess.import_adapter("flow")  # first: ComfyUI sets torch up
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if "load" in options.parts:
            rows += load.measure(folder)
        if "formats" in options.parts:
            rows += formats.measure(folder, min(options.rounds, 3))
        if "encode" in options.parts:
            rows += encode.measure(folder, options.rounds) + encode.sizes()
        if "step" in options.parts:
            rows += step.measure(folder, options.rounds)
        if "references" in options.parts:
            rows += references.measure(folder, min(options.rounds, 3))
        if "editing" in options.parts:
            rows += editing.measure(folder, min(options.rounds, 3))
        if "preflight" in options.parts:
            rows += preflight.measure(folder)
        if "known" in options.parts:
            rows += known.measure(folder / "known", min(options.rounds, 3))
        if "full" in options.parts:
            rows += full.measure(folder / "full")
        if "serving" in options.parts:
            rows += serving.measure(folder, options.rounds)
    import comfyui_version

    print(f"\n{options.rounds} rounds; {platform.machine()}, {torch.get_num_threads()} threads, float32 matmul "
          f"{step.matmul_rate(5) / 1e9:.0f} GFLOP/s; torch {torch.__version__}, diffusers {version('diffusers')}, "
          f"transformers {version('transformers')}, ComfyUI {comfyui_version.__version__}\n")  # fmt: skip
    print(markdown(rows))


if __name__ == "__main__":
    main()
