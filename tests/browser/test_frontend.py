"""The example workflows in the real frontend, in Chromium."""

import json

import numpy as np
import pytest
from PIL import Image

from klein.model_loaders.qwen3.prompt import load_tokenizer, tokenize
from tools import provision, small
from tools.browser import load, opened, queue
from tools.server import Server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.host,
    pytest.mark.skipif(provision.chromium() is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("browser")
    small.released_files(base / "models")
    server = Server(base).start()
    Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(base / "input/example.png")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(comfy):
    with opened(comfy) as page:
        yield page


NAMES = sorted(path.stem for path in (provision.ROOT / "workflows").glob("*.json"))


def test_the_templates_are_listed_by_the_server_each_with_its_picture(comfy):
    assert sorted(comfy.get("/workflow_templates")["klein"]) == NAMES
    assert all((provision.ROOT / f"workflows/{name}.jpg").is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_in_the_frontend_is_the_same_graph_as_its_api_file(page, name):
    load(page, name)
    exported = page.evaluate("app.graphToPrompt()")["output"]
    want = json.loads((provision.ROOT / f"workflows/api/{name}.json").read_text())
    assert {number: {k: node[k] for k in ("class_type", "inputs")} for number, node in exported.items()} == want
    missing = page.evaluate(
        "app.graph.nodes.filter(node => node.has_errors || !LiteGraph.registered_node_types[node.type]).map(n => n.type)"
    )
    assert missing == []


def test_the_example_queued_in_the_frontend_leaves_its_image_on_the_canvas(page, comfy):
    load(page, "klein_9b_text_to_image")
    queue(
        page,
        """for (const node of app.graph.nodes) if (node.type === 'EmptyFlux2LatentImage') {
        node.widgets[0].value = 256; node.widgets[1].value = 256;
    }""",
    )
    node = page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.type === 'SaveImage');
        const images = node.imgs || document.querySelectorAll('img[src*="/view"]');
        return {count: images.length, width: images[0]?.naturalWidth, height: images[0]?.naturalHeight};
    }""")
    assert node == {"count": 1, "width": 256, "height": 256}
    (provision.ROOT / "out").mkdir(exist_ok=True)
    page.screenshot(path=provision.ROOT / "out/frontend.png")  # to look at


def test_reports_stand_on_their_nodes(page, comfy):
    """Shown with ComfyUI's own text preview, and in the history for those who queue over the API."""
    load(page, "klein_9b_kv_two_references")
    queue(page)
    texts = page.evaluate("""Object.fromEntries(app.graph.nodes
        .map(node => [node.type, node.widgets?.find(widget => widget.name === '$$node-text-preview')?.value])
        .filter(([type, value]) => value))""")
    assert texts["KleinMultiReference"].startswith("image 1: 96x64, 24 tokens, 4 %\nimage 2: 96x64")
    prompt = page.evaluate("app.graph.nodes.find(node => node.type === 'KleinPrompt').widgets[0].value")
    tokens = len(tokenize(load_tokenizer(provision.comfyui() / "comfy/text_encoders/qwen25_tokenizer"), prompt))
    assert texts["KleinPrompt"].split("\n")[0] == f"{tokens} of 512 tokens, nothing was cut"
    assert texts["KleinReferenceCache"].startswith("across_runs, on the gpu:")
    entry = max(comfy.get("/history").values(), key=lambda each: each["prompt"][0])
    assert texts["KleinMultiReference"] in [text for node in entry["outputs"].values() for text in node.get("text", ())]
    page.screenshot(path=provision.ROOT / "out/reports.png")  # to look at
