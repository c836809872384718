"""The floors of the house: who may import whom, read from the source without running it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_als

ROOT = Path(gpu_als.__file__).parent

# A module may import from its own floor and from below. The longest matching name counts.
FLOORS = {
    "gpu_als.errors": 0,
    "gpu_als.progress": 0,
    "gpu_als.data": 1,
    "gpu_als.solvers": 1,
    "gpu_als.metrics": 1,
    "gpu_als.datasets": 2,
    "gpu_als.row_problem": 2,
    "gpu_als.objectives": 2,
    "gpu_als.memory": 2,
    "gpu_als.backends": 3,
    "gpu_als.side": 3,
    "gpu_als.fingerprints": 3,
    "gpu_als.shard_rows": 3,
    "gpu_als.solving": 4,
    "gpu_als.engine": 4,
    "gpu_als.training_data": 4,
    "gpu_als.checkpoint": 4,
    "gpu_als.report": 4,
    "gpu_als.planning": 4,
    "gpu_als.training": 4,
    "gpu_als.ranking": 5,
    "gpu_als.evaluation": 5,
    "gpu_als.distributed": 5,
    "gpu_als.estimators": 6,
    "gpu_als.dask": 7,
    "gpu_als": 8,
    "gpu_als.cli": 9,
    "gpu_als.__main__": 10,
}


def module_name(path):
    parts = ("gpu_als", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(name):
    """Return every module that a module imports anywhere, functions included.

    ``from package import x`` counts as ``package.x`` where that is a module.
    """
    found = set()
    path = SOURCES[name]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                source = f"{package}.{source}".rstrip(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in SOURCES else source)
    return found


def floor(name):
    while name not in FLOORS:
        name, _, last = name.rpartition(".")
        assert last, "a module outside the house"
    return FLOORS[name]


def inside(name):
    return {other for other in imports(name) if other.split(".")[0] == "gpu_als"}


def test_every_module_has_a_floor():
    """Nothing falls through to the floor of the package itself."""
    assert len(SOURCES) > 25
    assert [name for name in SOURCES if floor(name) == FLOORS["gpu_als"]] == ["gpu_als"]


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_down(name):
    upwards = {other for other in inside(name) if floor(other) > floor(name)}
    assert not upwards


def test_no_import_cycles():
    open_, done = [], set()

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name not in done:
            open_.append(name)
            for other in inside(name) & SOURCES.keys():
                visit(other)
            open_.pop()
            done.add(name)

    for name in SOURCES:
        visit(name)


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_cupy_backend_imports_cupy(name):
    cuda = {other for other in imports(name) if other.split(".")[0] in CUDA}
    assert not cuda or name.startswith("gpu_als.backends.cupy")


CUDA = {"cupy", "cupyx", "cupy_backends"}


def test_the_cupy_backend_does_import_cupy():
    """The scan above would see it."""
    assert any(other.split(".")[0] in CUDA for name in SOURCES for other in imports(name))


@pytest.mark.parametrize("name", SOURCES)
def test_the_backends_do_not_know_each_other(name):
    for mine, other in (("numpy", "cupy"), ("cupy", "numpy")):
        if name.startswith(f"gpu_als.backends.{mine}"):
            assert not {m for m in inside(name) if m.startswith(f"gpu_als.backends.{other}")}


def test_the_reference_imports_only_numpy():
    assert imports("gpu_als.backends.numpy.reference") == {"__future__", "numpy"}


@pytest.mark.parametrize("heavy", ["cupy", "pandas", "matplotlib"])
def test_importing_the_package_stays_light(heavy):
    code = f"import sys, gpu_als; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
