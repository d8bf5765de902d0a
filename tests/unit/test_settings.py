"""The settings in ComfyUI's dialog: one table with what the server reads, and their texts in eight languages."""

import json
import re
import unicodedata

import pytest

from klein.serving.settings import MEGA, Settings
from tools.locales import FOLDER, LANGUAGES, SCRIPTS
from tools.provision import ROOT

SOURCE = (ROOT / "web/settings.js").read_text(encoding="utf-8")
ROWS = json.loads(re.search(r"const SETTINGS = (\[.*?\n\]);", SOURCE, re.DOTALL)[1])
(LATER,) = re.findall(r'const LATER = "(.*)";', SOURCE)


def text(language: str, file: str) -> dict:
    return json.loads((FOLDER / language / file).read_text(encoding="utf-8"))


def test_the_dialog_has_what_the_server_reads():
    (listed,) = re.findall(r"^CHOSEN = \((.*?)\)", (ROOT / "nodes/host/settings.py").read_text(), re.DOTALL | re.MULTILINE)
    assert [row[0] for row in ROWS] == [f"klein.{name.lower()}" for name in re.findall(r'"KLEIN_(\w+)"', listed)]


def test_the_dialog_shows_the_defaults_that_count():
    shown = {row[0].removeprefix("klein."): row[3] for row in ROWS}
    plain = Settings()
    assert shown == {
        "serving": plain.enabled, "max_queue": plain.queue, "max_seconds": plain.seconds, "max_images": plain.images, "max_megapixels": plain.pixels // MEGA,
        "max_body_mb": plain.body // MEGA, "requests_mb": plain.store // MEGA, "store": True,
        "store_gb": float(re.findall(r"^GIGABYTES = (\S+)", (ROOT / "nodes/host/store.py").read_text(), re.MULTILINE)[0]),
    }  # fmt: skip


def test_the_english_texts_are_those_of_the_dialog():
    want = {row[0].replace(".", "_"): {"name": row[4], "tooltip": row[5] + LATER} for row in ROWS}
    assert text("en", "settings.json") == want


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_setting_and_group_has_its_texts_in_the_language(language):
    english, texts = text("en", "settings.json"), text(language, "settings.json")
    groups = text(language, "main.json")["settingsCategories"]
    assert groups.keys() == text("en", "main.json")["settingsCategories"].keys() == {row[1] for row in ROWS}
    assert {key: each.keys() for key, each in texts.items()} == {key: each.keys() for key, each in english.items()}
    said = [part for each in texts.values() for part in each.values()]
    assert not {part for each in english.values() for part in each.values()} & set(said)
    if language in SCRIPTS:
        assert all(
            any(unicodedata.name(c, "").startswith(SCRIPTS[language]) for c in part) for part in (*said, *groups.values())
        )
