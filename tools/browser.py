"""The real frontend in Chromium, and a graph on its canvas."""

from __future__ import annotations

import contextlib
import json

from . import provision

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = """window.app && window.app.extensionManager && Object.keys(LiteGraph.registered_node_types).length > 100
    && app.graph?.nodes.length && !app.configuringGraph"""  # with the graph that it opens by itself


@contextlib.contextmanager
def opened(comfy, width: int = 1800, height: int = 1000):
    """A page with the frontend of a running server."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=provision.chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(120_000)  # on a busy machine the frontend takes its time
        page.route("**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort())
        page.goto(comfy.url)
        page.wait_for_function(READY)
        page.wait_for_timeout(1500)
        yield page
        browser.close()


def load(page, name: str) -> None:
    """An example graph onto the canvas."""
    graph = json.loads((provision.ROOT / f"workflows/{name}.json").read_text())
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
    page.wait_for_timeout(400)


def style(page, vue: bool) -> None:
    """The frontend's Vue nodes, or its canvas."""
    page.evaluate("vue => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    page.wait_for_timeout(400)


def template(page, name: str) -> None:
    """An example graph as a user opens it."""
    page.evaluate("window.former = app.graph.nodes[0]")  # maybe of the same template
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    card = page.locator(f"[data-testid=template-workflow-{name}]")
    page.locator("[data-testid^=template-workflow-]").first.wait_for()
    if not card.count():  # newer frontends show core's first, and make cards as one scrolls to them
        page.get_by_role("dialog").get_by_text("klein", exact=True).first.click()
    for _ in range(20):
        if card.count():
            break
        page.wait_for_timeout(300)
        page.locator("[data-testid=template-workflows-content]").hover()
        page.mouse.wheel(0, 800)
    card.click()
    page.wait_for_function(
        """name => app.graph.nodes.length && app.graph.nodes[0] !== window.former && !app.configuringGraph
            && app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)""",
        arg=name,
    )
    page.wait_for_timeout(1200)


def again(page) -> None:
    """The page loaded anew."""
    page.wait_for_timeout(600)  # the frontend keeps a changed graph after half a second
    page.reload()
    page.wait_for_function(READY)
    page.wait_for_timeout(2500)


def queue(page, change: str = "", start: str = "app.queuePrompt(0)") -> None:
    """Queue the graph on the canvas, changed by a script, and wait until it has run."""
    page.evaluate(f"""() => {{
        {change}
        window.result = new Promise(done => {{
            app.api.addEventListener('execution_success', () => done('success'));
            app.api.addEventListener('execution_error', event => done(JSON.stringify(event.detail)));
        }});
    }}""")
    page.evaluate(start)
    assert page.evaluate("window.result") == "success"
    page.wait_for_timeout(1500)
    assert not page.evaluate("app.lastNodeErrors && Object.keys(app.lastNodeErrors).length")


def run(page) -> None:
    """The graph queued by the Run button, and ended."""
    queue(page, start="[...document.querySelectorAll('button')].find(each => each.innerText.trim() === 'Run').click()")
