"""The shape of the code: imports point one way, and nothing is swept into a corner."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import distcnn

PACKAGE = Path(distcnn.__file__).parent

LAYERS = [
    {"version", "errors"},
    {"config"},
    {"runtime"},
    {"distribute"},
    {"cli"},
    {"storage"},
    {"data"},
    {"models", "fast", "optim"},
    {"inference"},
    {"training"},
    {"benchmarking"},
    {"train", "evaluate", "predict", "records", "doctor", "probe", "benchmark"},
]
"""What may import what: a module imports from its own layer and those before it."""


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distcnn."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_point_one_way():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for name in imports_of(path):
            assert level[name] <= level[parts[0]], f"{path} imports distcnn.{name}"


def test_there_is_no_corner_for_everything():
    assert not [
        p for p in PACKAGE.rglob("*.py") if p.stem in ("utils", "helpers", "common", "misc")
    ]


def test_what_is_imported_at_once_is_a_dependency() -> None:
    """Horovod brings packages of its own, which are missing where it is not installed."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[~<>=]", entry)[0].lower() for entry in project["dependencies"]}
    imported = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL"}
    known = {imported.get(name, name.replace("-", "_")) for name in names}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                top = module.partition(".")[0]
                assert top in {*known, *sys.stdlib_module_names, "distcnn"}, (path.name, module)
