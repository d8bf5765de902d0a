"""What a run will be, told from headers and attributes before any weight reaches the device: a table, its warnings, and
KleinError for what cannot be run."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch

from ...errors import KleinError
from ...model_loaders.flow.controls import Control, complete
from ...model_loaders.flow.work import Sequence, activation_bytes, reading_operations, step_operations
from ...model_loaders.formats.identify import FLOW_NAMES, encoder_for
from ...pictures.references import Reference, enters, kept, output_canvas
from ...pictures.report import naming, read_as_text
from ...pictures.sizing import Canvas, fit
from .cache import bytes_per_token, cache_of
from .combine import references_of
from .conditioning import controls_of, prompt_of
from .flow import KleinModel, check_conditioning
from .lora import KleinAdapter, applied
from .sampling import CHANNELS, advice, fitted, latent_tokens, size_of
from .store import described
from .tiny import SIZES as TINY

UNKNOWN = "not known"
TEXT = 512  # tokens of Klein Prompt
LICENCES = {
    "9B": "FLUX Non-Commercial License: the model is not for commercial use, unless Black Forest Labs has licensed it to you",
    "4B": "Apache 2.0: free to use, commercially too",
}


@dataclass(frozen=True)
class Part:
    """One reference: tokens that enter the sequence, and when."""

    tokens: int
    control: Control


def preflight(model, clip, vae, positive, latent, references, steps: int, cfg: float, text: str = "") -> str:
    """The report on whatever of these is there. Nothing is loaded, moved or computed. text: the prompt, where positive has none."""
    klein = model.model if model is not None and isinstance(model.model, KleinModel) else None
    sizes = klein.diffusion_model.sizes if klein else None
    width = _width(clip, positive)
    if sizes and width not in (None, sizes.context_in_dim):
        raise KleinError(
            f"The encoder gives text {width} wide, as {encoder_for(width)} does, but this flow model expects "
            f"{sizes.context_in_dim}: load {encoder_for(sizes.context_in_dim)} in the encoder loader."
        )
    if vae is not None and vae.latent_channels != CHANNELS:
        raise KleinError(
            f"The VAE has latents of {vae.latent_channels} channels, expected {CHANNELS}: load flux2-vae.safetensors in the VAE loader."
        )
    if klein:
        for embeddings, values in positive or ():
            check_conditioning(klein, embeddings, values.get("reference_latents") or ())
    if latent is not None:
        latent, _ = fitted(latent)
    elif references and not positive:
        latent = _combined(references)
    image = None if latent is None else latent_tokens(latent)

    parts = _parts(positive, references)
    words = positive[0][0].shape[1] if positive else TEXT
    prompt = prompt_of(positive[0][1]) if positive else None
    prompt = (text or None) if prompt is None else prompt
    table = {
        "model": _model(model, klein),
        "loras": UNKNOWN if model is None else _loras(model),
        "licence": _licence(sizes),
        "encoder": UNKNOWN
        if width is None
        else f"{encoder_for(width)}, {width} wide{', as the flow model expects' * bool(sizes)}",
        "vae": UNKNOWN if vae is None else f"{CHANNELS} channels",
        "canvas": UNKNOWN if image is None else size_of(latent["samples"]),
        "tokens": UNKNOWN if image is None else _tokens(words, image, parts),
        "steps": f"{steps} at cfg {cfg:g}",
    }
    warnings = advice(model, steps, cfg, latent and latent["samples"]) if model is not None else []
    if model is not None:
        warnings += [
            f"{each.keys - each.matched} of {each.keys} keys of {each.name} have no place: see Klein LoRA Loader's report"
            for each in applied(model)
            if each.matched < each.keys
        ]
    if klein and image is not None:
        rows = len(latent["samples"]) * (2 if cfg > 1 else 1)
        sequences = [_sequence(model, words, image, parts, step / steps) for step in range(steps)]
        table["work"] = _work(sizes, sequences, rows)
        table["memory"], more = _memory(model, klein, sequences, rows)
        warnings += more
    table |= {"weights beside": _beside(clip, vae), "store": described()}
    warnings += naming(len(parts), prompt) + read_as_text(prompt or "")
    if prompt is None:
        table["prompt"] = f"{UNKNOWN} (Klein Prompt hands it on)"
    return "\n".join([*(f"{name}: {value}" for name, value in table.items()), *(f"Warning: {text}" for text in warnings)])


def _width(clip, positive) -> int | None:
    """Of the text embeddings: as they are, or as the encoder will make them; None for an encoder of the host's own."""
    if positive:
        return positive[0][0].shape[-1]
    return getattr(clip.cond_stage_model, "width", None) if clip is not None else None


def _model(model, klein) -> str:
    if klein is None:
        return UNKNOWN if model is None else f"{type(model.model).__name__} of another loader, of which little is known"
    sizes = klein.diffusion_model.sizes
    name = FLOW_NAMES.get(sizes.hidden_size, f"of hidden size {sizes.hidden_size}")
    return f"klein {name}, {klein.klein_variant}, {sizes.depth} double and {sizes.depth_single_blocks} single blocks"


