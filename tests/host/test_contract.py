"""Ids, inputs and outputs are an API: shared workflow files depend on them. And each node has its help."""

import copy
import urllib.request

import pytest

from tools.contract import broken, contract, read

CONTRACT = {
    "KleinFlowLoader": ("flow_name weight_dtype variant", "MODEL"),
    "KleinQwen3EncoderLoader": ("encoder_name device", "CLIP"),
    "KleinVAELoader": ("vae_name", "VAE"),
    "KleinLoraLoader": ("model lora_name strength clip clip_strength", "MODEL CLIP STRING"),
    "KleinPrompt": ("clip text", "CONDITIONING STRING"),
    "KleinReference": ("image strength start_percent end_percent references mask", "KLEIN_REFERENCES"),
    "KleinMultiReference": (
        "positive vae sizing max_megapixels width height batch_size negative image_1 image_2 image_3 image_4 references",
        "CONDITIONING CONDITIONING LATENT KLEIN_CANVAS STRING",
    ),
    "KleinEdit": (
        "positive vae image mode context grow feather max_megapixels left top right bottom batch_size mask negative image_2 "
        "image_3 image_4 references",
        "CONDITIONING CONDITIONING LATENT KLEIN_CANVAS STRING",
    ),
    "KleinCanvasRestore": ("image canvas blend colour keep", "IMAGE MASK STRING"),
    "KleinReferenceCache": ("model mode device dtype", "MODEL STRING"),
    "KleinDistilledSampler": (
        "model positive latent_image seed steps cfg denoise schedule negative sigmas",
        "LATENT STRING",
    ),
    "KleinExamplePicture": ("picture", "IMAGE MASK"),
    "KleinPreflight": (
        "model clip vae positive latent_image references steps cfg text",
        "MODEL CLIP VAE CONDITIONING LATENT KLEIN_REFERENCES INT FLOAT STRING",
    ),
    "KleinSchedule": ("steps schedule denoise latent width height", "SIGMAS"),
}


@pytest.fixture(scope="module")
def nodes(comfy):
    return {name: node for name, node in comfy.get("/object_info").items() if name.startswith("Klein")}


def inputs(node) -> list[str]:
    return [name for group in ("required", "optional") for name in node["input_order"].get(group, [])]


def test_the_pack_has_exactly_these_nodes(nodes):
    assert nodes.keys() == CONTRACT.keys()


@pytest.mark.parametrize("name", CONTRACT)
def test_inputs_and_outputs_keep_their_names_and_order(nodes, name):
    wanted_inputs, wanted_outputs = CONTRACT[name]
    assert inputs(nodes[name]) == wanted_inputs.split()
    assert nodes[name]["output"] == wanted_outputs.split()
    assert nodes[name]["category"] == "Klein"


@pytest.mark.parametrize("name", CONTRACT)
def test_each_input_stands_in_the_help_that_the_server_gives(comfy, nodes, name):
    with urllib.request.urlopen(f"{comfy.url}/extensions/klein/docs/{name}.md") as answer:
        text = answer.read().decode()
    assert [entry for entry in inputs(nodes[name]) if f"`{entry}`" not in text] == []


def test_nothing_that_was_shipped_is_removed_reordered_or_changed(nodes):
    """`python3 -m tools.contract` adds what is new to tests/fixtures/contract.json."""
    now = contract(nodes)
    assert broken(read(), now) == []
    assert now == read()


BREAKS = {
    "KleinSchedule is gone": lambda now: now.pop("KleinSchedule"),
    "KleinPrompt: input text is gone": lambda now: now["KleinPrompt"]["inputs"].pop("text"),
    "KleinPrompt: the inputs have another order": lambda now: now["KleinPrompt"].update(
        inputs=dict(reversed(now["KleinPrompt"]["inputs"].items()))
    ),
    "KleinPrompt: an input has come before the end": lambda now: now["KleinPrompt"].update(
        inputs={"new": {"type": "INT", "group": "required"}, **now["KleinPrompt"]["inputs"]}
    ),
    "KleinEdit: an output is gone, or is another": lambda now: now["KleinEdit"]["outputs"].pop(0),
    "KleinEdit: mode: default was edit, is repaint": lambda now: now["KleinEdit"]["inputs"]["mode"].update(default="repaint"),
    "KleinEdit: mode: option outpaint is gone": lambda now: now["KleinEdit"]["inputs"]["mode"]["options"].remove("outpaint"),
    "KleinEdit: mask: was optional, is required": lambda now: now["KleinEdit"]["inputs"]["mask"].update(group="required"),
    "KleinDistilledSampler: steps: max was 200, is 50": lambda now: now["KleinDistilledSampler"]["inputs"]["steps"].update(
        max=50
    ),
    "KleinDistilledSampler: cfg: min was 1.0, is 2.0": lambda now: now["KleinDistilledSampler"]["inputs"]["cfg"].update(
        min=2.0
    ),
    "KleinPrompt: text: type was STRING, is INT": lambda now: now["KleinPrompt"]["inputs"]["text"].update(type="INT"),
}


@pytest.mark.parametrize("said", BREAKS)
def test_what_would_break_a_workflow_file_is_seen(said):
    now = copy.deepcopy(read())
    BREAKS[said](now)
    assert broken(read(), now) == [said]


def test_what_is_new_breaks_nothing():
    now = copy.deepcopy(read())
    now["KleinNew"] = {"inputs": {}, "outputs": []}
    now["KleinEdit"]["inputs"]["new"] = {"type": "INT", "group": "optional", "default": 0}
    now["KleinEdit"]["inputs"]["mode"]["options"].append("new")
    now["KleinEdit"]["outputs"].append({"type": "MASK", "name": "new"})
    now["KleinDistilledSampler"]["inputs"]["steps"]["max"] = 1000
    assert broken(read(), now) == []
