"""Values that the host does not check, as they come over a link, are refused in one sentence by the nodes themselves."""

import importlib
import math
import re

import pytest
import torch

from tools import inprocess, small

DEFAULTS = {
    "KleinFlowLoader": dict(flow_name="klein-tiny.safetensors", weight_dtype="default", variant="auto"),
    "KleinQwen3EncoderLoader": dict(encoder_name="klein-tiny.safetensors", device="default"),
    "KleinVAELoader": dict(vae_name="klein-tiny.safetensors"),
    "KleinReferenceCache": dict(model=object(), mode="off", device="gpu", dtype="model"),
    "KleinReference": dict(image=torch.rand(1, 32, 32, 3), strength=1.0, start_percent=0.0, end_percent=1.0),
    "KleinMultiReference": dict(
        positive=[[torch.zeros(1, 512, 12), {}]], vae=object(), sizing="exact", max_megapixels=1.0, width=0, height=0, batch_size=1
    ),
    "KleinDistilledSampler": dict(
        model=object(), positive=[], latent_image={"samples": torch.zeros(1, 128, 2, 2)}, seed=0, steps=4, cfg=1.0, denoise=1.0,
        schedule="official",
    ),
    "KleinSchedule": dict(steps=4, schedule="official", denoise=1.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes():
    inprocess.import_adapter("files")
    modules = [importlib.import_module(f"klein.nodes.{name}") for name in ("loaders", "references", "cache", "sampling")]
    return {name: getattr(module, name) for name in DEFAULTS for module in modules if hasattr(module, name)}


def refused(nodes, node, **values) -> str:
    with pytest.raises(ValueError) as error:
        nodes[node].execute(**DEFAULTS[node] | values)
    assert type(error.value).__name__ == "KleinError"
    return str(error.value)


@pytest.mark.parametrize("value", ["turbo", "", None, 4, ["auto"]])
@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("KleinFlowLoader", "variant"), ("KleinFlowLoader", "weight_dtype"), ("KleinQwen3EncoderLoader", "device"),
        ("KleinReferenceCache", "mode"), ("KleinReferenceCache", "device"), ("KleinReferenceCache", "dtype"),
        ("KleinMultiReference", "sizing"), ("KleinDistilledSampler", "schedule"), ("KleinSchedule", "schedule"),
    ],
)  # fmt: skip
def test_a_choice_outside_its_list_is_refused(nodes, node, name, value):
    text = refused(nodes, node, **{name: value})
    assert re.fullmatch(rf"{name} is {re.escape(repr(value))}, expected one of [a-z0-9_, ]+: change it\.", text), text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e9, -1.0, None, "x"])
@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("KleinReference", "strength"), ("KleinReference", "start_percent"), ("KleinReference", "end_percent"),
        ("KleinMultiReference", "max_megapixels"), ("KleinDistilledSampler", "cfg"), ("KleinDistilledSampler", "denoise"),
        ("KleinSchedule", "denoise"), ("KleinDistilledSampler", "steps"), ("KleinMultiReference", "width"),
    ],
)  # fmt: skip
def test_a_number_outside_its_bounds_is_refused(nodes, node, name, value):
    text = refused(nodes, node, **{name: value})
    assert re.fullmatch(
        rf"{name} is {re.escape(repr(value))}, expected a (whole )?number from [\d.]+ to [\d.]+: change it\.", text
    )


def test_the_defaults_are_inside_lists_and_bounds(nodes):
    assert len(nodes["KleinSchedule"].execute(**DEFAULTS["KleinSchedule"]).args[0]) == 5
    assert len(nodes["KleinReference"].execute(**DEFAULTS["KleinReference"]).args[0]) == 1
    whole_numbers = nodes["KleinReference"].execute(**DEFAULTS["KleinReference"] | dict(strength=2, end_percent=1))
    assert whole_numbers.args[0][0].strength == 2


@pytest.mark.parametrize("value", [None, 4, ["x", 0]])
@pytest.mark.parametrize(
    ("node", "name"),
    [("KleinFlowLoader", "flow_name"), ("KleinQwen3EncoderLoader", "encoder_name"), ("KleinVAELoader", "vae_name")],
)
def test_what_is_no_file_name_is_refused(nodes, node, name, value):
    text = refused(nodes, node, **{name: value})
    assert re.fullmatch(rf"No file of [a-z_]+ is chosen \({re.escape(repr(value))} is not a name\): choose one\.", text), text


@pytest.mark.parametrize("shape", [(0, 8, 8), (1, 0, 8), (0,), (8,)])
def test_a_mask_without_pixels_is_refused(nodes, shape):
    assert refused(nodes, "KleinReference", mask=torch.zeros(shape)) == (
        f"The mask is a tensor of {'x'.join(map(str, shape))}, expected masks x height x width: connect a MASK."
    )


