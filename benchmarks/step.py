"""One step of the flow transformer: ours, diffusers', and ComfyUI's own FLUX.2 class, same weights, float32, SDPA; and ours
compiled, as core's Torch Compile Model does, held against ours as it is. Beside each median the fastest and slowest."""

from __future__ import annotations

import statistics
from functools import partial

import torch

from tools import inprocess, small

from .table import Row, interleaved, timed

SIZES = dict(hidden=1536, heads=12, context=2304, mlp=4608, depth=2, single=6)
TEXT, CANVAS, REFERENCES = 512, (32, 32), {"no references": [], "2048 reference tokens": [(32, 32), (32, 32)]}


@torch.no_grad()
def measure(folder, rounds: int) -> list[Row]:
    state = small.flow_state(**SIZES)
    ours = inprocess.hosted_flow(small.save(state, folder / "flow.safetensors"))
    hosts = inprocess.host_flux(state, SIZES["heads"], SIZES["context"])
    oracle = small.flow_oracle(state, SIZES["heads"])
    compiled = torch.compile(ours)
    x, text = torch.randn(1, 128, *CANVAS), torch.randn(1, TEXT, SIZES["context"])
    t = torch.tensor([0.7])
    rows = []
    for name, boxes in REFERENCES.items():
        latents = [torch.randn(1, 128, *box) for box in boxes]
        runs = {
            "ours": partial(ours, x, t, text, ref_latents=latents),
            "diffusers": partial(small.velocity, oracle, x, t, text, latents),
            "ComfyUI's class": partial(hosts, x, t, text, ref_latents=latents),
            "ours, compiled by inductor": partial(compiled, x, t, text, ref_latents=latents),
            "ComfyUI's class, its default CPU attention": partial(with_default_attention, hosts, x, t, text, latents),
        }
        times = timed(runs, rounds)
        median = {run: statistics.median(seconds) for run, seconds in times.items()}
        against = {
            "ours": (min(median["diffusers"], median["ComfyUI's class"]), "at most 1.00"),
            "ours, compiled by inductor": (median["ours"], ""),
        }
        for run, seconds in times.items():
            other, bound = against.get(run, (None, ""))
            spread = f"s ({min(seconds):.4g} to {max(seconds):.4g})"
            rows.append(Row(f"step, {name}: {run}", median[run], median[run] / other if other else None, bound, spread))
    return rows


def with_default_attention(model, x, t, text, latents):
    """What `--cpu` alone takes: the sub-quadratic kernel."""
    from comfy.ldm.modules.attention import attention_sub_quad

    def override(chosen, *args, **kwargs):
        return attention_sub_quad(*args, **kwargs)

    return model(x, t, text, ref_latents=latents, transformer_options={"optimized_attention_override": override})


def matmul_rate(rounds: int) -> float:
    """float32 floating-point operations a second of this machine, on the shape of a single block's first matrix."""
    rows, hidden = 1536, SIZES["hidden"]
    a, b = torch.randn(rows, hidden), torch.randn(hidden, 9 * hidden)
    seconds = interleaved({"matmul": lambda: a @ b}, rounds)["matmul"]
    return 2 * rows * hidden * 9 * hidden / seconds
