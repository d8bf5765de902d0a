"""The server describes its own routes, and schemathesis, which asks what that description allows and what it does not, gets no 5xx."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.serving import KEY, PROMPT, ask, idle
from tools.provision import ROOT

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_the_description_names_all_our_routes_and_what_their_tables_take(serving):
    said = ask(serving, "/v1/openapi.json").json
    assert {(method, path) for path, each in said["paths"].items() for method in each} == {
        ("get", "/v1/models"), ("get", "/v1/openapi.json"), ("get", "/v1/health"), ("post", "/v1/preflight"), ("post", "/v1/images/generations"), ("post", "/v1/images/edits"),
        ("get", "/bfl/v1/get_result"), ("get", "/bfl/v1/sample/{id}"), ("post", "/bfl/v1/{model}"), ("post", "/v1/ai/image-model"),
    }  # fmt: skip
    body = said["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    taken = body["application/json"]["schema"]
    assert body["multipart/form-data"]["schema"] == taken and taken["required"] == ["model", "prompt"]
    assert taken["properties"]["n"] == {"type": "integer", "minimum": 1, "maximum": 10}
    assert "klein-tiny" in taken["properties"]["model"]["enum"] and "image[]" in taken["properties"]
    assert taken["properties"]["quality"] == {"enum": ["auto", "standard"]}
    assert said["security"] == [{"bearer": []}, {"x-key": []}]


def test_routes_that_another_pack_holds_are_not_described(limited):
    assert not {"/v1/models", "/bfl/v1/get_result"} & set(ask(limited, "/v1/openapi.json").json["paths"])


def schemathesis(server, folder: Path, *options: str) -> None:
    said = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/v1/openapi.json", "-H", f"x-key: {KEY['x-key']}",
            "--seed", "1", "--checks", CHECKS, "--continue-on-failure", "--request-timeout", "300", *options,
        ],
        capture_output=True, text=True, cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "fixtures.schemathesis_hooks", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )  # fmt: skip
    server.post("/queue", {"clear": True})
    server.post("/interrupt")
    idle(server)
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr
    assert not re.search(r"Klein: .* failed", server.log.read_text())


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.long)])
def test_schemathesis_gets_a_sentence_for_all_that_is_wrong_and_no_5xx(limited, tmp_path, examples):
    idle(limited)
    before = limited.log.read_text().count("Prompt executed")
    schemathesis(limited, tmp_path, "--phases", "fuzzing", "-n", str(examples))
    assert limited.log.read_text().count("Prompt executed") > before + examples / 4  # much of it was painted


@pytest.mark.long
def test_schemathesis_at_all_edges_of_the_description_gets_no_5xx(limited, tmp_path):
    """With a full queue: these bodies ask for hours of painting."""
    idle(limited)
    for _ in range(4):
        body = {"prompt": PROMPT, "steps": 100, "width": 1024, "height": 1024}
        assert ask(limited, "/bfl/v1/klein-tiny", body).status == 200
    schemathesis(limited, tmp_path, "--phases", "coverage")
