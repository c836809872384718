"""What must not change results: the order of rows and entries, the batches, the threads."""

import numpy as np
import pytest
from helpers import CASES, make_case, random_ratings
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_als import AlternatingLeastSquares, ExplicitALS, factorize
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.objectives import IALS, Explicit, Implicit
from gpu_als.core.packing import pack_rows, row_elements
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative

OBJECTIVES = {
    "explicit": Explicit(0.7, count_scaled=False, mean=0.5),
    "scaled": Explicit(0.3, count_scaled=True),
    "implicit": Implicit(0.7, 2.0),
    "ials": IALS(0.4, 1.5, 0.2, 0.7),
}
BY_HYPOTHESIS = settings(max_examples=25)


@st.composite
def problems(draw):
    """Draw an objective, its entries and both sides' factors; edge rows come up often."""
    k = draw(st.integers(1, 10))
    n_fixed = draw(st.sampled_from([1, 2, k, k + 1, 33, 90]))
    edges = [0, 1, k - 1, k, k + 1, 31, 32, 33, n_fixed - 1, n_fixed]
    count = st.one_of(st.sampled_from(edges), st.integers(0, n_fixed))
    counts = np.clip(draw(st.lists(count, min_size=1, max_size=12)), 0, n_fixed)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    indices = [rng.choice(n_fixed, n, replace=False) for n in counts]
    name = draw(st.sampled_from(sorted(OBJECTIVES)))
    values = rng.choice([0.5, 1.0, 2.5, 4.0], counts.sum())
    if name == "implicit":
        values *= rng.choice([1, -1, 0.5, 0], counts.sum(), p=[0.6, 0.2, 0.1, 0.1])
    weighted = name in ("explicit", "scaled") and draw(st.booleans())
    rows = SparseRows(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([*indices, np.zeros(0, np.int64)]).astype(np.int32),
        values,
        rng.uniform(0.1, 5, len(values)) if weighted else None,
        n_fixed,
    )
    fixed, start = rng.standard_normal((n_fixed, k)), rng.standard_normal((len(counts), k))
    solver = draw(st.sampled_from([Cholesky(), NonNegative(), ConjugateGradient(2)]))
    return OBJECTIVES[name], rows, fixed, start, solver


def solve(problem, *, batch_elements=1 << 20, num_threads=1, dtype=np.float64):
    objective, rows, fixed, start, solver = problem
    backend = NumpyBackend(num_threads, batch_elements)
    weights = None if rows.weights is None else rows.weights.astype(dtype)
    rows = SparseRows(rows.indptr, rows.indices, rows.values.astype(dtype), weights, rows.n_fixed)
    solved = start.astype(dtype)
    with backend.session():
        stats = solve_side(backend, objective, rows, "users", fixed.astype(dtype), solved, solver)
    return solved, stats


def reordered(rows, places):
    """Return the entries in another order; ``places`` lists them row by row."""
    weights = None if rows.weights is None else rows.weights[places]
    return rows.indices[places], rows.values[places], weights


def assert_equal_up_to_rounding(found, expected):
    """Condition numbers here are below 1e4, so twelve digits are left of sixteen."""
    (solved, stats), (solved_too, stats_too) = found, expected
    np.testing.assert_allclose(solved, solved_too, rtol=1e-9, atol=1e-10)
    assert stats.objective == pytest.approx(stats_too.objective, rel=1e-9, abs=1e-9)
    assert stats.singular == stats_too.singular


@BY_HYPOTHESIS
@given(problem=problems(), seed=st.integers(0, 2**32))
def test_the_order_of_rows(problem, seed):
    objective, rows, fixed, start, solver = problem
    order = np.random.default_rng(seed).permutation(rows.n_rows)
    counts = np.diff(rows.indptr)[order]
    places = np.concatenate([np.arange(*rows.indptr[u : u + 2]) for u in order])
    moved = SparseRows(
        np.concatenate([[0], np.cumsum(counts)]), *reordered(rows, places), rows.n_fixed
    )
    solved, stats = solve((objective, moved, fixed, start[order], solver))
    back = np.empty_like(solved)
    back[order] = solved
    expected = solve(problem)
    np.testing.assert_array_equal(back, expected[0])
    assert_equal_up_to_rounding((back, stats), expected)


def some_rows(problem, chosen):
    """Return the problem of some rows only."""
    objective, rows, fixed, start, solver = problem
    counts = np.diff(rows.indptr)[chosen]
    spans = [np.arange(*rows.indptr[u : u + 2]) for u in chosen]
    places = np.concatenate([*spans, np.zeros(0, np.int64)]).astype(np.int64)
    fewer = SparseRows(
        np.concatenate([[0], np.cumsum(counts)]), *reordered(rows, places), rows.n_fixed
    )
    return objective, fewer, fixed, start[chosen], solver


