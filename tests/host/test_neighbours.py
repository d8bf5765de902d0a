"""Our models beside other nodes of the host: tiles, lists, guidance by a negative."""

import pytest
import torch
from safetensors.torch import load_file

from tools.small import relative


@pytest.fixture
def picture(graph):
    """A link to a picture of 128x128, and one to the VAE of klein-tiny."""
    small = graph.without_image().new("KleinExamplePicture", picture="red_circle")
    large = graph.new("ImageScaleBy", image=small, upscale_method="bicubic", scale_by=2.0)
    return large, graph.new("KleinVAELoader", vae_name="klein-tiny-vae.safetensors")


@pytest.mark.parametrize(("tile", "bound"), [(256, 1e-5), (64, 0.5)])
def test_a_picture_encoded_and_decoded_in_tiles_is_that_without(graph, picture, tile, bound):
    """One tile is the whole; of more, each is normalised alone, so that they differ, but nothing is shifted or scaled."""
    pixels, vae = picture
    settings = dict(tile_size=tile, overlap=0, temporal_size=64, temporal_overlap=8)
    whole = graph.new("VAEEncode", pixels=pixels, vae=vae)
    tiled = graph.new("VAEEncodeTiled", pixels=pixels, vae=vae, **settings)
    decoded = graph.new("VAEDecode", samples=whole, vae=vae)
    again = graph.new("VAEDecodeTiled", samples=whole, vae=vae, **settings)
    found = graph.latents(whole, tiled, *(graph.new("VAEEncode", pixels=each, vae=vae) for each in (decoded, again)))
    assert found[0].shape == found[1].shape == (1, 128, 8, 8)
    for with_tiles, without in (found[1::-1], found[3:1:-1]):
        assert relative(with_tiles, without) < bound
        moved = [relative(with_tiles, without.roll(1, axis)) for axis in (-1, -2)]
        assert min(moved) > 1.5 * relative(with_tiles, without)


def every(graph, link) -> list[torch.Tensor]:
    """All latents of a list at a link."""
    save = graph.new("SaveLatent", samples=link, filename_prefix="every")[0]
    outputs = graph.comfy.run(graph)
    del graph[save]
    return [load_file(graph.comfy.file(each))["latent_tensor"] for each in outputs[save]["latents"]]


def test_a_list_of_latents_is_sampled_one_by_one_as_the_batch_is_at_once(graph):
    graph.without_image().canvas["batch_size"] = 2
    batch = graph.latents()
    graph.sampler["latent_image"] = graph.new("RebatchLatents", latents=graph.empty, batch_size=1)
    apart = every(graph, graph.sampled)
    assert [latent.shape[0] for latent in apart] == [1, 1]
    assert relative(torch.cat(apart), batch) < 1e-5


def test_a_list_of_pictures_makes_a_run_of_each(graph, combined, pictures):
    combined(image_1=pictures[0])
    alone = graph.latents()[0]
    same = graph.new("ImageScale", image=pictures[1], upscale_method="bicubic", width=96, height=64, crop="disabled")
    both = graph.new("ImageBatch", image1=pictures[0], image2=same)
    combined(image_1=graph.new("RebatchImages", images=both, batch_size=1))
    found = every(graph, graph.sampled)
    assert [torch.equal(each[0], alone) for each in found] == [True, False]


def test_a_negative_guides_at_cfg_1_where_the_hosts_node_asks_for_it(graph, comfy):
    if "NAGuidance" not in comfy.get("/object_info"):
        pytest.skip("this host has no NAGuidance")
    graph.without_image()

    def run(text):
        graph.sampler["negative"] = graph.new("KleinPrompt", clip=graph.clip_out, text=text)
        return graph.latents()

    assert torch.equal(run("blurry"), run("a red ball"))
    graph.sampler["model"] = graph.new("NAGuidance", model=graph.model, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
    assert relative(run("blurry"), run("a red ball")) > 1e-3