@pytest.mark.parametrize("shape", [(0, 128, 2, 2), (1, 128, 0, 2), (1, 128, 2, 0)])
def test_a_latent_without_pixels_is_refused(nodes, shape):
    text = refused(nodes, "KleinDistilledSampler", latent_image={"samples": torch.zeros(shape)})
    assert text.startswith(f"The latent has shape {list(shape)}, expected [batch, 128, height/16, width/16]: use ")
    assert refused(nodes, "KleinSchedule", latent={"samples": torch.zeros(shape)}) == text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_latent_or_sigmas_that_are_no_numbers_are_refused(nodes, value):
    latent = torch.zeros(1, 128, 2, 2)
    latent[0, 5, 1, 1] = value
    assert refused(nodes, "KleinDistilledSampler", latent_image={"samples": latent}) == (
        "The latent holds NaN or infinity, expected numbers: change the node that made it."
    )
    assert refused(nodes, "KleinDistilledSampler", sigmas=torch.tensor([1.0, value])) == (
        "The sigmas are not a row of finite numbers: connect those of a scheduler, or none."
    )
    mask = torch.full((1, 1, 2, 2), value)
    assert refused(nodes, "KleinDistilledSampler", latent_image={"samples": torch.zeros(1, 128, 2, 2), "noise_mask": mask}) == (
        "The noise mask holds NaN or infinity, expected shares from 0 to 1: change the node that made it."
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("node, name", [("KleinReference", "image"), ("KleinMultiReference", "image_2")])
def test_a_picture_that_holds_no_numbers_is_refused(nodes, node, name, value):
    image = torch.rand(2, 32, 32, 3)
    image[1, 31, 31, 2] = value
    assert refused(nodes, node, **{name: image}) == (
        "A picture holds NaN or infinity, expected colours from 0 to 1: change the node that made it."
    )


@pytest.mark.parametrize("sigmas", [[1.0, 0.0, 0.0], [0.0, 0.5], [1.0, -0.5, 0.0]])
def test_sigmas_at_which_no_step_can_begin_are_refused(nodes, sigmas):
    assert refused(nodes, "KleinDistilledSampler", sigmas=torch.tensor(sigmas)) == (
        "The sigmas hold 0 or less before their end, where no step can begin: end them with one 0."
    )


def test_a_reference_latent_without_pixels_is_refused(tmp_path):
    flow = inprocess.import_adapter("flow")
    model = flow.load_model(small.save(small.flow_state(**small.FLOW), tmp_path / "flow.safetensors")).model
    with pytest.raises(ValueError, match=r"^Reference 1 has shape \[1, 128, 0, 4\], expected "):
        flow.check_conditioning(model, torch.zeros(1, 512, small.FLOW["context"]), [torch.zeros(1, 128, 0, 4)])


@pytest.mark.parametrize("value", ["NaN", None])
def test_over_http_a_null_name_or_nan_ends_in_one_sentence(comfy, graph, value):
    from tools.server import PromptError

    if value is None:
        graph.flow["flow_name"] = None
    else:
        graph.sampler["cfg"] = math.nan
    with pytest.raises(PromptError) as error:
        comfy.run(graph)
    assert error.value.text.endswith((": choose one.", ": change it.")), error.value.text


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(tmp_path):
    """It has no more tokens than the encoder embeds, but one of them has a high id."""
    import json

    from klein.model_loaders.qwen3.prompt import load_tokenizer

    encoder = inprocess.import_adapter("encoder")
    tokenizer = json.loads(load_tokenizer(encoder.BUNDLED).to_str())
    tokenizer["model"]["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]} | {"zzzzzz": 10**6}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = small.save(small.encoder_state(small.encoder_oracle(**small.ENCODER)), tmp_path / "qwen_3_8b.safetensors")
    with pytest.raises(ValueError) as error:
        encoder.load_clip(path)
    assert str(error.value) == (
        "The tokenizer for qwen_3_8b.safetensors has ids up to 1000000 but the encoder embeds 151936 tokens: put the tokenizer "
        "folder of that encoder beside it."
    )


def test_tokens_that_the_encoder_does_not_embed_are_refused(tmp_path):
    """From another tokenizer under the same name: ids beyond the embedding, or embeddings of its own."""
    state = small.encoder_state(small.encoder_oracle(**small.ENCODER))
    clip = inprocess.import_adapter("encoder").load_clip(small.save(state, tmp_path / "qwen_3_8b.safetensors"))
    (name,) = clip.tokenize("a cat")
    for stray, found in ((151936, "151936"), (-1, "-1"), (torch.zeros(64), "a Tensor")):
        with pytest.raises(ValueError) as error:
            clip.encode_from_tokens({name: [[(5, 1.0), (stray, 1.0)]]})
        assert str(error.value) == (
            f"The tokens hold {found}, expected ids below 151936: tokenize the prompt with the CLIP that encodes it."
        )


LINKS = [
    ("KleinReference", "image"), ("KleinReference", "references"), ("KleinReference", "mask"),
    ("KleinMultiReference", "positive"), ("KleinMultiReference", "vae"), ("KleinMultiReference", "negative"),
    ("KleinMultiReference", "image_3"), ("KleinDistilledSampler", "model"), ("KleinDistilledSampler", "positive"),
    ("KleinDistilledSampler", "latent_image"), ("KleinDistilledSampler", "sigmas"), ("KleinReferenceCache", "model"),
    ("KleinSchedule", "latent"),
]  # fmt: skip


@pytest.mark.parametrize("value", ["nan", 1, 0.5, True, {}, [1, 2, 3]])
@pytest.mark.parametrize(("node", "name"), LINKS)
def test_a_value_where_a_nodes_output_belongs_is_refused(nodes, node, name, value):
    assert re.fullmatch(
        rf"{name} is {re.escape(repr(value))}, expected [A-Z_]+ of a node: change it\.", refused(nodes, node, **{name: value})
    )
