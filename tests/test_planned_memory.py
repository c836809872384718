"""What plans predict is what fits take: in the memory of a process, and on a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_cupy
import fit_memory
import numpy as np
import ptx
import pytest
from device_memory import DeviceMemory

import gpu_als
from gpu_als import backends
from gpu_als.core import linalg as row_dots
from gpu_als.core import memory as fit_shape
from gpu_als.core.objectives import Explicit, row_problem
from gpu_als.core.problem import SparseRows
from gpu_als.train import engine
from gpu_als.train.planning import plan

needs_linux = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are measured as Linux has them"
)

SHAPES = {
    "factors": (240_000, 90_000, 900_000),
    "data": (50_000, 10_000, 9_000_000),
    "workspace": (30_000, 12_000, 2_500_000),
}
FITS = {  # the data; what takes most; the model; its options
    "factors": ("factors", "factors", "implicit", {"factors": 96}),
    "drawing and handing out": ("factors", "factors", "explicit", {"factors": 64}),
    "data": ("data", "data", "explicit", {"factors": 7}),
    "data set apart": ("data", "data", "implicit", {"factors": 8}),
    "workspace": (
        "workspace",
        "workspace",
        "implicit",
        {"factors": 64, "num_threads": 24, "use_cg": False},
    ),
    "compiled": ("workspace", "data", "implicit", {"factors": 64, "use_cg": False}),
    "shards": ("data", "data", "implicit", {"factors": 16, "alpha": 7.5}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder with each matrix, and what plans are told of it."""
    made = {}
    for name, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        matrix = fit_memory.made_up(*shape, seed=5)
        fit_memory.save(folder, matrix)
        longest = max(np.diff(matrix.indptr).max(), np.bincount(matrix.indices).max())
        made[name] = folder, (*matrix.shape, matrix.nnz), int(longest), np.mean(matrix.data == 1)
    return made


@needs_linux
@pytest.mark.parametrize("name", FITS)
def test_the_host_memory_of_a_fit(folders, name, monkeypatch):
    data, largest, kind, options = FITS[name]
    fused = name != "workspace"
    if not fused:
        backends._numpy_backend.cache_clear()
        monkeypatch.setattr("gpu_als.backends.numpy.backend.library", lambda: None)
    folder, shape, longest, ones = folders[data]
    shards = name == "shards"
    options = {"num_threads": 2} | options
    predicted = plan(
        *shape,
        options["factors"],
        model=kind,
        exact=options.get("use_cg", kind == "explicit") is (kind == "explicit"),
        ones=float(ones) if kind == "implicit" and "alpha" not in options else 0,
        longest=longest,
        threads=options["num_threads"],
        host_memory=1 if shards else None,
    ).host
    assert predicted.from_shards is shards
    parts = {part: getattr(predicted, part) for part in ("data", "factors", "workspace")}
    case = json.dumps({"kind": kind, "shards": shards, "fused": fused, "options": options})
    command = [sys.executable, str(Path(fit_memory.__file__)), str(folder), case]
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=usual)
    # What else a process takes, and how much of their batches many threads hold at one time, is up
    # to the machine.
    near = 0.4 if name == "workspace" else 0.2
    assert predicted.total == pytest.approx(int(run.stdout), rel=near)
    assert max(parts, key=parts.get) == largest


ON_DEVICE = {  # users, items, entries; the model; its options
    "factors": ((1250, 1000, 20_000), "implicit", {"factors": 32, "use_cg": False}),
    "padded factors": ((1250, 1000, 20_000), "implicit", {"factors": 31}),
    "no ones": ((1000, 1250, 20_000), "implicit", {"factors": 32, "unobserved_weight": 0.5}),
    "biases": ((1250, 1000, 20_000), "explicit", {"factors": 32}),
    "plain ratings": ((1250, 1000, 20_000), "explicit", {"factors": 32, "bias": False}),
    "data": ((750, 250, 50_000), "implicit", {"factors": 8, "alpha": 1.3}),
    "ratings": ((750, 250, 50_000), "explicit", {"factors": 8, "bias": False}),
}
BLOCK = 128
"""Rows that change coordinates at the same time: few, beside which the rest counts."""


