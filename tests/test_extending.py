"""Priors, noise, and an objective and a solver of the tests' own, on every backend.

The package knows neither of the two: what it asks of them is all there is.
"""

from dataclasses import dataclass, replace

import fake_cupy
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import ragged_rows, row_errors
from reference import row_system

from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core.basis import SideRidge
from gpu_als.core.half_sweep import hold_fixed, solve_rows, solve_side
from gpu_als.core.objectives import IALS, Explicit, Implicit, Objective, row_problem
from gpu_als.core.problem import NO_PRIOR, Noise, Prior, SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative, Solver
from gpu_als.core.systems import Solution, primal_system
from gpu_als.train.engine import LocalEngine, Model
from gpu_als.train.loop import Schedule, train
from gpu_als.train.report import FitReport
from gpu_als.train.row_blocks import MemoryRows

K, N_FIXED = 9, 120
COUNTS = np.array([0, 1, 4, 8, 9, 10, 33, 70, 0, 5, 119])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])


@dataclass(frozen=True)
class Pulled(Objective):
    """Values as both weights, of either sign, with a base, a ridge and a prior of its own.

    ``g = r - 1`` and ``t = 3 r``: some entries enter right-hand sides only, some are negative.
    """

    own_prior: Prior = NO_PRIOR
    base_weight: float = 0.5
    weighted = True
    squared_loss = False

    def entry_weights(self, xp, values, weights):
        return values - 1, 3 * values

    def ridge(self, counts, n_fixed, side):
        return 2.0 + 0.01 * counts

    def prior(self, side):
        return self.own_prior


class Inverse(Solver):
    """Multiplies by the inverse of every row's matrix."""

    def solve_batch(self, ops, entries, systems, start, *, definite):
        entries = entries.scale_rows()
        lhs, rhs = primal_system(ops, entries, systems)
        z, failed = self.solve_systems(ops, lhs, rhs, start)
        return Solution(z, entries.predict(z), failed, "inverse", entries, rhs)

    def solve_systems(self, ops, lhs, rhs, start):
        z = (ops.xp.linalg.inv(lhs) @ rhs[:, :, None])[:, :, 0]
        return z, ops.xp.zeros(len(z), bool)


@pytest.fixture(params=["numpy", "numpy, segments", "stand-in"])
def backend(request):
    """Return a backend; the second has long rows, which are solved segment by segment."""
    if request.param != "stand-in":
        yield NumpyBackend(1, 1 << 20 if request.param == "numpy" else 40 * K)
        return
    with fake_cupy.installed():
        from gpu_als.backends.cupy.backend import CupyBackend

        yield CupyBackend()


def draw(dtype, seed=71, lowest=0.25):
    """Return rows of every length, with values from ``lowest`` on, and the fixed side."""
    rng = np.random.default_rng(seed)
    indptr, indices = ragged_rows(COUNTS, N_FIXED, seed)
    values = rng.choice([lowest, 1.0, 1.5, 4.0], len(indices)).astype(dtype)
    fixed = rng.standard_normal((N_FIXED, K)).astype(np.float32)
    return SparseRows(indptr, indices, values, None, N_FIXED), fixed.astype(dtype), rng


def a_prior(rng, rhs):
    """Return a prior of full rank, with a right-hand side for all rows, for each, or none."""
    half = rng.standard_normal((K, K))
    shapes = {"shared": (K,), "by row": (len(COUNTS), K)}
    given = None if rhs == "none" else 5 * rng.standard_normal(shapes[rhs])
    return Prior(half @ half.T, given)


def oracle(objective, rows, fixed):
    """Return each row's float64 ``lhs`` and ``rhs``, straight from the declaration."""
    wide, prior = fixed.astype(np.float64), objective.prior("users")
    base = objective.base_weight * wide.T @ wide
    base = base if prior.base is None else base + prior.base
    ridges = np.broadcast_to(objective.ridge(COUNTS, N_FIXED, "users"), len(COUNTS))
    systems = []
    for u, count in enumerate(COUNTS):
        part = slice(*rows.indptr[u : u + 2])
        g, t = objective.entry_weights(np, rows.values[part].astype(np.float64), None)
        g = np.ones(count) if g is None else g
        lhs, rhs = row_system(wide, rows.indices[part], g, t, ridges[u], base)
        if prior.rhs is not None:
            rhs = rhs + np.broadcast_to(prior.rhs, (len(COUNTS), K))[u]
        systems.append((lhs, rhs))
    return systems


