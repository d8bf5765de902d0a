"""The example workflows in the real frontend, in Chromium."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from klein.model_loaders.qwen3.prompt import load_tokenizer, tokenize
from tools import provision
from tools.browser import load, opened, queue, run, style

pytestmark = [
    pytest.mark.browser,
    pytest.mark.host,
    pytest.mark.skipif(provision.chromium() is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def page(comfy):
    with opened(comfy) as page:
        yield page
        style(page, False)  # the server keeps it


NAMES = sorted(path.stem for path in (provision.ROOT / "workflows").glob("*.json"))


def test_the_templates_are_listed_by_the_server_each_with_its_picture(comfy):
    assert sorted(comfy.get("/workflow_templates")["klein"]) == NAMES
    assert all((provision.ROOT / f"workflows/{name}.jpg").is_file() for name in NAMES)


def test_the_packs_settings_stand_in_the_hosts_own(page):
    """What they do: tests/browser/test_settings.py, tests/host/test_settings.py."""
    assert page.evaluate("['queue', 'images'].map(name => app.extensionManager.setting.get(`klein.max_${name}`))") == [64, 10]


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


@pytest.mark.parametrize("name", ["Klein Text to Image", "Klein Edit with References", "Klein Masked Edit"])
def test_a_blueprint_is_one_node_that_runs_as_its_graph(page, comfy, name):
    """Pictures from outside; what is set outside arrives inside."""
    (entry,) = [each for each in comfy.get("/global_subgraphs").values() if each["name"] == name]
    assert "klein" in entry["info"]["node_pack"]
    blueprint = json.loads((provision.ROOT / f"subgraphs/{name}.json").read_text())
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [blueprint, name])
    page.wait_for_timeout(1000)
    alpha = np.full((64, 96, 4), 255, np.uint8)
    alpha[16:40, 30:60, 3] = 0
    Image.fromarray(alpha).save(comfy.base / "input/painted.png")
    page.evaluate("""() => {
        const [node] = app.graph.nodes;
        const add = kind => { const made = LiteGraph.createNode(kind); app.graph.add(made); return made; };
        node.connect(0, add('SaveImage'), 0);
        const load = add('LoadImage');
        load.widgets[0].value = 'painted.png';
        for (const [slot, input] of node.inputs.entries())
            if (input.type === 'IMAGE' || input.type === 'MASK') load.connect(input.type === 'MASK' ? 1 : 0, node, slot);
        for (const widget of node.widgets) {
            const name = widget.name.split(': ').pop();  // this frontend puts the inner node's number before it
            if (name === 'text') widget.value = 'a boat in image 1';
            if (name === 'width' || name === 'height') widget.value = 256;
            if (name === 'mode') widget.value = 'repaint';
        }
    }""")
    queue(page)
    entry = max(comfy.get("/history").values(), key=lambda each: each["prompt"][0])
    nodes = entry["prompt"][2].values()
    assert [node["inputs"]["text"] for node in nodes if node["class_type"] == "KleinPrompt"] == ["a boat in image 1"]
    (image,) = [file for node in entry["outputs"].values() for file in node.get("images", ()) if file["type"] == "output"]
    assert Image.open(comfy.file(image)).size == ((256, 256) if "Text" in name else (96, 64))


REPORTS = """Object.fromEntries(app.graph.nodes
    .map(node => [node.type, node.widgets?.find(widget => widget.name === 'klein_report')?.element])
    .filter(([type, element]) => element?.firstChild)
    .map(([type, element]) => [type, [...element.children].map(line => [line.textContent, line.style.color])]))"""


def test_reports_stand_on_their_nodes_and_are_back_after_a_reload_and_a_cached_run(page, comfy):
    """Each line whole, warnings first and in another colour; in the history too, for those who queue over the API."""
    load(page, "klein_9b_kv_two_references")
    queue(page, "app.graph.nodes.find(node => node.type === 'KleinPrompt').widgets[0].value = 'image 1 at night';")
    texts = page.evaluate(REPORTS)
    lines = [line for line, _ in texts["KleinMultiReference"]]
    warnings, plain = ([line for line in lines if line.startswith("Warning:") == so] for so in (True, False))
    assert warnings and lines == warnings + plain
    assert plain[0].startswith("image 1: 96x64, 24 tokens, 4 % of the attention's keys")
    assert plain[1].startswith("image 2: 96x64")
    prompt = page.evaluate("app.graph.nodes.find(node => node.type === 'KleinPrompt').widgets[0].value")
    tokens = len(tokenize(load_tokenizer(provision.comfyui() / "comfy/text_encoders/qwen25_tokenizer"), prompt))
    assert texts["KleinPrompt"][0] == [f"{tokens} of 512 tokens, nothing was cut", ""]
    assert texts["KleinReferenceCache"][0][0].startswith("across_runs, on the gpu:")
    colours = {bool(line.startswith("Warning:")): colour for line, colour in texts["KleinMultiReference"]}
    assert colours[True] != colours[False]
    entry = max(comfy.get("/history").values(), key=lambda each: each["prompt"][0])
    assert "\n".join(plain + warnings) in [text for node in entry["outputs"].values() for text in node.get("text", ())]
    page.screenshot(path=provision.ROOT / "out/reports.png")  # to look at

    saved = page.evaluate("app.graph.serialize()")
    load(page, "klein_tiny_text_to_image")
    assert "KleinMultiReference" not in page.evaluate(REPORTS)
    page.evaluate("graph => app.loadGraphData(graph, true, true, 'again')", saved)
    page.wait_for_timeout(1000)
    assert page.evaluate(REPORTS) == texts
    exported = page.evaluate("app.graphToPrompt()")["output"]
    want = json.loads((provision.ROOT / "workflows/api/klein_9b_kv_two_references.json").read_text())
    assert {number: node["inputs"].keys() for number, node in exported.items()} == {
        n: v["inputs"].keys() for n, v in want.items()
    }
    queue(page)  # all but the sampler is known to the server
    assert page.evaluate(REPORTS)["KleinMultiReference"] == texts["KleinMultiReference"]


def test_a_bypassed_cache_and_a_muted_picture_leave_a_graph_that_runs(page, comfy):
    load(page, "klein_9b_kv_two_references")
    page.evaluate("""() => {
        const of = type => app.graph.nodes.filter(node => node.type === type);
        of('KleinReferenceCache')[0].mode = 4;
        of('LoadImage')[1].mode = 2;
    }""")
    exported = page.evaluate("app.graphToPrompt()")["output"]
    kinds = {number: node["class_type"] for number, node in exported.items()}
    (combined,) = [node["inputs"] for node in exported.values() if node["class_type"] == "KleinMultiReference"]
    (sampler,) = [node["inputs"] for node in exported.values() if node["class_type"] == "KleinDistilledSampler"]
    assert kinds[sampler["model"][0]] == "KleinFlowLoader" and "image_1" in combined and "image_2" not in combined
    assert any("images" in output for output in comfy.run(exported).values())


DROP = """data => {
    const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0));
    const given = new DataTransfer();
    given.items.add(new File([bytes], 'picture.png', {type: 'image/png'}));
    const event = new DragEvent('drop', {dataTransfer: given, bubbles: true, cancelable: true});
    document.querySelector('#graph-canvas').dispatchEvent(event);
}"""
GRAPH = "app.graph.serialize().nodes.map(node => [node.type, node.pos.map(Math.round), node.widgets_values])"
MARKED = """vue => app.graph.nodes.filter(node => {
    const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.outerHTML;
    return vue ? /border-node-stroke-error|ring-destructive/.test(shown) : node.strokeStyles.executionError?.call(node);
}).map(node => node.type)"""
styles = pytest.mark.parametrize(
    "vue", [pytest.param(False, id="canvas"), pytest.param(True, id="vue", marks=pytest.mark.long)]
)


@styles
def test_a_saved_picture_that_is_dropped_on_the_canvas_restores_its_graph(page, comfy, vue):
    style(page, vue)
    load(page, "klein_tiny_text_to_image")
    page.evaluate("app.graph.nodes.find(node => node.type === 'KleinPrompt').widgets[0].value = 'a small green square on red'")
    before = page.evaluate(GRAPH)
    run(page)
    entry = max(comfy.get("/history").values(), key=lambda each: each["prompt"][0])
    (image,) = [file for node in entry["outputs"].values() for file in node.get("images", ()) if file["type"] == "output"]
    page.evaluate("app.graph.clear()")
    page.evaluate(DROP, base64.b64encode(comfy.file(image).read_bytes()).decode())
    page.wait_for_function("app.graph.nodes.length > 0")
    page.wait_for_timeout(400)
    assert page.evaluate(GRAPH) == before


@styles
def test_a_wrong_file_marks_its_node_with_the_sentence_first(page, comfy, vue):
    style(page, vue)
    (comfy.base / "models/diffusion_models/page.safetensors").write_bytes(b"<!DOCTYPE html><html>Log in")
    load(page, "klein_tiny_text_to_image")
    page.evaluate("app.graph.nodes.find(node => node.type === 'KleinFlowLoader').widgets[0].value = 'page.safetensors'")
    page.evaluate("document.querySelectorAll('.p-toast-close-button').forEach(each => each.click())")
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function("app.lastExecutionError")
    error = page.evaluate("app.lastExecutionError")
    assert error["exception_message"].startswith("page.safetensors is a web page (")
    page.get_by_text("page.safetensors is a web page (").first.wait_for()
    assert page.evaluate(MARKED, vue) == ["KleinFlowLoader"]
    page.screenshot(path=provision.ROOT / f"out/wrong_file_{'vue' if vue else 'canvas'}.png")  # to look at
    page.keyboard.press("Escape")


def test_the_help_of_a_node_opens_with_its_picture(page):
    style(page, False)
    load(page, "klein_9b_text_to_image")
    page.evaluate("app.canvas.selectNode(app.graph.nodes.find(node => node.type === 'KleinDistilledSampler'))")
    page.evaluate("app.canvas.setDirty(true, true)")
    page.click("[data-testid=info-button]")
    picture = page.wait_for_selector("img[src$='docs/images/KleinDistilledSampler.jpg']")
    page.wait_for_function("picture => picture.naturalWidth > 300", arg=picture)
    shown = page.evaluate("picture => picture.closest('.node-help-content, .comfy-markdown-content, div').innerText", picture)
    assert "What goes wrong" in shown
    page.screenshot(path=provision.ROOT / "out/help.png")  # to look at


@pytest.mark.parametrize("vue", [pytest.param(False, id="canvas"), pytest.param(True, id="vue", marks=pytest.mark.long)])
def test_an_example_picture_is_seen_on_its_node_before_anything_runs(page, vue):
    shown = """() => {
        const {kleinPicture} = app.graph.nodes.find(node => node.type === 'KleinExamplePicture');
        return {name: kleinPicture.src.split('/').pop(), seen: kleinPicture.getBoundingClientRect().height > 20,
            loaded: kleinPicture.complete && kleinPicture.naturalWidth > 16};
    }"""
    style(page, vue)
    load(page, "klein_tiny_one_reference")
    page.wait_for_timeout(800)
    graph = json.loads((provision.ROOT / "workflows/klein_tiny_one_reference.json").read_text())
    (name,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "KleinExamplePicture"]
    assert page.evaluate(shown) == {"name": f"{name}.png", "seen": True, "loaded": True}
    page.evaluate("""() => {
        const [picture] = app.graph.nodes.find(node => node.type === 'KleinExamplePicture').widgets;
        picture.value = 'white_triangle';
        picture.callback?.(picture.value);
    }""")
    page.wait_for_timeout(400)
    assert page.evaluate(shown) == {"name": "white_triangle.png", "seen": True, "loaded": True}
    assert "klein_picture" not in json.dumps(page.evaluate("app.graph.serialize()"))
