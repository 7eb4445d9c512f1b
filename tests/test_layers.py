"""The floors of the house: a file imports from its own folder and from floors below, no circles."""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

import main

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the ground up. What stands on one floor knows nothing of its neighbours.
FLOORS: list[set[str]] = [
    {"configs"},
    {"sde_lib", "data"},
    {"diffusion"},
    {"models", "sampling", "likelihood"},
    {"runtime", "losses", "controllable"},
    {"generation"},
    {"training"},
    {"interop"},
    {"evaluation"},
    {"control", "planning"},
    {"demo"},
    {"main", "benchmarks"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, pathlib.Path]:
    """Every module of the house by its dotted name; a package's is that of its `__init__`."""
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in FLOOR:
            names[".".join(parts).removesuffix(".__init__")] = path
    return names


MODULES = modules()


def imports(module: str, everywhere: bool = True) -> Iterator[str]:
    """The modules of the house that `module` imports, or with `everywhere=False` those that it
    imports when it is itself imported."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{MODULES[module]} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_folder_and_from_floors_below(module: str) -> None:
    home = module.partition(".")[0]
    for name in imports(module):
        other = name.partition(".")[0]
        assert other == home or FLOOR[other] < FLOOR[home], f"{module} imports {name}"


def test_there_is_no_circle_of_imports() -> None:
    graph = {module: set(imports(module, everywhere=False)) for module in MODULES}
    for module, found in graph.items():  # a package's face may be imported by what it shows
        found -= {name for name in found if module.startswith(f"{name}.")}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_root_shows_what_the_project_is_known_by() -> None:
    files = {path.name for path in ROOT.glob("*.py")}
    assert files == {
        *("main.py", "sde_lib.py", "losses.py", "sampling.py", "likelihood.py", "controllable.py")
    }
    folders = {name.partition(".")[0] for name in MODULES} - {name[:-3] for name in files}
    assert folders == set(FLOOR) - {name[:-3] for name in files}
    assert len(folders) <= 13


def test_the_ground_under_jax_is_the_standard_library() -> None:
    """The modules that `main.py` imports before JAX may not import JAX themselves."""
    import sys

    for name in ("runtime", "runtime.backend"):
        tree = ast.parse(MODULES[name].read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert all(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def test_no_file_is_longer_than_an_idea() -> None:
    """400 lines, save where one idea is that long."""
    longer = {
        "sde_lib": "one class for each SDE of the paper",
        "sampling": "predictors, correctors and the seam to configs",
    }
    for module, path in MODULES.items():
        if not module.startswith("benchmarks"):
            assert module in longer or len(path.read_text().splitlines()) <= 400, module


def closure(module: str) -> set[str]:
    """The module with all modules of the house that it imports, directly or not."""
    modules: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in modules:
            modules.add(name)
            pending += imports(name)
    return modules


@pytest.mark.parametrize(("mode", "most"), [("eval", 8), ("control", 6), ("sample", 3)])
def test_a_config_visits_few_files(mode: str, most: int) -> None:
    """Files of folders from the runtime up, of which a function takes the whole config. Below them
    there is one seam for each noun; all others get the experiment, a section or a number.
    """
    modules = closure(main.MODES[mode].function.partition(":")[0])
    entries = {entry.function.partition(":")[2] for entry in main.MODES.values()}
    entries.remove(main.MODES[mode].function.partition(":")[2])
    visited = set()
    for module in modules:
        tree = ast.parse(MODULES[module].read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name not in entries | {"from_config"}:
                takes = "config" in {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
                if takes and "." in module and FLOOR[module.partition(".")[0]] >= FLOOR["runtime"]:
                    visited.add(module)
    assert len(visited) <= most, sorted(visited)
