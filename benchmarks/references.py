"""Four steps with 0, 1, 2 and 4 references: part of the sequence in every step (plain), computed once a run (within_run), or
kept from an earlier run (across_runs); ours and diffusers', same weights, float32, SDPA.

Each time is held against the plain one without references, beside the ratio of floating-point operations.
"""

from __future__ import annotations

from functools import partial

import torch

from tools import inprocess, small
from tools.small import euler, kv_velocity

from .table import Row, interleaved

SIZES = dict(hidden=1536, heads=12, context=2304, mlp=4608, depth=1, single=3)
TEXT, CANVAS, BOX = 128, (16, 32), (16, 32)
IMAGE, EACH = CANVAS[0] * CANVAS[1], BOX[0] * BOX[1]
BLOCKS = SIZES["depth"] + SIZES["single"]


def operations(queries: int, keys: int) -> float:
    """Floating-point operations of the blocks: 13 hidden^2 multiplications a token (its MLP is 3 hidden wide), and two
    products of attention."""
    hidden = SIZES["hidden"]
    return BLOCKS * 2 * queries * (13 * hidden**2 + 2 * keys * hidden)


def predicted(mode: str, references: int, steps: int = 4) -> float:
    own, theirs = TEXT + IMAGE, references * EACH
    if mode == "plain":
        return steps * operations(own + theirs, own + theirs)
    passes = operations(theirs, theirs) if mode == "within_run" else 0
    return passes + steps * operations(own, own + theirs)


@torch.no_grad()
def measure(folder, rounds: int) -> list[Row]:
    from klein.model_loaders.flow.controls import Control

    state = small.flow_state(**SIZES)
    ours = inprocess.hosted_flow(small.save(state, folder / "references.safetensors"))
    oracle = small.flow_oracle(state, SIZES["heads"])
    kv_oracle = small.flow_oracle(state, SIZES["heads"])  # the K/V mode wants processors of its own
    x, text = torch.randn(1, 128, *CANVAS), torch.randn(1, TEXT, SIZES["context"])
    schedule = torch.linspace(1, 0, 5)
    forward = super(type(ours), ours).forward

    def steps(latents, kv=None, controls=()):
        out = x
        for now, following in zip(schedule[:-1], schedule[1:]):
            v = forward(out, now.view(1), text, latents, reference_kv=kv, controls=controls)
            out = out + (following - now) * v
        return out

    def within_run(latents):
        return steps(latents, ours.read_references(latents))

    def kv_pipeline(latents):
        out, cache = x, None
        for now, following in zip(schedule[:-1], schedule[1:]):
            v, cache = kv_velocity(kv_oracle, out, now, text, latents, cache)
            out = out + (following - now) * v
        return out

    runs, work = {}, {}
    for count in (0, 1, 2, 4):
        latents = [torch.randn(1, 128, *BOX) for _ in range(count)]
        modes = {"plain, ours": partial(steps, latents), "plain, diffusers": partial(euler, oracle, x, schedule, text, latents)}
        if count:
            modes |= {
                "within_run, ours": partial(within_run, latents),
                "within_run, diffusers": partial(kv_pipeline, latents),
                "across_runs, ours": partial(steps, latents, ours.read_references(latents)),
            }
        for mode, run in modes.items():
            runs[count, mode] = run
            work[count, mode] = predicted(mode.split(",")[0], count)
        if count == 2:
            half = Control(keep=bytes([1, 0] * (EACH // 2)))
            runs[count, "plain, ours, strength 2"] = partial(steps, latents, None, (Control(strength=2.0),))
            work[count, "plain, ours, strength 2"] = predicted("plain", 2)
            runs[count, "plain, ours, half of each masked"] = partial(steps, latents, None, (half, half))
            work[count, "plain, ours, half of each masked"] = predicted("plain", 1)
    times = interleaved(runs, rounds)
    rows = []
    for (count, mode), seconds in times.items():
        expected = work[count, mode] / work[0, "plain, ours"]
        peer = times.get((count, mode.replace("ours", "diffusers")))
        beside = f", {seconds / peer:.3f} of diffusers" if "ours" in mode and peer else ""
        ratio = seconds / times[0, "plain, ours"]
        rows.append(Row(f"{count} references, {mode}", seconds, ratio, f"{expected:.3f} by operations{beside}"))
    rows += from_disk(ours, folder, rounds)
    kv = ours.read_references([torch.randn(1, 128, *BOX)] * 4)
    formula = 2 * BLOCKS * SIZES["hidden"] * 4 * 4 * EACH
    rows.append(Row("4 references kept", kv.nbytes / 1e6, kv.nbytes / formula, "1.000 by the formula", "MB"))
    return rows


def from_disk(ours, folder, rounds: int) -> list[Row]:
    """Keys and values of two references read from the store (in the system's memory after the first round, checksum and
    all), against computing them."""
    from klein.model_loaders.flow.reference_kv import AS_COMPUTED
    from klein.store.store import Store

    kept, store = inprocess.import_adapter("kept"), Store(folder / "store", 2**33, 0)
    kept.store.store = lambda: store
    latents = [torch.randn(1, 128, *BOX) for _ in range(2)]
    kept.save("benchmark", ours.read_references(latents))
    runs = {
        "computed": partial(ours.read_references, latents),
        "read from disk": partial(kept.load, "benchmark", AS_COMPUTED, ours.sizes, latents[0].device),
    }
    times = interleaved(runs, rounds)
    size = f"{store.disk.usage()[1] / 1e6:.3g} MB"
    return [Row(f"2 references' keys, {how}", t, t / times["computed"], size) for how, t in times.items()]
