"""What the user is told about references: their numbers, sizes, tokens, and whether the prompt names them."""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER = r"\d{1,18}"  # longer ones are no image's, and Python reads none of more than 4300 digits
NUMBERS = rf"{NUMBER}(?:\s*(?:,|and|&|or|to|-|–)\s*(?:images?\s+)?{NUMBER})*"
RANGE = rf"({NUMBER})\s*(?:to|-|–)\s*(?:images?\s+)?({NUMBER})"


@dataclass(frozen=True)
class Entry:
    """One reference: sizes in pixels, tokens that enter the sequence, and notes such as its strength."""

    source: tuple[int, int] | None
    size: tuple[int, int]
    tokens: int
    notes: tuple[str, ...] = ()


def named_images(prompt: str) -> set[int]:
    """The numbers that a prompt gives to images: 'image 1', 'images 1 and 2', 'images 1-4', 'image 1 to image 3'."""
    named = set()
    for group in re.findall(rf"\bimages?\s*#?({NUMBERS})", prompt, flags=re.IGNORECASE):
        named |= {int(number) for number in re.findall(NUMBER, group)}
        for first, last in re.findall(RANGE, group, flags=re.IGNORECASE):
            named |= set(range(int(first), min(int(last), int(first) + 20)))
    return named


def weighted(prompt: str) -> list[str]:
    """The parts of a prompt that are written as `(word:1.3)`, which other models' encoders weigh and klein reads as text."""
    return re.findall(r"\([^()]*:\s*\d{0,9}\.?\d{1,9}\s*\)", prompt)


def read_as_text(prompt: str) -> list[str]:
    """A sentence, of one line, for each of the first such parts."""
    return [f"{' '.join(each.split())} is read as text: klein knows no weights of words" for each in weighted(prompt)[:3]]


def report(entries: list[Entry], canvas: tuple[int, int], text_tokens: int, prompt: str | None, warnings: list[str]) -> str:
    """A line for each reference, one for the canvas, and the warnings."""
    image_tokens = canvas[0] * canvas[1] // 256
    total = text_tokens + image_tokens + sum(entry.tokens for entry in entries)
    lines = []
    for number, entry in enumerate(entries, start=1):
        source = "" if entry.source in (None, entry.size) else f"{entry.source[0]}x{entry.source[1]} to "
        size = f"{source}{entry.size[0]}x{entry.size[1]}"
        parts = [
            f"image {number}: {size}",
            f"{entry.tokens} tokens",
            f"{100 * entry.tokens / total:.0f} % of the attention's keys",
        ]
        parts += entry.notes
        lines.append(", ".join(parts))
    lines.append(f"canvas: {canvas[0]}x{canvas[1]}, {image_tokens} tokens, {total} with text and references")
    return "\n".join(lines + [f"Warning: {text}" for text in warnings + naming(len(entries), prompt)])


def naming(count: int, prompt: str | None) -> list[str]:
    """Warnings where the prompt and the references do not agree. A single reference needs no name."""
    if prompt is None:
        return []
    named = named_images(prompt)
    missing = [
        f"the prompt names image {number}, but there {'is 1 reference' if count == 1 else f'are {count} references'}"
        for number in sorted(named)
        if not 1 <= number <= count
    ]
    unnamed = [number for number in range(1, count + 1) if number not in named] if count > 1 else []
    return missing + [f"the prompt does not name image {number}" for number in unnamed]
