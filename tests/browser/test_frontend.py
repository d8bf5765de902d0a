"""The example workflows in the real frontend, in Chromium."""

import json

import pytest

from environment import provision, small
from environment.server import Server

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = "window.app && window.app.extensionManager && Object.keys(LiteGraph.registered_node_types).length > 100"
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
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(comfy):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=provision.chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1800, "height": 1000})
        page.route("**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort())
        page.goto(comfy.url)
        page.wait_for_function(READY, timeout=60000)
        page.wait_for_timeout(1500)
        yield page
        browser.close()


def load(page, name):
    graph = json.loads((provision.ROOT / "workflows" / name).read_text())
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
    page.wait_for_timeout(1000)
    return graph


def test_the_template_is_listed_by_the_server(comfy):
    names = comfy.get("/workflow_templates")["klein"]
    assert "klein_9b_text_to_image" in names
    assert (provision.ROOT / "workflows/klein_9b_text_to_image.jpg").is_file()


def test_the_example_has_at_most_8_nodes_and_7_links():
    graph = json.loads((provision.ROOT / "workflows/klein_9b_text_to_image.json").read_text())
    assert len([node for node in graph["nodes"] if "Note" not in node["type"]]) <= 8
    assert len(graph["links"]) <= 7


def test_the_example_in_the_frontend_is_the_same_graph_as_its_api_file(page):
    load(page, "klein_9b_text_to_image.json")
    exported = page.evaluate("app.graphToPrompt()")["output"]
    want = json.loads((provision.ROOT / "workflows/api/klein_9b_text_to_image.json").read_text())
    assert {number: {k: node[k] for k in ("class_type", "inputs")} for number, node in exported.items()} == want
    missing = page.evaluate(
        "app.graph.nodes.filter(node => node.has_errors || !LiteGraph.registered_node_types[node.type]).map(n => n.type)"
    )
    assert missing == []


def test_the_example_queued_in_the_frontend_leaves_its_image_on_the_canvas(page, comfy):
    load(page, "klein_9b_text_to_image.json")
    page.evaluate("""() => {
        for (const node of app.graph.nodes) if (node.type === 'EmptyFlux2LatentImage') {
            node.widgets[0].value = 256; node.widgets[1].value = 256;
        }
        window.result = new Promise(done => {
            app.api.addEventListener('execution_success', () => done('success'));
            app.api.addEventListener('execution_error', event => done(JSON.stringify(event.detail)));
        });
    }""")
    page.evaluate("app.queuePrompt(0)")
    assert page.evaluate("window.result") == "success"
    page.wait_for_timeout(2500)
    assert not page.evaluate("app.lastNodeErrors && Object.keys(app.lastNodeErrors).length")
    node = page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.type === 'SaveImage');
        const images = node.imgs || document.querySelectorAll('img[src*="/view"]');
        return {count: images.length, width: images[0]?.naturalWidth, height: images[0]?.naturalHeight};
    }""")
    assert node == {"count": 1, "width": 256, "height": 256}
    (provision.ROOT / "out").mkdir(exist_ok=True)
    page.screenshot(path=provision.ROOT / "out/frontend.png")  # to look at
