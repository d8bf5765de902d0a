"""What Klein Multi Reference and Klein Reference make of images, masks and conditionings of every kind, called in this
process beside a real ComfyUI."""

import pytest
import torch

from klein.pictures.references import SOCKETS, chain
from klein.pictures.sizing import fit
from tools import inprocess, small


@pytest.fixture(scope="module")
def references():
    return inprocess.import_adapter("combine")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = small.save(small.vae_state(small.vae_oracle()), tmp_path_factory.mktemp("vae") / "vae.safetensors")
    return inprocess.import_adapter("vae").load_vae(path)


@pytest.fixture
def combine(references, vae):
    """combine(*images, ...) -> values of the positive conditioning, and all outputs."""

    def combine(*images, chained=(), values=None, negative=None, sizing="exact", megapixels=1.0, size=(0, 0), batch=1):
        positive = [[torch.zeros(1, 512, 12), values or {}]]
        sockets = dict(zip(SOCKETS, images))
        out = references.combine(positive, negative, vae, sockets, chained, sizing, megapixels, *size, batch)
        return out[0][0][1], out

    return combine


def test_a_new_prompt_does_not_encode_the_images_again(combine, vae, monkeypatch):
    encode, calls = vae.encode, []
    monkeypatch.setattr(vae, "encode", lambda image: calls.append(image.shape) or encode(image))
    # no other test's, after which the store would know it
    image = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(41))
    first, _ = combine(image, values={"klein_pack": {"prompt": "a cat"}})
    assert len(calls) == 2
    again, _ = combine(image.clone(), values={"klein_pack": {"prompt": "a dog"}})
    assert len(calls) == 2 and all(map(torch.equal, first["reference_latents"], again["reference_latents"]))
    image[1, 0, 0, 0] += 0.01
    combine(image)
    assert len(calls) == 3


def test_encoded_references_are_kept_up_to_a_number_of_bytes(combine, references, vae, monkeypatch):
    monkeypatch.setattr(references, "KEPT_LATENTS", 3 * 128 * 16 * 4)
    for _ in range(9):
        combine(torch.rand(1, 64, 64, 3))
    assert len(references._latents[vae.first_stage_model]) == 3


