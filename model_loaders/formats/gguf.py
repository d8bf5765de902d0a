"""The header of a GGUF file, and its tensors as they lie in the mapped file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Arrays of the metadata (vocabularies of some hundred
thousand words) are stepped over; of the rest only the architecture and the alignment are kept.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ...errors import KleinError
from .blocks import BLOCKS

MAGIC = b"GGUF"
ARCHITECTURE = "general.architecture"
LARGEST_HEADER = 2**26  # bytes; Qwen3's, with its vocabulary, has 6 million
LONGEST_NAME = 2**10
MOST_DIMENSIONS = 4
TEXT, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of the metadata's other types

# Number of a tensor's type -> (name, numbers of a block, bytes of a block); those of blocks.py, and plain ones under
# the names that safetensors has for them.
PLAIN = {"F32": (0, 1, 4), "F16": (1, 1, 2), "F64": (28, 1, 8), "BF16": (30, 1, 2)}
TYPES = {number: (name, count, size) for name, (number, count, size, *_) in {**PLAIN, **BLOCKS}.items()}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "F64": torch.float64, "BF16": torch.bfloat16}

# Names that llama.cpp gives to Qwen3's tensors (its gguf-py/gguf/constants.py) -> Hugging Face's.
LAYER = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)$")
LLAMA_CPP = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_CPP_OUTER = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class Entry:
    """A tensor: shape as torch has it, name of its type, first byte in the file, bytes."""

    shape: tuple[int, ...]
    kind: str
    start: int
    size: int

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def get_dtype(self) -> str:
        return self.kind


@dataclass(frozen=True)
class GgufFile:
    """An open file, with the methods of safetensors' own. texts: the architecture, where it is given."""

    file: Path
    texts: dict[str, str]
    entries: dict[str, Entry]

    def metadata(self) -> dict[str, str]:
        return self.texts

    def keys(self) -> list[str]:
        return list(self.entries)

    def get_slice(self, name: str) -> Entry:
        return self.entries[name]

    @cached_property
    def _bytes(self) -> torch.Tensor:
        """The whole file, mapped and private: read where it is touched."""
        return torch.from_file(str(self.file), shared=False, size=self.file.stat().st_size, dtype=torch.uint8)

    def get_tensor(self, name: str) -> torch.Tensor:
        """Plain numbers in their shape; rows of blocks as bytes (..., bytes of a row)."""
        entry = self.entries[name]
        data = self._bytes[entry.start : entry.start + entry.size]
        if entry.kind in DTYPES:
            return data.view(DTYPES[entry.kind]).reshape(entry.shape)
        return data.reshape(*entry.shape[:-1], -1)


