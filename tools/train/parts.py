"""Training in parts: a fixed number of steps, each made from the seed and its number alone, that may stop at any step
and go on in a later run to the same weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import re
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "out/training"
SEED = 0


def made_from(*names: str) -> str:
    """A digest of the seed and of trained models."""
    digest = hashlib.sha256(str(SEED).encode())
    for name in names:
        digest.update((WORK / f"{name}.pt").read_bytes())
    return digest.hexdigest()


class Run:
    """One model's training: `modules` and `optimisers` by name, saved to out/training/<name>.pt. inputs: the names of the
    trained models that it stands on; what was begun on others, or from another seed, does not go on."""

    def __init__(self, name: str, steps: int, modules: dict, optimisers: dict, inputs: tuple[str, ...] = ()):
        self.path, self.curve = WORK / f"{name}.pt", WORK / f"{name}.jsonl"
        self.made_from = made_from(*inputs)
        self.name, self.steps, self.step, self.seconds = name, steps, 0, 0.0
        self.parts = {**modules, **optimisers}
        self.rates = {name: [group["lr"] for group in optimiser.param_groups] for name, optimiser in optimisers.items()}
        self.optimisers = optimisers
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            if saved["made_from"] != self.made_from:
                raise RuntimeError(f"{self.path} was begun from another seed or other models: delete it to begin again")
            self.step, self.seconds = saved["step"], saved["seconds"]
            for part, module in self.parts.items():
                module.load_state_dict(saved[part])

    def go(self, minutes: float, step, report=None, every: int = 100) -> bool:
        """Call step(rng, generator) -> dict of floats until the steps or the minutes are over; save; True when done."""
        WORK.mkdir(parents=True, exist_ok=True)
        start, seen = time.monotonic(), {}
        while self.step < self.steps and time.monotonic() - start < 60 * minutes:
            rng = random.Random(SEED * 1_000_003 + self.step)
            generator = torch.Generator().manual_seed(SEED * 1_000_003 + self.step)
            self._set_rates()
            for name, value in step(rng, generator).items():
                seen[name] = value if name not in seen else 0.98 * seen[name] + 0.02 * value
            self.step += 1
            if self.step % every == 0 or self.step == self.steps:
                spent = self.seconds + time.monotonic() - start
                line = {"step": self.step, "seconds": round(spent), **seen, **(report() if report else {})}
                print(self.name, json.dumps({k: round(v, 5) for k, v in line.items()}), flush=True)
                with self.curve.open("a") as curve:
                    curve.write(json.dumps(line) + "\n")
                self._save(spent)
        self.seconds += time.monotonic() - start
        self._save(self.seconds)
        return self.step == self.steps

    def _save(self, seconds: float) -> None:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        fresh = self.path.with_suffix(".new")  # a run that is cut off leaves the last save whole
        torch.save({"step": self.step, "seconds": seconds, "made_from": self.made_from, **parts}, fresh)
        fresh.replace(self.path)

    def _set_rates(self) -> None:
        """Linear warm-up over the first 3 %, then a cosine to a fiftieth."""
        done = self.step / self.steps
        factor = min(1.0, (self.step + 1) / (0.03 * self.steps)) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for name, optimiser in self.optimisers.items():
            for group, rate in zip(optimiser.param_groups, self.rates[name]):
                group["lr"] = rate * factor


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by five Newton-Schulz steps, as large as an Adam step (0.2 a weight, root mean square).

    Source: K. Jordan, "Muon" (2024), with its coefficients; scale: Liu et al., "Muon is Scalable for LLM Training" (2025).
    torch.optim.Muon does the same in bfloat16, which takes a CPU without bfloat16 units 16 s a step here, and this 0.2 s.
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95):
        super().__init__(matrices, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(mean, group["momentum"]).flatten(1)  # a convolution: outputs by all they see
                scale = 0.2 * group["lr"] * math.sqrt(max(update.shape))
                p.sub_(scale * orthogonal(update).view_as(p))


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with singular values of about 1. Each step is a polynomial in x xT, so all five are multiplied
    out on the short side first."""
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / wide.norm().clamp_min(1e-7)
    square, one = wide @ wide.T, torch.eye(len(wide))
    steps = one
    for _ in range(5):
        step = 3.4445 * one - 4.7750 * square + 2.0315 * square @ square
        steps, square = step @ steps, step @ step @ square
    wide = steps @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


def optimisers(module: torch.nn.Module, rate: float, outside_rate: float) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices and convolutions inside, Adam for the rest."""
    named = [(name, p) for name, p in module.named_parameters() if p.ndim > 1]
    inside = [p for name, p in named if re.search(r"\b(layers|\w+_blocks?)\b", name)]
    chosen = set(map(id, inside))
    outside = [p for p in module.parameters() if id(p) not in chosen]
    return {
        "muon": Muon(inside, rate),
        "adam": torch.optim.AdamW(outside, outside_rate, betas=(0.9, 0.98), weight_decay=0.0),
    }


class Average:
    """Exponential moving average of a module's parameters; what ships."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        for name, p in self.module.named_parameters():
            self.values[name].lerp_(p, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self):
        """The module has the averages inside."""
        own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.module.load_state_dict(self.values, strict=False)
        try:
            yield
        finally:
            self.module.load_state_dict(own, strict=False)

    def state_dict(self) -> dict:
        return self.values

    def load_state_dict(self, values: dict) -> None:
        self.values = values


def descend(loss: torch.Tensor, module: torch.nn.Module, optimisers: dict, average: Average) -> None:
    """One step of all optimisers; the module's gradient is clipped to norm 1."""
    for optimiser in optimisers.values():
        optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimiser in optimisers.values():
        optimiser.step()
    average.update()


def trained(name: str, steps: int, module: torch.nn.Module, inputs: tuple[str, ...] = ()) -> torch.nn.Module:
    """The module with the averaged weights of its training, which must be over."""
    run = Run(name, steps, {"average": (average := Average(module, 0.0))}, {}, inputs)
    if run.step < steps:
        raise RuntimeError(f"{name} is trained to step {run.step} of {steps}; go on with: python3 dev.py train {name}")
    module.load_state_dict({**module.state_dict(), **average.values})
    return module.eval().requires_grad_(False)