def _licence(sizes) -> str:
    """Of klein-tiny, the pack's own."""
    name = "4B" if sizes == TINY else FLOW_NAMES.get(sizes.hidden_size) if sizes else None
    return LICENCES.get(name, UNKNOWN)


def _loras(model) -> str:
    ours = [f"{each.name} at {each.strength:g}, {each.matched} of {each.keys} keys" for each in applied(model)]
    others = sum(any(not isinstance(patch[1], KleinAdapter) for patch in patches) for patches in model.patches.values())
    return "; ".join(ours + [f"{others} weights patched by other nodes"] * bool(others)) or "none"


def _parts(positive, references) -> list[Part]:
    """The references of the conditioning; where it has none, those of the chain as Klein Multi Reference sizes them."""
    latents = references_of(positive)
    if latents:
        controls = complete(controls_of(positive[0][1]), len(latents))
        sizes = [latent.shape[-2] * latent.shape[-1] for latent in latents]
        return [Part(_kept(size, control), control) for size, control in zip(sizes, controls)]
    chosen = list(references or ())
    canvases = _canvases(chosen)
    controls = [Control(each.strength, kept(each, canvas), each.start, each.end) for each, canvas in zip(chosen, canvases)]
    return [Part(_kept(canvas.tokens, control), control) for canvas, control in zip(canvases, controls)]


def _canvases(chosen: list[Reference]) -> list[Canvas]:
    """As Klein Multi Reference sizes them, unless it is told otherwise."""
    several = sum(map(enters, chosen)) > 1
    return [fit(each.source, "exact", 1.0, several) for each in chosen]


def _combined(references) -> dict:
    """The shape of the latent that Klein Multi Reference makes of a chain."""
    width, height = output_canvas(_canvases(list(references)), 0, 0).size
    return {"samples": torch.empty(1, CHANNELS, height // 16, width // 16, device="meta")}


def _kept(tokens: int, control: Control) -> int:
    if control.strength == 0:
        return 0
    return tokens if control.keep is None else sum(control.keep)


def _tokens(text: int, image: int, parts: list[Part]) -> str:
    counts = {"text": text, "image": image, **{f"image {n}": part.tokens for n, part in enumerate(parts, start=1)}}
    total = sum(counts.values())
    shares = ", ".join(f"{name} {count} ({100 * count / total:.0f} %)" for name, count in counts.items())
    return f"{total}: {shares}"


def _sequence(model, text: int, image: int, parts: list[Part], progress: float) -> Sequence:
    there = sum(part.tokens for part in parts if part.control.active(progress))
    return Sequence(text, image, kept=there) if cache_of(model) else Sequence(text, image, there)


def _work(sizes, sequences: list[Sequence], rows: int) -> str:
    """References that are kept are read once: for all rows, as they are alike."""
    steps = [step_operations(sizes, each, rows) for each in sequences]
    kept = max(each.kept for each in sequences)
    reading = reading_operations(sizes, kept) if kept else 0
    extra = f", {_tera(reading)} of them to read the references once" if reading else ""
    return f"{_tera(max(steps))} a step, {_tera(sum(steps) + reading)} in {len(steps)} steps{extra}"


def _memory(model, klein, sequences: list[Sequence], rows: int) -> tuple[str, list[str]]:
    sizes, cache = klein.diffusion_model.sizes, cache_of(model)
    dtype = klein.manual_cast_dtype or klein.get_dtype()
    weights, device = model.model_size(), model.load_device
    cast = klein.manual_cast_dtype is not None
    kept = max(each.kept for each in sequences)
    passes = [(each, rows) for each in sequences] + [(Sequence(0, 0, kept), 1)] * bool(kept)
    active = max(activation_bytes(sizes, each, dtype.itemsize, count, cast) for each, count in passes)
    keys = kept * bytes_per_token(klein, cache.dtype) if cache else 0
    keys_there = keys if cache and cache.device == "gpu" else 0
    ours = model.loaded_size() + klein.beside.nbytes  # what is there already, and what is given back when it is needed
    free = comfy.model_management.get_free_memory(device) + ours
    needed = weights + active + keys_there
    line = f"flow {_giga(weights)}, activations {_giga(active)}"
    line += f", kept keys {_giga(keys)} on the {cache.device}" if cache else ""
    line += f": {_giga(needed)} of {_giga(free)} free on {device}"
    if active + keys_there > free:
        return line, [
            f"activations{' and kept keys' * bool(keys_there)} need {_giga(active + keys_there)} and {_giga(free)} are free: take a "
            f"smaller picture, a smaller batch or fewer references"
        ]
    if needed > free:
        return line, [f"the flow model fits but in part: ComfyUI keeps {_giga(needed - free)} elsewhere, and steps take longer"]
    return line, []


def _beside(clip, vae) -> str:
    encoder = getattr(clip.cond_stage_model, "weight_bytes", None) if clip is not None else None
    parts = {"encoder": encoder, "vae": None if vae is None else vae.patcher.model_size()}
    return ", ".join(f"{name} {UNKNOWN if size is None else _giga(size)}" for name, size in parts.items())


def _giga(size: float) -> str:
    return f"{size / 2**30:.3g} GB"


def _tera(operations: int) -> str:
    return f"{operations / 1e12:.3g} TFLOP"
