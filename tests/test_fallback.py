"""What is used where CuPy, the driver, CUDA's libraries or a kernel fail."""

import importlib
import json
import sys
import types
import warnings
from collections import Counter

import fake_cupy
import numpy as np
import nvrtc
import ptx
import pytest
import scipy.sparse as sp
from helpers import make_case, row_errors
from reference import solve_row

import gpu_als
from gpu_als import backends
from gpu_als.backends import get_backend
from gpu_als.backends.cupy.launch import SEGMENT
from gpu_als.cli import main
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.objectives import Explicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient
from gpu_als.errors import BackendError, NoGpuError

NEEDS_MACHINE = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Let every test find out by itself what works."""
    from gpu_als.backends.cupy import backend

    monkeypatch.setattr(backends, "_broken", None)
    monkeypatch.setattr(backend, "_made", {})


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


def plays():
    """Return counts from 1 to 5, so that some are of confidence 1."""
    rng = np.random.default_rng(31)
    return sp.csr_matrix(rng.integers(1, 6, (30, 24)) * (rng.random((30, 24)) < 0.4)).astype("f4")


def fit(use_gpu, **options):
    options = {"iterations": 2, "random_state": 7, "use_cg": False} | options
    model = gpu_als.AlternatingLeastSquares(12, use_gpu=use_gpu, **options)
    model.fit(plays(), show_progress=False)
    return model


def info(capsys):
    """Return what ``gpu-als info`` finds, and the backend that it says "auto" takes."""
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["info"]) == 0
    return found, capsys.readouterr().out.splitlines()[-1].split()[2].rstrip(",")


def assert_cpu(capsys, cause, warned):
    """Assert that a fit takes the CPU, with one warning or with none, and that ``info`` agrees."""
    found, said = info(capsys)
    assert said == "numpy"
    assert found["gpu"] is None
    assert cause in found["gpu_problem"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        models = [fit(None), fit(None)]
        assert not gpu_als.HAS_CUDA
    assert ["does not use the GPU" in str(one.message) for one in caught] == [True] * warned
    assert all(cause in str(one.message) for one in caught)
    for model in models:
        np.testing.assert_array_equal(model.user_factors, fit(False).user_factors)


def fail_with(error):
    """Return a function that raises an error, whatever it is called with."""

    def fail(*_, **__):
        raise error

    return fail


# --- import -----------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Return a function that installs a CuPy of these lines; it returns a count of its imports."""

    def package(*lines):
        count = tmp_path / "imports"
        (tmp_path / "cupy").mkdir()
        body = [f"with open({str(count)!r}, 'a') as file:", "    file.write('x')", *lines]
        (tmp_path / "cupy" / "__init__.py").write_text("\n".join(body))
        for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        return lambda: len(count.read_text())

    yield package
    sys.modules.pop("cupy", None)  # which may have been imported
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("raise OSError('libcudart.so.13: no such file')", "OSError: libcudart.so.13: no such"),
        ("raise ImportError('a page\\n\\n  of advice')", "ImportError: a page of advice"),
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("", "AttributeError: module 'cupy' has no attribute 'cuda'"),
    ],
)
def test_a_cupy_that_does_not_import_costs_one_warning(install, capsys, line, cause):
    imports = install(line)
    assert_cpu(capsys, cause, warned=1)
    assert imports() == 1
    for call in (lambda: get_backend("cupy"), lambda: fit(True)):
        with pytest.raises(BackendError, match=r"pip install|nvidia-smi") as refused:
            call()
        assert cause in str(refused.value)
        assert not isinstance(refused.value, NoGpuError)


