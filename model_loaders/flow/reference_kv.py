"""Keys and values of references, computed once and used in every step: what the K/V variant of klein is trained for.

References attend to each other alone and are modulated as at t = 0, so their keys and values depend on the weights and
the ordered set of references, and on nothing of the prompt, the seed, the size or the step. The arithmetic is that of
diffusers' pipeline_flux2_klein_kv.py.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import KleinError
from ..formats.codecs import quantise
from .controls import Control, Tokens, add_masks, complete


@dataclass(frozen=True)
class Storage:
    """How keys and values are kept. device: None where they are computed. dtype: None as they are computed, or an fp8
    dtype, each tensor with one scale."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None

    def keep(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x, scale = (x, None) if self.dtype is None else quantise(x, self.dtype)
        return x.to(self.device, copy=scale is None), scale


AS_COMPUTED = Storage()


class ReferenceKV:
    """Keys (after RoPE) and values (B, heads, tokens, head) of an ordered set of references, by block."""

    def __init__(self, references: list[Tokens], storage: Storage):
        self.storage = storage
        self.spans: dict[int, slice] = {}  # number of a reference -> its tokens
        start = 0
        for reference in references:
            self.spans[reference.number] = slice(start, start + reference.tokens.shape[1])
            start += reference.tokens.shape[1]
        self.tokens = start
        self.blocks: dict[tuple[str, int], tuple] = {}

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for pair in self.blocks.values() for x, _ in pair)

    def parts(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """All that it holds, as tensors by name: each block's, and where which reference's tokens lie."""
        for (kind, index), pair in self.blocks.items():
            tensors = {name: x for name, (x, _) in zip("kv", pair)}
            yield f"{kind} {index}", tensors | {f"{name} scale": s for name, (_, s) in zip("kv", pair) if s is not None}
        spans = [(number, span.start, span.stop) for number, span in self.spans.items()]
        yield "spans", {"spans": torch.tensor(spans, dtype=torch.int64).reshape(-1, 3)}

    @classmethod
    def of_parts(
        cls, storage: Storage, blocks: Iterable[tuple[str, int]], part: Callable[[str], dict[str, Tensor] | None]
    ) -> ReferenceKV | None:
        """Of what `parts` gave, asked for by name; None where one is not there."""
        kept, spans = cls([], storage), part("spans")
        if spans is None:
            return None
        kept.spans = {number: slice(start, stop) for number, start, stop in spans["spans"].tolist()}
        kept.tokens = max((span.stop for span in kept.spans.values()), default=0)
        for kind, index in blocks if kept.spans else ():
            tensors = part(f"{kind} {index}")
            if tensors is None:
                return None
            kept.blocks[kind, index] = tuple((tensors[name], tensors.get(f"{name} scale")) for name in "kv")
        return kept

    def record(self, k: Tensor, v: Tensor, mask, options: dict):
        """Keep a block's keys and values, and change nothing."""
        self.blocks[options["block_type"], options["block_index"]] = tuple(self.storage.keep(x) for x in (k, v))
        return k, v, mask

    def at(self, controls: tuple[Control, ...], progress: float):
        """What adds the references that are there at this step to a block's keys, values and mask; None for none."""
        controls = complete(controls, max(self.spans, default=-1) + 1)
        there = [index for index in self.spans if controls[index].active(progress)]
        if not there:
            return None
        # Neighbours stay one span, so that all references together need no copy.
        spans = [self.spans[index] for index in there] if len(there) < len(self.spans) else [slice(None)]
        strengths = {}
        if any(controls[index].strength != 1 for index in there):
            strengths = {index: controls[index].strength for index in there}
        return partial(self._extend, spans, strengths)

    def _extend(self, spans: list[slice], strengths: dict[int, float], k: Tensor, v: Tensor, mask, options: dict):
        kept = self.blocks[options["block_type"], options["block_index"]]
        own = k.shape[2]
        k, v = (torch.cat([x, *self._read(pair, spans, x)], dim=2) for x, pair in zip((k, v), kept))
        if mask is not None:
            mask = self._fitted(mask, own, spans)
        if strengths:
            bias = [k.new_zeros(own), *(k.new_full((self._length(i),), s).log() for i, s in strengths.items())]
            mask = add_masks(mask, torch.cat(bias)[None, None, None])
        return k, v, mask

    def _fitted(self, mask: Tensor, own: int, spans: list[slice]) -> Tensor:
        """An additive mask over `own` keys of text and image, or over those and all references, for own and spans."""
        covered = mask.shape[-1]
        if covered == own:
            return F.pad(mask, (0, sum(len(range(self.tokens)[span]) for span in spans)))
        if covered != own + self.tokens:
            raise KleinError(
                f"The attention mask covers {covered} tokens, expected {own} of text and image, or {own + self.tokens} with "
                f"the references: remove what makes it, or the reference cache."
            )
        if mask.ndim > 1 and mask.shape[-2] == covered:
            mask = mask[..., :own, :]
        return torch.cat([mask[..., :own], *(mask[..., own:][..., span] for span in spans)], dim=-1)

    def _read(self, kept: tuple[Tensor, Tensor | None], spans: list[slice], like: Tensor) -> list[Tensor]:
        x, scale = kept
        x = x.to(like.device, non_blocking=True)
        if scale is not None:
            x = (x.float() * scale.to(like.device)).to(like.dtype)
        return [x[:, :, span].expand(len(like), -1, -1, -1) for span in spans]

    def _length(self, index: int) -> int:
        return self.spans[index].stop - self.spans[index].start


class ReferenceSet:
    """References of a conditioning: latents (B, channels, h, w) in order, and their controls. `key` is what their keys and
    values depend on; equal sets are alike in all that is asked of them."""

    def __init__(self, latents: list[Tensor], controls: tuple[Control, ...] = ()):
        self.latents, self.controls = latents, controls
        self._copies: dict[tuple, Tensor] = {}  # on the device and in the dtype of model calls

    @cached_property
    def key(self) -> tuple:
        members = tuple(control.membership for control in complete(self.controls, len(self.latents)))
        return content(self.latents), members

    @property
    def tokens(self) -> int:
        """Of all references, those that a mask leaves out among them."""
        return sum(latent.shape[-2] * latent.shape[-1] for latent in self.latents)

    @property
    def rows(self) -> int:
        return max(len(latent) for latent in self.latents)

    def is_content_of(self, latents: list[Tensor], parts: int = 1) -> bool:
        """Whether latents of a model call are still these, in the call's dtype, repeated to the batch of each of its parts."""
        return len(latents) == len(self.latents) and all(
            torch.equal(given, self._as_given(number, given, parts)) for number, given in enumerate(latents)
        )

    def _as_given(self, number: int, given: Tensor, parts: int) -> Tensor:
        key = number, given.device, given.dtype
        if key not in self._copies:
            self._copies[key] = self.latents[number].to(given)
        own = self._copies[key]
        return own[torch.arange(len(given) // parts, device=own.device) % len(own)].repeat(parts, 1, 1, 1)

    def __eq__(self, other) -> bool:
        if not isinstance(other, ReferenceSet) or self.controls != other.controls or len(self.latents) != len(other.latents):
            return False
        return all(map(operator.is_, self.latents, other.latents)) or self.key == other.key


def content(latents: list[Tensor]) -> str:
    """A digest of shapes, dtypes and values."""
    digest = hashlib.sha256()
    for latent in latents:
        digest.update(f"{tuple(latent.shape)} {latent.dtype} ".encode())
        digest.update(latent.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
