"""The way through the house: who may import whom, and what the project says it depends on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "nofe_lab").rglob("*.py"))
}

FLOORS = (
    ("__main__", "__init__"),
    ("bench", "study"),
    ("diagnosis", "sweeps"),
    ("views", "stages", "notebook", "sweeps"),
    ("evaluation", "statistics", "training", "inference", "inspection"),
    ("runs", "specialties", "networks", "data"),
    ("config", "compat", "log", "files", "ranks", "machine", "knobs", "recipes"),
)
"""Top to bottom; a part imports from floors below it, and from parts to its left on its own."""

STRANGERS = {("views", "stages"), ("stages", "views")}
"""Neighbours that do not know each other."""


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports; ``from a import b`` gives a.b if that is a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else str(node.module)


def own_imports(module: str) -> set[str]:
    return {name for name in imports(FILES[module]) if name.split(".")[0] == "nofe_lab"}


def part_of(module: str) -> str:
    """nofe_lab.data.sources -> data; the package's own __init__ for nofe_lab itself."""
    return [*module.split("."), "__init__"][1]


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    place = {part: (floor, i) for floor, row in enumerate(FLOORS) for i, part in enumerate(row)}
    (floor, column), (other_floor, other_column) = place[importer], place[imported]
    is_below = other_floor > floor
    is_left = other_floor == floor and other_column < column
    return (is_below or is_left) and (importer, imported) not in STRANGERS


def test_every_part_of_the_library_has_its_floor() -> None:
    parts = {part_of(module) for module in FILES}
    assert parts == {part for row in FLOORS for part in row}


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_from_below_or_from_its_left(module: str) -> None:
    importer = part_of(module)
    wrong = [name for name in own_imports(module) if not may_import(importer, part_of(name))]
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("stages", "training", True),
        ("networks", "specialties", True),
        ("specialties", "networks", False),
        ("data", "evaluation", False),
        ("evaluation", "training", False),
        ("stages", "views", False),
        ("views", "stages", False),
        ("config", "compat", False),
        ("data", "__init__", False),
    ],
)
def test_the_floors_are_read_as_they_are_drawn(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_no_file_imports_itself_by_a_detour() -> None:
    graph = {module: own_imports(module) for module in FILES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("nofe_lab.config") < order.index("nofe_lab.data.dataset")


def test_only_the_command_line_imports_what_the_wheel_lacks_and_only_when_asked() -> None:
    lacking = ("bench", "study")
    for module in FILES:
        wanted = {name for name in own_imports(module) if part_of(name) in lacking}
        assert not wanted or part_of(module) in (*lacking, "__main__")
    code = "import sys, nofe_lab.__main__; print([m for m in sys.modules if 'nofe_lab.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not any(f"nofe_lab.{part}" in done.stdout for part in lacking)


def test_only_widgets_and_figures_know_how_a_notebook_shows_things() -> None:
    roots = {
        module: {name.split(".")[0] for name in imports(path)} for module, path in FILES.items()
    }
    widgets = {module for module in roots if module.startswith("nofe_lab.views.widgets")}
    for known, rooms in (
        ({"anywidget", "ipywidgets"}, widgets),
        ({"IPython"}, {*widgets, "nofe_lab.views.plots.style"}),
    ):
        importers = {module for module, names in roots.items() if names & known}
        assert importers
        assert importers <= rooms


def test_nothing_in_the_library_imports_a_notebook_or_a_test() -> None:
    roots = {name.split(".")[0] for path in FILES.values() for name in imports(path)}
    assert not roots & {"notebooks", "tests", "nbformat", "papermill"}


def test_public_names_are_exported_explicitly() -> None:
    import nofe_lab

    assert nofe_lab.__all__ == sorted(nofe_lab.__all__)
    assert all(hasattr(nofe_lab, name) for name in nofe_lab.__all__)


# --- dependencies

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]


def named(requirements: list[str]) -> dict[str, str]:
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(each.name): str(each.specifier) for each in parsed}


def test_conda_and_pip_are_given_the_same_direct_dependencies() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = named([item for item in environment if isinstance(item, str)])
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda.pop("pip") == ""
    found = {CONDA_NAMES.get(name, name): versions for name, versions in conda.items()}
    assert found == named(PROJECT["dependencies"])


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    pins = named(CONSTRAINTS)
    extras = PROJECT["optional-dependencies"].values()
    direct = [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]
    for text in direct:
        wanted = Requirement(text)
        pin = pins.get(canonicalize_name(wanted.name), "")
        assert pin.startswith("=="), f"{wanted.name} is not pinned"
        assert wanted.specifier.contains(pin.removeprefix("==")), f"{text} but {pin}"


def test_constraints_are_plain_pins() -> None:
    odd = [line for line in CONSTRAINTS if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)]
    assert not odd


def test_no_local_build_of_a_wheel_is_pinned() -> None:
    assert not [line for line in CONSTRAINTS if "+" in line or "://" in line or " @ " in line]


def test_scripts_that_are_joined_share_no_name() -> None:
    """A page whose parts declare one name twice stays blank."""
    own = ("render", "drawPage")  # what a widget and a page offer: one in each
    names = [
        name
        for path in (ROOT / "nofe_lab" / "views").rglob("static/*.js")
        for name in re.findall(r"^(?:async )?(?:function|const|let) (\w+)", path.read_text(), re.M)
        if name not in own
    ]
    assert len(names) > 50
    assert not {name for name in names if names.count(name) > 1}