@pytest.mark.filterwarnings("always")
def test_the_command_line_warns_once_and_works(install, capsys):
    install("raise OSError('libcudart.so.13: no such file')")
    size = ["--users", "30", "--items", "20", "--ratings", "300", "--iterations", "2"]
    assert main(["demo", *size, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["best_held_out_rmse"] > 0
    assert shown.err.count("OSError: libcudart.so.13: no such file") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("name", ["auto", "cupy"])
def test_what_is_no_fault_of_cupy_is_not_swallowed(install, name, error):
    install(f"raise {error.__name__}")
    with pytest.raises(error):
        get_backend(name)


def test_no_cupy_at_all_is_nothing_to_warn_of(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert_cpu(capsys, "pip install 'gpu-als[cuda13]'", warned=0)


# --- driver and device --------------------------------------------------------------------------

CALLS = {
    "device": ("runtime", "getDevice"),
    "properties": ("runtime", "getDeviceProperties"),
    "context": (None, "Stream"),
}


@pytest.mark.parametrize(
    ("call", "status", "driver", "warned"),
    [
        ("device", 100, 13000, 0),
        ("device", 35, 0, 0),
        ("device", 35, 12020, 1),
        ("properties", 3, 13000, 1),
        ("context", 803, 13000, 1),
    ],
    ids=["no device", "no driver", "old driver", "no start", "versions differ"],
)
def test_a_device_that_is_there_but_broken_is_told(
    cupy, monkeypatch, capsys, call, status, driver, warned
):
    part, name = CALLS[call]
    owner = getattr(cupy.cuda, part) if part else cupy.cuda
    error = fake_cupy.CUDARuntimeError("cudaError: says what", status)
    monkeypatch.setattr(owner, name, fail_with(error))
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: driver)
    assert_cpu(capsys, "cudaError: says what", warned)
    with pytest.raises(BackendError, match=r"no usable GPU.*says what.*nvidia-smi"):
        get_backend("cupy")


def test_the_real_cupy_finds_nothing_to_warn_of_without_a_driver():
    real = pytest.importorskip("cupy")
    if real.cuda.runtime.driverGetVersion():
        pytest.skip("there is a driver")
    with pytest.raises(NoGpuError, match="no usable GPU"):
        get_backend("cupy")
    assert get_backend("auto").name == "numpy"


def test_info_tells_of_the_gpu_that_auto_takes(cupy, capsys):
    found, said = info(capsys)
    assert said == get_backend("auto").name == "cupy"
    assert found["gpu"]["name"] == "stand-in"
    assert found["gpu"]["compute_capability"] == "9.0"
    assert found["gpu_problem"] is None
    assert gpu_als.HAS_CUDA


# --- libraries ----------------------------------------------------------------------------------


def lose_cublas(monkeypatch, cupy):
    class Array(fake_cupy.DeviceArray):
        __matmul__ = fail_with(ImportError("no libcublas.so.13"))

    monkeypatch.setattr(cupy, "full", lambda *how: np.full(*how).view(Array))


LIBRARIES = {
    "no libnvrtc.so.13": lambda patch, cupy: patch.setattr(
        cupy, "full", fail_with(ImportError("no libnvrtc.so.13"))
    ),
    "NVRTC_ERROR_INVALID_OPTION": lambda patch, cupy: patch.setattr(
        cupy, "full", fail_with(nvrtc.CompileError("NVRTC_ERROR_INVALID_OPTION"))
    ),
    "no libcublas.so.13": lose_cublas,
    "cusolver": lambda patch, cupy: patch.delattr(
        sys.modules["cupy_backends.cuda.libs"], "cusolver"
    ),
}


@pytest.mark.parametrize("cause", LIBRARIES)
def test_without_a_library_the_gpu_is_not_used(cupy, monkeypatch, capsys, cause):
    LIBRARIES[cause](monkeypatch, cupy)
    assert_cpu(capsys, cause, warned=1)
    with pytest.raises(BackendError, match=r"NVRTC, cuBLAS, cuSOLVER.*pip install 'gpu-als"):
        get_backend("cupy")


def test_a_device_that_is_full_is_not_used(cupy, monkeypatch, capsys):
    monkeypatch.setattr(cupy, "full", fail_with(fake_cupy.OutOfMemoryError("512 bytes")))
    assert_cpu(capsys, "no memory left (512 bytes)", warned=1)


# --- kernels ------------------------------------------------------------------------------------

COMPILING = {
    "syntax": lambda: nvrtc.CompileError("no such instruction"),
    "no NVRTC": lambda: ImportError("no libnvrtc.so.13"),
    "cubin": lambda: fake_cupy.CUDADriverError("CUDA_ERROR_NO_BINARY_FOR_GPU"),
}
LAUNCHING = {
    "resources": lambda: fake_cupy.CUDADriverError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
    "grid": lambda: fake_cupy.CUDADriverError("CUDA_ERROR_INVALID_VALUE"),
}
WHICH = {
    "all": "",
    "rows": "struct HalfSweep",
    "ones": '"rhs_only.cu"',
    "top_k": '"top_k.cu"',
}


class FailingKernel:
    """A kernel whose launch fails at the times that are named."""

    max_dynamic_shared_size_bytes = 232448

    def __init__(self, kernel, fails):
        self.kernel, self.fails = kernel, fails

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        self.fails()
        self.kernel.max_dynamic_shared_size_bytes = shared_mem
        self.kernel(grid, block, arguments, shared_mem=shared_mem)


def break_kernels(monkeypatch, cupy, *, compiling=None, launching=None, having=""):
    """Have kernels fail whose source has a text; return a count of what was tried."""
    tried = Counter()

    class Module(cupy.RawModule):
        def __init__(self, code, **how):
            self.chosen = having in code
            super().__init__(code, **how)

        def compile(self):
            tried["compile"] += self.chosen
            if self.chosen and compiling:
                raise compiling()
            super().compile()

        def get_function(self, name):
            if not self.chosen or launching is None:
                return super().get_function(name)

            def fail():
                tried["launch"] += 1
                raise launching()

            return FailingKernel(None, fail)

    monkeypatch.setattr(cupy, "RawModule", Module)
    return tried


def recommend(use_gpu):
    model = fit(False)
    model.use_gpu = use_gpu
    return model.recommend(np.arange(30), plays(), N=4)


def fit_explicit(use_gpu):
    model = gpu_als.ExplicitALS(
        6, 0.1, iterations=2, random_state=7, backend="cupy" if use_gpu else "numpy"
    ).fit(plays())
    return model.user_factors, model.item_factors


def factors(use_gpu, **options):
    model = fit(use_gpu, **options)
    return np.asarray(model.user_factors), np.asarray(model.item_factors)


WORK = {
    "implicit": factors,
    "conjugate gradients": lambda use_gpu: factors(use_gpu, use_cg=True),
    "float64": lambda use_gpu: factors(use_gpu, dtype=np.float64),
    "explicit": fit_explicit,
    "recommend": recommend,
}


@NEEDS_MACHINE
@pytest.mark.parametrize(
    ("work", "which", "how"),
    [
        ("implicit", "all", "no NVRTC"),
        ("implicit", "ones", "grid"),
        ("conjugate gradients", "rows", "resources"),
        ("float64", "ones", "cubin"),
        ("explicit", "rows", "syntax"),
        ("recommend", "top_k", "resources"),
    ],
)
def test_kernels_that_fail_leave_work_to_the_general_path(cupy, monkeypatch, work, which, how):
    run = WORK[work]
    tried = break_kernels(
        monkeypatch,
        cupy,
        compiling=COMPILING.get(how),
        launching=LAUNCHING.get(how),
        having=WHICH[which],
    )
    error = (COMPILING | LAUNCHING)[how]()
    with pytest.warns(RuntimeWarning, match=r"sm_90.*general path") as caught:
        found = run(True)
    assert len(caught) == 1
    assert str(error) in str(caught[0].message)
    before = tried.copy()
    again = run(True)  # warnings are errors
    assert tried == before
    assert tried.total() > 0
    assert not get_backend("cupy").kernels.usable
    expected = run(False)
    for one, other in (*zip(found, expected, strict=True), *zip(again, expected, strict=True)):
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(other)


def half_sweep(backend, case, solver):
    """Run one half-sweep in float32; return the solved factors and the statistics."""
    solved, stats = case.sweep(solver, np.float32, ops=backend)
    return backend.to_host(solved), stats


def count_launches(monkeypatch, cupy, fail_at=None):
    """Count launches of row kernels; have one of them fail."""
    launches = []

    class Module(cupy.RawModule):
        def get_function(self, name):
            def count():
                launches.append(name)
                if len(launches) - 1 == fail_at:
                    raise fake_cupy.CUDADriverError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")

            kernel = super().get_function(name)
            return kernel if name == "rhs_only" else FailingKernel(kernel, count)

    monkeypatch.setattr(cupy, "RawModule", Module)
    return launches


@NEEDS_MACHINE
@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("explicit, scaled by count", Cholesky()),
        ("explicit", ConjugateGradient(2)),
        ("implicit", Cholesky()),
    ],
    ids=["scaled", "cg", "implicit"],
)
def test_rows_are_solved_once_whichever_launch_fails(cupy, monkeypatch, name, solver):
    """In place or not: from the same values two steps of conjugate gradients lead to the same."""
    from gpu_als.backends.cupy.backend import CupyBackend

    case = make_case(name, 40)
    expected, _ = case.sweep(solver, np.float32)
    with monkeypatch.context() as patch:
        launches = count_launches(patch, cupy)
        whole, undisturbed = half_sweep(CupyBackend(), case, solver)
    assert len(launches) == undisturbed.launches >= (3 if isinstance(solver, Cholesky) else 1)
    for fail_at in range(len(launches)):
        with monkeypatch.context() as patch:
            seen = count_launches(patch, cupy, fail_at)
            backend = CupyBackend()
            with pytest.warns(RuntimeWarning, match="OUT_OF_RESOURCES.*general path"):
                solved, stats = half_sweep(backend, case, solver)
        assert len(seen) == fail_at + 1
        assert stats.launches == fail_at
        assert +stats.paths == +undisturbed.paths
        assert stats.objective == pytest.approx(undisturbed.objective, rel=1e-5)
        for found in (solved, whole):
            assert (row_errors(found, expected.astype(np.float64)) <= 1e-3).all()


