"""One step of the flow transformer: ours, diffusers', and ComfyUI's own FLUX.2 class, same weights, float32, SDPA."""

from __future__ import annotations

from functools import partial

import torch

from tools import inprocess, small

from .table import Row, interleaved

SIZES = dict(hidden=1536, heads=12, context=2304, mlp=4608, depth=2, single=6)
TEXT, CANVAS, REFERENCES = 512, (32, 32), {"no references": [], "2048 reference tokens": [(32, 32), (32, 32)]}


@torch.no_grad()
def measure(folder, rounds: int) -> list[Row]:
    state = small.flow_state(**SIZES)
    ours = inprocess.hosted_flow(small.save(state, folder / "flow.safetensors"))
    hosts = inprocess.host_flux(state, SIZES["heads"], SIZES["context"])
    oracle = small.flow_oracle(state, SIZES["heads"])
    x, text = torch.randn(1, 128, *CANVAS), torch.randn(1, TEXT, SIZES["context"])
    t = torch.tensor([0.7])
    rows = []
    for name, boxes in REFERENCES.items():
        latents = [torch.randn(1, 128, *box) for box in boxes]
        runs = {
            "ours": partial(ours, x, t, text, ref_latents=latents),
            "diffusers": partial(small.velocity, oracle, x, t, text, latents),
            "ComfyUI's class": partial(hosts, x, t, text, ref_latents=latents),
            "ComfyUI's class, its default CPU attention": partial(with_default_attention, hosts, x, t, text, latents),
        }
        times = interleaved(runs, rounds)
        best = min(times["diffusers"], times["ComfyUI's class"])
        for run, seconds in times.items():
            rows.append(Row(f"step, {name}: {run}", seconds, seconds / best if run == "ours" else None, "at most 1.03"))
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
