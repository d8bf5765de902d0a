"""The texts of the nodes in every language: locales/<language>/nodeDefs.json, in the form that ComfyUI's frontend reads.

python3 -m tools.locales [address of a ComfyUI] writes the English file from the nodes of a running server (one of its own
without an address), and lists what the other languages lack or have too much.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from . import contract, provision

LANGUAGES = ("en", "zh", "ja", "ko", "es", "fr", "de", "ru")
SCRIPTS = {"zh": "CJK", "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ko": "HANGUL", "ru": "CYRILLIC"}
FOLDER = provision.ROOT / "locales"


def path_of(language: str) -> Path:
    return FOLDER / language / "nodeDefs.json"


def read(language: str) -> dict:
    return json.loads(path_of(language).read_text(encoding="utf-8"))


def english(nodes: dict) -> dict:
    """What a server's /object_info says of these nodes, as a locale file. An output that is called as its type has no name
    here: the frontend calls it as it calls the type."""
    texts = {}
    for node, info in nodes.items():
        inputs = {}
        for group in ("required", "optional"):
            for name in info["input_order"].get(group, []):
                settings = (info["input"][group][name][1:] or [{}])[0]
                inputs[name] = {"name": name, "tooltip": settings.get("tooltip", "")}
                if settings.get("control_after_generate"):  # a widget of the frontend's own
                    inputs["control_after_generate"] = {"name": "control after generate"}
        outputs = {}
        tooltips = info.get("output_tooltips") or [""] * len(info["output"])
        for index, (kind, name, tooltip) in enumerate(zip(info["output"], info["output_name"], tooltips)):
            outputs[str(index)] = {**({"name": name} if name != kind else {}), "tooltip": tooltip or ""}
        texts[node] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": inputs,
            "outputs": outputs,
        }
    return texts


def keys(texts: dict, above: str = "") -> list[str]:
    """All places of a file that hold a text, in order."""
    found = []
    for key, value in texts.items():
        found += keys(value, f"{above}{key}.") if isinstance(value, dict) else [f"{above}{key}"]
    return found


def differences(wanted: dict, got: dict) -> tuple[list[str], list[str]]:
    """(places that are missing, places that are too many)"""
    left, right = keys(wanted), keys(got)
    return [each for each in left if each not in right], [each for each in right if each not in left]


def write(language: str, texts: dict) -> None:
    path_of(language).parent.mkdir(parents=True, exist_ok=True)
    path_of(language).write_text(json.dumps(texts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    nodes = contract.nodes(*sys.argv[1:])
    before, now = read("en"), english(nodes)
    write("en", now)
    changed = [each for each in keys(now) if each in keys(before) and value(now, each) != value(before, each)]
    print("\n".join(f"changed in English: {each}" for each in changed) or "English: nothing changed")
    wrong = False
    for language in LANGUAGES[1:]:
        missing, over = differences(now, read(language))
        wrong |= bool(missing or over)
        print(f"{language}: lacks {', '.join(missing) or 'nothing'}; has too much: {', '.join(over) or 'nothing'}")
    return int(wrong)


def value(texts: dict, place: str) -> str:
    for key in place.split("."):
        texts = texts[key]
    return texts


if __name__ == "__main__":
    sys.exit(main())
