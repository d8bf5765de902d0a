"""What the pack says of itself outside its code: README, docs, forms, drawings, the version, and what the archive holds."""

import os
import re
import subprocess

import pytest
import yaml

from tools import drawings
from tools.provision import ROOT

PAPERS = [
    path
    for folder in (".", "docs", "web/docs", "tiny", ".github")
    for path in sorted((ROOT / folder).glob("*.md"))
    if path.name != "agents.md"
]
SECTIONS = [
    "Install",
    "Which files",
    "Start",
    "What core cannot",
    "Try it here, without ComfyUI, GPU or models",
    "Agents",
    "Help",
]
LEFT_OUT = {"tests", "tools", "benchmarks", ".ci", ".github", "dev.py", "CONTRIBUTING.md", ".pre-commit-config.yaml"}


pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: git lists the files")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def left_out() -> list[str]:
    """Tracked files that .comfyignore keeps out of the archive; it is read as git reads a .gitignore."""
    command = ["git", "ls-files", "--ignored", "--cached", "--exclude-from=.comfyignore"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_readme_is_two_screens_that_a_user_needs():
    text = read("README.md")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == SECTIONS
    assert len(text.splitlines()) <= 80 and len(text) <= 6500


def test_the_readmes_two_commands_are_those_that_dev_py_and_ci_run():
    commands = re.findall(r"^python3 dev\.py (\w+)", read("README.md"), flags=re.MULTILINE)
    assert commands == ["demo", "test"]
    assert "python3 dev.py test" in read(".ci/run")


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    lost = [link for link in links if link and not (path.parent / link).exists()]
    assert lost == []


def test_every_test_that_a_paper_names_is_there():
    named = {name for path in PAPERS for name in re.findall(r"`(tests/[\w/]+\.py)`", path.read_text(encoding="utf-8"))}
    assert len(named) > 10 and [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_version_is_written_in_pyproject_and_heads_the_changes():
    (version,) = re.findall(r'^version = "(\d+\.\d+\.\d+)"$', read("pyproject.toml"), flags=re.MULTILINE)
    assert re.findall(r"^## (\S+)", read("CHANGELOG.md"), flags=re.MULTILINE)[0] == version
    named = re.compile(r"""^(?:__version__|VERSION)\s*=\s*["']\d""", flags=re.MULTILINE)
    assert [name for name in tracked() if name.endswith(".py") and named.search(read(name))] == []


def test_the_archive_leaves_out_what_only_development_needs_and_nothing_else():
    gone = left_out()
    assert {name for name in LEFT_OUT if not any(each == name or each.startswith(f"{name}/") for each in gone)} == set()
    others = [name for name in gone if name.split("/")[0] not in LEFT_OUT]
    assert others == ["workflows/build.py"]


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_drawing_is_what_its_script_draws(name):
    assert read(f"docs/{name}") == drawings.DRAWINGS[name]()


def test_the_drawing_of_the_readme_says_that_it_is_drawn():
    assert "not made by a model" in read("docs/overview.svg")


def test_the_issue_forms_are_forms():
    """What GitHub asks of a form: a name, a description, and blocks with ids of their own and labels."""
    forms = [yaml.safe_load(read(name)) for name in tracked() if re.match(r"\.github/ISSUE_TEMPLATE/(?!config).*\.yml", name)]
    assert len(forms) == 2
    for form in forms:
        assert form["name"] and form["description"]
        ids = [block["id"] for block in form["body"]]
        assert len(set(ids)) == len(ids) and all(block["attributes"]["label"] for block in form["body"])


@pytest.mark.parametrize(("line", "changed"), [("version = ", True), ("requires-python = ", False)])
def test_only_another_version_is_published(tmp_path, line, changed):
    """The workflow's own command, between two commits."""
    (job,) = yaml.safe_load(read(".github/workflows/publish.yml"))["jobs"].values()
    (step,) = [step for step in job["steps"] if step.get("id") == "version"]
    assert [each["if"] for each in job["steps"] if "publish-node-action" in each.get("uses", "")] == [
        "steps.version.outputs.changed && env.TOKEN"
    ]

    def git(*command):
        who = ["-c", "user.name=x", "-c", "user.email=x", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", *who, *command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    for text in (read("pyproject.toml"), read("pyproject.toml").replace(line, f'{line}"9" #')):
        (tmp_path / "pyproject.toml").write_text(text)
        git("add", ".")
        git("commit", "-m", "x")
    out = tmp_path / "output"
    out.touch()
    environment = {"BEFORE": git("rev-parse", "HEAD^"), "GITHUB_OUTPUT": str(out), "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, check=True)
    assert out.read_text() == "changed=yes\n" * changed


def test_a_workflow_names_secrets_and_holds_none():
    for name in (name for name in tracked() if name.startswith(".github/workflows/")):
        values = re.findall(r"\w*(?:token|key|secret|password): *(.+)", read(name), flags=re.IGNORECASE)
        assert [value for value in values if not value.startswith("${{")] == []
