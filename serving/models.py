"""The models that this host can run, found by its files; klein-tiny comes with the pack."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..nodes.host.files import choices
from .refused import Refused

PREFIXES = ("bfl/", "black-forest-labs/")
APACHE, NON_COMMERCIAL = "Apache-2.0", "FLUX Non-Commercial License"
KINDS = {
    "flux-2-klein-9b": "9b",
    "flux-2-klein-9b-kv": "9b",
    "flux-2-klein-base-9b": "9b",
    "flux-2-klein-4b": "4b",
    "flux-2-klein-base-4b": "4b",
}  # id -> size
ENCODERS = {
    "9b": ("qwen-3-8b", "qwen_3_8b_fp8mixed.safetensors"),
    "4b": ("qwen-3-4b", "qwen_3_4b.safetensors"),
}  # how their names begin, and the one to download
VAES = ("flux-2-vae", "full-encoder-small-decoder")
TINY = "klein-tiny"


@dataclass(frozen=True)
class Model:
    id: str
    flow: str
    encoder: str
    vae: str
    licence: str
    side: int = 1024  # of a picture for which no size is asked
    edit: dict = field(default_factory=lambda: {"grow": 0})  # of Klein Edit: what is not painted on the mask stays

    @property
    def base(self) -> bool:
        return "-base-" in self.id

    @property
    def keeps(self) -> bool:
        """Whether references' keys and values are kept across runs: this model was trained for it."""
        return self.id.endswith("-kv")


def found() -> dict[str, Model]:
    """The models of which all three files are here, by id."""
    models = {name: model for name in KINDS if not isinstance(model := look(name), Refused)}
    tiny = Model(
        TINY, "klein-tiny.safetensors", TINY, "klein-tiny-vae.safetensors", APACHE, 64,
        {"grow": 0, "feather": 0, "context": -1.0},
    )  # fmt: skip
    return {**models, TINY: tiny}


def model(name: str) -> Model:
    """The model of an id, with or without its maker's prefix."""
    bare = name
    for prefix in PREFIXES:
        bare = bare.removeprefix(prefix)
    models = found()
    if bare in models:
        return models[bare]
    if bare in KINDS:
        raise look(bare)
    raise Refused(f"model {name[:80]!r} is not known, expected one of {', '.join([*KINDS, TINY])}: change it.", "model", 404)


def look(name: str) -> Model | Refused:
    """A model by the files of this host, or the sentence that says which are missing."""
    size = KINDS[name]
    starts, download = ENCODERS[size]
    flow = first("diffusion_models", "transformer", lambda file: flow_id(file) == name)
    encoder = first("text_encoders", "text_encoder", lambda file: file.startswith(starts) or flow_id(file) == name)
    vae = first("vae", "vae", lambda file: file.startswith(VAES) or flow_id(file) is not None)
    missing = [
        f"{file} into models/{folder}"
        for file, folder, here in (
            (f"{name}-fp8.safetensors", "diffusion_models", flow),
            (download, "text_encoders", encoder),
            ("flux2-vae.safetensors", "vae", vae),
        )
        if here is None
    ]
    if missing:
        return Refused(f"{name} is not on this host: put {', '.join(missing)} (or choose another model).", "model", 404)
    return Model(name, flow, encoder, vae, NON_COMMERCIAL if size == "9b" else APACHE)


def first(category: str, subfolder: str, fits) -> str | None:
    return next((name for name in choices(category, subfolder) if fits(plain(name))), None)


def plain(file: str) -> str:
    """A file's name with one way of writing for all: `sub/FLUX.2-klein-9B` and `flux2_klein_9b` are flux-2-klein-9b."""
    name = re.sub(r"[^a-z0-9]+", "-", re.split(r"[/\\]", file)[-1].lower())
    return re.sub(r"^(flux|qwen)-?(\d)", r"\1-\2", name)


def flow_id(file: str) -> str | None:
    """The model that a plain name says, whatever its number format."""
    said = re.match(r"flux-2-klein-(base-)?(9b|4b)(-base)?(-kv)?(?=-|$)", file)
    if not said:
        return None
    before, size, behind, kv = said.groups()
    return f"flux-2-klein-{'base-' if before or behind else ''}{size}{kv or ''}"
