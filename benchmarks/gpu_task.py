"""What the sections of gpu_suite.py share: matrices, backends, and tasks timed and checked.

This is where the benchmark calls the package's inner parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_floor import Ceilings, Work, measure_ceilings, median_ms
from gpu_peer import Peer
from gpu_run import Row
from gpu_shapes import MEAN_VALUE, SHAPES, Matrix, Shape

from gpu_als.backends import get_backend
from gpu_als.backends.cupy.launch import stride_of
from gpu_als.core.basis import FixedSide, SideRidge
from gpu_als.core.half_sweep import hold_fixed, solve_rows, solve_side
from gpu_als.core.objectives import IALS, Explicit, Implicit, row_problem
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient

QUICK_DIVISOR, QUICK_WIDTHS = 20, 16
SMALL = Shape(3_000, 1_200, 180_000, 30)

MAIN_K = 128
ALPHA = 2.0  # confidences of 2 to 10: none is 1, whose entries would need no system
OBJECTIVES = {
    "explicit": Explicit(0.048, count_scaled=True, mean=MEAN_VALUE),
    "implicit": Implicit(0.01, ALPHA),
    "counts": Implicit(0.01, 1.0),
    "ials": IALS(0.003, unobserved_weight=0.1, exponent=1.0),
}
SIDES = "users", "items"
EXACT, CG = Cholesky(), ConjugateGradient()
TOLERANCE = 2e-5
SAMPLED_ROWS = 100


class Bench:
    """What the sections share: the device, its ceilings, matrices that were drawn.

    Parameters
    ----------
    quick : bool
        Make everything small, for a smoke test.
    peer : Peer, optional
        What to compare with.
    folder : Path, optional
        Where other programs' output goes.

    Raises
    ------
    gpu_als.errors.BackendError
        There is no GPU, or no CuPy.
    """

    def __init__(
        self, *, quick: bool = False, peer: Peer | None = None, folder: Path = Path()
    ) -> None:
        self.quick, self.peer, self.folder = quick, peer, folder
        self.left: Callable[[], float] = lambda: 3600.0
        self.xp = self.backend().xp
        self._matrices: dict[str, Matrix] = {}

    @cached_property
    def ceilings(self) -> Ceilings:
        """What this device does at best."""
        sizes = {"size": 1024, "copied": 1 << 26} if self.quick else {}
        return measure_ceilings(self.xp, **sizes)

    @cached_property
    def small(self) -> Matrix:
        """A matrix on which everything is quick."""
        return SMALL.draw()

    @cached_property
    def general(self) -> Any:
        """The backend without kernels of our own."""
        from gpu_als.backends.cupy.backend import CupyBackend

        return CupyBackend(fused=False)

    def backend(self, precision: str = "float32") -> Any:
        """Return our backend, that of fits."""
        return get_backend("cupy", precision=precision)

    @property
    def k(self) -> int:
        """The number of factors that matters most."""
        return self.width(MAIN_K)

    def width(self, k: int) -> int:
        """Return a number of factors, a small one for a quick run."""
        return k // QUICK_WIDTHS if self.quick else k

    def shape(self, name: str) -> Shape:
        """Return one of the shapes, a small one for a quick run."""
        return SHAPES[name].scaled(QUICK_DIVISOR) if self.quick else SHAPES[name]

    def matrix(self, name: str) -> Matrix:
        """Return the matrix of that shape, drawn once."""
        if name not in self._matrices:
            self._matrices[name] = self.shape(name).draw()
        return self._matrices[name]

    def free_bytes(self) -> int:
        """Return how much device memory is to be had, once the pool has given back its own."""
        xp = self.xp
        xp.get_default_memory_pool().free_all_blocks()
        return int(xp.cuda.runtime.memGetInfo()[0])

    def refusal(self, needed: int) -> str | None:
        """Say why something is not tried, if the device is too small for it."""
        free = self.free_bytes()
        if needed <= free:
            return None
        return f"refused: needs about {needed / 1e9:.1f} GB of device memory, {free / 1e9:.1f} free"


@dataclass(frozen=True)
class LaunchAlone:
    """One launch of a half-sweep: what runs it, in words, and what it takes at least."""

    run: Callable[[], None]
    what: str
    rows: int
    work: Work


class Task:
    """One objective on one matrix at one width, on the device."""

    def __init__(
        self,
        bench: Bench,
        matrix: Matrix,
        objective: str,
        k: int,
        precision: str = "float32",
        solver: Cholesky | ConjugateGradient = EXACT,
    ) -> None:
        xp = self.xp = bench.xp
        self.bench, self.matrix, self.objective, self.k = bench, matrix, objective, k
        self.precision, self.solver = precision, solver
        self.backend = backend = bench.backend(precision)
        self.lengths = [np.diff(rows.indptr) for rows in matrix.sides]
        self.work = [Work.of(lengths, k) for lengths in self.lengths]
        elements = backend.batch_elements
        self.ridges, self.problems = [], []
        for side, rows in zip(SIDES, matrix.sides, strict=True):
            problem = row_problem(OBJECTIVES[objective], rows, k, elements, side)
            self.ridges.append(SideRidge.of(problem.ridge))
            self.problems.append(backend.load(problem))
        users, items = (len(lengths) for lengths in self.lengths)
        start = xp.random.default_rng(k).standard_normal((items, k), dtype=np.float32)
        start = xp.asarray(start / np.float32(np.sqrt(k)))
        self.factors = [xp.zeros((users, k), np.float32), start]
        self.launch_counts = [0, 0]

    def half(self, side: int, backend: Any = None) -> None:
        """Solve the users (0) or the items (1)."""
        backend = backend or self.backend
        held, solved = self.held(side, backend), self.factors[side]
        stats = solve_rows(backend, self.problems[side], held, solved, self.solver)
        self.launch_counts[side] = stats.launches

    def held(self, side: int, backend: Any = None) -> FixedSide:
        """Take the fixed side into the coordinates of the half-sweep."""
        objective = OBJECTIVES[self.objective]
        return hold_fixed(
            backend or self.backend, objective, SIDES[side], self.factors[1 - side],
            self.ridges[side],
        )  # fmt: skip

    def launches(self, side: int) -> Iterator[LaunchAlone]:
        """Yield each launch of a half-sweep, in its order."""
        problem, kernels, held = self.problems[side], self.backend.row_kernels, self.held(side)
        z = self.xp.zeros((len(self.factors[side]), stride_of(self.k)), np.float32)
        sweep = kernels.describe(problem, held, self.solver, z)
        lengths = self.lengths[side][self.xp.asnumpy(problem.order)]
        for launch in kernels.plan(problem, held, self.solver).launches:
            rows = lengths[launch.start : launch.stop]
            macros = [f"{name}={value}" for name, value in launch.macros]
            what = " ".join([launch.kernel, *macros])
            yield LaunchAlone(
                partial(kernels.launch, launch, sweep), what, len(rows), Work.of(rows, self.k)
            )

    def float64(self, side: int) -> np.ndarray:
        """Return what the NumPy backend makes of a half-sweep from the present factors."""
        backend, rows = get_backend("numpy"), self.matrix.sides[side]
        wide = SparseRows(
            rows.indptr, rows.indices, rows.values.astype(np.float64), None, rows.n_fixed
        )
        solved, fixed = (
            self.xp.asnumpy(self.factors[one]).astype(np.float64) for one in (side, 1 - side)
        )
        with backend.session():
            objective = OBJECTIVES[self.objective]
            solve_side(backend, objective, wide, SIDES[side], fixed, solved, self.solver)
        return solved

    def time(self, backend: Any = None, **options: Any) -> Row:
        """Time whole iterations, after one on a small matrix that compiles and loads things."""
        self.backend.compile_kernels(self.k)
        few = min(self.k, 256)  # wider systems have no kernels to compile
        small = Task(self.bench, self.bench.small, self.objective, few, self.precision, self.solver)
        for side in (0, 1):
            small.half(side, backend)
        steps = [partial(self.half, side, backend) for side in (0, 1)]
        (users, items), rounds = median_ms(self.xp, steps, **options)
        ms = float(users + items)
        return {
            "ms": ms,
            "users_ms": float(users),
            "items_ms": float(items),
            **self.bench.ceilings.achieved(ms, *self.work),
            "launches": "+".join(map(str, self.launch_counts)),
            "rounds": rounds,
        }

    def repeats(self, side: int) -> bool:
        """Solve a side twice from the same factors, and tell whether all bits are equal."""
        start = self.factors[side].copy()
        self.half(side)
        first, self.factors[side] = self.factors[side], start
        self.half(side)
        return bool((first.view(np.int32) == self.factors[side].view(np.int32)).all())

    def check(self, most: int = SAMPLED_ROWS) -> Row:
        """Solve each side twice; compare the bits, and a row of every length with float64."""
        xp, same, errors = self.xp, True, []
        for side in (0, 1):
            same &= self.repeats(side)
            rows = sampled_rows(self.lengths[side], most)
            args = self.objective, self.matrix.sides[side], self.factors[1 - side], rows
            solved = self.factors[side][xp.asarray(rows)]
            errors.append(relative_errors(xp.asnumpy(solved), xp.asnumpy(exact_rows(xp, *args))))
        return compared(np.concatenate(errors), same)


def compared(errors: np.ndarray, repeatable: bool) -> Row:
    """Return what is said of rows compared with float64."""
    return {
        "rows": len(errors),
        "median_error": float(np.median(errors)),
        "max_error": float(errors.max()),
        "repeatable": repeatable,
    }


def sampled_rows(lengths: np.ndarray, most: int) -> np.ndarray:
    """Return a random row of every length, to 5%, or of ``most`` lengths between the extremes."""
    order = np.random.default_rng(len(lengths)).permutation(len(lengths))
    classes = np.rint(np.log(np.maximum(lengths[order], 0.5)) / np.log(1.05))
    _, first = np.unique(classes, return_index=True)
    places = np.unique(np.linspace(0, len(first) - 1, min(most, len(first))).astype(int))
    return order[first[places]]


def relative_errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return ``|found - expected| / |expected|`` of each row; no row may be NaN and pass."""
    size = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(found - expected, axis=1) / np.where(size > 0, size, 1)
    return np.where(np.isnan(errors), np.inf, errors)


