"""The shape of the package: imports point down, half of it needs no torch, units are small, public names explained."""

import ast
import graphlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchfault

SRC = Path(__file__).resolve().parent.parent / "src"
PACKAGE = SRC / "torchfault"

# From the top down; a unit imports from its own row or lower ones, never in a circle. A new unit needs a place here.
LAYERS = (
    {"cli", "__main__"},
    {"demo", "testing"},
    {"quick"},
    {"config"},
    {"nas"},
    {"recipes"},
    {"report", "hardening", "cluster"},
    {"campaign"},
    {"resolve", "results"},
    {"hardware", "sensitivity"},
    {"engine", "sampling", "statistics"},
    {"adapters"},
    {"model", "criteria"},
    {"data"},
    {"trials", "words", "faults", "storages"},
    {"space", "axes", "measures", "store", "cells", "selection"},
    {"site", "names", "imports", "expressions"},
    {"errors", "files", "plain_yaml", "text", "source", "zoo"},
)
ROW = {unit: row for row, units in enumerate(LAYERS) for unit in units}

NUMPY_HALF = (
    "space",
    "site",
    "names",
    "measures",
    "statistics",
    "sampling",
    "store",
    "results",
    "expressions",
    "cells",
    "axes",
    "selection",
    "report",
)
HEAVY = {"torch", "pandas", "sklearn", "matplotlib", "transformers", "timm", "torchvision"}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60

# Old places of modules that scripts import by name: two lines each, and no part of the house.
FORWARDS = {PACKAGE / "model" / f"{name}.py" for name in ("checkpoint", "data", "sources")}
FILES = sorted(set(PACKAGE.rglob("*.py")) - FORWARDS)
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}


def dotted(path: Path) -> str:
    """Return the module name of a source file."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str:
    """Return the part of a dotted name that stands in LAYERS: ``engine`` for ``torchfault.engine.graph.sweep``."""
    return module.split(".")[1]


LIGHT = [path for path in FILES if path != PACKAGE / "__init__.py" and unit(dotted(path)) in NUMPY_HALF]


def imported(node: ast.AST, path: Path) -> list[str]:
    """Return the dotted names that an import statement may load: modules, and members that may be modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
    if base == "torchfault":
        return [f"{base}.{alias.name}" for alias in node.names]
    return [base]


