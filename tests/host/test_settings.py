"""What the user chose in ComfyUI's settings, as the server reads it."""

import json

import pytest

from tools import inprocess


@pytest.fixture
def given(monkeypatch, tmp_path):
    module = inprocess.import_adapter("settings")
    monkeypatch.setattr(module.folder_paths, "get_user_directory", lambda: str(tmp_path))
    for name in module.CHOSEN:
        monkeypatch.delenv(name, raising=False)

    def read(chosen: object) -> dict:
        (tmp_path / "default").mkdir(exist_ok=True)
        (tmp_path / "default/comfy.settings.json").write_text(chosen if isinstance(chosen, str) else json.dumps(chosen))
        return {name: value for name, value in module.given().items() if name in module.CHOSEN and value}

    return read


def test_switches_and_numbers_of_the_dialog_count_as_their_variables(given):
    chosen = {"klein.serving": False, "klein.max_queue": 12, "klein.max_images": 3.0, "klein.store_gb": 0.5, "Comfy.Other": 1}
    want = {"KLEIN_SERVING": "off", "KLEIN_MAX_QUEUE": "12", "KLEIN_MAX_IMAGES": "3", "KLEIN_STORE_GB": "0.5"}
    assert given(chosen) == want
    assert given({"klein.store": False}) == {"KLEIN_STORE": "off"}
    assert given({"klein.serving": True, "klein.store": True}) == {} == given({})


def test_a_variable_wins_over_the_dialog(given, monkeypatch):
    monkeypatch.setenv("KLEIN_MAX_QUEUE", "7")
    assert given({"klein.max_queue": 12}) == {"KLEIN_MAX_QUEUE": "7"}


def test_the_dialog_opens_the_host_to_nobody(given, monkeypatch):
    """Whoever reaches the host may write its settings: no folder, no key, no fetching of addresses comes from there."""
    assert given({"klein.store": "/etc", "klein.api_key": "mine", "klein.remote_images": True}) == {}


@pytest.mark.parametrize("broken", ["", "{", "[]", "null", "7"])
def test_a_settings_file_that_cannot_be_read_leaves_the_defaults_and_a_line_in_the_log(given, caplog, broken):
    assert given(broken) == {} and "could not be read" in caplog.text
