"""Half-sweeps as the row-solver kernels receive them, run on the CPU and solved in float64.

A :class:`Case` says what the rows look like; :func:`draw` gives its arrays, which are handed to
the kernels without objectives or frames in between. Every row is solved from its definition, in
the coordinates that the kernels write, where no columns are scaled.
"""

from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from types import SimpleNamespace

import numpy as np
import ptx
import pytest
from helpers import nonnegative_minimiser, ragged_rows

from gpu_als.backends.cupy.launch import (
    HALF_SWEEP,
    SEGMENT,
    DeviceLimits,
    panel_floats,
    plan_half_sweep,
    stride_of,
)
from gpu_als.backends.cupy.nvrtc import OPTIONS, source_of
from gpu_als.backends.cupy.row_kernels import DescribedSweep, RowKernels
from gpu_als.core.cg import DenseSystem, conjugate_gradient
from gpu_als.core.packing import pack_rows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative, Solver
from gpu_als.core.stats import RESIDUAL_LIMIT

NEEDS_MACHINE = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))
EPSILON = float(np.finfo(np.float32).eps)
LIMIT = RESIDUAL_LIMIT[np.dtype(np.float32)]
H100 = DeviceLimits(90, 232448, 233472)
N_FIXED = 700
EXACT = Cholesky()
ROUNDINGS = 5
"""How many times its condition number times the precision a solution may be off."""
EVERYTHING = "root b0 offset scaled squared repeats"
"""Options that exact solves of rows without negative weights can have together."""


@dataclass(frozen=True)
class Case:
    """What one half-sweep is like.

    Attributes
    ----------
    k : int
    lengths : tuple of int
        Of the rows.
    options : str
        Words that ask for what is not there otherwise: ``root`` (weights), ``signed`` (a tenth of
        them negative), ``b0``, ``offset``, ``ridges`` (one for each row), ``scaled`` (those, and
        eigenvalues), ``base``, ``squared`` (loss), ``repeats`` (entries of one row with the same
        index), ``half`` (float16 factors), ``tensor`` (cores).
    ridge : float
    solver : Solver
    segment : int
        Of the longest rows.
    spectrum : float
        The singular values of the factors fall to this, in directions that no column shows.
    patch : pairs of str
        What to replace in the kernels' source, and by what.
    """

    k: int
    lengths: tuple[int, ...]
    options: str = "root"
    ridge: float = 0.3
    solver: Solver = EXACT
    segment: int = SEGMENT
    spectrum: float = 1.0
    patch: tuple[tuple[str, str], ...] = ()

    def __str__(self):
        """Return an id for pytest."""
        solver = "" if isinstance(self.solver, Cholesky) else f" {type(self.solver).__name__}"
        return f"{self.k}{solver} {self.options}".strip()

    def has(self, option):
        """Tell whether an option is asked for."""
        return option in self.options.split()

    def plan(self):
        """Return the packing's order of rows and the launches."""
        lengths = np.array(self.lengths, np.int64)
        signed = np.full(len(lengths), self.has("signed"))
        packing = pack_rows(lengths, self.k, 1 << 40, indefinite=signed)
        plan = plan_half_sweep(
            packing,
            self.k,
            self.solver,
            H100,
            tensor_cores=self.has("tensor"),
            stored_half=self.has("half"),
            segment=self.segment,
        )
        return packing.order, plan.launches


def cases(*described):
    """Run a test for each of some cases."""
    return pytest.mark.parametrize("case", described, ids=str)


@cache
def compiled(file, macros, patch):
    """Compile a file of kernels; unless patched, as the backend compiles it."""
    source = source_of(file)
    for old, new in patch:
        assert source.count(old) == 1
        source = source.replace(old, new)
    defines = "".join(f"#define {name} {value}\n" for name, value in macros)
    return ptx.Module(defines + source, OPTIONS)