def check(backend, solved, systems, dtype, times=64):
    """Hold rows to the oracle, as far as rounding allows in this precision."""
    exact = np.array([np.linalg.solve(lhs, rhs) for lhs, rhs in systems])
    spread = np.array([np.linalg.cond(lhs) for lhs, _ in systems])
    allowed = times * np.finfo(dtype).eps * spread * (1 + np.linalg.norm(exact, axis=1))
    assert (row_errors(backend.to_host(solved), exact) <= allowed).all()
    return exact


def run(backend, objective, rows, fixed, solver):
    solved = backend.from_host(np.ones((len(COUNTS), K), fixed.dtype))
    with backend.session():
        held = backend.from_host(fixed)
        return solved, solve_side(backend, objective, rows, "users", held, solved, solver)


@DTYPES
@pytest.mark.parametrize("rhs", ["none", "shared", "by row"])
@pytest.mark.parametrize("solver", [Cholesky(), ConjugateGradient(4 * K)], ids=["chol", "cg"])
@pytest.mark.parametrize(
    "objective",
    [Explicit(0.7, False), Explicit(0.7), Implicit(0.3, 2.0), IALS(0.3, 1.0, 0.2, 0.5)],
    ids=["explicit", "counted", "implicit", "ials"],
)
def test_a_prior_of_any_base_and_mean(backend, objective, solver, rhs, dtype):
    rows, fixed, rng = draw(dtype)
    prior = a_prior(rng, rhs)

    class Informed(type(objective)):
        def prior(self, side):
            return prior

    informed = Informed(*vars(objective).values())
    solved, stats = run(backend, informed, rows, fixed, solver)
    check(backend, solved, oracle(informed, rows, fixed), dtype)
    x = backend.to_host(solved).astype(np.float64)
    mean = 0 if prior.rhs is None else prior.rhs
    ridges = informed.ridge(COUNTS, N_FIXED, "users")
    penalty = (ridges * (x**2).sum(1)).sum() + (x * (x @ prior.base) - 2 * x * mean).sum()
    assert stats.penalty == pytest.approx(penalty, rel=1e-4 if dtype == np.float32 else 1e-12)


@DTYPES
def test_rows_without_entries_are_the_mean_of_their_prior(backend, dtype):
    """Under the ridge alone a right-hand side of ``ridge m`` is a prior mean m."""
    rows, fixed, rng = draw(dtype)
    means = rng.standard_normal((len(COUNTS), K))

    class Meant(Explicit):
        def prior(self, side):
            return Prior(rhs=0.7 * means)

    objective = Meant(0.7, count_scaled=False)
    solved, _ = run(backend, objective, rows, fixed, Cholesky())
    check(backend, solved, oracle(objective, rows, fixed), dtype)
    empty = COUNTS == 0
    np.testing.assert_allclose(
        backend.to_host(solved)[empty], means[empty], rtol=8 * np.finfo(dtype).eps
    )


@DTYPES
def test_a_prior_under_constraints(backend, dtype):
    """Rows without entries minimise ``0.7 |x|^2 - 2 x . rhs``: the positive part, where bound."""
    rows, fixed, rng = draw(dtype)
    rhs = rng.standard_normal((len(COUNTS), K))

    class Meant(Explicit):
        def prior(self, side):
            return Prior(rhs=rhs)

    solved, _ = run(backend, Meant(0.7, count_scaled=False), rows, fixed, NonNegative(1))
    expected = rhs / 0.7
    expected[:, :-1] = np.maximum(expected[:, :-1], 0)
    np.testing.assert_allclose(
        backend.to_host(solved)[COUNTS == 0], expected[COUNTS == 0], rtol=1e-5
    )


@DTYPES
@pytest.mark.parametrize("rhs", ["none", "by row"])
@pytest.mark.parametrize("solver", [Cholesky(), Inverse()], ids=["chol", "inverse"])
def test_an_unknown_objective_and_solver(backend, solver, rhs, dtype):
    rows, fixed, rng = draw(dtype)
    objective = Pulled(a_prior(rng, rhs))
    solved, stats = run(backend, objective, rows, fixed, solver)
    check(backend, solved, oracle(objective, rows, fixed), dtype)
    if isinstance(solver, Inverse):  # no kernel takes what it does not know
        assert stats.launches == 0
        assert stats.paths["inverse"] + stats.paths["long"] == (COUNTS > 0).sum()


