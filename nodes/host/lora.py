"""LoRAs on the host's MODEL and CLIP: as its own patches where weights are dense, beside them at call time where they are quantised.

All LoRAs of ours on a weight are one patch, so that each is taken of the weight as it is without the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter.base import WeightAdapterBase
from torch.nn.functional import linear
from torch.utils._pytree import tree_map_only

from ...errors import KleinError
from ...model_loaders.formats.lora import Lora, read_lora
from ...model_loaders.formats.lora_delta import Term, add_beside, apply, is_beside
from .flow import KleinModel
from .packed import dense_shape

LOOKS = (torch.Tensor.dtype.__get__, torch.Tensor.device.__get__, torch.Tensor.shape.__get__)  # nothing is computed for these
DENSE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
APPLIED = "klein_loras"  # among a MODEL's attachments
FLOW = "diffusion_model."
ENCODER = ".transformer.model."  # in the host's CLIP: <encoder>.transformer.model.layers.N


@dataclass(frozen=True)
class Applied:
    """A LoRA on a MODEL, and how many of its keys had a place there or in the encoder."""

    name: str
    strength: float
    matched: int
    keys: int


def applied(model) -> tuple[Applied, ...]:
    """The LoRAs that Klein LoRA Loader has put on a MODEL, in order."""
    return model.get_attachment(APPLIED) or ()


class KleinAdapter(WeightAdapterBase):
    """A patch of the host. weights: terms; the host rebuilds it as type(self)(loaded_keys, weights), with tensors moved."""

    name = "klein"

    def __init__(self, loaded_keys: set[str], weights: tuple[Term, ...]):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight, key, strength, strength_model, offset, function, *args, **kwargs):
        return apply(weight, tuple((strength * own, delta, tensors) for own, delta, tensors in self.weights))


class WithLoras(torch.Tensor):
    """A layer's weight with LoRAs that are not added to it: they are multiplied beside it. For anything else it is their sum."""

    terms: tuple[Term, ...] = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function in LOOKS:
                return function(*args)
            if function is linear and len(args) > 1 and isinstance(args[1], cls):
                x, weight, *bias = args
                return add_beside(linear(x, weight, *bias, **(kwargs or {})), x, weight.terms)
            args, kwargs = tree_map_only(cls, cls.summed, (args, kwargs or {}))
            return function(*args, **kwargs)

    def summed(self) -> torch.Tensor:
        """In place: what is then done to the sum is done to this weight."""
        weight, terms, self.terms = self.as_subclass(torch.Tensor), self.terms, ()
        return apply(weight, terms)


class CallTime:
    """A weight wrapper of the host: called with a layer's weight when the layer is. Tensors are kept where the layer computes.
    of_own: whether it asks packed layers for their weight without the host's patches, which a DoRA is of; not after a merge."""

    def __init__(self, terms: tuple[Term, ...], merged: bool = False):
        self.terms, self.moved = terms, terms
        self.of_own = not merged and any("magnitude" in delta.parts for _, delta, _ in terms)

    def __call__(self, weight, own=None):
        weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        if weight.dtype not in DENSE:
            return apply(weight.float(), self.moved).to(weight.dtype)
        weight = apply(weight, tuple(term for term in self.moved if not is_beside(term[1])), own).as_subclass(WithLoras)
        weight.terms = tuple(term for term in self.moved if is_beside(term[1]))
        return weight

    def move_to(self, device) -> int:
        """Returns the bytes that it takes there."""
        self.moved = tuple((own, delta, tuple(t.to(device) for t in tensors)) for own, delta, tensors in self.terms)
        return sum(t.nbytes for *_, tensors in self.moved for t in tensors)

    def kept(self, flow) -> int:
        """The bytes that were moved."""
        return sum(t.nbytes for *_, tensors in self.moved for t in tensors if t.device.type != "cpu")

    def forget(self, flow) -> int:
        """The host wants the model's memory back: what was moved goes. Returns the bytes freed."""
        freed = self.kept(flow)
        self.moved = self.terms
        return freed


def attach(model, clip, path: Path, strength: float, clip_strength: float):
    """(MODEL, CLIP or None, report): with a LoRA, or the very same at strength 0."""
    if strength == 0 and (clip is None or clip_strength == 0):
        return model, clip, f"{path.name}: strength 0, nothing is changed"
    flow = _weights(model.model, FLOW)
    if "double_stream_modulation_img.lin.weight" not in flow:
        raise KleinError(
            f"Klein LoRA Loader needs a FLUX.2 [klein] model, and this one is {type(model.model).__name__}: connect Klein Flow Loader."
        )
    if clip is not None:
        clip.cond_stage_model.state_dict()  # an encoder on demand reads its weights for it
    encoder = None if clip is None else _weights(clip.cond_stage_model, ENCODER)
    shapes = None if encoder is None else _shapes(clip.cond_stage_model, encoder)
    lora = read_lora(path, _shapes(model.model, flow), shapes)
    lines = [*_summary(lora), _core(lora, model, clip)]
    late = 0
    if strength != 0:
        model = model.clone()
        late += _patch(model, flow, lora.deltas.get("flow", {}), strength)
        model.set_attachments(APPLIED, (*applied(model), Applied(lora.name, strength, len(lora.matched), lora.keys)))
    if encoder is not None and clip_strength != 0:
        clip = clip.clone()
        late += _patch(clip.patcher, encoder, lora.deltas.get("encoder", {}), clip_strength)
    if late:
        lines.append(
            f"{late} quantised weights take it at each call: nothing is rounded again, and steps are slower than without"
        )
    logging.info(f"Klein LoRA {lines[0]}; {lines[2]}")
    return model, clip, "\n".join(lines)