@BY_HYPOTHESIS
@given(problem=problems(), seed=st.integers(0, 2**32))
def test_a_row_depends_on_no_other_row(problem, seed):
    rng, n_rows = np.random.default_rng(seed), problem[1].n_rows
    chosen = np.sort(rng.choice(n_rows, rng.integers(1, n_rows + 1), replace=False))
    for dtype in (np.float32, np.float64):
        solved, _ = solve(some_rows(problem, chosen), dtype=dtype)
        np.testing.assert_array_equal(solved, solve(problem, dtype=dtype)[0][chosen])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", [Cholesky(), ConjugateGradient(3), NonNegative()], ids=repr)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_row_depends_on_another_among_many(name, solver, dtype):
    """Batches of hundreds of rows, of every length around the number of factors, and of one."""
    rng = np.random.default_rng(61)
    for k in (6, 16, 17, 40):
        counts = np.concatenate([np.repeat([1, 3, k - 1, k, k + 1], 60), np.arange(0, 200, 7)])
        indices = np.concatenate([rng.choice(200, n, replace=False) for n in counts])
        values = rng.integers(1, 6, len(indices)).astype(np.float64)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        rows = SparseRows(indptr, indices.astype(np.int32), values, None, 200)
        sides = rng.standard_normal((200, k)), rng.standard_normal((len(counts), k))
        problem = OBJECTIVES[name], rows, *sides, solver
        whole, _ = solve(problem, dtype=dtype, num_threads=2)
        for first, last in ((0, 1), (1, 70), (70, 71), (71, 320), (320, len(counts))):
            part, _ = solve(some_rows(problem, np.arange(first, last)), dtype=dtype)
            np.testing.assert_array_equal(part, whole[first:last])


@BY_HYPOTHESIS
@given(problem=problems(), seed=st.integers(0, 2**32))
def test_the_order_of_entries(problem, seed):
    objective, rows, fixed, start, solver = problem
    rng = np.random.default_rng(seed)
    ends = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    places = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in ends])
    moved = SparseRows(rows.indptr, *reordered(rows, places), rows.n_fixed)
    found = solve((objective, moved, fixed, start, solver))
    assert_equal_up_to_rounding(found, solve(problem))


@BY_HYPOTHESIS
@given(problem=problems(), seed=st.integers(0, 2**32))
def test_the_numbering_of_the_fixed_side(problem, seed):
    objective, rows, fixed, start, solver = problem
    order = np.random.default_rng(seed).permutation(rows.n_fixed)
    place = np.argsort(order).astype(np.int32)
    moved = SparseRows(rows.indptr, place[rows.indices], rows.values, rows.weights, rows.n_fixed)
    found = solve((objective, moved, fixed[order], start, solver))
    assert_equal_up_to_rounding(found, solve(problem))


@BY_HYPOTHESIS
@given(problem=problems(), batch_elements=st.sampled_from([1, 60, 300, 2000, 1 << 24]))
def test_the_batches(problem, batch_elements):
    found = solve(problem, batch_elements=batch_elements, num_threads=2)
    assert_equal_up_to_rounding(found, solve(problem))


@BY_HYPOTHESIS
@given(problem=problems(), batch_elements=st.sampled_from([60, 2000, 1 << 24]))
def test_threads_change_no_bit(problem, batch_elements):
    for dtype in (np.float32, np.float64):
        runs = [
            solve(problem, batch_elements=batch_elements, num_threads=n, dtype=dtype)
            for n in (1, 2, 3, 1)
        ]
        for solved, stats in runs[1:]:
            np.testing.assert_array_equal(solved, runs[0][0])
            assert stats == runs[0][1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit_of_any_objective(name, dtype):
    case = make_case(name)
    runs = [case.sweep(Cholesky(), dtype, batch_elements=3000, num_threads=n) for n in (1, 2, 4, 2)]
    for solved, stats in runs[1:]:
        np.testing.assert_array_equal(solved, runs[0][0])
        assert stats == runs[0][1]


def explicit_fit(num_threads):
    model = ExplicitALS(5, 0.05, iterations=3, num_threads=num_threads, random_state=17)
    model.fit(random_ratings(90, 60, 0.2, 18))
    both = model.user_biases, model.item_biases
    return model.user_factors, model.item_factors, *both, model.report_.losses


def implicit_fit(num_threads, **options):
    model = AlternatingLeastSquares(
        5, iterations=3, num_threads=num_threads, random_state=17, **options
    )
    model.fit(random_ratings(90, 60, 0.2, 18), show_progress=False)
    return model.user_factors, model.item_factors, model.report_.losses


FITS = {
    "explicit": explicit_fit,
    "implicit, cg": implicit_fit,
    "implicit, exact": lambda n: implicit_fit(n, use_cg=False),
    "ials": lambda n: implicit_fit(n, use_cg=False, regularization_exponent=0.5),
    "dense": lambda n: factorize(
        random_ratings(90, 60, 0.9, 19).toarray(), 5, regularization=0.1, iterations=3,
        num_threads=n, random_state=17,
    )[:2],
    "dense, non-negative": lambda n: factorize(
        random_ratings(90, 60, 0.9, 19).toarray(), 5, regularization=0.1, iterations=3,
        num_threads=n, random_state=17, nonnegative=True,
    )[:2],
}  # fmt: skip


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS.keys())
def test_a_seed_and_any_number_of_threads_give_the_same_bits(fit):
    runs = [fit(n) for n in (1, 1, 2, 3)]
    for run in runs[1:]:
        for found, expected in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(found, expected)


