"""The weights in tiny/ as the start of more training: encoder and VAE as they are, the flow before the last MORE of its steps.
Weights and averages begin the same, the optimisers from nothing."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tools.small import vae_state

from . import flow, text, vae
from .export import TINY
from .parts import WORK, Average, made_from, optimisers

MORE = 2000


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    begin("encoder", text.STEPS, text.build(), load_file(TINY / "text_encoders/klein-tiny/model.safetensors"), text.RATE)
    module, state = vae.build(), load_file(TINY / "vae/klein-tiny-vae.safetensors")
    released = dict(zip(module.state_dict(), vae_state(module), strict=True))
    state = {name: state[there].view_as(p) for (name, p), there in zip(module.state_dict().items(), released.values())}
    begin("vae", vae.STEPS, module, state, vae.RATE, vae.OUTSIDE_RATE)
    state = load_file(TINY / "diffusion_models/klein-tiny.safetensors")
    state = {name.replace("_norm.scale", "_norm.weight"): p for name, p in state.items()}
    begin("flow", flow.STEPS - MORE, flow.build(), state, flow.RATE, flow.OUTSIDE_RATE, flow.INPUTS)


def begin(name: str, step: int, module: torch.nn.Module, state: dict, rate: float, outside_rate=0.0, inputs=()) -> None:
    if (WORK / f"{name}.pt").exists():
        raise RuntimeError(f"{WORK / name}.pt is there: move it away to begin again from tiny/")
    module.load_state_dict(state)
    parts = {name: module, "average": Average(module, 0.0), **optimisers(module, rate, outside_rate)}
    parts = {part: value.state_dict() for part, value in parts.items()}
    torch.save({"step": step, "seconds": 0.0, "made_from": made_from(*inputs), **parts}, WORK / f"{name}.pt")
    print(f"{name}: from tiny/, at step {step}")