@NEEDS_MACHINE
def test_a_row_is_not_half_solved_where_one_of_its_kernels_fails(cupy, monkeypatch):
    """Long rows take two, one after the other."""
    from gpu_als.backends.cupy.backend import CupyBackend

    rng = np.random.default_rng(37)
    counts = [2 * SEGMENT + 1, 40]
    indptr = np.append(0, np.cumsum(counts))
    indices = rng.integers(50, size=indptr[-1], dtype=np.int32)
    values = rng.uniform(1, 5, len(indices)).astype(np.float32)
    rows = SparseRows(indptr, indices, values, None, 50)
    fixed = rng.standard_normal((50, 8)).astype(np.float32)
    expected = [
        solve_row(fixed, indices[part], np.ones(len(values[part])), values[part], 0.5)
        for part in (slice(*indptr[:2]), slice(*indptr[1:]))
    ]
    names = ["split_gram", "split_solve", "primal"]
    for fail_at, name in enumerate(names):
        with monkeypatch.context() as patch:
            launches = count_launches(patch, cupy, fail_at)
            backend = CupyBackend()
            solved = backend.from_host(np.zeros((2, 8), np.float32))
            with pytest.warns(RuntimeWarning, match="general path"):
                stats = solve_side(
                    backend,
                    Explicit(0.5, False),
                    rows,
                    "users",
                    backend.from_host(fixed),
                    solved,
                    Cholesky(),
                )
        assert launches[-1] == name
        assert stats.paths.total() == 2
        assert stats.launches == (2 if name == "primal" else 0)
        assert (row_errors(backend.to_host(solved), np.stack(expected)) <= 1e-4).all()