def loaded_at_once(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported: no function bodies, nothing for type checkers alone."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))


def internal_imports() -> Iterator[tuple[Path, int, str]]:
    """Yield file, line and imported unit of every import inside the package, at any depth, for every purpose."""
    for path, tree in TREES.items():
        if path == PACKAGE / "__init__.py":
            continue  # it names the public members lazily and stands above everything
        for node in ast.walk(tree):
            for name in imported(node, path):
                if name.startswith("torchfault."):
                    yield path, node.lineno, unit(name)


def test_every_unit_has_a_row():
    units = {unit(dotted(path)) for path in FILES if path != PACKAGE / "__init__.py"}
    assert units - ROW.keys() == set(), "give these a row in LAYERS"


def test_imports_point_down():
    wrong = []
    for path, line, target in internal_imports():
        source = unit(dotted(path))
        if ROW.get(target, -1) < ROW.get(source, -1):
            wrong.append(f"{path.relative_to(SRC)}:{line}: {source} must not import {target}")
    assert wrong == []


def test_no_unit_imports_itself_in_a_circle():
    graph: dict[str, set[str]] = {}
    for source, targets in file_imports().items():
        graph.setdefault(unit(source), set()).update({unit(target) for target in targets} - {unit(source)})
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def file_imports() -> dict[str, set[str]]:
    """Return which files each file imports, at any depth but for type checkers alone; packages by their own file."""
    modules = {dotted(path) for path in FILES}
    graph: dict[str, set[str]] = {}
    for path, tree in TREES.items():
        if path == PACKAGE / "__init__.py":
            continue
        found = graph.setdefault(dotted(path), set())
        for node in at_run_time(tree):
            if isinstance(node, ast.ImportFrom):
                found |= {
                    full if (full := f"{node.module}.{alias.name}") in modules else str(node.module)
                    for alias in node.names
                }
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        found &= modules - {dotted(path), "torchfault"}
    return graph


def at_run_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all nodes, those of functions too, but for what stands there for type checkers alone."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        typed = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        todo.extend(node.orelse if typed else ast.iter_child_nodes(node))


def test_no_file_imports_itself_in_a_circle():
    graph = file_imports()
    assert sum(map(len, graph.values())) > 500
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_everything_is_imported_by_its_full_name():
    relative = [
        f"{path.relative_to(SRC)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize("path", LIGHT, ids=dotted)
def test_the_numpy_half_names_no_heavy_import_at_module_level(path):
    names = [name for node in loaded_at_once(TREES[path]) for name in imported(node, path)]
    assert HEAVY.isdisjoint(name.partition(".")[0] for name in names)


def heavy_after(modules: list[str]) -> str:
    """Import *modules* in turn in a fresh interpreter; return a line for each heavy package and what brought it."""
    program = (
        "import importlib, sys\n"
        f"left = {HEAVY!r}\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    for heavy in sorted(left & set(sys.modules)):\n"
        "        print(name, 'loads', heavy)\n"
        "    left -= set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_numpy_half_loads_nothing_heavy():
    assert heavy_after(["torchfault", *map(dotted, LIGHT)]) == ""


@pytest.mark.skipif(not (PACKAGE / "cli.py").exists() and not (PACKAGE / "cli").exists(), reason="no command line yet")
def test_the_command_line_starts_without_torch():
    assert heavy_after(["torchfault.cli"]) == ""


def test_importing_the_package_loads_no_part_of_it():
    program = "import sys, torchfault; print(sorted(m for m in sys.modules if m.startswith(('torchfault.', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_short():
    lengths = {str(path.relative_to(SRC)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_functions_are_short():
    long = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                explained = ast.get_docstring(node) is not None
                first = node.body[0].end_lineno + 1 if explained else node.lineno
                if (lines := node.end_lineno - first + 1) > LONGEST_FUNCTION:
                    long[f"{path.relative_to(SRC)}:{node.lineno} {node.name}"] = lines
    assert long == {}


ROOM = PACKAGE / "model" / "torch_ao"
KNOWS_IT = ("torch.ao", "torch_ao", "ops.quantized", "is_quantized", "int_repr", "q_scale", "fake_quant")


def test_nothing_outside_its_room_names_torchs_own_quantisation():
    table = PACKAGE / "model" / "foreign.py"
    named = {
        f"{path.relative_to(SRC)}: {word}"
        for path in FILES
        if ROOM not in path.parents
        for word in KNOWS_IT
        if word in path.read_text(encoding="utf-8")
    }
    assert named == {f"{table.relative_to(SRC)}: torch_ao"}


def test_the_room_of_torchs_own_quantisation_can_be_deleted(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "torchfault", ignore=shutil.ignore_patterns("torch_ao", "__pycache__"))
    program = (
        "import torch, torchfault as tf\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()\n"
        "engine = tf.Engine(model, tf.Data(torch.randn(5, 3)))\n"
        "print(tf.__file__, engine.executor, len(engine.space.sites), engine.fallback)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "torchfault" / "__init__.py"), "graph", "11", "None"]


PUBLIC = [name for name in torchfault.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring_with_an_example(name):
    assert ">>>" in (inspect.getdoc(getattr(torchfault, name)) or "")


def test_type_checkers_see_the_names_that_users_see():
    block = next(node for node in TREES[PACKAGE / "__init__.py"].body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"{torchfault._HOME[name]}.{name}" for name in PUBLIC}


def test_the_package_lists_its_names_and_hides_none_behind_a_module():
    assert set(PUBLIC) <= set(dir(torchfault))
    assert set(PUBLIC).isdisjoint(ROW)
    assert len(set(torchfault.__all__)) == len(torchfault.__all__)


def test_an_unknown_name_is_answered_with_a_suggestion():
    with pytest.raises(AttributeError, match=r"no attribute 'FaultSpcae'; did you mean 'FaultSpace'"):
        _ = torchfault.FaultSpcae