def open_gguf(file: Path) -> GgufFile:
    """Read the header; KleinError for what is cut short, or makes no sense."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(file, data).read()
    except struct.error:
        raise KleinError(f"{file.name} ({file.stat().st_size} bytes) ends within its header: download it again.") from None


class _Header:
    """A cursor over the bytes of a file."""

    def __init__(self, file: Path, data: mmap.mmap):
        self.file, self.data, self.at = file, data, len(MAGIC)

    def read(self) -> GgufFile:
        (version,) = self._take("<I")
        if version not in (2, 3):
            raise self._wrong(f"is of GGUF version {version}", "2 or 3 (little-endian)")
        tensors, pairs = self._take("<QQ")
        texts, alignment = {}, 32
        for _ in range(self._bounded(pairs, 13, "pairs of metadata")):
            key = self._text(LONGEST_NAME, "a key")
            (kind,) = self._take("<I")
            if key == "general.alignment" and kind == 4:
                (alignment,) = self._take("<I")
            elif key == ARCHITECTURE and kind == TEXT:
                texts[key] = self._text(LONGEST_NAME, key)
            else:
                self._step_over(kind)
        if alignment == 0 or alignment % 8 or alignment > 2**20:
            raise self._wrong(f"aligns tensors to {alignment} bytes", "a multiple of 8")
        found = [self._tensor() for _ in range(self._bounded(tensors, 24, "tensors"))]
        start = -(-self.at // alignment) * alignment
        entries = self._placed(found, start, alignment)
        return GgufFile(self.file, texts, entries)

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        """(name, shape, type, offset, bytes) of the next tensor."""
        name = self._text(LONGEST_NAME, "a tensor's name")
        (rank,) = self._take("<I")
        if not 1 <= rank <= MOST_DIMENSIONS:
            raise self._wrong(f"gives {name} {rank} dimensions", f"1 to {MOST_DIMENSIONS}")
        shape = tuple(reversed(self._take(f"<{rank}Q")))
        number, offset = self._take("<IQ")
        if number not in TYPES:
            raise self._wrong(
                f"stores {name} as ggml type {number}", f"one of {', '.join(name for name, *_ in TYPES.values())}"
            )
        kind, count, size = TYPES[number]
        if shape[-1] % count or 0 in shape:
            raise self._wrong(f"gives {name} shape {list(shape)}", f"rows of a multiple of {count} numbers")
        return name, shape, kind, offset, math.prod(shape) // count * size

    def _placed(self, found, start: int, alignment: int) -> dict[str, Entry]:
        """Name -> entry; each tensor within the file, right behind the one before, as ggml wants it."""
        entries: dict[str, Entry] = {}
        end = 0
        for name, shape, kind, offset, size in found:
            if offset != -(-end // alignment) * alignment:
                raise self._wrong(
                    f"puts {name} at byte {offset}", f"{-(-end // alignment) * alignment}, behind the tensor before"
                )
            end = offset + size
            if start + end > len(self.data):
                raise KleinError(
                    f"{self.file.name} ({len(self.data)} bytes) ends before its tensor {name} does (byte {start + end}): download it again."
                )
            renamed = hugging_face(name)
            if renamed in entries:
                raise self._wrong(f"has {name} twice", "it once")
            entries[renamed] = Entry(shape, kind, start + offset, size)
        return entries

    def _take(self, form: str) -> tuple:
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def _text(self, longest: int, what: str) -> str:
        (length,) = self._take("<Q")
        if length > longest:
            raise self._wrong(f"gives {what} {length} bytes", f"at most {longest}")
        (text,) = self._take(f"<{length}s")
        return text.decode("utf-8", "replace")

    def _step_over(self, kind: int) -> None:
        if kind in WIDTHS:
            self._jump(WIDTHS[kind])
        elif kind == TEXT:
            self._jump(*self._take("<Q"))
        elif kind == ARRAY:
            inner, count = self._take("<IQ")
            if inner in WIDTHS:
                self._jump(WIDTHS[inner] * count)
            elif inner == TEXT:
                self._step_over_texts(count)
            else:
                raise self._wrong(f"has metadata in arrays of type {inner}", "numbers or texts")
        else:
            raise self._wrong(f"has metadata of type {kind}", "a type from 0 to 12")

    def _step_over_texts(self, count: int) -> None:
        """The one loop that is long."""
        at, data, length = self.at, self.data, struct.Struct("<Q").unpack_from
        end = min(len(data), LARGEST_HEADER)
        for _ in range(count):
            at += 8 + length(data, at)[0]
            if at > end:
                break
        self.at = at
        self._jump(0)

    def _jump(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise struct.error
        if self.at > LARGEST_HEADER:
            raise self._wrong(f"has a header of more than {LARGEST_HEADER} bytes", "less")

    def _bounded(self, count: int, least: int, what: str) -> int:
        """A count of things of at least so many bytes each, when the file can hold as many."""
        if count * least > min(len(self.data), LARGEST_HEADER):
            raise self._wrong(f"says that it has {count} {what}", "as many as fit into it")
        return count

    def _wrong(self, found: str, expected: str) -> KleinError:
        return KleinError(f"{self.file.name} {found}, expected {expected}: download it again, or load the .safetensors file.")


def hugging_face(name: str) -> str:
    """Qwen3's names from llama.cpp's; others as they are."""
    layer = LAYER.match(name)
    if layer and layer[2] in LLAMA_CPP:
        return f"layers.{layer[1]}.{LLAMA_CPP[layer[2]]}.{layer[3]}"
    return LLAMA_CPP_OUTER.get(name, name)
