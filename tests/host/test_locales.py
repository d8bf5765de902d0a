"""Names, descriptions and tooltips in every language: complete, nothing left over, and served where the frontend reads them.

After a change of a text: `python3 -m tools.locales` writes the English file and lists what the other languages lack."""

import re
import unicodedata

import pytest

from tools.locales import LANGUAGES, SCRIPTS, differences, english, read

# Words that a language shares with English, or that stay as they are.
SAME = {
    "vae", "cfg", "clip", "image", "image 1", "image 2", "image 3", "image 4", "mode", "variant", "sigmas", "latent", "Seed",
    "Name", "Modus", "variante", "seed", "Klein Prompt",
}  # fmt: skip
LITERAL = re.compile(r"\w+\.safetensors|\b[a-z0-9]+(?:_[a-z0-9]+)+\b|\b\d+x\d+\b|CIEDE2000|models/\w+|Apache 2\.0|FLUX\.2")


@pytest.fixture(scope="module")
def nodes(comfy):
    return {name: node for name, node in comfy.get("/object_info").items() if name.startswith("Klein")}


def walk(texts: dict, path: tuple = ()):
    """(path, text) of all texts of a locale file."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from walk(value, (*path, key))
        else:
            yield (*path, key), value


def test_the_english_file_says_what_the_nodes_say(nodes):
    assert read("en") == english(nodes)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_its_text_and_no_text_is_left_over(nodes, language):
    assert differences(english(nodes), read(language)) == ([], [])


def test_every_node_input_and_output_of_the_server_has_a_tooltip(nodes):
    assert [path for path, text in walk(english(nodes)) if not text.strip()] == []


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_no_text_is_left_in_english(language):
    script = SCRIPTS.get(language)
    left = []
    source_of = dict(walk(read("en")))
    for path, text in walk(read(language)):
        source = source_of[path]
        written = script is None or any(unicodedata.name(c, "").startswith(script) for c in text)
        sentence = path[-1] != "name" and path[-1] != "display_name"
        if not text.strip() or (text == source and (sentence or text not in SAME)) or (sentence and not written):
            left.append((path, text))
    assert left == []


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_what_is_written_into_a_graph_or_a_folder_is_not_translated(nodes, language):
    """Options of lists, file names, sizes: a translation names those that the English text names."""
    got, lost = dict(walk(read(language))), []
    for path, source in walk(read("en")):
        words = set(LITERAL.findall(source)) if path[-1] != "name" else set()
        if path[1] == "inputs" and path[-1] == "tooltip" and path[2] in options(nodes[path[0]]):
            words |= {option for option in options(nodes[path[0]])[path[2]] if f"{option}:" in source}
        lost += [(path, word) for word in words if word not in got[path]]
    assert lost == []


def options(node: dict) -> dict[str, list]:
    """The lists that a node offers, by input."""
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    return {
        name: given[0] if isinstance(given[0], list) else given[1].get("options", [])
        for name, given in inputs.items()
        if isinstance(given[0], list) or given[0] == "COMBO"
    }


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_node_is_called_in_texts_as_it_is_called_in_that_language(language):
    texts, source = read(language), read("en")
    names = {source[node]["display_name"]: texts[node]["display_name"] for node in source}
    pattern = re.compile("|".join(sorted(map(re.escape, names), key=len, reverse=True)))
    got = dict(walk(texts))
    wrong = [(p, n) for p, text in walk(source) for n in pattern.findall(text) if names[n] not in got[p]]
    assert wrong == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_holds_what_the_frontend_reads_as_its_own_syntax(language):
    assert [path for path, text in walk(read(language)) if set(text) & set("{}@|$")] == []


def test_the_server_gives_the_frontend_every_language(comfy):
    served = comfy.get("/i18n")
    assert {language: served[language]["nodeDefs"] for language in LANGUAGES} == {each: read(each) for each in LANGUAGES}
