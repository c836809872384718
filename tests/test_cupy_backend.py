"""The CuPy backend: its own lines over a stand-in, and on a GPU where there is one."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_cupy
import numpy as np
import ptx
import pytest
import scipy.sparse as sp

import gpu_als
from gpu_als import backends
from gpu_als.backends import get_backend
from gpu_als.cli import main
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.objectives import Explicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient
from gpu_als.errors import BackendError, InputError
from gpu_als.ranking.top_k import top_k

SOURCES = sorted((Path(gpu_als.__file__).parent / "backends" / "cupy").glob("*.py"))


def has_gpu() -> bool:
    """Tell whether the tests marked gpu can run."""
    return backends.cuda_is_usable()


needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU that CuPy can use"),
]


@pytest.fixture(
    params=[
        pytest.param(
            (where, fused), id=f"{where}-{path}", marks=needs_gpu if where == "gpu" else ()
        )
        for where in ("stand-in", "gpu")
        for fused, path in ((True, "kernels"), (False, "general"))
    ]
)
def cupy_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Make get_backend("cupy") work: over the stand-in, or on the GPU."""
    where, fused = request.param
    if where == "stand-in" and ptx.missing():
        pytest.skip(ptx.missing())
    with fake_cupy.installed() if where == "stand-in" else contextlib.nullcontext():
        from gpu_als.backends.cupy.backend import CupyBackend

        backend = CupyBackend(fused=fused)
        if where == "stand-in":
            backend.batch_elements = 20_000  # several batches and long rows on small data
        monkeypatch.setattr(backends, "_cupy_backend", lambda precision="float32": backend)
        yield backend


def ratings(seed: int = 11) -> sp.csr_matrix:
    """Return ratings with short, long and empty rows."""
    rng = np.random.default_rng(seed)
    matrix = sp.random_array((60, 45), density=0.25, rng=rng, format="lil", dtype=np.float32)
    matrix[3] = 0
    matrix[5] = 1.0
    matrix = sp.csr_matrix(matrix)
    matrix.data = rng.integers(1, 6, matrix.nnz).astype(np.float32)
    matrix.eliminate_zeros()
    return matrix


def agree(a: np.ndarray, b: np.ndarray, rtol: float = 1e-4) -> None:
    """Assert agreement in the sense of the norm."""
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [
        {"use_cg": False},
        {"use_cg": True},
        {"use_cg": False, "unobserved_weight": 0.3, "regularization_exponent": 0.5},
        {"use_cg": False, "alpha": 0.5},  # confidences below 1: the indefinite path
    ],
    ids=["exact", "cg", "ials", "indefinite"],
)
def test_implicit_factors_agree_with_numpy(cupy_backend, options, dtype) -> None:
    matrix = ratings()
    models = [
        gpu_als.AlternatingLeastSquares(
            12, iterations=3, random_state=7, dtype=dtype, use_gpu=use_gpu, **options
        )
        for use_gpu in (True, False)
    ]
    for model in models:
        model.fit(matrix, show_progress=False)
    agree(models[0].user_factors, models[1].user_factors)
    agree(models[0].item_factors, models[1].item_factors)
    assert models[0].report_.losses == pytest.approx(models[1].report_.losses, rel=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-4])
def test_conjugate_gradients_do_not_follow_rounding(cupy_backend, ridge) -> None:
    """One rating for each row leaves all directions but one to the ridge."""
    matrix = sp.csr_matrix(3 * sp.eye(40))
    predicted = []
    for backend in ("cupy", "numpy"):
        model = gpu_als.ExplicitALS(
            8, ridge, bias=False, solver="cg", iterations=10, random_state=7, backend=backend
        )
        model.fit(matrix)
        predicted.append(model.user_factors @ model.item_factors.T)
    agree(*predicted, rtol=0.02)  # what the ridge decides has few digits


