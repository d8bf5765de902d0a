"""The pack in another language than English, in the real frontend.

Frontends before its #7214 (1.32.9 too) forget the texts of every pack when they load another language than English: so
English is given the texts of that language here, which the frontend reads the same way."""

import json

import pytest

from tools import provision
from tools.browser import FLAGS, READY, load
from tools.locales import LANGUAGES, read
from tools.server import Server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.host,
    pytest.mark.skipif(provision.chromium() is None, reason="Chromium is not installed"),
]
CANVAS = """Object.fromEntries(app.graph.nodes.map(node => [node.type, {
    title: node.constructor.title,
    inputs: Object.fromEntries(node.inputs.map(each => [each.name, each.label || each.localized_name])),
    outputs: node.outputs.map(each => each.localized_name),
    widgets: (node.widgets || []).map(each => each.label),
}]))"""


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("languages")).start()
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["ja", *(pytest.param(name, marks=pytest.mark.long) for name in ("en", "ru"))])
def language(request):
    assert request.param in LANGUAGES
    return request.param


@pytest.fixture(scope="module")
def page(comfy, language):
    from playwright.sync_api import sync_playwright

    texts = json.dumps({"en": comfy.get("/i18n")[language]})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=provision.chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1800, "height": 1000})
        page.route("**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort())
        page.route("**/i18n", lambda route: route.fulfill(body=texts, content_type="application/json"))
        page.goto(comfy.url)
        page.wait_for_function(READY, timeout=60000)
        page.wait_for_timeout(1500)
        yield page
        browser.close()


def test_the_nodes_on_the_canvas_speak_the_users_language(page, language):
    load(page, "klein_9b_two_references")
    shown, want = page.evaluate(CANVAS), read(language)
    (provision.ROOT / "out").mkdir(exist_ok=True)
    page.screenshot(path=provision.ROOT / f"out/language_{language}.png")  # to look at
    names = {name: each["name"] for name, each in want["KleinDistilledSampler"]["inputs"].items()}
    sampler = shown["KleinDistilledSampler"]
    assert sampler["title"] == want["KleinDistilledSampler"]["display_name"]
    assert sampler["inputs"]["latent_image"] == names["latent_image"]
    assert {names["seed"], names["steps"], names["denoise"]} <= set(sampler["widgets"])
    assert shown["KleinMultiReference"]["outputs"] == [each["name"] for each in want["KleinMultiReference"]["outputs"].values()]


def test_the_node_is_explained_in_the_users_language(page, language):
    found = page.evaluate("LiteGraph.registered_node_types['KleinEdit'].nodeData.description")
    assert found == read(language)["KleinEdit"]["description"]
