"""Where ``implicit`` is wrong and the drop-in is right: the table of the contract, row by row."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.sparse as sp

from contract.common import (
    FACTORS,
    MIXED,
    N_ITEMS,
    PLAYS,
    assert_agree,
    fitted,
    on_gpus,
    on_host,
)
from gpu_als import evaluation
from gpu_als.errors import InputError

USERS = np.array([0, 3, 77, 149])


@on_gpus
@pytest.mark.parametrize("use_cg", [False, True])
def test_alpha_counts_on_a_gpu(use_gpu, use_cg):
    """It scales the values there as everywhere."""
    found = fitted(alpha=3.0, use_gpu=use_gpu, use_cg=use_cg)
    for expected in (
        fitted(3 * PLAYS, use_gpu=use_gpu, use_cg=use_cg), fitted(alpha=3.0, use_cg=use_cg),
    ):  # fmt: skip
        for side, other in zip(on_host(found), on_host(expected), strict=True):
            assert_agree(side, other)
    other = on_host(fitted(alpha=1.0, use_gpu=use_gpu, use_cg=use_cg))[0]
    assert np.linalg.norm(on_host(found)[0] - other) > 0.1 * np.linalg.norm(other)


@on_gpus
@pytest.mark.parametrize("use_cg", [False, True])
def test_more_than_1024_factors_train_on_a_gpu(use_gpu, use_cg):
    few = PLAYS[:3, :4]
    found, expected = (
        fitted(few, factors=1025, regularization=0.5, iterations=1, use_cg=use_cg, use_gpu=device)
        for device in (use_gpu, False)
    )
    for side, other in zip(on_host(found), on_host(expected), strict=True):
        assert_agree(side, other)
    start = on_host(fitted(few, factors=1025, iterations=0))[0]
    assert (on_host(found)[0] != start).any()


@pytest.mark.parametrize("liked", [False, True])
def test_a_list_longer_than_the_catalogue_ends_with_the_catalogue(use_gpu, liked):
    model = fitted(use_gpu=use_gpu)
    ids, scores = model.recommend(
        USERS, PLAYS[USERS], N=N_ITEMS + 9, filter_already_liked_items=liked
    )
    assert ids.shape == scores.shape == (len(USERS), N_ITEMS)
    for row in ids:
        np.testing.assert_array_equal(np.sort(row), np.arange(N_ITEMS))


@pytest.mark.parametrize(
    "other",
    [PLAYS[:10], PLAYS[:, :10], PLAYS.T.tocsr()],
    ids=["fewer users", "fewer items", "transposed"],
)
def test_fitting_again_with_another_shape_is_an_error_that_says_what_to_do(use_gpu, other):
    model = fitted(use_gpu=use_gpu)
    before = model.user_factors, model.item_factors
    with pytest.raises(InputError, match=r"factors has shape.*set it to None"):
        model.fit(other, show_progress=False)
    assert model.user_factors is before[0]
    model.user_factors = model.item_factors = None
    model.fit(other, show_progress=False)
    assert model.user_factors.shape == (other.shape[0], FACTORS)


@pytest.mark.parametrize(
    "make_seed",
    [int, np.int64, np.random.RandomState, np.random.default_rng],
    ids=lambda f: f.__name__,
)
def test_every_documented_seed_works_and_repeats(use_gpu, make_seed):
    first, again, other = (
        on_host(fitted(use_gpu=use_gpu, iterations=0, random_state=make_seed(seed)))[0]
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_seed_0_repeats_on_every_device(use_gpu):
    found, again = (on_host(fitted(use_gpu=use_gpu, random_state=0))[0] for _ in range(2))
    np.testing.assert_array_equal(found, again)
    assert_agree(found, on_host(fitted(random_state=0))[0])


def test_no_seed_means_new_factors_each_time(use_gpu):
    found, again = (
        on_host(fitted(use_gpu=use_gpu, iterations=0, random_state=None))[0] for _ in range(2)
    )
    assert (found != again).any()


@pytest.mark.parametrize("make_seed", [int, np.random.RandomState, np.random.default_rng])
def test_leave_k_out_split_heeds_its_seed(make_seed):
    def split(seed):
        parts = evaluation.leave_k_out_split(PLAYS, K=2, random_state=make_seed(seed))
        return [part.toarray() for part in parts]

    np.testing.assert_array_equal(split(3), split(3))
    assert (np.array(split(3)) != np.array(split(4))).any()


FORMS = {"array": np.asarray, "list": np.ndarray.tolist, "csr_array": sp.csr_array}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_arrays_lists_and_csr_array_are_accepted(use_gpu, form):
    """By whatever takes a matrix."""
    model = fitted(form(PLAYS.toarray()), use_gpu=use_gpu)
    expected = fitted(use_gpu=use_gpu)
    np.testing.assert_array_equal(on_host(model)[0], on_host(expected)[0])
    items = np.array([0, 3, 77, 89])
    rows, columns = PLAYS[USERS], PLAYS.T.tocsr()[items]
    other_rows, other_columns = form(rows.toarray()), form(columns.toarray())
    for found, same in (
        (model.recommend(USERS, other_rows), model.recommend(USERS, rows)),
        (model.recommend(USERS, other_rows, recalculate_user=True),
         model.recommend(USERS, rows, recalculate_user=True)),
        (model.recalculate_user(USERS, other_rows), model.recalculate_user(USERS, rows)),
        (model.recalculate_item(items, other_columns), model.recalculate_item(items, columns)),
        (model.fold_in_users(other_rows), model.fold_in_users(rows)),
        (model.similar_items(items, recalculate_item=True, item_users=other_columns),
         model.similar_items(items, recalculate_item=True, item_users=columns)),
        (model.explain(3, form(PLAYS.toarray()), 5)[0], model.explain(3, PLAYS, 5)[0]),
    ):  # fmt: skip
        np.testing.assert_array_equal(found, same)


def test_64_bit_index_arrays_are_accepted(use_gpu):
    wide = PLAYS.copy()
    wide.indptr, wide.indices = wide.indptr.astype(np.int64), wide.indices.astype(np.int64)
    model = fitted(wide, use_gpu=use_gpu)
    np.testing.assert_array_equal(on_host(model)[0], on_host(fitted(use_gpu=use_gpu))[0])
    wide = wide[USERS]
    wide.indptr, wide.indices = wide.indptr.astype(np.int64), wide.indices.astype(np.int64)
    np.testing.assert_array_equal(
        model.recommend(USERS, wide)[0], model.recommend(USERS, PLAYS[USERS])[0]
    )


@pytest.mark.parametrize("precision", ["float32", "float16", "tf32x3"])
def test_partial_fits_work_at_every_precision(use_gpu, precision):
    model = fitted(use_gpu=use_gpu, precision=precision, use_cg=False)
    before = on_host(fitted(use_gpu=False, use_cg=False))
    model.user_factors, model.item_factors = before
    model.partial_fit_users([0], PLAYS[77])
    model.partial_fit_items([0], PLAYS.T.tocsr()[5])
    exact = fitted(use_gpu=False, use_cg=False)
    exact.partial_fit_users([0], PLAYS[77])
    exact.partial_fit_items([0], PLAYS.T.tocsr()[5])
    for found, expected in zip(on_host(model), on_host(exact), strict=True):
        assert found.dtype == np.float32
        assert_agree(found[0], expected[0], 1e-2 if precision == "float16" else 1e-4)


def solved_in_decimals(fixed, rows, alpha, regularization):
    """Solve rows of likes by Gaussian elimination with 60 digits; lists of Decimal in and out."""
    k = len(fixed[0])
    base = [[sum(y[a] * y[b] for y in fixed) for b in range(k)] for a in range(k)]
    solved = []
    for row in rows:
        c = [Decimal(float(r)) * alpha for r in row]
        system = [
            [
                base[a][b]
                + (regularization if a == b else 0)
                + sum((ci - 1) * y[a] * y[b] for ci, y in zip(c, fixed, strict=True))
                for b in range(k)
            ]
            + [sum(ci * y[a] for ci, y in zip(c, fixed, strict=True))]
            for a in range(k)
        ]
        for a in range(k):
            for b in range(a + 1, k):
                ratio = system[b][a] / system[a][a]
                system[b] = [x - ratio * y for x, y in zip(system[b], system[a], strict=True)]
        x = [Decimal(0)] * k
        for a in reversed(range(k)):
            known = sum(system[a][b] * x[b] for b in range(a + 1, k))
            x[a] = (system[a][k] - known) / system[a][a]
        solved.append(x)
    return solved


def test_exact_factors_keep_their_digits_where_the_normal_equations_lose_them(use_gpu):
    """More factors than entries, large confidences, little regularization: theirs is 13% off."""
    values = np.random.default_rng(53).choice([0.3, 40.0], (3, 4)).astype(np.float32)
    params = {"alpha": 40.0, "regularization": 0.01, "dtype": np.float64}
    found = fitted(values, iterations=4, use_cg=False, use_gpu=use_gpu, **params)
    start = on_host(fitted(values, iterations=0, **params))
    with localcontext() as context:
        context.prec = 60
        users, items = ([[Decimal(float(x)) for x in row] for row in side] for side in start)
        for _ in range(4):
            users = solved_in_decimals(items, values, 40, Decimal(params["regularization"]))
            items = solved_in_decimals(users, values.T, 40, Decimal(params["regularization"]))
    for side, exact in zip(on_host(found), (users, items), strict=True):
        assert_agree(side, np.array(exact, np.float64), 1e-6)


def test_precision_keeps_its_definition_and_true_precision_stands_beside_it():
    """One hit of ten places, for a user with one item to find: 1 by theirs, 1/10 by the book's."""

    class Finds:
        def recommend(self, userids, user_items, N=10):
            return np.tile(np.arange(N), (len(userids), 1)), np.zeros((len(userids), N))

    train, test = sp.csr_matrix((1, 20)), sp.csr_matrix(([1.0], ([0], [4])), (1, 20))
    arguments = {"K": 10, "show_progress": False}
    assert evaluation.precision_at_k(Finds(), train, test, **arguments) == 1.0
    assert evaluation.true_precision_at_k(Finds(), train, test, **arguments) == 0.1
    assert evaluation.recall_at_k(Finds(), train, test, **arguments) == 1.0


@on_gpus
def test_a_gpu_solves_exactly(use_gpu):
    """No conjugate gradients unless asked for, and those as many as asked for."""
    exact, steps = (
        fitted(MIXED, use_gpu=use_gpu, use_cg=use_cg, iterations=1) for use_cg in (False, True)
    )
    expected = fitted(MIXED, use_cg=False, iterations=1, dtype=np.float64)
    expected.user_factors, expected.item_factors = on_host(fitted(MIXED, iterations=0))
    expected.fit(MIXED, show_progress=False)
    error, error_of_steps = (
        np.linalg.norm(on_host(each)[1] - on_host(expected)[1]) for each in (exact, steps)
    )
    assert error < 1e-4 * np.linalg.norm(on_host(expected)[1])
    assert error_of_steps > 10 * error
