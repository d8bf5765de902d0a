"""The weights in tiny/ as the start of the second stage: the encoder as it is, the VAE from where it sees pictures of all
sizes, the flow from where it sees those and edits. Weights and averages begin the same, the optimisers from nothing."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tools.small import vae_state

from . import flow, text, vae
from .export import TINY
from .parts import WORK, Average, made_from, optimisers


def main() -> None:
    """Called before the VAE goes on, and again before the flow does, which stands on it. What is there stays."""
    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "encoder.pt").exists():
        state = load_file(TINY / "text_encoders/klein-tiny/model.safetensors")
        begin("encoder", text.STEPS, text.build(), state, text.RATE)
    if not (WORK / "vae.pt").exists():
        module, state = vae.build(), load_file(TINY / "vae/klein-tiny-vae.safetensors")
        released = dict(zip(module.state_dict(), vae_state(module), strict=True))
        state = {name: state[there].view_as(p) for (name, p), there in zip(module.state_dict().items(), released.values())}
        begin("vae", vae.STEPS - vae.SIZED, module, state, vae.RATE, vae.OUTSIDE_RATE)
    elif not (WORK / "flow.pt").exists():
        vae.finish()  # refuses one that is not trained to its end
        state = load_file(TINY / "diffusion_models/klein-tiny.safetensors")
        state = {name.replace("_norm.scale", "_norm.weight"): p for name, p in state.items()}
        begin("flow", flow.SMALL, flow.build(), state, flow.RATE, flow.OUTSIDE_RATE, flow.INPUTS)


def begin(name: str, step: int, module: torch.nn.Module, state: dict, rate: float, outside_rate=0.0, inputs=()) -> None:
    module.load_state_dict(state)
    parts = {name: module, "average": Average(module, 0.0), **optimisers(module, rate, outside_rate)}
    parts = {part: value.state_dict() for part, value in parts.items()}
    torch.save({"step": step, "seconds": 0.0, "made_from": made_from(*inputs), **parts}, WORK / f"{name}.pt")
    print(f"{name}: from tiny/, at step {step}")
