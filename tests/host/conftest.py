"""One real ComfyUI for the whole run, with small models in the released formats."""

import pytest

from fixtures.cache import across, parts, run  # noqa: F401  fixtures of the tests of the reference cache
from fixtures.graph import ENCODER, FLOW, ExampleGraph, picture
from fixtures.serving import limited, serving  # noqa: F401  hosts of the tests of the agents' HTTP
from tools import provision, small
from tools.server import Server

SIZES = [(96, 64), (64, 160), (48, 48)]  # of the pictures; all fit the canvas as they are


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/host" in item.path.as_posix():
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory):
    """The diffusers pipeline with the weights of the float32 files."""
    flow, folder = small.flow_oracle(small.flow_state(**small.FLOW)), tmp_path_factory.mktemp("tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((provision.comfyui() / "comfy/text_encoders/qwen25_tokenizer" / name).read_bytes())
    return small.pipeline(flow, small.encoder_oracle(**small.ENCODER), small.tokenizer_oracle(folder), small.vae_oracle())


@pytest.fixture(scope="session")
def comfy(tmp_path_factory, oracle):
    base = tmp_path_factory.mktemp("comfy")
    models = base / "models"
    small.released_files(models)
    small.save(small.flow_state(**small.FLOW), models / "diffusion_models" / FLOW)
    small.save(small.encoder_state(oracle.text_encoder), models / "text_encoders" / ENCODER)
    server = Server(base, "--use-pytorch-cross-attention", "--preview-method", "latent2rgb").start()
    yield server
    server.stop()


@pytest.fixture
def graph(comfy):
    """The example workflow in API format, with the float32 files, at 256x192, saving the latent too."""
    return ExampleGraph(comfy)


@pytest.fixture
def pictures(graph, comfy):
    """Links to the images of three pictures."""
    names = [picture(comfy, f"multi{seed}.png", *size, seed) for seed, size in enumerate(SIZES)]
    return [graph.new("LoadImage", image=name) for name in names]


@pytest.fixture
def combined(graph):
    """combined(image_1=..., ...) adds the combiner before the sampler, and returns its node's number."""
    graph.without_image()
    vae = graph.new("KleinVAELoader", **graph.vae)

    def add(**inputs):
        settings = dict(
            positive=graph.positive, vae=vae, sizing="exact", max_megapixels=1.0, width=256, height=192, batch_size=1
        )
        number, _ = graph.new("KleinMultiReference", **{**settings, **inputs})
        graph.sampler.update(positive=[number, 0], latent_image=[number, 2])
        return number

    add.vae = vae
    return add
