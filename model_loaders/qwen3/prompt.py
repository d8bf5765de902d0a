"""From a prompt to token ids: the chat template, the tokenizer, and the window of 512 positions."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from ..errors import KleinError

LENGTH = 512
PAD = "<|endoftext|>"

# diffusers, Flux2KleinPipeline: the chat template of Qwen3 with thinking off, one user turn.
TEMPLATE = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")

TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")

# Tokens after the 151643 of the vocabulary, in the order of their ids. Source: Qwen3's tokenizer_config.json.
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()

# The ids of the prompt "hi" in its template, by Qwen3's own tokenizer.
GOLDEN = [151644, 872, 198, 6023, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]

# How Qwen splits text before byte pair encoding. Source: Qwen3's tokenizer.json.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder: its tokenizer.json, or built from vocab.json and merges.txt with Qwen3's own special
    tokens (a host's copy may have those of another Qwen). Raises KleinError when the folder has neither."""
    folder = Path(folder)
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = _byte_pairs(folder)
    except Exception as error:  # tokenizers raises plain Exception
        raise KleinError(
            f"{folder} is not a Qwen3 tokenizer ({error}), expected tokenizer.json or vocab.json with merges.txt: "
            f"download the tokenizer folder of the model again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lacking = [token for token in (PAD, *TEMPLATE_TOKENS) if tokenizer.token_to_id(token) is None]
    if lacking:
        raise KleinError(
            f"The tokenizer in {folder} has no token {', '.join(lacking)}, expected that of Qwen3: remove it from there, or put "
            f"the tokenizer folder of the model there."
        )
    return tokenizer


def _byte_pairs(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def tokenize(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of the whole prompt in its template, neither cut nor padded. Special tokens in the prompt count as such."""
    return tokenizer.encode(prompt.join(TEMPLATE), add_special_tokens=False).ids


def window(prompts: list[list[int]], pad: int, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Cut and right-pad ids to `length`: ids (B, length) int64, attention mask (B, length) int64."""
    ids = torch.full((len(prompts), length), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        kept = prompt[:length]
        ids[row, : len(kept)] = torch.tensor(kept, dtype=ids.dtype)
        mask[row, : len(kept)] = 1
    return ids, mask


def cut(tokens: int, length: int = LENGTH) -> int:
    """How many of `tokens` lie beyond the window."""
    return max(0, tokens - length)
