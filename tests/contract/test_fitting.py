"""``fit``: what it returns, passes to its callback, starts from, accepts and refuses."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp

from contract.common import (
    FACTORS,
    FEEDBACK,
    MIXED,
    N_ITEMS,
    N_USERS,
    PLAYS,
    assert_agree,
    documented_loss,
    exact_rows,
    fitted,
    make,
    on_host,
)
from gpu_als import ModelFitError, ParameterWarning
from gpu_als.errors import InputError


def with_empty_rows():
    dense = PLAYS.toarray()
    dense[[0, 9]] = 0
    dense[:, 3] = 0
    return sp.csr_matrix(dense)


def test_fit_returns_none(use_gpu):
    assert make(iterations=1, use_gpu=use_gpu).fit(PLAYS, show_progress=False) is None


def test_factors_have_one_row_per_user_and_per_item(use_gpu):
    model = fitted(iterations=1, use_gpu=use_gpu)
    assert model.user_factors.shape == (N_USERS, FACTORS)
    assert model.item_factors.shape == (N_ITEMS, FACTORS)


def test_show_progress_shows_a_bar_on_the_error_stream(capsys):
    model = make(iterations=3)
    model.fit(PLAYS, show_progress=False)
    assert capsys.readouterr() == ("", "")
    model.fit(PLAYS)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "3/3" in shown.err


# --- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("alpha", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_items_solve_their_equations(use_gpu, name, alpha, dtype):
    """Confidence ``abs(alpha * r)`` in 1, or in 0 where r is negative; 1 in 0 elsewhere."""
    model = fitted(FEEDBACK[name], alpha=alpha, use_cg=False, dtype=dtype, use_gpu=use_gpu)
    users, items = on_host(model)
    by_item = FEEDBACK[name].T.tocsr()
    expected = exact_rows(users, by_item, alpha=alpha, regularization=0.05)
    limit = 1e-10 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(items, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("use_cg", [False, True])
def test_empty_rows_get_zero_factors(use_gpu, use_cg):
    users, items = on_host(fitted(with_empty_rows(), use_cg=use_cg, use_gpu=use_gpu))
    assert not users[[0, 9]].any()
    assert not items[3].any()


def test_a_disliked_item_scores_lower_than_an_unknown_one_and_a_liked_one_higher(use_gpu):
    dense = PLAYS.toarray()
    user, item = 4, PLAYS[4].indices[0]
    scores = []
    for value in (50.0, 0.0, -50.0):
        dense[user, item] = value
        model = fitted(
            sp.csr_matrix(dense), use_cg=False, factors=FACTORS, iterations=10, use_gpu=use_gpu
        )
        users, items = on_host(model)
        scores.append(users[user] @ items[item])
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("use_cg", [False, True])
def test_the_training_loss_is_the_documented_formula(use_gpu, name, use_cg):
    losses = []
    model = fitted(
        FEEDBACK[name],
        lambda iteration, seconds, loss: losses.append(loss),
        calculate_training_loss=True,
        alpha=2.0,
        use_cg=use_cg,
        use_gpu=use_gpu,
    )
    assert losses[-1] == pytest.approx(documented_loss(model, FEEDBACK[name]), rel=1e-4)
    assert all(before > after for before, after in pairwise(losses))


# --- callbacks -----------------------------------------------------------------------------------


def test_callback_gets_the_iteration_the_seconds_and_no_loss(use_gpu):
    seen = []
    fitted(callback=lambda *given: seen.append(given), use_gpu=use_gpu)
    assert [iteration for iteration, _, _ in seen] == [0, 1, 2, 3]
    assert all(seconds > 0 and loss is None for _, seconds, loss in seen)


def test_callback_gets_the_loss_with_calculate_training_loss(use_gpu):
    seen = []
    fitted(
        callback=lambda *given: seen.append(given), use_gpu=use_gpu, calculate_training_loss=True
    )
    assert all(isinstance(loss, float) for _, _, loss in seen)


def test_fit_callback_is_called_where_fit_is_given_none(use_gpu):
    seen, instead = [], []
    model = make(use_gpu=use_gpu)
    model.fit_callback = lambda *given: seen.append(given)
    model.fit(PLAYS, show_progress=False)
    assert len(seen) == 4
    model.fit(PLAYS, show_progress=False, callback=lambda *given: instead.append(given))
    assert len(seen) == len(instead) == 4


def test_callbacks_see_the_factors_of_their_iteration(use_gpu):
    """And what they keep of them is not written to afterwards."""
    model = make(use_gpu=use_gpu, use_cg=False)
    kept = []
    model.fit(PLAYS, False, lambda *_: kept.append((model.user_factors, model.item_factors)))
    for iteration, factors in enumerate(kept):
        expected = fitted(use_gpu=use_gpu, use_cg=False, iterations=iteration + 1)
        for found, other in zip(factors, on_host(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(found), other)


def test_callbacks_can_recommend(use_gpu):
    """What the model works out for one iteration is not left over for the next."""
    model = make(use_gpu=use_gpu, iterations=2, use_cg=False)
    found = []

    def look(*_):
        found.append((model.recommend(3, PLAYS[3]), model.similar_items(5), model.item_norms))

    model.fit(PLAYS, show_progress=False, callback=look)
    for iterations, (best, alike, norms) in enumerate(found, start=1):
        other = fitted(use_gpu=use_gpu, iterations=iterations, use_cg=False)
        np.testing.assert_array_equal(best, other.recommend(3, PLAYS[3]))
        np.testing.assert_array_equal(alike, other.similar_items(5))
        np.testing.assert_array_equal(norms, other.item_norms)


def test_an_interrupt_keeps_the_factors_of_the_last_iteration(use_gpu):
    def interrupt(iteration, seconds, loss):
        if iteration == 1:
            raise KeyboardInterrupt

    model = make(use_gpu=use_gpu)
    with pytest.raises(KeyboardInterrupt):
        model.fit(PLAYS, show_progress=False, callback=interrupt)
    for found, expected in zip(
        on_host(model), on_host(fitted(use_gpu=use_gpu, iterations=2)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


# --- starting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cg", [False, True])
def test_fit_goes_on_from_the_factors_there_are(use_gpu, use_cg):
    four = fitted(use_gpu=use_gpu, iterations=4, use_cg=use_cg)
    model = fitted(use_gpu=use_gpu, iterations=2, use_cg=use_cg)
    model.fit(PLAYS, show_progress=False)
    for found, expected in zip(on_host(model), on_host(four), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_fit_starts_from_factors_set_by_hand(use_gpu):
    """Users are solved first, so that an exact fit starts from the items alone."""
    items = on_host(fitted())[1]
    ends = []
    for seed in (1, 2):
        model = make(use_gpu=use_gpu, iterations=1, use_cg=False, random_state=seed)
        model.item_factors = items
        model.fit(PLAYS, show_progress=False)
        ends.append(on_host(model)[0])
    np.testing.assert_array_equal(*ends)
    assert_agree(ends[0], exact_rows(items, PLAYS, alpha=1.0, regularization=0.05), 1e-4)


def test_the_same_seed_gives_the_same_initial_factors_on_every_device(use_gpu):
    for dtype in (np.float32, np.float64):
        model = fitted(iterations=0, dtype=dtype, use_gpu=use_gpu, random_state=11)
        rng = np.random.default_rng(11)
        for found, size in zip(on_host(model), (N_USERS, N_ITEMS), strict=True):
            expected = rng.random((size, FACTORS), dtype=dtype) * dtype(0.01)
            np.testing.assert_array_equal(found, expected)


def test_fit_does_not_write_to_the_factors_it_starts_from():
    model = fitted(iterations=1)
    before = model.user_factors, model.item_factors
    copies = [side.copy() for side in before]
    model.fit(PLAYS, show_progress=False)
    for array, copy in zip(before, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["coo", "csc", "lil"])
def test_other_formats_are_converted_with_a_parameter_warning(form):
    with pytest.warns(ParameterWarning, match="CSR"):
        model = fitted(MIXED.asformat(form))
    np.testing.assert_array_equal(model.user_factors, fitted(MIXED).user_factors)


def test_fit_leaves_its_matrix_as_it_was():
    given = MIXED.copy()
    fitted(given, alpha=3.0)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(given, name), getattr(MIXED, name))


def test_nan_in_the_data_is_a_model_fit_error(use_gpu):
    spoiled = PLAYS.copy()
    spoiled.data[7] = np.nan
    model = make(use_gpu=use_gpu)
    with pytest.raises(ModelFitError, match="NaN"):
        model.fit(spoiled, show_progress=False)
    with pytest.raises(InputError):  # a bad argument too: what it always is here
        model.fit(spoiled, show_progress=False)
    assert model.user_factors is None


@pytest.mark.parametrize("side", ["user_factors", "item_factors"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_the_factors_to_start_from_is_a_model_fit_error(use_gpu, side, bad):
    model = fitted(iterations=1)
    getattr(model, side)[3, 1] = bad
    model = model.to_gpu() if use_gpu else model
    with pytest.raises(ModelFitError, match=f"{side}.*None"):
        model.fit(PLAYS, show_progress=False)
