"""The pack's settings in ComfyUI's own dialog: what is changed there counts when the server has started again."""

import json
import shutil
import urllib.error
import urllib.request

import pytest

from tools import provision, small
from tools.browser import opened, run, template
from tools.server import Server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.host,
    pytest.mark.long,
    pytest.mark.skipif(provision.chromium() is None, reason="Chromium is not installed"),
]


def asked(comfy, count: int) -> int:
    """The status of a request for so many pictures."""
    body = json.dumps({"model": "klein-tiny", "prompt": "a red circle", "size": "64x64", "n": count}).encode()
    request = urllib.request.Request(f"{comfy.url}/v1/images/generations", body, {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=120).status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_what_is_changed_in_the_dialog_counts_from_the_next_start(tmp_path):
    small.released_files(tmp_path / "models")
    comfy = Server(tmp_path).start()
    store = tmp_path / "user/klein_store"
    try:
        assert asked(comfy, 3) == 200 and store.exists()
        with opened(comfy, 1600, 1000) as page:
            template(page, "klein_tiny_text_to_image")
            page.evaluate("app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
            page.get_by_text("Klein", exact=True).first.click()
            number = page.locator("[id='klein.max_images'] input")
            number.press("Control+a")
            page.keyboard.type("2")
            number.press("Tab")
            page.locator("[id='klein.store']").click()
            page.wait_for_timeout(1000)
        kept = json.loads((tmp_path / "user/default/comfy.settings.json").read_text())
        assert (kept["klein.max_images"], kept["klein.store"]) == (2, False)
        comfy.stop()
        shutil.rmtree(store)
        comfy.start()
        assert asked(comfy, 3) == 400
        with opened(comfy, 1600, 1000) as page:
            template(page, "klein_tiny_text_to_image")
            run(page)
        assert not store.exists()
    finally:
        comfy.stop()
