"""From a prompt to token ids: the chat template, the tokenizer, and the window of 512 positions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from ...errors import KleinError, half_character

LENGTH = 512
MOST_CHARACTERS = 100_000  # of a prompt: 512 tokens are about 2500, and the library fails on runs of millions
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
    advice = ", expected tokenizer.json or vocab.json with merges.txt: download the tokenizer folder of the model again."
    with _refusing(f"{folder} is not a Qwen3 tokenizer", advice):
        tokenizer = _from_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else _byte_pairs(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lacking = [token for token in (PAD, *TEMPLATE_TOKENS) if tokenizer.token_to_id(token) is None]
    if lacking:
        raise KleinError(
            f"The tokenizer in {folder} has no token {', '.join(lacking)}, expected that of Qwen3: remove it from there, or put "
            f"the tokenizer folder of the model there."
        )
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    text = path.read_text(encoding="utf-8")
    model = json.loads(text)["model"]
    if model.get("continuing_subword_prefix"):  # with it, the library cuts merges within a character and ends the process
        raise ValueError("its model has a continuing_subword_prefix")
    return Tokenizer.from_str(text)


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
    """Ids of the whole prompt in its template, neither cut nor padded. Special tokens in the prompt count as such.
    KleinError for what is no text, or too long."""
    check_prompt(prompt)
    advice = ": shorten the prompt, or download the tokenizer folder of the model again."
    with _refusing("The tokenizer failed on the prompt", advice):
        return tokenizer.encode(prompt.join(TEMPLATE), add_special_tokens=False).ids


@contextmanager
def _refusing(what: str, advice: str) -> Iterator[None]:
    """KleinError for whatever the tokenizers library throws: plain Exception, and panics, which are none."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise KleinError(f"{what} ({error}){advice}") from None


def check_prompt(prompt: str) -> None:
    """KleinError when a prompt is no text that can be encoded, or longer than 100 000 characters."""
    if not isinstance(prompt, str):
        raise KleinError(f"The prompt is of type {type(prompt).__name__}, expected text: connect a text.")
    if len(prompt) > MOST_CHARACTERS:
        raise KleinError(
            f"The prompt has {len(prompt)} characters, expected {MOST_CHARACTERS} at most, of which klein reads the first "
            f"{LENGTH} tokens: shorten it."
        )
    half = half_character(prompt)
    if half is not None:
        raise KleinError(f"The prompt holds half a character ({half}), which is no text: delete it and type it anew.")


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