@pytest.mark.parametrize("where", ["numpy", "cupy"])
def test_a_fit_of_an_unknown_objective_by_an_unknown_solver(where):
    """When a fit ends, no item of its own could lower the objective."""
    rows, fixed, rng = draw(np.float64, lowest=1.25)
    matrix = rows.to_csr()
    model = Model(rng.standard_normal((len(COUNTS), K)), fixed.copy())
    objective = Pulled(a_prior(rng, "shared"))

    class Choice:
        def get(self):
            if where == "numpy":
                return NumpyBackend(1)
            from gpu_als.backends.cupy.backend import CupyBackend

            return CupyBackend()

    with fake_cupy.installed():
        both = [MemoryRows.of(SparseRows.from_csr(sp.csr_matrix(m))) for m in (matrix, matrix.T)]
        engine = LocalEngine(tuple(both), objective, K, Choice())
        report = FitReport(engine.device)
        train(engine, (Inverse(), Inverse()), model, Schedule(4), report=report)
        users, items = (np.array(side) for side in model.factors)
    assert (np.diff(report.losses) <= 0).all()
    by_item, counts = sp.csr_matrix(matrix.T), np.diff(sp.csr_matrix(matrix.T).indptr)
    base = 0.5 * users.T @ users + objective.own_prior.base
    for i in range(N_FIXED):
        part = slice(*by_item.indptr[i : i + 2])
        g, t = objective.entry_weights(np, by_item.data[part], None)
        ridge = objective.ridge(counts[i], len(COUNTS), "items")
        lhs, rhs = row_system(users, by_item.indices[part], g, t, ridge, base)
        np.testing.assert_allclose(items[i], np.linalg.solve(lhs, rhs + objective.own_prior.rhs))


@DTYPES
@pytest.mark.parametrize("solver", [Cholesky(), ConjugateGradient(4 * K)], ids=["chol", "cg"])
@pytest.mark.parametrize(
    "objective",
    [Explicit(0.7, False), Explicit(0.7), IALS(0.3, 1.0, 0.2), IALS(0.3, 1.0, 0.2, 0.5)],
    ids=["explicit", "counted", "ials", "ials, exponent"],
)
def test_noise_draws_from_the_posterior(backend, objective, solver, dtype):
    """A draw solves ``lhs x = rhs + C eta + sum sqrt(g) eps y`` where ``C C^T = base + ridge I``.

    With standard normal eta and eps the noise has the covariance lhs, and x that of the posterior.
    """
    rows, fixed, rng = draw(dtype)
    noise = Noise(
        *(rng.standard_normal(s).astype(dtype) for s in [(len(COUNTS), K), rows.values.shape])
    )
    problem = row_problem(objective, rows, K, backend.batch_elements, "users")
    solved = backend.from_host(np.zeros((len(COUNTS), K), dtype))
    with backend.session():
        held = hold_fixed(
            backend, objective, "users", backend.from_host(fixed), SideRidge.of(problem.ridge)
        )
        on_device = Noise(backend.from_host(noise.eta), backend.from_host(noise.eps))
        loaded = replace(backend.load(problem), noise=on_device)
        solve_rows(backend, loaded, held, solved, solver)
    ridges = np.broadcast_to(problem.ridge, len(COUNTS))
    root = np.eye(K) if held.basis.inverse is None else backend.to_host(held.basis.inverse).T
    root = root.astype(np.float64)
    wide = fixed.astype(np.float64)
    systems = []
    for u, (lhs, rhs) in enumerate(oracle(objective, rows, fixed)):
        scale = np.full(K, np.sqrt(ridges[u]))
        if held.basis.rotated:
            scale = np.ones(K)
        if held.basis.eigenvalues is not None:
            scale = np.sqrt(backend.to_host(held.basis.eigenvalues) + ridges[u])
        c = root * scale
        prior = objective.base_weight * wide.T @ wide + ridges[u] * np.eye(K)
        np.testing.assert_allclose(c @ c.T, prior, atol=1e-4 * np.abs(prior).max())
        part = slice(*rows.indptr[u : u + 2])
        g, _ = objective.entry_weights(np, rows.values[part].astype(np.float64), None)
        size = np.ones(COUNTS[u]) if g is None else np.sqrt(g)
        drawn = c @ noise.eta[u] + (size * noise.eps[part]) @ wide[rows.indices[part]]
        systems.append((lhs, rhs + drawn))
    check(backend, solved, systems, dtype)


def test_draws_need_a_regular_base():
    rows, fixed, rng = draw(np.float64)
    fixed[:, 0] = 0
    backend, objective = NumpyBackend(1), IALS(0.0, 1.0, 0.2)
    held = hold_fixed(backend, objective, "users", fixed, SideRidge(0.0, uniform=True))
    problem = backend.load(row_problem(objective, rows, K, 1 << 20, "users"))
    noise = Noise(rng.standard_normal((len(COUNTS), K)), rng.standard_normal(len(rows.values)))
    with pytest.raises(ValueError, match="singular"):
        solve_rows(
            backend, replace(problem, noise=noise), held, np.zeros((len(COUNTS), K)), Cholesky()
        )