@NEEDS_MACHINE
def test_a_device_that_is_lost_is_an_error_that_says_what_to_do(cupy, monkeypatch):
    """There is no general path then."""
    lost = fake_cupy.CUDARuntimeError("cudaErrorIllegalAddress", 700)
    break_kernels(
        monkeypatch, cupy, launching=lambda: fake_cupy.CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS")
    )
    monkeypatch.setattr(cupy.cuda.runtime, "deviceSynchronize", fail_with(lost))
    for work in (lambda: fit(True), lambda: recommend(True)):
        with pytest.raises(
            BackendError, match=r"GPU failed.*IllegalAddress.*start it again.*backend='numpy'"
        ):
            work()


@pytest.mark.parametrize(
    "error",
    [
        fake_cupy.CUDARuntimeError("cudaErrorIllegalAddress", 700),
        fake_cupy.CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS"),
        fake_cupy.CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED"),
        fake_cupy.CUSOLVERError("CUSOLVER_STATUS_INTERNAL_ERROR"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whichever_library_notices_a_lost_device_the_error_says_what_to_do(cupy, error):
    with (
        pytest.raises(BackendError, match=f"GPU failed .*{error}.*start it again"),
        get_backend("cupy").session(),
    ):
        raise error


def test_other_errors_pass_unchanged(cupy):
    """Such as those of a user's callback."""
    error = RuntimeError("mine")
    with pytest.raises(RuntimeError) as caught, get_backend("cupy").session():
        raise error
    assert caught.value is error


def test_a_broken_nccl_is_none(cupy, monkeypatch):
    backend = get_backend("cupy")

    class Broken(types.ModuleType):
        nccl = property(fail_with(OSError("libnccl.so.2: wrong ELF class")))

    with monkeypatch.context() as broken:  # undone before the stand-in is
        broken.setitem(sys.modules, "cupy.cuda", Broken("cupy.cuda"))
        assert backend.nccl() is None