@dataclass(frozen=True, eq=False)
class Problem:
    """The arrays of a case: those of ``struct HalfSweep``, None where it has a null pointer."""

    case: Case
    arrays: dict[str, np.ndarray | None] = field(repr=False)

    def row(self, u):
        """Return what a row's equations are made of, in float64."""
        case, arrays, k = self.case, self.arrays, self.case.k
        part = slice(*arrays["indptr"][u : u + 2])
        indices, root = arrays["indices"][part], arrays["root"]
        root = np.ones(len(indices)) if root is None else root[part].astype(np.float64)
        tau = arrays["tau"][part].astype(np.float64)
        if arrays["offset"] is not None:
            tau = tau - np.abs(root) * arrays["offset"][indices]
        ridge = case.ridge if arrays["ridge"] is None else float(arrays["ridge"][u])
        shared, scale = np.zeros((k, k)), np.ones(k)
        if arrays["base"] is not None:
            shared = arrays["base"].astype(np.float64)
        if arrays["eigenvalues"] is not None:
            eigenvalues = arrays["eigenvalues"][:k].astype(np.float64)
            shared, scale = np.diag(eigenvalues), 1 / np.sqrt(eigenvalues + ridge)
        b0 = np.zeros(k) if arrays["b0"] is None else arrays["b0"][u, :k].astype(np.float64)
        return Row(
            case=case,
            w=np.abs(root)[:, None] * arrays["fixed"][indices, :k].astype(np.float64),
            sign=np.where(root < 0, -1.0, 1.0),
            tau=tau,
            rest=shared + ridge * np.eye(k),
            b0=b0,
            scale=scale,
            shift=ridge if arrays["eigenvalues"] is None else 1.0,
            start=arrays["z"][u, :k].astype(np.float64),
        )


@dataclass(frozen=True, eq=False)
class Row:
    """One row: ``(rest + w^T sign w) x = b0 + w^T tau``.

    The kernels solve for ``x / scale``; where ``scale`` is not 1, that makes ``rest`` the identity.
    """

    case: Case
    w: np.ndarray
    sign: np.ndarray
    tau: np.ndarray
    rest: np.ndarray
    b0: np.ndarray
    scale: np.ndarray
    shift: float
    start: np.ndarray

    @cached_property
    def lhs(self):
        return self.rest + (self.w.T * self.sign) @ self.w

    @cached_property
    def rhs(self):
        return self.b0 + self.w.T @ self.tau

    @cached_property
    def solution(self):
        """What the solver has to find."""
        solver = self.case.solver
        if isinstance(solver, NonNegative):
            return nonnegative_minimiser(self.lhs, self.rhs, solver.free_columns)
        if isinstance(solver, Cholesky):
            return np.linalg.solve(self.lhs, self.rhs)
        system = DenseSystem(np, self._scaled_lhs[None], (self.scale * self.rhs)[None])
        start = (self.start / self.scale)[None]
        return self.scale * conjugate_gradient(np, system, start, solver.steps)[0][0]

    @property
    def _scaled_lhs(self):
        return self.scale[:, None] * self.lhs * self.scale

    def error(self, x):
        """Return the relative error of a solution."""
        return np.linalg.norm(x - self.solution) / np.linalg.norm(self.solution)

    def rounding(self, *, dual):
        """Return the relative error that rounding to float32 may cause.

        In the dual form that is the condition number. In the primal form it multiplies the terms
        of the right-hand side, which may cancel; conjugate gradients also start somewhere.
        """
        w = self.w * self.scale
        if dual:
            if len(w) == 0:
                return EPSILON
            shift = (self.scale * np.diag(self.rest) * self.scale)[0]
            smallest, largest = np.linalg.eigvalsh(w @ w.T)[[0, -1]] + shift
            return EPSILON * largest / smallest
        smallest, largest = np.linalg.eigvalsh(self._scaled_lhs)[[0, -1]]
        sizes = np.linalg.norm(self.solution / self.scale)
        terms = np.abs(self.tau) @ np.linalg.norm(w, axis=1) + np.linalg.norm(self.scale * self.b0)
        if isinstance(self.case.solver, ConjugateGradient):
            terms += largest * np.linalg.norm(self.start / self.scale)
        return EPSILON * (largest + terms / sizes) / smallest

    def objective(self, x):
        """Return what the row adds to the objective, and how large its terms are.

        Each of them by itself: ``(tau - q)^2`` may be summed as ``tau^2 - 2 q tau + q^2``.
        """
        q = self.w @ x
        squared = self.case.has("squared")
        losses = q * (self.sign * q - 2 * self.tau) + squared * self.tau**2
        sizes = np.abs(q) * (np.abs(q) + 2 * np.abs(self.tau)) + squared * self.tau**2
        quadratic, linear = x @ self.rest @ x, 2 * self.b0 * x
        size = sizes.sum() + quadratic + np.abs(linear).sum()
        return losses.sum() + quadratic - linear.sum(), size

    def residual(self, x):
        """Return ``|lhs z - rhs| / |rhs|``, and what of it may be rounding to float32."""
        misfit = self.scale * (self.lhs @ x - self.rhs)
        if isinstance(self.case.solver, NonNegative):
            bound = (np.arange(len(x)) < len(x) - self.case.solver.free_columns) & (x <= 0)
            misfit[bound] = np.minimum(misfit[bound], 0)
        sizes = self.scale * (np.abs(self.rest) @ np.abs(x) + np.abs(self.b0))
        sizes += self.scale * (np.abs(self.w.T) @ (np.abs(self.w) @ np.abs(x) + np.abs(self.tau)))
        size = np.linalg.norm(self.scale * self.rhs)
        return np.linalg.norm(misfit) / size, EPSILON * np.linalg.norm(sizes) / size


