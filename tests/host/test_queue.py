"""Whatever text or file comes in over the API, it ends in one sentence, and the queue runs on."""

import json
import os
import shutil
import time

import pytest

from fixtures.graph import ENCODER, FLOW
from tools.server import PromptError

PANICS = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
ABORTS = {
    "model": {
        "type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2}, "merges": [["a", "é"]], "continuing_subword_prefix": "x",
    }
}  # fmt: skip
EMPTY = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
EMPTY |= dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))


def sentence(comfy, graph) -> str:
    """What a user reads of a graph that is refused; the same graph as it should be must then run."""
    with pytest.raises(PromptError) as refused:
        comfy.wait(comfy.queue(graph), patience=60)
    text = refused.value.text
    assert text.endswith(".") and "\n" not in text and text.isprintable(), text
    return text


def still_runs(comfy, graph) -> bool:
    graph.sampler["seed"] = time.time_ns() % 2**53
    return bool(comfy.wait(comfy.queue(graph), patience=60)["outputs"])


def test_half_a_character_as_prompt(comfy, graph):
    good, graph.prompt["text"] = graph.prompt["text"], "a \ud800 cat"
    assert sentence(comfy, graph) == (
        r"The prompt holds half a character (\ud800), which is no text: delete it and type it anew."
    )
    graph.prompt["text"] = good
    assert still_runs(comfy, graph)


def test_ten_million_spaces_as_prompt(comfy, graph):
    good, graph.prompt["text"] = graph.prompt["text"], " " * 10**7
    assert sentence(comfy, graph) == (
        "The prompt has 10000000 characters, expected 100000 at most, of which klein reads the first 512 tokens: shorten it."
    )
    graph.prompt["text"] = good
    assert still_runs(comfy, graph)


@pytest.mark.parametrize("spaces", [50_000, 100_000])
def test_the_longest_prompts_are_encoded(comfy, graph, spaces):
    graph.prompt["text"] = " " * spaces
    assert still_runs(comfy, graph)


@pytest.mark.parametrize(
    ("role", "key"), [("flow", "flow_name"), ("clip", "encoder_name"), ("vae", "vae_name")], ids=["flow", "encoder", "vae"]
)
def test_half_a_character_as_file_name(comfy, graph, role, key):
    inputs = getattr(graph, role)
    good, inputs[key] = inputs[key], "\ud800.safetensors"
    assert r"\ud800.safetensors was not found in models/" in sentence(comfy, graph)
    inputs[key] = good
    assert still_runs(comfy, graph)


@pytest.mark.parametrize(
    ("role", "key", "category", "source"),
    [
        ("flow", "flow_name", "diffusion_models", FLOW),
        ("clip", "encoder_name", "text_encoders", ENCODER),
        ("vae", "vae_name", "vae", "flux2-vae.safetensors"),
    ],
)
def test_a_file_whose_name_is_not_utf_8(comfy, graph, role, key, category, source):
    folder = os.fsencode(comfy.base / "models" / category)
    path = os.path.join(folder, b"latin-\xe9.safetensors")
    os.link(os.path.join(folder, os.fsencode(source)), path)
    comfy.get("/object_info")
    inputs = getattr(graph, role)
    good, inputs[key] = inputs[key], os.fsdecode(os.path.basename(path))
    try:
        assert sentence(comfy, graph) == (
            rf"The file name latin-\udce9.safetensors in {category} is not UTF-8: rename the file, then refresh the list (key R)."
        )
    finally:
        os.unlink(path)
    inputs[key] = good
    assert still_runs(comfy, graph)


@pytest.mark.parametrize("broken", [PANICS, ABORTS], ids=["panics", "aborts"])
def test_a_broken_tokenizer(comfy, graph, broken):
    folder = comfy.base / "models/text_encoders/broken"
    folder.mkdir()
    try:
        os.link(comfy.base / "models/text_encoders" / ENCODER, folder / "model.safetensors")
        (folder / "tokenizer.json").write_text(json.dumps(EMPTY | broken))
        comfy.get("/object_info")
        good, graph.clip["encoder_name"] = graph.clip["encoder_name"], "broken/model.safetensors"
        text = sentence(comfy, graph)
    finally:
        shutil.rmtree(folder)
    assert "text_encoders/broken is not a Qwen3 tokenizer (" in text and text.endswith("of the model again.")
    graph.clip["encoder_name"] = good
    assert still_runs(comfy, graph)