# --- packing -------------------------------------------------------------------------------------

packings = st.fixed_dictionaries(
    {
        "counts": st.lists(
            st.one_of(st.integers(0, 40), st.sampled_from([100, 1000, 50_000, 10**7])),
            min_size=1, max_size=60,
        ).map(lambda counts: np.array(counts, np.int64)),
        "n_factors": st.sampled_from([1, 2, 8, 31, 64, 300]),
        "batch_elements": st.sampled_from([1, 100, 5000, 1 << 16, 1 << 20, 1 << 28]),
        "row_overhead": st.sampled_from([0, 0, 777]),
        "seed": st.integers(0, 2**32),
    }
)  # fmt: skip


@settings(max_examples=80)
@given(plan=packings)
def test_packing(plan):
    counts, k, budget = plan["counts"], plan["n_factors"], plan["batch_elements"]
    overhead = plan["row_overhead"]
    indefinite = np.random.default_rng(plan["seed"]).random(len(counts)) < 0.3
    for mixed in (None, indefinite):
        packing = pack_rows(counts, k, budget, indefinite=mixed, row_overhead=overhead)
        definite = np.ones(len(counts), bool) if mixed is None else ~mixed
        seen = list(packing.long_rows)
        for batch in packing.batches:
            rows = packing.order[batch.start : batch.stop]
            assert len(rows) == batch.stop - batch.start > 0
            assert (counts[rows] <= batch.width).all()
            assert (definite[rows] == batch.definite).all()
            assert len(rows) == 1 or len(rows) * (row_elements(batch.width, k) + overhead) <= budget
            assert (batch.width == 0) == (counts[rows].max() == 0)
            seen += rows.tolist()
        assert sorted(seen) == list(range(len(counts)))
        assert packing.segment * k <= max(budget, k * k)
        assert all(counts[row] > packing.segment for row in packing.long_rows)
        assert all(batch.width <= packing.segment for batch in packing.batches)


def test_long_rows_are_those_that_fill_a_batch():
    packing = pack_rows(np.array([5, 1000, 100, 101]), 10, 1000)
    assert packing.segment == 100
    assert packing.long_rows == (3, 1)  # by length


def test_short_rows_are_not_padded_past_the_dual_form():
    """Thousands of rows of each length: the groups are large enough to keep their own widths."""
    counts = np.repeat(np.arange(40), 2000)
    packing = pack_rows(counts, 64, 1 << 20)
    for batch in packing.batches:
        rows = packing.order[batch.start : batch.stop]
        assert counts[rows].min() >= batch.width - 3
        assert batch.width < 64


def test_padding_wastes_little():
    """A step of widths is a twelfth at most, of which rows of every length waste half or less."""
    counts = np.repeat(np.arange(10, 1000), 300)
    for k in (16, 200):
        packing = pack_rows(counts, k, 1 << 20)
        padded = sum((batch.stop - batch.start) * batch.width for batch in packing.batches)
        assert padded <= (1 + 1 / 24) * counts.sum()


def test_the_width_of_a_row_is_its_own():
    counts = np.arange(1, 3000)
    for k in (3, 64):
        wide = pack_rows(counts, k, 1 << 20)
        width = {
            int(counts[row]): batch.width
            for batch in wide.batches
            for row in wide.order[batch.start : batch.stop]
        }
        assert all(length <= width[length] <= length * 13 / 12 for length in width)
        assert all(width[length] == length for length in range(1, 25))
        for length in (1, 5, 63, 64, 777, 2999):
            (alone,) = pack_rows(np.array([length]), k, 1 << 20).batches
            assert alone.width == width[length]


def test_dual_and_primal_rows_do_not_mix():
    packing = pack_rows(np.arange(40, 90), 64, 1 << 20)
    for batch in packing.batches:
        lengths = np.arange(40, 90)[packing.order[batch.start : batch.stop]]
        assert lengths.min() >= 64 or lengths.max() < 64


def test_no_rows_at_all():
    packing = pack_rows(np.zeros(0, np.int64), 4, 100)
    assert packing.batches == packing.long_rows == ()


def test_counts_beyond_32_bits():
    counts = np.array([3, 2**33, 2**40])
    packing = pack_rows(counts, 128, 1 << 30)
    assert packing.long_rows == (1, 2)


@pytest.mark.parametrize("lengths", [[0], [1], [1, 2]])
def test_no_batch_has_more_rows_than_cublas_takes_products(lengths):
    packing = pack_rows(np.repeat(lengths, 200_000), 2, 1 << 28)
    assert max(batch.stop - batch.start for batch in packing.batches) <= 65535
    assert sum(batch.stop - batch.start for batch in packing.batches) == 200_000 * len(lengths)