@pytest.mark.parametrize("use_cg", [False, True])
def test_confidences_of_one_without_a_ridge(cupy_backend, use_cg) -> None:
    """Every row is a right-hand side of one shared system."""
    scores = []
    for use_gpu in (True, False):
        model = gpu_als.AlternatingLeastSquares(
            8, regularization=0.0, use_gpu=use_gpu, use_cg=use_cg, random_state=7
        )
        model.fit(ratings() != 0, show_progress=False)
        scores.append(np.asarray(model.user_factors) @ np.asarray(model.item_factors).T)
    agree(*scores, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"nonnegative": True}, {"scale_regularization": None}, {"solver": "cg"}],
    ids=["bias", "plain", "nonnegative", "unscaled", "cg"],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_explicit_factors_agree_with_numpy(cupy_backend, options, weighted) -> None:
    matrix = ratings()
    weight = np.random.default_rng(3).random(matrix.nnz) + 0.5 if weighted else None
    models = [
        gpu_als.ExplicitALS(6, 0.05, iterations=3, random_state=7, backend=name, **options)
        for name in ("cupy", "numpy")
    ]
    for model in models:
        model.fit(matrix, sample_weight=weight)
    agree(models[0].user_factors, models[1].user_factors)
    agree(models[0].item_factors, models[1].item_factors)
    agree(models[0].item_biases, models[1].item_biases)
    assert models[0].report_.losses == pytest.approx(models[1].report_.losses, rel=1e-5)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_dense_factors_agree_with_numpy(cupy_backend, missing) -> None:
    rng = np.random.default_rng(5)
    dense = rng.standard_normal((20, 5)) @ rng.standard_normal((5, 30))
    if missing is not None:
        dense[rng.random(dense.shape) < 0.2] = np.nan
    found = [
        gpu_als.factorize(
            dense,
            4,
            regularization=0.1,
            missing=missing,
            iterations=5,
            random_state=2,
            backend=name,
        )
        for name in ("cupy", "numpy")
    ]
    agree(found[0][0], found[1][0], 1e-8)
    agree(found[0][1], found[1][1], 1e-8)


def test_recommendations_agree_with_numpy(cupy_backend) -> None:
    matrix = ratings()
    model = gpu_als.AlternatingLeastSquares(8, iterations=2, random_state=7, use_gpu=False)
    model.fit(matrix, show_progress=False)
    users = np.arange(20)
    expected, expected_scores = model.recommend(users, matrix[users], N=6)
    model.use_gpu = True
    found, scores = model.recommend(users, matrix[users], N=6)
    assert (found == expected).mean() > 0.99
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4)


def test_a_system_that_is_not_positive_definite_is_flagged(cupy_backend) -> None:
    xp = cupy_backend.xp
    rng = np.random.default_rng(9)
    a = rng.standard_normal((7, 5, 8))
    lhs = a @ a.swapaxes(1, 2)
    lhs[2] = -lhs[2]
    rhs = rng.standard_normal((7, 5))
    found, failed = cupy_backend.cholesky_solve(xp.asarray(lhs.copy()), xp.asarray(rhs))
    assert [int(place) for place in np.flatnonzero(cupy_backend.to_host(failed))] == [2]
    good = np.arange(7) != 2
    expected = np.linalg.solve(lhs[good], rhs[good][:, :, None])[:, :, 0]
    np.testing.assert_allclose(cupy_backend.to_host(found)[good], expected, rtol=1e-8)


def test_auto_takes_the_gpu_where_there_is_one(cupy_backend) -> None:
    assert get_backend("auto") is cupy_backend or has_gpu()


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(InputError, match=r"backend must be 'auto', 'numpy' or 'cupy'"):
        get_backend("jax")


