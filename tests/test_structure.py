"""The shape of the code: imports point down, private names stay in adapters, tests mirror rooms."""

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import distcnn

PACKAGE = Path(distcnn.__file__).parent
TESTS = Path(__file__).parent

COMMANDS = {
    *("train", "run", "evaluate", "predict", "records", "benchmark", "doctor", "probe"),
    *(
        "install_horovod",
        "horovodrun",
        "launch",
        "launchers",
        "export",
        "inspect",
        "search",
        "runs",
        "report",
        "find_lr",
        "find_batch",
        "__main__",
    ),
}

LAYERS: list[set[str]] = [
    {"version", "errors"},
    {"config"},
    {"runtime"},
    {"distribute", "storage"},
    {"data"},
    {"models", "fast", "optim", "inspecting"},
    {"engine"},
    {"cli"},
    {"launching"},
    {"searching"},
    {"inference"},
    {"training"},
    {"scripting"},
    {"proving", "reporting"},
    {"benchmarking"},
    {"tuning"},
    COMMANDS,
    {"__init__"},
]
"""The rooms of the package from the lowest up. A room imports from those below it only."""

ADAPTERS = {
    *("keras_internals.py", "keras_hooks.py", "keras_steps.py", "keras_fit.py"),
    *("horovod_internals.py", "tf_data_internals.py", "tf2onnx_internals.py"),
}
"""The modules that may use private attributes of the libraries."""

OPTIONAL = {
    "onnx_format.py": {"onnx", "onnxruntime", "tf2onnx"},
    "openvino_format.py": {"openvino"},
    "study.py": {"optuna"},
    "mlflow_run.py": {"mlflow"},
    "wandb_run.py": {"wandb"},
}
"""The modules that import packages of extras, and are imported only if those are asked for."""


def modules_of(package: Path) -> dict[str, Path]:
    """Returns the modules of a package by dotted name, relative to it."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in package.rglob("*.py")
    }


def imports_of(name: str, path: Path, modules: set[str]) -> Iterator[str]:
    """Yields the modules of the package that one of them imports, anywhere in its text."""
    folder = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(["distcnn", *folder[: len(folder) - node.level + 1], base])
            targets = [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
        for target in targets:
            parts = target.split(".")
            if parts[0] != "distcnn":
                continue
            found = "__init__"
            for length in range(1, len(parts)):
                inside = ".".join(parts[1 : length + 1])
                found = next((m for m in (inside, f"{inside}.__init__") if m in modules), found)
            yield found


def room(module: str) -> str:
    return module.split(".")[0]


def violations(package: Path, layers: list[set[str]]) -> list[str]:
    """Returns what is wrong with the imports of a package, in words."""
    modules = modules_of(package)
    level = {name: number for number, names in enumerate(layers) for name in names}
    graph = {name: set(imports_of(name, p, set(modules))) - {name} for name, p in modules.items()}
    found = []
    for name, targets in graph.items():
        for target in targets:
            if room(target) == room(name):
                continue
            if level[room(target)] >= level[room(name)]:
                found.append(f"{name} imports {target}")
    # Names that a room exports are fetched through its __init__, which imports the rest.
    inner = {n: {t for t in ts if not t.endswith("__init__")} for n, ts in graph.items()}
    found += [f"circle: {' -> '.join(circle)}" for circle in circles(inner)]
    return found


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yields a circle for each module that is on one."""
    for start in sorted(graph):
        paths = [[start]]
        seen: set[str] = set()
        while paths:
            path = paths.pop()
            for target in graph.get(path[-1], ()):
                if target == start:
                    yield [*path, start]
                    paths = []
                    break
                if target not in seen:
                    seen.add(target)
                    paths.append([*path, target])


