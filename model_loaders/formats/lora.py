"""A LoRA's file: what it changes in which weight, how much of it fits, and who made it for which model."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...errors import KleinError
from .codecs import dtype_name
from .files import Checkpoint, open_checkpoint
from .identify import FLOW_NAMES, require
from .lora_delta import Delta
from .lora_names import LONGEST, Target, foreign, locate, split, unread
from .table import FLOATS, FP8

# The tensors of each kind; any of a group of names makes a tensor of that kind.
PAIRS = {
    "LoRA": ("up", "down"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": ("lokr_w1", "lokr_w2"),
    "difference": ("diff",),
}
AGAIN = "export it from the trainer again, or download it again."
WRAPPED = re.compile(r"^(base_model\.model\.|transformer\.|diffusion_model\.)+")  # before the names that peft's patterns know
INTRICATE = re.compile(r"\)[*+{]|([(*+{][^(*+{]*){5}|(\?[^?]*){9}")  # of a pattern: matching it may take for ever
LARGEST_CONFIG = 2**20  # bytes of an adapter_config.json or of its copy in a header

# Hidden size -> model, beside klein's own: klein-facts.
HIDDEN = {hidden: f"FLUX.2 [klein] {name}" for hidden, name in FLOW_NAMES.items()} | {6144: "FLUX.2 [dev]"}
# Hidden size -> blocks of that model. FLUX.1 is as wide as klein 4B, and deeper.
DEPTHS = {
    4096: {"double_blocks": 8, "single_blocks": 24},
    3072: {"double_blocks": 5, "single_blocks": 20},
    6144: {"double_blocks": 8, "single_blocks": 48},
}
# Layers whose outputs, not inputs, are as wide as the model.
OUTPUT_IS_HIDDEN = ("img_in", "txt_in", "time_in.in_layer", "_mlp.2", ".linear2")


@dataclass(frozen=True)
class Module:
    """One module of a LoRA: the weight it changes, its tensors, and their names in the file."""

    name: str
    target: Target
    tensors: dict[str, Tensor]
    names: tuple[str, ...]


@dataclass
class Lora:
    """What a file holds. deltas: model (flow, encoder) -> `layer.weight` -> its deltas with their tensors; matched, unmatched,
    wrong_size: names in the file; unread: those of the text encoder, where none was asked for; kinds, ranks, alphas: -> modules;
    widths: hidden size of the model it was made for -> modules."""

    name: str
    trainer: str = ""
    size: str = ""
    alpha_from: str = ""
    deltas: dict[str, dict[str, list[tuple[Delta, tuple[Tensor, ...]]]]] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    wrong_size: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    alphas: Counter[float] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    modules: list[Module] = field(default_factory=list)

    @property
    def keys(self) -> int:
        return len(self.matched) + len(self.unmatched) + len(self.wrong_size) + len(self.unread)


# A mark in the metadata -> the trainer; kohya's `ss_` last, which others write too.
TRAINERS = (
    ("ai-toolkit", "ai-toolkit"), ("ot_revision", "OneTrainer"), ("ot_branch", "OneTrainer"), ("onetrainer", "OneTrainer"),
    ("simpletuner", "SimpleTuner"), ("lycoris", "lycoris"), ("networks.lora_flux_2", "musubi-tuner"), ("musubi", "musubi-tuner"),
    ("sd_scripts", "kohya sd-scripts"), ("lora_adapter_metadata", "diffusers"), ("ss_", "kohya sd-scripts"),
)  # fmt: skip
STYLES = (
    (r"^lora_unet_", "kohya or musubi-tuner"), (r"^lora_transformer_", "OneTrainer"), (r"^lycoris_", "lycoris or SimpleTuner"),
    (r"^base_model\.model\.", "peft"), (r"lora_A\.default\.weight$", "DiffSynth"), (r"^transformer\.", "diffusers"),
    (r"^diffusion_model\..*lora_A", "ai-toolkit"), (r"^diffusion_model\.", "ComfyUI"),
)  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


def read_lora(path: str | Path, flow: Shapes, encoder: Shapes | None = None) -> Lora:
    """A LoRA for a model of these weights (canonical `layer.weight` -> shape). KleinError, in one sentence, for what is broken,
    of another model or size, or holds nothing that fits."""
    path = Path(path)
    checkpoint = open_checkpoint(path)
    require(checkpoint, "lora")
    configs = _configs(checkpoint, path)
    lora = Lora(path.name, trainer=_trainer(checkpoint))
    modules = _modules(checkpoint, lora)
    _refuse_others(lora)
    shapes = {"flow": flow, "encoder": encoder}
    for name, (target, parts) in modules.items():
        expected = shapes[target.model]
        if expected is None:
            lora.unread += parts.values()
            continue
        module = Module(name, target, {part: _read(checkpoint, key) for part, key in parts.items()}, tuple(parts.values()))
        _add(lora, module, expected, _config_of(configs, target.model))
    _refuse_size(lora, [target for target, _ in modules.values()], flow)
    _refuse_blocks(lora, modules, flow)
    if not lora.matched:
        _refuse_rest(lora, encoder)
    lora.modules.sort(key=lambda module: module.name)
    return lora


def _modules(checkpoint: Checkpoint, lora: Lora) -> dict[str, tuple[Target, dict[str, str]]]:
    """Module -> (target, what each of its tensors is -> its name). What has no place goes to `unmatched`."""
    modules: dict[str, tuple[Target, dict[str, str]]] = {}
    owners: dict[Target, str] = {}
    for key in sorted(checkpoint.shapes):
        found = split(key)
        target = locate(found[0]) if found else None
        if found is None or target is None:
            lora.unmatched.append(key)
            continue
        module, part = found
        owner = owners.setdefault(target, module)
        parts = modules.setdefault(module, (target, {}))[1]
        if owner != module or part in parts:
            other = parts.get(part) or next(iter(modules[owner][1].values()))
            raise KleinError(
                f"{lora.name} changes {target.layer} twice, by {other} and by {key}, and nothing says which of them counts: {AGAIN}"
            )
        parts[part] = key
    return modules


def _refuse_others(lora: Lora) -> None:
    """KleinError for a LoRA of another model, told by what klein does not have, or of a kind that is not read: its tensors may
    change what those beside them mean."""
    kind = unread(lora.unmatched)
    if kind:
        raise KleinError(f"{lora.name} holds {kind[0]} weights ({kind[1]}), expected LoRA, LoKr, LoHa or DoRA: {AGAIN}")
    other = foreign(lora.unmatched)
    if other:
        raise KleinError(
            f"{lora.name} is a LoRA for {other[0]} (it has {other[1]}), expected one for FLUX.2 [klein]: choose another file."
        )


def _refuse_blocks(lora: Lora, modules: dict[str, tuple[Target, dict[str, str]]], flow: Shapes) -> None:
    """KleinError for a LoRA of more blocks than this model has."""
    for _, (target, parts) in modules.items():
        stack = target.layer.partition(".")[0]
        if (
            target.model == "flow"
            and target.block is not None
            and not any(name.startswith(f"{stack}.{target.block}.") for name in flow)
        ):
            blocks = len({name.split(".")[1] for name in flow if name.startswith(f"{stack}.")})
            raise KleinError(
                f"{lora.name} is a LoRA for another model (it has {next(iter(parts.values()))}, and this one has {blocks} {stack}): "
                f"load the model that it was made for, or choose another file."
            )


def _refuse_rest(lora: Lora, encoder: Shapes | None) -> None:
    if lora.unread and encoder is None:
        raise KleinError(f"{lora.name} is a LoRA for the text encoder alone: connect clip, and set clip_strength.")
    wrong = f", {len(lora.wrong_size)} of them for weights of another size" if lora.wrong_size else ""
    raise KleinError(
        f"Nothing of {lora.name} fits this model: none of its {lora.keys} keys has a place{wrong} (first: "
        f"{(lora.wrong_size or lora.unmatched)[0]}): choose a LoRA for FLUX.2 [klein]."
    )


def _read(checkpoint: Checkpoint, key: str) -> Tensor:
    """A tensor of the file, copied: LoRAs are small, and their files are overwritten while they are in use."""
    shape, dtype = checkpoint.shapes[key], checkpoint.dtypes[key]
    alpha = key.endswith("alpha")
    if dtype not in FLOATS and dtype not in FP8 and not alpha:
        raise KleinError(
            f"{checkpoint.path.name} stores {key} as {dtype_name(dtype)}, expected floating-point numbers: {AGAIN}"
        )
    if 0 in shape or (alpha and math.prod(shape) != 1):
        raise KleinError(
            f"{key} in {checkpoint.path.name} has shape {list(shape)}, expected {'one number' if alpha else 'sides above 0'}: {AGAIN}"
        )
    tensor = checkpoint[key].clone()
    if not tensor.float().isfinite().all():
        raise KleinError(f"{key} in {checkpoint.path.name} holds numbers that are not finite (its training diverged): {AGAIN}")
    return tensor


def _add(lora: Lora, module: Module, shapes: Shapes, config: dict) -> None:
    """Check a module and take it up, or count its keys as of the wrong size."""
    tensors, target = module.tensors, module.target
    weight = f"{target.layer}.weight"
    if not tensors.keys() - {"alpha", "magnitude"}:  # alone they change nothing
        lora.unmatched += module.names
        return
    kind, size, rank = _kind(lora.name, module)
    if target.model == "flow" and len(size) == 2:
        lora.widths[size[0] if target.layer.endswith(OUTPUT_IS_HIDDEN) else size[1]] += 1
    if weight not in shapes:  # of the encoder klein reads 27 layers
        lora.unmatched += module.names
        return
    expected, rows = shapes[weight], None
    if target.part:
        hidden = expected[1]
        rows = (target.part[0] * hidden, target.part[1] * hidden)
        expected = (rows[1], hidden)
    magnitude = tensors.get("magnitude")
    fits = size == expected and (
        magnitude is None or len(size) == 2 and tuple(magnitude.shape) in ((size[0],), (size[0], 1), (1, size[1]))
    )
    if not fits:
        lora.wrong_size += module.names
        return
    scale, alpha, source = _scale(module, kind, rank, config)
    if rank:
        lora.ranks[rank] += 1
    if alpha is not None:
        lora.alphas[alpha] += 1
        lora.alpha_from = source
    used = {part: _matrix(tensor) if part != "magnitude" else tensor for part, tensor in tensors.items() if part != "alpha"}
    delta = Delta(tuple(used), scale, rows, target.swapped)
    lora.deltas.setdefault(target.model, {}).setdefault(weight, []).append((delta, tuple(used.values())))
    lora.kinds[f"{kind} with DoRA" if magnitude is not None else kind] += 1
    lora.matched += module.names
    lora.modules.append(module)


def _kind(file: str, module: Module) -> tuple[str, tuple[int, ...], int | None]:
    """(kind, shape of the weight it is for, rank or None where it has none). KleinError where its tensors make none."""
    shapes = {part: tuple(_matrix(t).shape) for part, t in module.tensors.items() if part not in ("alpha", "magnitude")}
    kind = next(kind for kind, parts in PAIRS.items() if any(name.startswith(part) for name in shapes for part in parts))
    lost = [
        part for part in PAIRS[kind]
        if part not in shapes and not (kind == "LoKr" and {f"{part}_a", f"{part}_b"} <= shapes.keys())
    ]  # fmt: skip
    wanted = {*PAIRS[kind], *(f"{part}_{end}" for part in PAIRS[kind] for end in "ab" if kind == "LoKr" and part not in shapes)}
    strange = sorted(shapes.keys() - wanted)
    if lost or strange:
        what = f"lacks the {lost[0]} matrix" if lost else f"has {strange[0]} beside other matrices"
        raise KleinError(f"{file} {what} of {module.name}: it is incomplete, {AGAIN}")
    if kind == "difference":
        return kind, shapes["diff"], None
    if any(len(shape) != 2 for shape in shapes.values()):
        raise KleinError(f"{module.names[0]} in {file} is not a matrix: {AGAIN}")
    pairs = {"LoRA": [("up", "down")]}.get(kind, [(name, f"{name[:-1]}b") for name in shapes if name.endswith("_a")])
    for first, second in pairs:
        if shapes[first][1] != shapes[second][0]:
            raise KleinError(
                f"{file} has {module.name} with ranks {shapes[first][1]} and {shapes[second][0]}, expected the same: {AGAIN}"
            )
    rank = shapes[pairs[0][0]][1] if pairs else None
    if kind == "LoKr":
        whole = [_sides(shapes, part) for part in PAIRS[kind]]
        size = (whole[0][0] * whole[1][0], whole[0][1] * whole[1][1])
    else:
        size = (shapes[pairs[0][0]][0], shapes[pairs[0][1]][1])
        others = {(shapes[first][0], shapes[second][1]) for first, second in pairs}
        if len(others) > 1:
            raise KleinError(f"{file} has {module.name} with products of shapes {sorted(others)}, expected the same: {AGAIN}")
    if rank and rank > max(size):
        raise KleinError(f"{file} has {module.name} with rank {rank} for a weight of {size[0]}x{size[1]}: {AGAIN}")
    return kind, size, rank


def _sides(shapes: Shapes, part: str) -> tuple[int, int]:
    first, second = (shapes[part],) * 2 if part in shapes else (shapes[f"{part}_a"], shapes[f"{part}_b"])
    return first[0], second[1]


def _matrix(tensor: Tensor) -> Tensor:
    """Some write the matrices of a linear layer as those of a convolution of 1x1."""
    return tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _scale(module: Module, kind: str, rank: int | None, config: dict) -> tuple[float, float | None, str]:
    """(scale, alpha, where it stands): alpha over the rank, or over its root with rslora. Without an alpha it is the rank.
    LoKr of two whole matrices has scale 1, whatever alpha says (lycoris), but not from peft, which has a rank in its config."""
    if kind == "difference":
        return 1.0, None, ""
    if "alpha" in module.tensors:
        alpha = float(module.tensors["alpha"])
        return (alpha / rank if rank else 1.0), alpha, "in the file"
    if config:
        rank = rank or int(_pattern(config["rank_pattern"], module.name, config["r"]))
        alpha = float(_pattern(config["alpha_pattern"], module.name, config.get("lora_alpha") or config.get("alpha") or rank))
        return alpha / (rank**0.5 if config.get("use_rslora") else rank), alpha, config["where"]
    return 1.0, float(rank) if rank else None, "none in the file: the rank"


def _pattern(pattern: dict[str, float], module: str, default: float) -> float:
    """peft names modules by their ends, or by regular expressions of these."""
    name = WRAPPED.sub("", module)
    return next((value for key, value in pattern.items() if _expression(key).match(name)), default)


def _expression(key: str) -> re.Pattern:
    return re.compile(rf"(.*\.)?({key})$")


def settings_beside(path: Path) -> Path | None:
    """The file that peft writes beside a LoRA, where there is one."""
    beside = path.with_name("adapter_config.json")
    return beside if path.name == "adapter_model.safetensors" and beside.is_file() else None


def _configs(checkpoint: Checkpoint, path: Path) -> dict[str, dict]:
    """Prefix of names -> peft's settings: from diffusers' copy in the header, or the file beside."""
    text, where = checkpoint.metadata.get("lora_adapter_metadata"), "in the header"
    beside = settings_beside(path)
    if text is None and beside and beside.stat().st_size <= LARGEST_CONFIG:
        text, where = beside.read_text(encoding="utf-8", errors="replace"), "in adapter_config.json"
    if text is None:
        return {}
    try:
        settings = json.loads(text[:LARGEST_CONFIG])
        configs: dict[str, dict] = {}
        for key, value in settings.items():
            component, _, name = key.rpartition(".")
            configs.setdefault(component, {"where": where})[name] = value
        for config in configs.values():
            _check_config(config)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError, re.error) as error:
        raise KleinError(f"The LoRA settings {where} of {path.name} cannot be read ({error!r}): {AGAIN}") from error
    return configs


def _check_config(config: dict) -> None:
    """ValueError, TypeError, OverflowError or re.error for what is none; patterns that are left out become empty ones."""
    for which in ("rank_pattern", "alpha_pattern"):
        config[which] = dict(config.get(which) or {})
        for key in config[which]:
            if len(key) > LONGEST or INTRICATE.search(key):
                raise ValueError(f"{key[:LONGEST]!r} is too intricate a pattern")
            _expression(key)
    given = [config[name] for name in ("r", "lora_alpha", "alpha") if config.get(name) is not None]
    for number in (*given, *config["rank_pattern"].values(), *config["alpha_pattern"].values()):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < 2**31:
            raise ValueError(f"{number!r} is no rank or alpha")


def _config_of(configs: dict[str, dict], model: str) -> dict:
    ours = ("text_encoder",) if model == "encoder" else ("transformer", "")
    return next((configs[component] for component in ours if configs.get(component, {}).get("r")), {})


def _refuse_size(lora: Lora, targets: list[Target], flow: Shapes) -> None:
    """KleinError for a LoRA of another width."""
    if not lora.widths:
        return
    wide, own = lora.widths.most_common(1)[0][0], flow["img_in.weight"][0]
    lora.size = _named(wide, targets)
    if wide != own:
        raise KleinError(
            f"{lora.name} is a LoRA for {lora.size}, and this model is {_named(own)}: load the model that it was made for, or "
            f"choose a LoRA for this one."
        )


def _named(hidden: int, targets: Iterable[Target] = ()) -> str:
    """The model of this width, unless it lacks some of these blocks."""
    depths = DEPTHS.get(hidden, {})
    stacks = [(target.layer.partition(".")[0], target.block) for target in targets if target.block is not None]
    beyond = any(block >= depths.get(stack, block + 1) for stack, block in stacks)
    return f"{'a model' if beyond else HIDDEN.get(hidden, 'a model')} of hidden size {hidden}"


def _trainer(checkpoint: Checkpoint) -> str:
    """Who wrote a file, by its metadata, else by its names."""
    text = json.dumps(checkpoint.metadata).lower()
    said = next((name for mark, name in TRAINERS if mark in text), None)
    if said:
        return f"{said} (by its metadata)"
    found = next((name for mark, name in STYLES if any(re.search(mark, key) for key in checkpoint.shapes)), None)
    return f"{found} (by its names)" if found else "unknown"