def names_used(tree: ast.Module) -> set[str]:
    """Return the dotted names under cupy, cupyx and cupy_backends that a module uses."""
    roots = {"cupy": "cupy", "xp": "cupy"}
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends"):
                    used.add(alias.name)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cupy"):
            for alias in node.names:
                roots[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in roots:
            used.add(".".join([roots[node.id], *reversed(parts)]))
    return used


SHARED = [
    Path(gpu_als.__file__).parent / place
    for place in (
        "core/systems.py", "core/basis.py", "core/half_sweep.py", "core/nnls.py", "core/linalg.py",
        "core/cg.py", "core/problem.py", "core/objectives.py", "ranking/top_k.py",
        "ranking/scan.py",
    )
]  # fmt: skip


@pytest.mark.filterwarnings(r"ignore:\s*nccl library could not be loaded:UserWarning")
@pytest.mark.parametrize("source", [*SOURCES, *SHARED], ids=lambda path: path.stem)
def test_every_cupy_name_exists(source: Path) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed; nothing to check names against")
    for name in sorted(names_used(ast.parse(source.read_text()))):
        assert name_exists(name), f"{source.name} uses {name}, which CuPy does not have"


def name_exists(name: str) -> bool:
    """Look a dotted name up in the installed CuPy."""
    parts = name.split(".")
    if parts[0] == "cupy_backends" and len(parts) > 4:
        # These extensions load CUDA's libraries, which need not be here: look into the file.
        libs = Path(importlib.import_module("cupy_backends").__file__).parent / "cuda" / "libs"
        (extension,) = libs.glob(f"{parts[3]}.*.so")
        return parts[4].encode() in extension.read_bytes()
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return ".".join(parts[:-1]) == "cupy_backends.cuda.libs"
            found = getattr(found, part)
        return True
    return False


def test_kernels_of_cupy_have_what_is_set_on_them() -> None:
    cupy = pytest.importorskip(
        "cupy", reason="CuPy is not installed; nothing to check names against"
    )
    assert hasattr(cupy.RawKernel, "max_dynamic_shared_size_bytes")
    assert hasattr(cupy.RawKernel, "preferred_shared_memory_carveout")


def test_a_missing_cupy_name_is_noticed() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed; nothing to check names against")
    assert not name_exists("cupy.no_such_function")
    assert not name_exists("cupy_backends.cuda.libs.cusolver.no_such_call")


def test_a_fit_too_large_for_the_device_is_refused_with_both_numbers(cupy_backend) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_backend.xp.cuda.runtime, "memGetInfo", lambda: (1000, 1000))
        model = gpu_als.AlternatingLeastSquares(12, use_gpu=True)
        with pytest.raises(
            BackendError, match=r"[\d,]{6,} bytes of GPU memory, of which [\d,]+ are"
        ):
            model.fit(ratings(), show_progress=False)


def test_kernels_do_the_work(cupy_backend) -> None:
    model = gpu_als.AlternatingLeastSquares(12, iterations=1, use_cg=False, use_gpu=True)
    model.fit(ratings(), show_progress=False)
    fused = cupy_backend.kernels.usable
    assert (model.report_.launches > 0) == fused
    assert ("kernel launches" in str(model.report_)) == fused


def test_an_edited_header_is_another_source(monkeypatch, tmp_path) -> None:
    """What CuPy keeps on disk it finds by the source it was given, includes and all."""
    from gpu_als.backends.cupy import nvrtc as compiling

    package = tmp_path / "package"
    shutil.copytree(SOURCES[0].parent / "kernels", package / "kernels")
    monkeypatch.setattr(compiling.resources, "files", lambda name: package)
    before = compiling.source_of.__wrapped__("primal")
    header = package / "kernels" / "memory.cuh"
    header.write_text(header.read_text() + "// edited\n")
    assert compiling.source_of.__wrapped__("primal") != before
    assert "#include" not in before


def test_info_compiles_kernels_ahead(cupy_backend, capsys) -> None:
    assert main(["info", "--json", "--compile", "8", "40"]) == 0
    compiled = json.loads(capsys.readouterr().out)["compiled"]
    # Dual classes, primal kernels, those of conjugate gradients; a bias needs no others here. Two
    # for entries of confidence 1.
    assert compiled == (0 if not cupy_backend.kernels.usable else 2 + (1 + 2 + 2) + (2 + 5 + 2 + 2))


def test_blocks_that_change_coordinates_have_one_layout(monkeypatch) -> None:
    """Whether they are cut from wider rows or filled up."""
    from gpu_als.backends.cupy import arrays

    monkeypatch.setattr(arrays, "CONVERTED_ROWS", 8)
    seen = []

    class Square:
        __array_ufunc__ = None
        shape = 5, 5

        def __rmatmul__(self, block):
            seen.append((block.shape, block.flags.c_contiguous))
            return 2 * block

    rows = np.arange(160.0).reshape(20, 8)[:, :5]
    np.testing.assert_array_equal(arrays.rowwise_matmul(np, rows, Square()), 2 * rows)
    assert seen == 3 * [((8, 5), True)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inner_products_of_rows(cupy_backend, monkeypatch, dtype) -> None:
    from gpu_als.core import linalg as row_dots

    monkeypatch.setattr(row_dots, "_ELEMENTS", 50)  # several blocks
    a, b = np.random.default_rng(5).standard_normal((2, 33, 7)).astype(dtype)
    xp, move = cupy_backend.xp, cupy_backend.from_host
    found = cupy_backend.to_host(row_dots.row_dots(xp, move(a), move(b)))
    assert found.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, (a * b.astype(np.float64)).sum(1), rtol=0, atol=50 * eps)


