"""The names under which trainers store a LoRA: module -> the weight, or part of one, that it changes; last part -> what it is.

All are read alike: dots and underscores are the same, prefixes are taken off until a known module remains. So ai-toolkit
(`diffusion_model.`), kohya (`lora_unet_`), OneTrainer (`lora_transformer_`), SimpleTuner (`lycoris_`), diffusers
(`transformer.`), peft (`base_model.model.`), DiffSynth and bare names need no table each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .names import DIFFUSERS_LAYERS, QWEN3_LAYER, SWAPPED

PREFIXES = (
    "base_model_", "diffusion_model_", "lora_transformer_", "lora_unet_", "lycoris_", "model_", "transformer_", "unet_",
    "lora_te1_", "lora_te_", "text_encoders_", "text_encoder_", "qwen3_8b_", "qwen3_4b_", "qwen3_", "te_", "lora_",
)  # fmt: skip

LONGEST = 300  # characters of a name

# What a tensor of a module is, by the end of its name. peft puts an adapter's name before `weight` (`lora_A.default.weight`).
ENDS = {
    "down": r"lora_A|lora_down|lora\.down|lora_linear_layer\.down",
    "up": r"lora_B|lora_up|lora\.up|lora_linear_layer\.up",
    "magnitude": r"lora_magnitude_vector|dora_scale|magnitude",
    "alpha": r"lora_alpha|alpha",
    "diff": r"diff|w_norm",
    **{name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
}
END = re.compile(
    r"(?P<module>.+?)[._](?:"
    + "|".join(f"(?P<{part}>{ends})" for part, ends in ENDS.items())
    + r")(?:\.(?!bias$)\w+)?(?:\.weight)?"
)

# Ends of kinds that are not read. Tucker's third matrix is one of convolutions, which klein does not have.
UNREAD = {
    "OFT": ("oft_blocks", "oft_diag", "oft_R.weight", "oft_r"),
    "Tucker-decomposed": ("lora_mid.weight", "lokr_t2", "hada_t1", "hada_t2"),
    "GLoRA": ("a1.weight", "b1.weight"),
    "VeRA": ("vera_lambda_b", "vera_lambda_d"),
}

# Parts of modules that klein does not have -> the model that has them.
OTHERS = {
    "FLUX.1": r"(double_blocks_N_(img|txt)_mod_lin|single_blocks_N_modulation_lin|_ff(_context)?_net_|blocks_N_norm(1|1_context)?_linear|_proj_mlp)",
    "Qwen-Image": r"transformer_blocks_N_(img|txt)_m(lp_net|od_1)",
    "Stable Diffusion": r"(input_blocks_|output_blocks_|down_blocks_|up_blocks_|mid_block_|lora_te2_)",
    "Stable Diffusion 3": r"joint_blocks_",
    "Wan": r"(^|_)blocks_N_(self|cross)_attn_",
    "Z-Image": r"layers_N_(attention|feed_forward|adaLN)",
}


@dataclass(frozen=True)
class Target:
    """model: flow or encoder; layer: canonical; part: (first, count) of the rows in units of the hidden size, None for all;
    swapped: the file has the halves of the rows in the other order; block: its number, None outside blocks."""

    model: str
    layer: str
    part: tuple[int, int] | None = None
    swapped: bool = False
    block: int | None = None


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _table() -> dict[str, Target]:
    table = {}
    for layer, theirs in DIFFUSERS_LAYERS.items():
        table[_flat(layer)] = Target("flow", layer)
        for place, name in enumerate(theirs):
            part = None if len(theirs) == 1 else (place, 1)
            table[_flat(name)] = Target("flow", layer, part, swapped=layer == SWAPPED)
    # diffusers with its projections fused, without the number of a ModuleList, and ComfyUI's name for a part of linear1
    more = {
        "transformer_blocks.N.attn.to_qkv": Target("flow", "double_blocks.N.img_attn.qkv"),
        "transformer_blocks.N.attn.to_added_qkv": Target("flow", "double_blocks.N.txt_attn.qkv"),
        "transformer_blocks.N.attn.to_out": Target("flow", "double_blocks.N.img_attn.proj"),
        "single_blocks.N.linear1_qkv": Target("flow", "single_blocks.N.linear1", (0, 3)),
    }
    table |= {_flat(name): target for name, target in more.items()}
    return table | {_flat(f"layers.N.{part}"): Target("encoder", f"layers.N.{part}") for part in QWEN3_LAYER}


TARGETS = _table()
BLOCK = re.compile(r"(blocks|layers)_(\d{1,4})(?=_)")


def split(name: str) -> tuple[str, str] | None:
    """(module, what the tensor is of it), None for what is no part of a LoRA."""
    match = END.fullmatch(name) if len(name) <= LONGEST else None
    if match is None:
        return None
    return match["module"], next(part for part in ENDS if match[part] is not None)


def flat(module: str) -> str:
    """A module's name with underscores only, and N for the number of its block."""
    return BLOCK.sub(r"\1_N", _flat(module), count=1)


def locate(module: str) -> Target | None:
    """What a module of a LoRA changes, None when klein has no such weight."""
    name = flat(module)
    number = BLOCK.search(_flat(module))
    while name not in TARGETS:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    target = TARGETS[name]
    if ".N." not in target.layer:
        return target
    block = int(number[2]) if number else 0
    return replace(target, layer=target.layer.replace(".N.", f".{block}."), block=block)


def foreign(names: list[str]) -> tuple[str, str] | None:
    """(other model, name) of the first tensor that has a place in another model."""
    for model, parts in OTHERS.items():
        for name in names:
            if re.search(parts, flat(name)):
                return model, name
    return None


def unread(names) -> tuple[str, str] | None:
    """(kind, name) of the first tensor of a kind that is not read."""
    for kind, ends in UNREAD.items():
        for name in names:
            if name.endswith(ends):
                return kind, name
    return None
