"""The agents' HTTP as far as it needs no host: settings, and values of fields."""

import hashlib
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from aiohttp import web

from klein.errors import KleinError
from klein.serving.fields import Body, Field, number, ratio, read, shaped, size, switch, whole
from klein.serving.http import Route, take
from klein.serving.refused import Refused
from klein.serving.settings import Settings, settings
from tools.provision import ROOT


def test_without_variables_the_settings_are_the_defaults():
    assert settings({}) == Settings() == settings({"KLEIN_API_KEY": "", "KLEIN_MAX_QUEUE": " "})
    assert Settings().enabled and not Settings().remote and not Settings().key


def test_each_variable_sets_what_it_names():
    found = settings({
        "KLEIN_SERVING": "off", "KLEIN_API_KEY": "k", "KLEIN_REMOTE_IMAGES": "ON", "KLEIN_MAX_BODY_MB": "2", "KLEIN_MAX_QUEUE": "3",
        "KLEIN_MAX_IMAGES": "4", "KLEIN_MAX_MEGAPIXELS": "5", "KLEIN_REQUESTS_MB": "6", "KLEIN_MAX_SECONDS": "7",
    })  # fmt: skip
    assert found == Settings(False, "k", True, 2 * 2**20, 3, 4, 5 * 2**20, 6 * 2**20, 7)


@pytest.mark.parametrize("name", ["KLEIN_SERVING", "KLEIN_REMOTE_IMAGES", "KLEIN_MAX_QUEUE", "KLEIN_REQUESTS_MB"])
@pytest.mark.parametrize("value", ["many", "-1", "2.5", "٣", "9" * 20])
def test_a_variable_that_says_nothing_is_named(name, value):
    with pytest.raises(KleinError, match=name):
        settings({name: value})


def test_the_documentation_names_the_variables_that_are_read_with_their_defaults():
    told = dict(re.findall(r"^\| `(KLEIN_\w+)` \| (\w+) ", (ROOT / "docs/agents.md").read_text(), flags=re.MULTILINE))
    read = re.findall(r'"(KLEIN_\w+)"', (ROOT / "serving/settings.py").read_text())
    assert sorted(told) == sorted(read)
    assert settings({name: "" if value == "none" else value for name, value in told.items()}) == Settings()


def test_fields_come_under_our_names_and_keep_theirs():
    found = read(
        {"aspectRatio": "1:1", "n": None, "user": 5, "image": "x"},
        Body({"aspectRatio": "ratio", "n": "n"}, {"user": ()}, {"image": {}}),
    )
    assert found == {"ratio": Field("aspectRatio", "1:1")}


@pytest.mark.parametrize(
    "body", [{"x": 1}, {"raw": True}, {"raw": 0}, {"tolerance": True}, {"tolerance": 2}, {"a": 1, "b": 1}, {"raw": [False]}]
)
def test_what_is_unknown_or_no_default_or_said_twice_is_refused(body):
    with pytest.raises(Refused):
        read(body, Body({"a": "same", "b": "same"}, {"raw": (False,), "tolerance": (1,)}, {}))


def test_numbers_are_read_from_json_and_from_forms_alike():
    assert [whole(1, 9).read(Field("n", value)) for value in (3, "3", 3.0)] == [3, 3, 3]
    assert [number(1, 9).read(Field("g", value)) for value in (3, "3.5", 3.25)] == [3.0, 3.5, 3.25]
    assert [switch().read(Field("s", value)) for value in (True, False, "true", "false")] == [True, False, True, False]
    for value in (True, "3.5", 3.5, "x", None, [3], 10, float("nan"), float("inf"), "٣", 10**400):
        with pytest.raises(Refused):
            whole(1, 9).read(Field("n", value))
    for value in (True, "x", "nan", float("nan"), float("inf"), "1e1", [], 0.5):
        with pytest.raises(Refused):
            number(1, 9).read(Field("g", value))
    for value in (1, 0, "yes", 1.0, None):
        with pytest.raises(Refused):
            switch().read(Field("s", value))


def test_every_ratio_gives_sides_of_16_about_the_models_own_size():
    for wide in range(1, 17):
        for tall in range(1, 17):
            if not 1 / 8 <= wide / tall <= 8:
                continue
            width, height = shaped(ratio().read(Field("r", f"{wide}:{tall}")), 1024)
            assert size(2 * 1024**2).read(Field("s", f"{width}x{height}")) == (width, height)
            assert (
                abs(width * height / 1024**2 - 1) < 0.06 and abs(width - height * wide / tall) <= 8 * max(1, wide / tall) + 1e-6
            )


def test_the_clients_lines_in_the_documentation_name_references_as_the_answers_do(tmp_path):
    """Of Python and JavaScript, as they stand there."""
    (python,), (script,) = (
        re.findall(f"^{word}references = .*$", (ROOT / "docs/agents.md").read_text(), re.MULTILINE) for word in ("", "const ")
    )
    images = [b"one", b"two"]
    named: dict = {"hashlib": hashlib, "images": images}
    exec(python, named)
    assert named["references"] == hashlib.sha256(b"onetwo").hexdigest()
    if not shutil.which("node"):
        pytest.skip("Node.js is not here")
    (tmp_path / "said.mjs").write_text(
        f"import {{ createHash }} from 'crypto';\n{script}\nconsole.log(references(['one', 'two']));"
    )
    said = subprocess.run(["node", tmp_path / "said.mjs"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == named["references"]


def test_a_route_that_another_pack_has_taken_is_not_added_a_second_time(caplog):
    """aiohttp refuses the same path twice in a row, and the host would not start."""
    server = SimpleNamespace(routes=web.RouteTableDef(), app=web.Application())

    @server.routes.get("/v1/models")
    async def theirs(request):
        return web.Response()

    take(server, [Route(method, "/v1/models", theirs, dict, "models") for method in ("GET", "POST")], Settings())
    server.app.add_routes(server.routes)
    assert [(route.method, route.handler is theirs) for route in server.routes] == [("GET", True), ("POST", False)]
    assert "GET /v1/models belongs to another pack" in caplog.text