def test_imports_point_down_and_in_no_circle():
    assert violations(PACKAGE, LAYERS) == []


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("config/schema.py", "from distcnn.training.loop import run", "config.schema imports"),
        ("config/schema.py", "import distcnn.training.loop", "config.schema imports"),
        ("config/schema.py", "from distcnn import training", "config.schema imports training"),
        ("config/schema.py", "from distcnn import Trainer", "config.schema imports __init__"),
        ("config/schema.py", "from ..training.loop import run", "config.schema imports"),
        ("config/schema.py", "def f():\n    import distcnn.training.loop", "config.schema imports"),
        ("config/schema.py", "from distcnn.config import recipe", "circle: config.recipe"),
        ("train.py", "import distcnn.evaluate", "train imports evaluate"),
    ],
)
def test_each_kind_of_wrong_import_is_found(module, text, wrong, tmp_path):
    for name in ("config", "training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "__init__.py").write_text("from distcnn.training.loop import run")
    (tmp_path / "evaluate.py").touch()
    (tmp_path / "train.py").write_text("from distcnn.training.loop import run")
    (tmp_path / "training" / "loop.py").write_text("from distcnn.config.recipe import load")
    (tmp_path / "config" / "recipe.py").write_text("from distcnn.config.schema import Config")
    (tmp_path / "config" / "schema.py").touch()
    assert violations(tmp_path, LAYERS) == []
    (tmp_path / module).write_text(text)
    assert any(found.startswith(wrong) for found in violations(tmp_path, LAYERS))


def test_there_is_no_corner_for_everything():
    corners = ("utils", "helpers", "common", "misc")
    assert not [name for name in modules_of(PACKAGE) if name.split(".")[-1] in corners]


def private_attributes(text: str) -> set[str]:
    """Returns the private attributes that a module uses but does not define itself."""
    tree = ast.parse(text)
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    used = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not re.fullmatch(r"_[a-z]\w*", node.attr):
            continue
        of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "part")
        if of_self and isinstance(node.ctx, ast.Store):
            defined.add(node.attr)
        else:
            used.add(node.attr)
    return used - defined


def test_private_attributes_of_libraries_stay_in_their_adapters():
    known = {
        "parser.py": {"_actions"},  # argparse's, for whose help there is no other way
        "command.py": {"_exit"},  # os._exit
        "supervision.py": {"_exit"},
        "batch_memory.py": {"_exit"},
    }
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ADAPTERS:
            found = private_attributes(path.read_text()) - known.get(path.name, set())
            assert not found, (path, found)


def test_a_private_attribute_is_found():
    assert private_attributes("def f(layer):\n    return layer._moments") == {"_moments"}
    assert (
        private_attributes("class A:\n    def f(self):\n        self._x = 1\n        self._x")
        == set()
    )


def test_json_is_read_where_deep_nesting_is_refused():
    readers = [path for path in PACKAGE.rglob("*.py") if "json.load" in path.read_text()]
    assert [path.name for path in readers] == ["files.py"]


def test_what_is_imported_at_once_is_a_dependency() -> None:
    """Horovod brings packages of its own, which are missing where it is not installed."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[~<>=]", entry)[0].lower() for entry in project["dependencies"]}
    imported = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL"}
    known = {imported.get(name, name.replace("-", "_")) for name in names}
    extras = " ".join(itertools.chain(*project["optional-dependencies"].values()))
    assert all(package in extras for package in itertools.chain(*OPTIONAL.values()))
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                top = module.partition(".")[0]
                if path.parent.name == "peers" and path.name.startswith(f"{top}_"):
                    continue  # the side of another framework, imported in its own process only
                optional = OPTIONAL.get(path.name, set())
                assert top in {*known, *optional, *sys.stdlib_module_names, "distcnn"}, (
                    path.name,
                    module,
                )


def test_functions_fit_on_a_screen():
    """Docstrings aside; a long one hides a phase that has no name."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                body = node.body[1:] if is_docstring and len(node.body) > 1 else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def rooms() -> set[str]:
    """Returns the rooms that are folders of the package."""
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def joined_rooms(docstring: str) -> set[str]:
    """Returns the rooms that a folder of tests joins, as its `__init__.py` says."""
    found = re.search(r"\bJoins ([a-z, ]+)\.$", docstring, re.MULTILINE)
    names = set(found[1].split(", ")) if found else set()
    return rooms() if names == {"every room"} else names


def test_every_room_has_its_folder_of_tests():
    folders = {path.parent.name for path in TESTS.glob("*/__init__.py")}
    assert rooms() <= set().union(*LAYERS)
    assert rooms() <= folders
    for name in folders:
        assert list(TESTS.glob(f"{name}/**/test_*.py")), name


@pytest.mark.parametrize(
    "folder", sorted(path.name for path in TESTS.iterdir() if list(path.glob("*.py")))
)
def test_a_folder_of_tests_is_a_room_or_says_which_it_joins(folder):
    if folder not in rooms():
        docstring = ast.get_docstring(ast.parse((TESTS / folder / "__init__.py").read_text()))
        joined = joined_rooms(docstring or "")
        assert len(joined) > 1
        assert joined <= rooms()


def test_the_rooms_that_a_docstring_names_are_found():
    assert joined_rooms("Commands on a run. Joins cli, data.") == {"cli", "data"}
    assert joined_rooms("The documentation. Joins every room.") == rooms()
    assert joined_rooms("Commands on a run.") == set()