@pytest.fixture
def stand_in(monkeypatch):
    """Return the backend of a stand-in for a GPU, whose kernels take all rows."""
    if ptx.missing():
        pytest.skip(ptx.missing())
    with fake_cupy.installed():
        from gpu_als.backends.cupy import arrays as multiply
        from gpu_als.backends.cupy import backend

        made = backend.CupyBackend()
        monkeypatch.setattr(backends, "_cupy_backend", lambda precision="float32": made)
        monkeypatch.setattr(made, "block_elements", 8 * BLOCK, raising=False)
        monkeypatch.setattr(fit_shape, "DEVICE_BLOCK", 8 * BLOCK)
        monkeypatch.setattr(fit_shape, "CONVERTED_ROWS", BLOCK)
        monkeypatch.setattr(multiply, "CONVERTED_ROWS", BLOCK)
        # Its blocks are there when batches' are not, which are larger; but here batches take none.
        monkeypatch.setattr(row_dots, "_ELEMENTS", BLOCK)
        monkeypatch.setattr("gpu_als.core.problem._BLOCK", BLOCK)
        yield made


def fit_on_device(monkeypatch, backend, name, available):
    """Fit; return the plan, and the most bytes there were on the device. Batches take none."""
    shape, kind, options = ON_DEVICE[name]
    matrix = fit_memory.made_up(*shape, seed=9)
    plans, plan_device = [], engine.plan_device

    def noted(*how):
        plans.append(plan_device(*how))
        return plans[-1]

    monkeypatch.setattr(engine, "plan_device", noted)
    monkeypatch.setattr(type(backend), "available_memory", lambda self: (available, 0))
    memory = DeviceMemory(monkeypatch, backend.xp)
    options = {"iterations": 2, "random_state": 7} | options
    if kind == "explicit":
        model = gpu_als.ExplicitALS(backend="cupy", **options)
        model.fit(matrix)
    else:
        model = gpu_als.AlternatingLeastSquares(use_gpu=True, **options)
        model.fit(matrix, show_progress=False)
    assert set(model.report_.user_rows) <= {"dual", "primal", "cg", "shared"}
    return plans[0], memory.peak


@pytest.mark.parametrize("name", ON_DEVICE)
def test_the_device_memory_of_a_fit_whose_data_stay(stand_in, monkeypatch, name):
    plan, measured = fit_on_device(monkeypatch, stand_in, name, 1 << 30)
    assert plan.part_bytes is None
    assert plan.total == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("name", ["biases", "data"])
def test_a_streamed_fit_keeps_to_what_is_free(stand_in, monkeypatch, name):
    monkeypatch.setattr("gpu_als.core.memory._SMALLEST_PART", 1 << 10)
    with monkeypatch.context() as first:
        resident, _ = fit_on_device(first, stand_in, name, 1 << 30)
    available = round(0.8 * resident.total)
    plan, measured = fit_on_device(monkeypatch, stand_in, name, available)
    assert plan.part_bytes is not None
    assert 0.5 * plan.total < measured <= plan.total <= available


def test_columns_take_four_bytes_on_a_device(stand_in):
    """SciPy gives them eight where there are 2^31 entries, and kernels then take no rows."""
    wide = np.array([0, 2, 1], np.int64)
    rows = SparseRows(np.array([0, 2, 3]), wide, np.ones(3, np.float32), None, n_fixed=3)
    problem = row_problem(Explicit(0.1), rows, 4, stand_in.batch_elements, "users")
    loaded = stand_in.load(problem)
    assert loaded.indices.dtype == np.int32
    np.testing.assert_array_equal(loaded.indices, wide)