def _weights(module, prefix: str) -> dict[str, tuple[str, torch.Tensor]]:
    """Canonical `layer.weight` -> (the host's name of it, the weight)."""
    return {
        name.partition(prefix)[2]: (name, weight)
        for name, weight in module.named_parameters()
        if prefix in name and name.endswith(".weight")
    }


def _shapes(module, weights: dict[str, tuple[str, torch.Tensor]]) -> dict[str, tuple[int, ...]]:
    return {layer: dense_shape(module.get_submodule(name.removesuffix(".weight"))) for layer, (name, _) in weights.items()}


def _patch(patcher, weights, deltas, strength: float) -> int:
    """Add what a LoRA changes to a patcher of its own; returns how many weights take it at call time."""
    dense = {}
    for layer, changes in deltas.items():
        key, weight = weights[layer]
        terms = tuple((strength, delta, tensors) for delta, tensors in changes)
        if isinstance(weight, QuantizedTensor) or weight.dtype not in DENSE:
            wrappers = patcher.weight_wrapper_patches.get(key, [])
            earlier = tuple(term for each in wrappers if isinstance(each, CallTime) for term in each.terms)
            others = [each for each in wrappers if not isinstance(each, CallTime)]
            wrapper = CallTime(earlier + terms, any(patch[2] != 1 for patch in patcher.patches.get(key, [])))
            patcher.add_weight_wrapper(key, wrapper)
            patcher.weight_wrapper_patches[key] = [wrapper, *others]
            if isinstance(patcher.model, KleinModel):
                patcher.model.beside.add(wrapper)
        else:
            dense[key] = terms
    for key, terms in dense.items():
        kept, earlier, others = _parts(patcher.patches.get(key, []))
        patcher.patches[key] = [*kept, *others]
        dense[key] = KleinAdapter(set(), earlier + terms), len(kept)
    patcher.add_patches({key: adapter for key, (adapter, _) in dense.items()})
    for key, (_, place) in dense.items():
        patcher.patches[key].insert(place, patcher.patches[key].pop())
    return len(deltas) - len(dense)


def _parts(patches: list[tuple]) -> tuple[list[tuple], tuple[Term, ...], list[tuple]]:
    """The host's patches of a weight: (up to the last that scales the weight, as merges do, our terms after it, others)."""
    place = max((i for i, patch in enumerate(patches, start=1) if patch[2] != 1), default=0)
    ours = [patch for patch in patches[place:] if isinstance(patch[1], KleinAdapter)]
    terms = tuple((patch[0] * own, delta, tensors) for patch in ours for own, delta, tensors in patch[1].weights)
    return patches[:place], terms, [patch for patch in patches[place:] if not isinstance(patch[1], KleinAdapter)]


def _summary(lora: Lora) -> list[str]:
    lines = [
        f"{lora.name}: {', '.join(kind for kind, _ in lora.kinds.most_common())}{f' for {lora.size}' if lora.size else ''}, written by {lora.trainer}",
        f"rank {_numbers(lora.ranks)}, alpha {_numbers(lora.alphas)}{f' ({lora.alpha_from})' if lora.alpha_from else ''}",
        f"{len(lora.matched)} of {lora.keys} keys matched, {len(lora.unmatched)} unmatched, {len(lora.wrong_size)} of the wrong size",
    ]
    if lora.unmatched:
        lines.append(f"Warning: this model has no place for {len(lora.unmatched)} keys (first: {lora.unmatched[0]})")
    if lora.wrong_size:
        lines.append(f"Warning: {len(lora.wrong_size)} keys are of the wrong size and left out (first: {lora.wrong_size[0]})")
    if lora.unread:
        lines.append(f"Warning: {len(lora.unread)} keys are for the text encoder: connect clip")
    return lines


def _numbers(counted) -> str:
    """The most common number, and that there are others."""
    if not counted:
        return "none"
    (number, _), *more = counted.most_common()
    return f"{number:g}" + (f" (in places {', '.join(f'{each:g}' for each, _ in more[:3])})" if more else "")


def _core(lora: Lora, model, clip) -> str:
    """What the host's own LoRA loader would have made of the keys that fit."""
    state = {name: tensor for module in lora.modules for name, tensor in zip(module.names, module.tensors.values())}
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    try:
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(state)), known, log_missing=False)
    except Exception as error:  # whatever it stumbles over, only the report speaks of it
        return f"ComfyUI's own LoRA loader would fail on this file ({error!r})"
    taken = set().union(*(patch.loaded_keys for patch in patches.values() if isinstance(patch, WeightAdapterBase)))
    dropped = [name for name in state if name not in taken and name.removesuffix(".diff") not in known]
    wrong = [text for text, is_so in (
        (f"drop {len(dropped)} of them (first: {min(dropped, default='')})", dropped),
        ("not read their alpha", not dropped and lora.alpha_from.startswith("in ") and not any("alpha" in m.tensors for m in lora.modules)),
        ("divide DoRA by another norm", any("dora_scale" in name and name in taken for name in state)),
    ) if is_so]  # fmt: skip
    return f"ComfyUI's own LoRA loader would {' and '.join(wrong) if wrong else 'take all of them'}"
