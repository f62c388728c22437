"""The map of the code names what exists."""

import ast
import re

import pytest

import distcnn.cli.commands
from tests.conftest import ROOT
from tests.test_structure import PACKAGE, modules_of, room

TEXT = (ROOT / "docs" / "architecture.md").read_text()


def defined_in(path: str) -> set[str]:
    """Returns the names that a module defines at its top, and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse((PACKAGE / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+\.(?:py|yaml)|[\w/]+/)`", TEXT))))
def test_every_path_exists(path):
    assert (PACKAGE / path).exists() or (ROOT / path).exists(), path


PAIRS = [
    *re.findall(r"`([\w/]+\.py)`\s+\(`([\w.]+)`\)", TEXT),
    *((path, name) for name, path in re.findall(r"`([A-Z_]+)` in `([\w/]+\.py)`", TEXT)),
]


@pytest.mark.parametrize(("path", "name"), sorted(set(PAIRS)))
def test_every_name_is_where_the_map_says(path, name):
    assert name in defined_in(path)


def test_the_pattern_of_names_finds_them():
    assert len(PAIRS) > 20
    assert "reduce_sum" not in defined_in("distribute/base.py")
    assert "Backend.reduce_sum" in defined_in("distribute/base.py")


def test_every_room_and_every_command_is_on_the_map():
    rooms = {room(name) for name in modules_of(PACKAGE)} - {"__init__", "__main__"}
    table = TEXT.partition("## Packages")[2].partition("##")[0]
    for name in rooms:
        assert f"`{name}/`" in table or f"`{name}.py`" in table, name
    for target, _ in distcnn.cli.commands.COMMANDS.values():
        assert f"`{target.partition(':')[0].rpartition('.')[2]}.py`" in table
