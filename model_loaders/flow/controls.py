"""What a conditioning may ask of each reference: strength, which tokens, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Control:
    """Of one reference; the default changes nothing.

    strength: the reference's share of attention before normalisation is multiplied by it (its logits get ln strength).
    keep: one byte a token, row by row, 0 for a token left out; None keeps all. start, end: the part of the steps in
    which it is there, start <= i/n < end. Hashable, so that a host can compare conditionings.
    """

    strength: float = 1.0
    keep: bytes | None = None
    start: float = 0.0
    end: float = 1.0

    def active(self, progress: float) -> bool:
        """Whether any of the reference enters the sequence at step i of n, progress = i/n."""
        return self.strength > 0 and self.start <= progress < self.end and (self.keep is None or any(self.keep))

    @property
    def membership(self) -> Control:
        """What of this decides which tokens belong to the set of references, whatever their weight and the step."""
        return Control(strength=float(self.strength > 0), keep=self.keep)


NEUTRAL = Control()


class Tokens(NamedTuple):
    """A reference in the sequence: its number among all, tokens (B, N, channels), ids (1, N, 4), and ln of its strength."""

    number: int
    tokens: Tensor
    ids: Tensor
    log_strength: float


def select(tokens: list[Tensor], ids: list[Tensor], controls: tuple[Control, ...], progress: float) -> list[Tokens]:
    """The references that are there at this step, each with the tokens it keeps, at the places it has with all others."""
    chosen = []
    for number, (latent, place, control) in enumerate(zip(tokens, ids, complete(controls, len(tokens)))):
        if not control.active(progress):
            continue
        if control.keep is not None:
            kept = torch.frombuffer(bytearray(control.keep), dtype=torch.bool).to(latent.device)
            latent, place = latent[:, kept], place[:, kept]
        chosen.append(Tokens(number, latent, place, math.log(control.strength)))
    return chosen


def complete(controls: tuple[Control, ...], count: int) -> tuple[Control, ...]:
    """Controls of `count` references; those beyond the ones given are neutral."""
    return (controls + (NEUTRAL,) * (count - len(controls)))[:count]


def strength_bias(references: list[Tokens], before: int, like: Tensor) -> Tensor | None:
    """(1, 1, 1, before + reference tokens): what to add to the logits of each key; None where all strengths are 1."""
    if not any(reference.log_strength for reference in references):
        return None
    bias = [like.new_zeros(before), *(like.new_full((r.tokens.shape[1],), r.log_strength) for r in references)]
    return torch.cat(bias)[None, None, None]


def additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask to add to logits, of like's dtype where it is boolean (False: left out); others as they are. Finite, so that
    kernels that go through keys in parts never meet a part of nothing but infinities."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return like.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(like.dtype).min)


def add_masks(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """An additive mask that broadcasts to (B, heads, queries, keys), with a bias (1, 1, 1, keys) on top."""
    if mask is None or bias is None:
        return bias if mask is None else mask
    while mask.ndim < 4:
        mask = mask.unsqueeze(-3)
    return mask + bias


def progress(sigma: Tensor, options: dict, controls: tuple[Control, ...]) -> float:
    """i/n of the step that a model call at sigma (B,) belongs to, in a sampler's schedule of n + 1 falling sigmas, the
    option `sample_sigmas`. 0 where no control asks for it: it waits for the GPU, and a compiled step would be compiled again
    for another number of steps."""
    if all(control.start <= 0 and control.end >= 1 for control in controls):
        return 0.0
    schedule = options.get("sample_sigmas")
    if schedule is None:
        return 0.0
    begun = int((schedule[:-1].to(sigma) >= sigma.max() * (1 - 1e-6)).sum())
    return max(begun - 1, 0) / (len(schedule) - 1)
