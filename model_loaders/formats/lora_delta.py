"""What a LoRA adds to one weight.

LoRA (Hu et al., arXiv 2106.09685): B A. LoHa (Hyeon-Woo et al., arXiv 2108.06098): (B1 A1) * (B2 A2). LoKr (Yeh et al., arXiv
2309.14859): the Kronecker product of two matrices, each whole or a product. DoRA (Liu et al., arXiv 2402.09353): m V / |V| of
the sum V = W + delta, the norm over a row or a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True)
class Delta:
    """How its tensors change one weight. parts: what each tensor is; scale: alpha over the rank; rows: (start, length) on the
    output axis, None for all; swapped: the rows' halves change places, as the file has them in the other order."""

    parts: tuple[str, ...]
    scale: float
    rows: tuple[int, int] | None = None
    swapped: bool = False


Term = tuple[float, Delta, tuple[Tensor, ...]]  # strength, how, with what


def product(parts: dict[str, Tensor], scale: float) -> Tensor:
    """The delta, float32."""
    wide = {part: tensor.float() for part, tensor in parts.items() if part != "magnitude"}
    if "up" in wide:
        return wide["up"] @ (wide["down"] * scale)
    if "hada_w1_a" in wide:
        return (wide["hada_w1_a"] @ (wide["hada_w1_b"] * scale)).mul_(wide["hada_w2_a"] @ wide["hada_w2_b"])
    if "diff" in wide:
        return wide["diff"] * scale
    first, second = (wide[w] if w in wide else wide[f"{w}_a"] @ wide[f"{w}_b"] for w in ("lokr_w1", "lokr_w2"))
    return torch.kron((first * scale).contiguous(), second.contiguous())


def change(weight: Tensor, delta: Delta, tensors: tuple[Tensor, ...]) -> Tensor:
    """What the LoRA at strength 1 adds to a weight of these rows, float32."""
    parts = {part: tensor.to(weight.device) for part, tensor in zip(delta.parts, tensors)}
    added = product(parts, delta.scale)
    if "magnitude" in parts:
        wide = _swap(weight.float()) if delta.swapped else weight.float()
        added.add_(wide)
        axis = 0 if parts["magnitude"].ndim == 2 and parts["magnitude"].shape[0] == 1 else 1
        magnitude = parts["magnitude"].float().reshape((1, -1) if axis == 0 else (-1, 1))
        norm = added.norm(dim=axis, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        added.mul_(magnitude / norm).sub_(wide)
    return _swap(added) if delta.swapped else added


def is_beside(delta: Delta) -> bool:
    """Whether a layer can compute what it adds from its input, by products far smaller than with its weight."""
    return "magnitude" not in delta.parts and delta.parts[0].startswith(("up", "down", "lokr"))


def add_beside(out: Tensor, x: Tensor, terms: tuple[Term, ...]) -> Tensor:
    """Add to a layer's output (..., N), in place, what LoRAs make of its input (..., K), in its dtype: rounded by itself, and
    not with the weight, which is larger by far."""
    for strength, delta, tensors in terms:
        parts = {part: tensor.to(x) for part, tensor in zip(delta.parts, tensors)}
        if "up" in parts:
            added = linear(linear(x, parts["down"]), parts["up"])
        else:
            first, second = (parts[w] if w in parts else parts[f"{w}_a"] @ parts[f"{w}_b"] for w in ("lokr_w1", "lokr_w2"))
            added = (first @ linear(x.unflatten(-1, (first.shape[1], -1)), second)).flatten(-2)
        start, length = delta.rows or (0, out.shape[-1])
        out[..., start : start + length].add_(_swap(added, -1) if delta.swapped else added, alpha=strength * delta.scale)
    return out


def apply(weight: Tensor, terms: tuple[Term, ...], before: Tensor | None = None) -> Tensor:
    """Add the sum of several LoRAs to a weight in place, each taken of the weight as it was before: their order does not
    matter. Summed in float32."""
    asks = any("magnitude" in delta.parts for _, delta, _ in terms)  # whether what is added depends on the weight
    if before is None:
        before = weight.clone() if asks and len(terms) > 1 else weight
    for strength, delta, tensors in terms:
        start, length = delta.rows or (0, weight.shape[0])
        added = change(before[start : start + length], delta, tensors)
        rows = weight[start : start + length]
        rows.copy_(rows.float().add_(added.reshape(rows.shape), alpha=strength))
    return weight


def _swap(rows: Tensor, axis: int = 0) -> Tensor:
    return torch.cat(rows.chunk(2, axis)[::-1], axis)