@pytest.mark.parametrize("power", [-19, 19])
@pytest.mark.parametrize("solver", [Cholesky(), ConjugateGradient(8)], ids=["chol", "cg"])
def test_values_of_any_size_are_solved_alike(cupy_backend, solver, power) -> None:
    """Both sides' factors are as large as the roots of the values; see test_singular.py."""
    size = np.float32(2.0**power)
    rows = SparseRows.from_csr(ratings())
    fixed, start = np.random.default_rng(6).standard_normal((2, 60, 12)).astype(np.float32)
    found = []
    for scale in (np.float32(1), size):
        scaled = replace(rows, values=rows.values * scale * scale)
        objective = Explicit(float(scale) ** 2, count_scaled=False)
        with cupy_backend.session():
            solved = cupy_backend.from_host(start * scale)
            factors = cupy_backend.from_host(fixed[:45] * scale)
            stats = solve_side(cupy_backend, objective, scaled, "users", factors, solved, solver)
        assert stats.singular == 0
        found.append(cupy_backend.to_host(solved) / scale)
    agree(found[1], found[0], 1e-5)


def test_info_refuses_no_factors(cupy_backend, capsys) -> None:
    assert main(["info", "--compile", "0"]) != 0
    assert "--compile" in capsys.readouterr().err


@pytest.mark.parametrize("largest", [0, 512], ids=["one by one", "batched"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cholesky_solves_say_which_systems_fail(cupy_backend, monkeypatch, largest, dtype) -> None:
    from gpu_als.backends.cupy import cusolver

    monkeypatch.setattr(cusolver, "_LARGEST_BATCHED", largest)
    rng = np.random.default_rng(8)
    roots = rng.standard_normal((4, 9, 12))
    systems = roots @ roots.swapaxes(1, 2)
    systems[1] -= 50 * np.eye(9)  # indefinite
    systems[2] = np.outer(np.arange(1, 10), np.arange(1, 10))  # of rank 1
    rhs = rng.standard_normal((4, 9))
    move = cupy_backend.from_host
    found, failed = cupy_backend.cholesky_solve(
        move(systems.astype(dtype)), move(rhs.astype(dtype))
    )
    np.testing.assert_array_equal(cupy_backend.to_host(failed), [False, True, True, False])
    expected = np.linalg.solve(systems[[0, 3]], rhs[[0, 3], :, None])[:, :, 0]
    agree(cupy_backend.to_host(found)[[0, 3]], expected, 1e-3 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("n_best", [1, 7, 90])
@pytest.mark.parametrize("filtered", [False, True])
def test_ranking_is_that_of_numpy_ties_included(cupy_backend, n_best, filtered) -> None:
    """Whole numbers: scores are exact, and many are equal."""
    rng = np.random.default_rng(21)
    users, items = (rng.integers(-2, 3, (n, 5)).astype(np.float32) for n in (40, 90))
    liked = sp.csr_matrix(sp.random_array((40, 90), density=0.2, rng=rng)) if filtered else None
    if liked is not None:  # rows in any order
        liked.indices[liked.indptr[3] : liked.indptr[4]] = np.flip(
            liked.indices[liked.indptr[3] : liked.indptr[4]]
        )
        liked.has_sorted_indices = False
    nobody = np.array([5, 88, 0]) if filtered else None
    found, expected = (
        top_k(
            backend,
            backend.from_host(users),
            backend.from_host(items),
            n_best,
            liked=liked,
            filter_items=nobody,
        )
        for backend in (cupy_backend, get_backend("numpy"))
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    used = cupy_backend.top_k(
        cupy_backend.from_host(users), cupy_backend.from_host(items), 3, None, None
    )
    assert (used is not None) == (cupy_backend.kernels.usable)
