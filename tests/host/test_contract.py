"""Ids, inputs and outputs are an API: shared workflow files depend on them. And each node has its help."""

import urllib.request

import pytest

CONTRACT = {
    "KleinFlowLoader": ("flow_name weight_dtype variant", "MODEL"),
    "KleinQwen3EncoderLoader": ("encoder_name device", "CLIP"),
    "KleinVAELoader": ("vae_name", "VAE"),
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
        "LATENT",
    ),
    "KleinExamplePicture": ("picture", "IMAGE MASK"),
    "KleinPreflight": (
        "model clip vae positive latent_image references steps cfg",
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
