"""Encoding a prompt: the 27 layers that klein reads against the whole Qwen3ForCausalLM that diffusers runs, float32.

Qwen3-8B at a quarter of its width and of its vocabulary, so that layers and head have the full model's shares.
"""

from __future__ import annotations

import torch

from klein.model_loaders.qwen3.encoder import EncoderSizes, Qwen3Encoder, load_encoder
from tools import small

from .table import Row, interleaved

QUARTER = dict(hidden=1024, heads=8, kv_heads=2, head=128, mlp=3072, layers=36, vocabulary=37984)
FULL = {
    "8B": (EncoderSizes(4096, 32, 8, 128, 12288, 151936), False, 0.712),
    "4B": (EncoderSizes(2560, 32, 8, 128, 9728, 151936), True, 0.774),
}
TOKENS, WORDS = 512, 24


@torch.no_grad()
def measure(folder, rounds: int) -> list[Row]:
    whole = small.encoder_oracle(**QUARTER)
    ours = load_encoder(small.save(small.encoder_state(whole), folder / "qwen_3_8b.safetensors"))
    ids = torch.randint(QUARTER["vocabulary"], (1, TOKENS))
    mask = (torch.arange(TOKENS) < WORDS).long()[None]
    options = dict(attention_mask=mask, output_hidden_states=True, use_cache=False)
    runs = {
        "ours, 27 layers": lambda: ours(ids, mask),
        "Qwen3ForCausalLM, 36 layers and head (as diffusers)": lambda: whole(ids, **options),
        "Qwen3Model, 36 layers without the head": lambda: whole.model(ids, **options),
    }
    times = interleaved(runs, rounds)
    ratio = times["ours, 27 layers"] / times["Qwen3ForCausalLM, 36 layers and head (as diffusers)"]
    return [
        Row(f"encode: {name}", seconds, ratio if "ours" in name else None, "at most 0.76") for name, seconds in times.items()
    ]


def sizes() -> list[Row]:
    """Bytes in bf16 of what is loaded, counted on the meta device at full size; ratio to the whole model's."""
    rows = []
    for name, (full, tied, expected) in FULL.items():
        kept = 2 * sum(p.numel() for p in Qwen3Encoder(full, device="meta").parameters())
        rows.append(Row(f"Qwen3-{name}, bytes loaded", kept / 1e9, kept / whole_bytes(full, tied), f"{expected}", "GB"))
    return rows


def whole_bytes(full: EncoderSizes, tied: bool) -> int:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=full.hidden_size, num_attention_heads=full.num_heads, num_key_value_heads=full.num_kv_heads,
        head_dim=full.head_dim, intermediate_size=full.mlp_hidden, num_hidden_layers=36, vocab_size=full.vocabulary,
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    model.tie_weights()
    return 2 * sum(p.numel() for p in model.parameters())
