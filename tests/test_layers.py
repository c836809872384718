"""The floors of the house: who may import whom, read from the source without running it."""

import ast
import subprocess
import sys
from pathlib import Path

import gpu_als

ROOT = Path(gpu_als.__file__).parent

# From the ground up. A module imports from its own room and from floors below.
FLOORS = (
    ("errors", "progress", "version"),
    ("data", "metrics"),
    ("datasets", "core"),
    ("backends",),
    ("ranking", "train"),
    ("evaluation", "models"),
    ("dask",),
    ("api",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY = {
    "cupy": ("backends", "cupy"),
    "cupyx": ("backends", "cupy"),
    "cupy_backends": ("backends", "cupy"),
    "distributed": ("dask",),
}
"""Modules that one room alone imports; the command line starts a client of a cluster besides."""


def parts_of(path):
    return path.relative_to(ROOT).with_suffix("").parts


def imports(path):
    """Return the dotted names a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_go_down():
    found = set()
    for path in ROOT.rglob("*.py"):
        own = parts_of(path)
        for name in imports(path):
            top, *inner = name.split(".")
            if top == "gpu_als":
                room = inner[0] if inner and inner[0] in FLOOR else "__init__"
                found.add(room)
                same = room == own[0]
                assert same or FLOOR[room] < FLOOR[own[0]], f"{'/'.join(own)} imports {name}"
                if own[:2] == ("backends", "numpy"):
                    assert inner[:2] != ["backends", "cupy"]
                if own[:2] == ("backends", "cupy"):
                    assert inner[:2] != ["backends", "numpy"]
            elif top in ONLY:
                found.add(top)
                assert own[: len(ONLY[top])] == ONLY[top] or own == ("cli", "fit"), (
                    f"{'/'.join(own)} imports {name}"
                )
    assert {*FLOOR} - {"__init__", "__main__"} <= found, "the scan sees every room"
    assert {"cupy", "distributed"} <= found


def test_modules_import_one_another_in_no_circle():
    modules = {".".join(("gpu_als", *parts_of(path))).removesuffix(".__init__"): path
               for path in ROOT.rglob("*.py")}  # fmt: skip
    open_, done = [], set()

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name in done:
            return
        open_.append(name)
        for other in imports(modules[name]):
            target = other if other in modules else other.rpartition(".")[0]
            if target in modules and target != name:
                visit(target)
        open_.pop()
        done.add(name)

    for name in modules:
        visit(name)


def test_importing_the_package_stays_light():
    heavy = "cupy", "pandas", "matplotlib", "distributed", "duckdb", "pyarrow"
    code = f"import sys, gpu_als; sys.exit(' '.join(set(sys.modules) & set({heavy!r})) or 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