@cache
def draw(case):
    """Return the arrays of a case; nobody may write to them."""
    rng = np.random.default_rng([20263, case.k, len(case.lengths)])
    k, stride, n_rows = case.k, stride_of(case.k), len(case.lengths)
    indptr, indices = ragged_rows(case.lengths, N_FIXED - 1, [97, k])
    indices += 1
    if case.has("repeats"):
        several = indptr[:-1][np.diff(indptr) > 1]
        indices[several + 1] = indices[several]
    nnz = len(indices)

    def padded(array):
        out = np.zeros((len(array), stride), np.float32)
        out[:, :k] = array
        return out

    factors = rng.standard_normal((N_FIXED, k)) / np.sqrt(k)
    if case.spectrum != 1:
        rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
        factors = factors * np.geomspace(1, case.spectrum, k) @ rotation
    root = rng.uniform(0.3, 2, nnz)
    if case.has("signed"):
        root *= rng.choice([1, -1], nnz, p=[0.9, 0.1])
    half = rng.standard_normal((2 * k, k)) / np.sqrt(k)
    arrays = {
        "root": root,
        "tau": rng.standard_normal(nnz),
        "offset": rng.standard_normal(N_FIXED),
        "eigenvalues": padded(rng.uniform(0.01, 3, (1, k)))[0],
        "ridge": case.ridge * rng.uniform(0.3, 3, n_rows),
        "base": half.T @ half,
        "b0": padded(rng.standard_normal((n_rows, k))),
        "z": padded(rng.standard_normal((n_rows, k))),
    }
    wanted = {"tau", "z", *case.options.split()}
    wanted |= {"eigenvalues", "ridge"} if case.has("scaled") else set()
    wanted |= {"ridge"} if case.has("ridges") else set()
    wanted |= {"root"} if case.has("signed") else set()
    kept = {
        name: array.astype(np.float32) if name in wanted else None for name, array in arrays.items()
    }
    factors[0] = np.nan  # what no entry names, no kernel may read
    fixed = padded(factors).astype(np.float16 if case.has("half") else np.float32)
    return Problem(case, {"indptr": indptr, "indices": indices, "fixed": fixed, **kept})


@dataclass(frozen=True)
class Result:
    """What the kernels wrote, and what each of them did to memory."""

    problem: Problem
    z: np.ndarray
    residual: np.ndarray
    bound: np.ndarray
    objective: np.ndarray
    counts: dict[str, ptx.Counts] = field(default_factory=dict, repr=False)

    @property
    def solved(self):
        return self.residual <= LIMIT

    def x(self, u):
        return self.z[u, : self.problem.case.k].astype(np.float64)

    def same_as(self, other):
        """Tell whether two results are the same to the bit."""
        return all(
            getattr(self, name).tobytes() == getattr(other, name).tobytes()
            for name in ("z", "residual", "bound", "objective")
        )


