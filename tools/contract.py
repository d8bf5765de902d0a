"""What shared workflow files depend on: tests/fixtures/contract.json, the nodes' ids, inputs, outputs and defaults.

python3 -m tools.contract [address of a ComfyUI] adds what is new in the nodes of a running server (one of its own without an
address). What was there before is never changed by it: it lists what is broken instead.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

from . import provision

FILE = provision.ROOT / "tests/fixtures/contract.json"
KEPT = ("default", "min", "max")


def served(address: str) -> dict:
    """This pack's nodes, as a server tells of them."""
    with urllib.request.urlopen(f"{address}/object_info") as answer:
        return {name: node for name, node in json.load(answer).items() if name.startswith("Klein")}


def nodes(address: str = "") -> dict:
    """Those of a server, or of one that is started for it."""
    if address:
        return served(address)
    from .server import Server

    with tempfile.TemporaryDirectory() as base:
        server = Server(Path(base)).start()
        try:
            return served(server.url)
        finally:
            server.stop()


def contract(nodes: dict) -> dict:
    """What is promised of these nodes. Lists of files are no promise, other lists are."""
    found = {}
    for node, info in nodes.items():
        inputs = {}
        for group in ("required", "optional"):
            for name in info["input_order"].get(group, []):
                kind, *settings = info["input"][group][name]
                settings = settings[0] if settings else {}
                kind, options = ("COMBO", kind) if isinstance(kind, list) else (kind, settings.get("options"))
                inputs[name] = {"type": kind, "group": group, **{key: settings[key] for key in KEPT if key in settings}}
                if options and "default" in settings:
                    inputs[name]["options"] = options
        outputs = [{"type": kind, "name": name} for kind, name in zip(info["output"], info["output_name"])]
        found[node] = {"inputs": inputs, "outputs": outputs}
    return found


def broken(before: dict, now: dict) -> list[str]:
    """What a workflow file of before would miss: in words. Nodes, inputs at the end and options may come new."""
    wrong = []
    for node, old in before.items():
        if node not in now:
            wrong.append(f"{node} is gone")
            continue
        new = now[node]
        names = list(new["inputs"])
        wrong += [f"{node}: input {name} is gone" for name in old["inputs"] if name not in names]
        if [name for name in names if name in old["inputs"]] != [name for name in old["inputs"] if name in names]:
            wrong.append(f"{node}: the inputs have another order")
        elif names[: len(old["inputs"])] != list(old["inputs"]) and set(old["inputs"]) <= set(names):
            wrong.append(f"{node}: an input has come before the end")
        for name in set(names) & set(old["inputs"]):
            wrong += [f"{node}: {name}: {text}" for text in changed(old["inputs"][name], new["inputs"][name])]
        if new["outputs"][: len(old["outputs"])] != old["outputs"]:
            wrong.append(f"{node}: an output is gone, or is another")
    return wrong


def changed(old: dict, new: dict) -> list[str]:
    wrong = [
        f"{key} was {old[key]}, is {new.get(key)}" for key in ("type", "default") if key in old and new.get(key) != old[key]
    ]
    if old["group"] == "optional" and new["group"] == "required":
        wrong.append("was optional, is required")
    if "min" in old and new.get("min", old["min"]) > old["min"]:
        wrong.append(f"min was {old['min']}, is {new['min']}")
    if "max" in old and new.get("max", old["max"]) < old["max"]:
        wrong.append(f"max was {old['max']}, is {new['max']}")
    wrong += [f"option {option} is gone" for option in old.get("options", []) if option not in new.get("options", [])]
    return wrong


def read() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> int:
    now = contract(nodes(*sys.argv[1:]))
    wrong = broken(read(), now) if FILE.exists() else []
    if wrong:
        print("\n".join(wrong))
        return 1
    FILE.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    print(f"{FILE.relative_to(provision.ROOT)}: {len(now)} nodes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
