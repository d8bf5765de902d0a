"""The house rules that a machine can hold: which room may import which, and how long a file may be."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tools.provision import ROOT

LIBRARIES = {"torch", "safetensors", "transformers", "tokenizers", "einops", "numpy", "scipy"}  # as pyproject.toml names them
HOST = {
    "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_version", "execution",
    "folder_paths", "latent_preview", "node_helpers", "nodes", "server", "PIL",
}  # fmt: skip
ENGINE = {"model_loaders", "pictures", "samplers", "store"}

# Room -> what its files may import beside Python's own library; ours as `klein....`. The first that a path lies in counts.
ROOMS = {
    "model_loaders": {"klein.model_loaders", "klein.errors"} | LIBRARIES,
    "pictures": {"klein.pictures", "klein.errors", "torch", "einops", "numpy", "scipy"},
    "samplers": {"klein.samplers", "torch", "einops", "numpy"},
    "store": {"klein.store", "klein.errors", "torch", "safetensors", "numpy"},
    "nodes/host": {"klein.nodes.host", "klein.errors", "klein.model_loaders", "klein.pictures", "klein.samplers", "klein.store"}
    | LIBRARIES
    | HOST,
    "nodes": {"klein.nodes", "klein.pictures", "klein.samplers", "klein.errors", "comfy_api"},
    "serving/host.py": {"klein.serving", "klein.workflows.graph", "execution", "folder_paths", "nodes", "server"},
    "serving": {
        "klein.serving",
        "klein.workflows.graph",
        "klein.nodes.host.files",
        "klein.nodes.host.settings",
        "klein.errors",
        "aiohttp",
        "PIL",
    },
    "errors.py": set(),
    "__init__.py": {"klein.nodes", "klein.serving", "comfy_api"},
}
SHIPPED = [
    ROOT / "__init__.py",
    ROOT / "errors.py",
    *sorted(path for room in ("nodes", "serving", *ENGINE) for path in (ROOT / room).rglob("*.py")),
]
OUTSIDE = [
    ROOT / "dev.py",
    *sorted(path for room in ("tests", "tools", "benchmarks", "workflows") for path in (ROOT / room).rglob("*.py")),
]


def imported(source: str, path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever it does, its neighbours in the pack as `klein....`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ("klein", *path.parts[:-1])
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = [*above, *filter(None, [node.module])]
            # `from .. import pictures` imports a room by its name
            found |= {".".join(module if len(module) > 1 or not node.level else [*module, a.name]) for a in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in DYNAMIC:
            found |= {str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


DYNAMIC = ("import_module", "__import__")


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def forbidden(source: str, path: Path) -> set[str]:
    """What a file of the pack, at a path from the root, imports that its room must not know."""
    room = next(room for room in ROOMS if path.is_relative_to(room))
    return {name for name in imported(source, path) if not within(name, ROOMS[room] | sys.stdlib_module_names)}


def second_copies(source: str, path: Path) -> set[str]:
    """Imports that would make the engine exist a second time in a process, beside `klein....`."""
    return {name for name in imported(source, path) if within(name, ENGINE)}


def named(paths: list[Path]):
    return pytest.mark.parametrize("path", [path.relative_to(ROOT) for path in paths], ids=str)


@named(SHIPPED)
def test_each_room_imports_only_what_it_may_know(path):
    assert forbidden((ROOT / path).read_text(encoding="utf-8"), path) == set()


def test_the_engine_is_imported_as_part_of_the_package_so_that_it_exists_once():
    found = {str(path): second_copies(path.read_text(encoding="utf-8"), path.relative_to(ROOT)) for path in OUTSIDE}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_libraries_that_rooms_may_know_are_those_that_pyproject_asks_for():
    (asked,) = re.findall(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert {re.split("[<>=]", name)[0] for name in ast.literal_eval(asked)} == LIBRARIES


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("model_loaders/flow/model.py", "import comfy.ops", "comfy.ops"),
        ("model_loaders/flow/model.py", "from ...nodes.host import flow", "klein.nodes.host"),
        ("model_loaders/flow/model.py", "from ...pictures.sizing import fit", "klein.pictures.sizing"),
        ("model_loaders/flow/sizes.py", "def later():\n    import folder_paths", "folder_paths"),
        ("model_loaders/flow/sizes.py", "import importlib\nimportlib.import_module('comfy.sd')", "comfy.sd"),
        ("model_loaders/flow/sizes.py", "import diffusers", "diffusers"),
        ("model_loaders/flow/sizes.py", "import tools.small", "tools.small"),
        ("pictures/sizing.py", "from ..model_loaders.flow.sizes import FlowSizes", "klein.model_loaders.flow.sizes"),
        ("pictures/sizing.py", "from .. import samplers", "klein.samplers"),
        ("samplers/euler.py", "import transformers", "transformers"),
        ("samplers/euler.py", "from comfy import samplers", "comfy"),
        ("store/disk.py", "from ..model_loaders.formats.files import open_checkpoint", "klein.model_loaders.formats.files"),
        ("store/disk.py", "import folder_paths", "folder_paths"),
        ("nodes/sampling.py", "import torch", "torch"),
        ("nodes/sampling.py", "from ..model_loaders.flow.load import load_flow", "klein.model_loaders.flow.load"),
        ("nodes/sampling.py", "import comfy.sample", "comfy.sample"),
        ("nodes/host/flow.py", "from ..sampling import KleinSchedule", "klein.nodes.sampling"),
        ("nodes/host/flow.py", "from tests.fixtures import graph", "tests.fixtures"),
        ("nodes/host/flow.py", "from samplers.euler import sample_euler", "samplers.euler"),
        ("nodes/host/flow.py", "from benchmarks import table", "benchmarks"),
        ("__init__.py", "from .errors import KleinError", "klein.errors"),
    ],
)
def test_an_arrow_that_runs_back_is_seen(path, source, wrong):
    assert forbidden(source, Path(path)) == {wrong}


@pytest.mark.parametrize("source", ["import model_loaders.flow", "from pictures import sizing", "import samplers as s"])
def test_a_second_copy_of_the_engine_is_seen(source):
    assert len(second_copies(source, Path("tests/unit/test_x.py"))) == 1
    assert second_copies("from klein.pictures import sizing", Path("tests/unit/test_x.py")) == set()


@named(SHIPPED + OUTSIDE)
def test_no_file_is_longer_than_400_lines(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 400