def check(result, rows=None, *, dual=None):
    """Hold what was written for some rows against float64; for all but empty rows by default.

    ``dual`` is whether they were solved in their dual form; by default shorter ones were.
    """
    case = result.problem.case
    if rows is None:
        rows = np.flatnonzero(case.lengths)
    shorter_are = isinstance(case.solver, Cholesky) and not case.has("signed")
    assert len(rows)
    for u in rows:
        row, x = result.problem.row(u), result.x(u)
        in_dual = shorter_are and case.lengths[u] < case.k if dual is None else dual
        assert row.error(x) <= ROUNDINGS * row.rounding(dual=in_dual)
        if isinstance(case.solver, ConjugateGradient):
            assert result.residual[u] == 0  # how far a few steps come is no failure
        else:
            residual, noise = row.residual(x)
            assert abs(result.residual[u] - residual) <= 2 * noise
            energy = (result.residual[u] * np.linalg.norm(row.scale * row.rhs)) ** 2
            assert result.bound[u] == pytest.approx(energy / row.shift, rel=1e-3, abs=1e-37)
        objective, size = row.objective(x)
        # Once for the products of the entries, once for those of the system made of them.
        assert abs(result.objective[u] - objective) <= 8 * EPSILON * size
    assert not result.z[rows, case.k :].any()


@dataclass(frozen=True)
class Kernels:
    """Hands out compiled kernels as the backend's own does, and keeps those it handed out."""

    patch: tuple[tuple[str, str], ...]
    order: str
    arrays: dict[str, np.ndarray]
    used: dict = field(default_factory=dict)

    def get(self, file, macros, function):
        key = function, macros
        if key not in self.used:
            kernel = compiled(file, macros, self.patch).get_function(function)
            kernel.order, kernel.arrays = self.order, self.arrays
            self.used[key] = kernel
        return self.used[key]


def poisoned(shape, dtype):
    """Return memory as a kernel finds it, at its worst."""
    return np.full(shape, np.nan, dtype)


def run(
    problem,
    launches=None,
    *,
    order="forward",
    most_shares=1 << 20,
    residual_limit=LIMIT,
):
    """Solve the rows of a problem by kernels, launched by the lines that launch them on a GPU.

    Parameters
    ----------
    problem : Problem
    launches : list of (Launch, int array), optional
        With the rows of each; those of the plan by default.
    order : str
        Of the threads, see :class:`ptx.Kernel`.
    most_shares : int
        Most segments of split rows at a time.
    residual_limit : float
        Above which rows keep their ``z``.
    """
    case = problem.case
    if launches is None:
        rows, plan = case.plan()
        launches = [(launch, rows[launch.start : launch.stop]) for launch in plan]
    z = problem.arrays["z"].copy()
    found = {name: poisoned(len(z), np.float32) for name in ("residual", "bound", "objective")}
    arrays = problem.arrays | {"z": z} | found
    record = np.zeros((), HALF_SWEEP)
    for name, array in arrays.items():
        record[name] = 0 if array is None else array.ctypes.data
    record["ridge_all"], record["residual_limit"] = case.ridge, residual_limit
    record["k"], record["stride"] = case.k, z.shape[1]
    record["squared_loss"] = case.has("squared")
    record["steps"] = getattr(case.solver, "steps", 0)
    record["free_columns"] = getattr(case.solver, "free_columns", 0)

    given = {name: array for name, array in arrays.items() if array is not None}
    kernels = Kernels(case.patch, order, given)
    xp = SimpleNamespace(empty=poisoned, asarray=np.asarray)
    for launch, rows in launches:
        places = np.ascontiguousarray(rows, np.int64)
        share = panel_floats(-(-case.k // 32) * 32)
        row_kernels = RowKernels(xp, H100, kernels, None, most_shares * share)
        packing = SimpleNamespace(places=places)
        device = SimpleNamespace(
            order=places, packing=packing, host_indptr=arrays["indptr"], kept={}
        )
        sweep = DescribedSweep(device, record, arrays)
        row_kernels.launch(replace(launch, start=0, stop=len(places)), sweep)
    counts = {function: kernel.counts for (function, _), kernel in kernels.used.items()}
    return Result(problem, z, **found, counts=counts)
