"""The house rules that a machine can hold."""

import ast
import sys

import pytest

from tools.provision import ROOT

ENGINE = sorted(path for folder in ("model_loaders", "pictures", "samplers") for path in (ROOT / folder).rglob("*.py"))
SHIPPED = ENGINE + sorted((ROOT / "nodes").rglob("*.py"))
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "nodes",
    "server",
    "latent_preview",
    "execution",
}


def imported(path) -> set[str]:
    """Top-level names of all that a file imports from outside its own package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            found.add((*above, *(node.module or "").split("."))[0])
    return found


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_never_imports_the_host(path):
    assert not imported(path) & HOST


def test_the_engine_imports_only_what_pyproject_names():
    allowed = {"torch", "safetensors", "transformers", "tokenizers", "einops", "numpy", "model_loaders", "pictures", "samplers"}
    outside = {name for path in ENGINE for name in imported(path)} - set(sys.stdlib_module_names)
    assert outside <= allowed


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
