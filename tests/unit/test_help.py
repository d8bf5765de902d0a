"""Each node's help says what it costs, its neutral value, and what goes wrong: in sentences that the code really says."""

import ast
import re

import pytest

from tools.provision import ROOT

PAGES = sorted((ROOT / "web/docs").glob("Klein*.md"))
SECTIONS = ["What it costs", "Neutral", "What goes wrong"]
GAP = "…"  # a name or number of the day


def spoken() -> str:
    """Every text in the code that ships, values in it as gaps, one a line."""
    found = []
    for room in ("nodes", "pictures", "model_loaders", "samplers"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else GAP for v in node.values))
    return "\n".join(" ".join(text.split()) for text in found)


def sections(text: str) -> dict[str, str]:
    return {name: body.strip() for name, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)}


def sentences(text: str) -> list[str]:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", sections(text)["What goes wrong"], flags=re.M)
    return [said for said, _ in rows if said != "it says"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_says_what_the_node_costs_its_neutral_value_and_what_goes_wrong(path):
    found = sections(path.read_text(encoding="utf-8"))
    assert list(found)[-3:] == SECTIONS
    assert all(len(found[name]) >= 8 for name in SECTIONS)
    assert sentences(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_a_page_says_is_said_stands_in_the_code(path):
    code, lost = spoken(), []
    for said in sentences(path.read_text(encoding="utf-8")):
        pattern = ".*?".join(re.escape(part) for part in said.split(GAP))
        lost += [said] * (len(said.replace(GAP, "").strip()) < 12 or not re.search(pattern, code))
    assert lost == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_the_node_in_a_graph(path):
    """`python3 -m tools.help_pictures` draws them."""
    picture = path.parent / "images" / f"{path.stem}.jpg"
    assert f"](images/{picture.name})" in path.read_text(encoding="utf-8").split("|")[0]
    assert picture.stat().st_size < 100_000


def test_every_node_has_its_page():
    declared = re.findall(r'node_id="(\w+)"', "".join(path.read_text() for path in (ROOT / "nodes").glob("*.py")))
    assert sorted(declared) == [path.stem for path in PAGES]