@pytest.mark.parametrize(
    "shape", [(64, 96, 4), (64, 96, 2), (64, 96, 1), (40, 320, 3), (1, 1, 3), (1, 900, 3), (8000, 1000, 3)]
)
def test_alpha_grey_panoramas_and_single_pixels_are_encoded(combine, vae, shape):
    image = torch.rand(1, *shape)
    values, (_, _, latent, canvas, _) = combine(image, batch=3, megapixels=0.1)
    assert canvas.size == fit((shape[1], shape[0]), "exact", 0.1).size
    assert latent["samples"].shape == (3, 128, canvas.size[1] // 16, canvas.size[0] // 16)
    assert values["reference_latents"][0].shape == (1, *latent["samples"].shape[1:])
    if canvas.size == (shape[1], shape[0]):
        rgb = image[..., :3] if shape[-1] > 2 else image[..., :1].repeat(1, 1, 1, 3)
        assert small.relative(values["reference_latents"][0], vae.encode(rgb)) < 1e-5  # other strides round otherwise


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_resized_too(combine, dtype):
    values, _ = combine(torch.rand(1, 70, 90, 3).to(dtype))
    assert values["reference_latents"][0].shape == (1, 128, 4, 6)


@pytest.mark.parametrize("shape", [(64, 64, 3), (0, 64, 64, 3), (1, 64, 64, 5), (1, 0, 64, 3)])
def test_what_is_no_image_is_refused_in_one_sentence(combine, shape):
    with pytest.raises(Exception, match=r"^The reference is a tensor of .*, expected .*: connect an IMAGE\.$"):
        combine(torch.rand(shape))


def test_masks_of_two_three_and_four_dimensions_are_the_same(references, combine):
    mask = torch.zeros(64, 96)
    mask[:, :48] = 1
    kept = []
    for each in (mask, mask[None], mask[None, None]):
        values, _ = combine(chained=chain(torch.rand(1, 64, 96, 3), mask=each))
        kept += [control.keep for control in values["klein_pack"]["controls"]]
    assert kept == [bytes([1, 1, 1, 0, 0, 0] * 4)] * 3


def test_a_batch_takes_one_mask_or_one_each(references):
    images, masks = torch.rand(2, 64, 64, 3), torch.stack([torch.zeros(64, 64), torch.ones(64, 64)])
    assert [ref.mask.mean() for ref in chain(images, mask=masks)] == [0, 1]
    assert [ref.mask.mean() for ref in chain(images, mask=masks[1:])] == [1, 1]
    with pytest.raises(Exception, match="^There are 2 masks for 3 images: give one for all, or one for each.$"):
        chain(torch.rand(3, 64, 64, 3), mask=masks)


def test_a_mask_of_all_ones_is_no_mask(references, combine):
    image = torch.rand(1, 64, 64, 3)
    values, _ = combine(chained=chain(image, mask=torch.ones(1, 64, 64)))
    assert "klein_pack" not in values and torch.equal(values["reference_latents"][0], combine(image)[0]["reference_latents"][0])


def test_a_reference_of_strength_0_does_not_change_the_size_of_the_others(references, combine):
    """Black Forest Labs' cap is smaller for several."""
    image = torch.rand(1, 1040, 1040, 3)
    alone, (*_, canvas, _) = combine(image, sizing="bfl")
    beside, (*_, also, _) = combine(image, chained=chain(torch.rand(1, 64, 64, 3), strength=0.0), sizing="bfl")
    assert canvas == also and torch.equal(alone["reference_latents"][0], beside["reference_latents"][0])
    several, _ = combine(image, torch.rand(1, 64, 64, 3), sizing="bfl")
    assert several["reference_latents"][0].shape[-1] < alone["reference_latents"][0].shape[-1]


def test_the_report_knows_what_earlier_references_were_asked_for(references, combine):
    image, mask = torch.rand(1, 64, 64, 3), torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    first = chain(image, mask=mask)
    values, _ = combine(chained=chain(image, references=first, strength=0.0))
    _, (*_, text) = combine(image, values=values)
    lines = text.split("\n")
    assert (
        lines[0]
        == "image 1: 64x64, 8 tokens, 1 % of the attention's keys, already in the conditioning, 8 of 16 tokens kept by the mask"
    )
    assert (
        lines[1] == "image 2: 64x64, 0 tokens, 0 % of the attention's keys, already in the conditioning, strength 0: left out"
    )
    assert lines[3] == "canvas: 64x64, 16 tokens, 552 with text and references"
    assert lines[-1] == "Strength, mask and window need a model of Klein Flow Loader."


def test_sockets_whose_number_is_shifted_by_a_batch_are_named(combine):
    _, (*_, text) = combine(torch.rand(2, 64, 64, 3), torch.rand(1, 64, 64, 3))
    assert "Warning: image_2 is image 3, as a socket before it holds several" in text.split("\n")


def test_a_negative_with_other_references_is_warned_of(combine):
    values, _ = combine(torch.rand(1, 64, 64, 3))
    negative = [[torch.zeros(1, 512, 12), {"reference_latents": None}]]
    _, (*_, text) = combine(torch.rand(1, 64, 64, 3), values=values, negative=negative)
    assert "Warning: positive and negative have 0 to 1 references of before, so their numbers differ" in text


def test_a_computed_side_beyond_all_images_is_refused(combine):
    with pytest.raises(Exception, match="^The image would be 1024x921600 by the aspect of image 1, expected 16384 a side"):
        combine(torch.rand(1, 900, 1, 3), size=(1024, 0))


@pytest.mark.parametrize("key", ["klein", "klein_pack"])
@pytest.mark.parametrize("foreign", ["text", 3, None, ["a"], {"controls": "ab", "prompt": 5}, {"controls": ({"strength": 2},)}])
def test_what_others_write_under_our_key_or_its_like_is_as_if_it_were_not_there(references, combine, key, foreign):
    image, second = torch.rand(1, 64, 64, 3), chain(torch.rand(1, 64, 64, 3), strength=2.0)
    first, _ = combine(image)
    want, (*_, text) = combine(chained=second, values=first)
    got, (*_, also) = combine(chained=second, values={**first, key: foreign})
    assert also == text and all(map(torch.equal, got["reference_latents"], want["reference_latents"]))
    assert [control.strength for control in got["klein_pack"]["controls"]] == [1.0, 2.0]


def test_more_controls_than_references_do_not_shift_those_that_follow(references, combine):
    from klein.model_loaders.flow.controls import Control

    second = chain(torch.rand(1, 64, 64, 3), strength=2.0)
    values, _ = combine(chained=second, values={"klein_pack": {"controls": (Control(strength=3.0),) * 4}})
    assert [control.strength for control in values["klein_pack"]["controls"]] == [2.0]
