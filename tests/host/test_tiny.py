"""What klein-tiny has of its own: the colours of its previews, and a warning above the sizes that it paints."""

import random

import pytest
import torch

from tools import inprocess
from tools.train import world


@pytest.fixture(scope="module")
def adapters():
    return {name: inprocess.import_adapter(name) for name in ("flow", "vae", "tiny", "files")}


@pytest.fixture(scope="module")
def flow(adapters):
    return adapters["flow"].load_model(adapters["files"].TINY / "diffusion_models/klein-tiny.safetensors")


def test_a_preview_of_klein_tiny_has_the_colours_of_its_picture(adapters, flow, monkeypatch):
    """By the host's own previewer, on pictures of held-out combinations; klein's colours are three times as far away."""
    import comfy.latent_formats
    import latent_preview

    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    vae = adapters["vae"].load_vae(adapters["files"].TINY / "vae/klein-tiny-vae.safetensors")
    rng = random.Random(1)
    pictures = torch.stack([torch.from_numpy(world.render(world.unseen_scene(rng))) for _ in range(16)])
    latents = vae.encode(pictures)

    def distance(latent_format) -> float:
        previewer = latent_preview.get_previewer(torch.device("cpu"), latent_format)
        found = []
        for picture, latent in zip(pictures, latents):
            shown = previewer.decode_latent_to_preview(latent[None])
            shown = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(shown.height, shown.width, 3) / 255
            wanted = torch.nn.functional.adaptive_avg_pool2d(picture.movedim(-1, 0), shown.shape[:2]).movedim(0, -1)
            found.append((shown - wanted).square().mean().sqrt().item())
        return sum(found) / len(found)

    assert distance(flow.model.latent_format) < 0.12
    assert distance(comfy.latent_formats.Flux2()) > 3 * distance(flow.model.latent_format)


def test_other_models_keep_kleins_preview(adapters, tmp_path):
    import comfy.latent_formats

    from tools import small

    other = adapters["flow"].load_model(small.save(small.flow_state(**small.FLOW), tmp_path / "klein-tiny.safetensors"))
    assert other.model.latent_format.latent_rgb_factors == comfy.latent_formats.Flux2().latent_rgb_factors


@pytest.mark.parametrize(("width", "height", "warned"), [(128, 128, False), (64, 144, True)])
def test_klein_tiny_warns_above_the_sizes_that_it_paints(comfy, graph, width, height, warned):
    """In the sampler's report, and before it in Klein Preflight's."""
    graph.flow["flow_name"], graph.clip["encoder_name"] = "klein-tiny.safetensors", "klein-tiny"
    graph.without_image().canvas.update(width=width, height=height)
    graph.sampler["steps"] = 1
    report = graph.new("PreviewAny", source=[graph.sampled[0], 1])[0]
    before = graph.new("KleinPreflight", model=graph.model, latent_image=graph.empty, steps=1)[0]
    outputs = comfy.run(graph)
    warning = f"Warning: klein-tiny was trained for pictures of 64x64 to 128x128, this is {width}x{height}: take a smaller one"
    assert [line for line in outputs[report]["text"][0].split("\n") if line.startswith("Warning")] == [warning] * warned
    assert (warning in outputs[before]["text"][0].split("\n")) == warned
