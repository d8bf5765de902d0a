"""Loading a 2 GB flow file and making one step with it: the peak of anonymous memory (what is not mapped from the file)
in a child process, against the bytes of the parameters it then keeps. Linux only."""

from __future__ import annotations

import select
import subprocess
import sys

import torch

from tools import inprocess, small
from tools.server import anonymous_bytes

from .table import Row

SIZES = dict(hidden=2048, heads=16, context=3072, mlp=6144, depth=1, single=15)
CASES = {"kept in bf16, as the file": "default", "kept in fp32": "fp32", "rounded to fp8": "fp8_e4m3fn"}


def measure(folder) -> list[Row]:
    state = {name: tensor.bfloat16() for name, tensor in small.flow_state(**SIZES).items()}
    path = small.save(state, folder / "flow.safetensors")
    del state
    rows = []
    for name, dtype in CASES.items():
        loading, stepping, kept = peaks_of(path, dtype)
        what = f"load {path.stat().st_size / 1e9:.2f} GB, {name} ({kept / 1e9:.2f} GB)"
        rows.append(Row(f"{what}: peak over baseline", loading / 1e9, loading / kept, "at most 1.10", "GB"))
        rows.append(Row(f"{what}: peak of the first step", stepping / 1e9, stepping / kept, unit="GB"))
    return rows


def peaks_of(path, dtype: str) -> tuple[int, int, int]:
    """Peak anonymous bytes over the child's baseline while loading and in the first step; bytes of its parameters."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", path, dtype], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        child.stdout.readline()
        baseline = anonymous_bytes(child.pid)

        def peak() -> int:
            """While the child does what the next line lets it do."""
            highest = baseline
            child.stdin.write("go\n")
            child.stdin.flush()
            while not select.select([child.stdout], [], [], 0.005)[0]:
                highest = max(highest, anonymous_bytes(child.pid))
            return highest - baseline

        loading = peak()
        kept = int(child.stdout.readline())
        return loading, peak(), kept


@torch.no_grad()
def child(path: str, dtype: str) -> None:
    load_model = inprocess.import_adapter("flow").load_model
    x, text, t = torch.randn(1, 128, 4, 4), torch.randn(1, 16, SIZES["context"]), torch.tensor([0.7])
    print("ready", flush=True)
    sys.stdin.readline()
    flow = load_model(path, dtype).model.diffusion_model
    print(sum(stored(p) for p in flow.parameters()), flush=True)
    sys.stdin.readline()
    flow(x, t, text)
    print("done", flush=True)


def stored(weight) -> int:
    data = getattr(weight, "_qdata", weight)  # the host's fp8 weights keep their bytes there
    return data.numel() * data.element_size()


if __name__ == "__main__":
    child(*sys.argv[1:])