def weights(objective: str, values: Any, n_fixed: int) -> tuple[Any, Any, float, float]:
    """Return a row's gram and target weights, the weight of its base, and its ridge.

    Straight from the definitions, beside the package's own.
    """
    values, n, model = values.astype(np.float64), len(values), OBJECTIVES[objective]
    if objective == "explicit":
        return values * 0 + 1, values - MEAN_VALUE, 0.0, model.regularization * max(n, 1)
    if objective in ("implicit", "counts"):
        confidence = model.alpha * values
        return confidence - 1, confidence, 1.0, model.regularization
    cells = n + model.unobserved_weight * n_fixed
    return values, values, model.unobserved_weight, model.regularization * cells**model.exponent


def exact_rows(xp: Any, objective: str, sparse: SparseRows, fixed: Any, rows: np.ndarray) -> Any:
    """Return some rows' solutions in float64 by the primal form, nothing of ours involved."""
    n_fixed, k = fixed.shape
    block = max(1, (1 << 25) // k)

    def gram(columns: Any, weight: Any) -> Any:
        total = xp.zeros((k, k))
        for start in range(0, len(columns), block):
            part = slice(start, start + block)
            wide = fixed[columns[part]].astype(np.float64)
            total += wide.T @ (weight[part, None] * wide)
        return total

    everything = gram(xp.arange(n_fixed), xp.ones(n_fixed)) if objective != "explicit" else 0
    solved = xp.zeros((len(rows), k))
    for number, row in enumerate(rows):
        part = slice(*(int(end) for end in sparse.indptr[row : row + 2]))
        columns = xp.asarray(sparse.indices[part])
        g, t, base, ridge = weights(objective, xp.asarray(sparse.values[part]), n_fixed)
        lhs = gram(columns, g) + base * everything + ridge * xp.eye(k)
        rhs = xp.zeros(k)
        for start in range(0, len(columns), block):
            some = slice(start, start + block)
            rhs += t[some] @ fixed[columns[some]].astype(np.float64)
        solved[number] = xp.linalg.solve(lhs, rhs)
    return solved


def judged(row: Row) -> Row:
    """Add whether a check has passed."""
    return {**row, "ok": row["repeatable"] and row["max_error"] <= TOLERANCE}
