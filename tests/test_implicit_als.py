"""AlternatingLeastSquares beyond the contract of tests/contract: ours alone, odd input, files."""

import io

import numpy as np
import pytest
import scipy.sparse as sp
from contract.common import MIXED, PLAYS, documented_loss, observed_cells
from helpers import random_ratings
from reference import objective_value

from gpu_als import AlternatingLeastSquares, Interactions, StopTraining
from gpu_als.core.objectives import Implicit
from gpu_als.core.problem import SparseRows
from gpu_als.errors import (
    IdRangeError,
    InputError,
    ModelFileError,
)
from gpu_als.models.implicit import _sum_of_magnitudes


def fit(user_items=PLAYS, callback=None, **params):
    defaults = {"factors": 6, "regularization": 0.05, "iterations": 4, "random_state": 9}
    model = AlternatingLeastSquares(**defaults | params)
    assert model.fit(user_items, show_progress=False, callback=callback) is None
    return model


def ials_loss_of(model, user_items):
    """Return the loss of iALS; the divisor is the same."""
    weights = model.alpha * np.abs(user_items.toarray())
    observed = observed_cells(user_items)
    users, items = model.user_factors, model.item_factors
    alpha0 = 1.0 if model.unobserved_weight is None else model.unobserved_weight
    nu = model.regularization_exponent or 0.0
    ridges = [
        model.regularization * (observed.sum(axis) + alpha0 * user_items.shape[axis]) ** nu
        for axis in (1, 0)
    ]
    ones, zeros = np.ones(observed.shape), [np.zeros(n) for n in user_items.shape]
    loss = objective_value(observed, weights, ones, 0, users, items, *ridges)
    loss += objective_value(observed & False, weights, ones, alpha0, users, items, *zeros)
    return loss / (weights.sum() + (~observed).sum())


@pytest.mark.parametrize("user_items", [PLAYS, MIXED], ids=["plays", "mixed"])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("use_cg", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_reported_loss_is_the_documented_objective(user_items, alpha, use_cg, dtype):
    model = fit(user_items, alpha=alpha, use_cg=use_cg, dtype=dtype)
    assert model.user_factors.dtype == model.item_factors.dtype == dtype
    limit = 1e-12 if dtype == np.float64 else 1e-5
    assert model.report_.losses[-1] == pytest.approx(documented_loss(model, user_items), rel=limit)
    assert len(model.report_.losses) == 4
    assert (np.diff(model.report_.losses) < 0).all()


@pytest.mark.parametrize("weights", [(0.3, 0.0), (0.1, 1.0), (None, 0.7), (0.5, None)])
@pytest.mark.parametrize("use_cg", [False, True])
def test_the_reported_loss_of_ials(weights, use_cg):
    model = fit(
        alpha=3.0, use_cg=use_cg, dtype=np.float64, unobserved_weight=weights[0],
        regularization_exponent=weights[1],
    )  # fmt: skip
    assert model.report_.losses[-1] == pytest.approx(ials_loss_of(model, PLAYS), rel=1e-12)


def test_confidences_in_float32_are_added_up_in_float64():
    """Whole numbers, some disliked, whose sum float32 cannot hold to the last unit."""
    values = np.random.default_rng(35).integers(-(2**20), 2**20, 3000)
    matrix = sp.csr_matrix(values.reshape(30, 100).astype(np.float32))
    constant = Implicit(0.1, 2.0).constant(SparseRows.from_csr(matrix))
    assert constant == pytest.approx(2 * values[values > 0].sum(), rel=1e-8)
    assert _sum_of_magnitudes(matrix.data) == np.abs(values).sum()


# --- fitting -------------------------------------------------------------------------------------


def test_a_callback_can_stop_the_training():
    def stop(iteration, seconds, loss):
        raise StopTraining

    model, one = fit(callback=stop), fit(iterations=1)
    assert model.report_.stopped == "callback"
    np.testing.assert_array_equal(model.user_factors, one.user_factors)


def test_interactions_stand_for_their_matrix():
    found = fit(Interactions.from_matrix(PLAYS))
    np.testing.assert_array_equal(found.user_factors, fit().user_factors)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.int64, np.uint8])
def test_integer_and_bool_values(dtype):
    plays = PLAYS.astype(dtype)
    expected = fit(plays.astype(np.float32))
    np.testing.assert_array_equal(fit(plays).user_factors, expected.user_factors)


def test_unsorted_and_repeated_indices():
    halves = sp.coo_matrix(PLAYS)
    order = np.random.default_rng(122).permutation(2 * PLAYS.nnz)
    rows, columns, data = (np.tile(a, 2)[order] for a in (halves.row, halves.col, halves.data / 2))
    by_row = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[by_row], np.arange(151))
    messy = sp.csr_matrix((data[by_row], columns[by_row], indptr), shape=PLAYS.shape)
    before = messy.data.copy(), messy.indices.copy()
    np.testing.assert_array_equal(fit(messy).user_factors, fit().user_factors)
    np.testing.assert_array_equal(messy.data, before[0])
    np.testing.assert_array_equal(messy.indices, before[1])


@pytest.mark.parametrize(
    ("user_items", "message"),
    [
        (np.array([[1.0, np.nan]]), r"user_items.*NaN.*\(0, 1\)"),
        (sp.csr_matrix(np.array([[1.0, np.inf]])), "user_items.*infinite"),
        (np.zeros((0, 3)), "user_items.*at least one user"),
        (np.zeros((3, 0)), "user_items.*at least one user"),
        (np.ones(3), "user_items"),
        (np.array([["a"]]), "user_items.*real numbers"),
        (np.array([[1e30]]), "user_items.*1e[+]30"),
        (None, "user_items"),
    ],
)
def test_bad_interactions(user_items, message):
    with pytest.raises(InputError, match=message):
        fit(user_items)


def test_confidences_that_overflow():
    """Alpha times a value beyond the range of float32 is an error that names alpha."""
    with pytest.raises(InputError, match="alpha"):
        fit(PLAYS, alpha=1e38)


def test_large_confidences_stay_finite():
    for dtype in (np.float32, np.float64):
        for use_cg in (False, True):
            model = fit(PLAYS * 1e11, dtype=dtype, use_cg=use_cg)
            assert np.isfinite(model.user_factors).all()
            assert np.isfinite(model.report_.losses).all()


def test_an_empty_matrix():
    model = fit(sp.csr_matrix((4, 3)))
    assert model.report_.losses[-1] < 1e-20
    exact = fit(sp.csr_matrix((4, 3)), use_cg=False)
    np.testing.assert_array_equal(exact.user_factors, np.zeros((4, 6)))


def test_every_cell_stored_as_zero():
    """Confidence 0 everywhere: nothing to explain and nothing to divide the loss by."""
    zeros = sp.csr_matrix((np.zeros(6), np.tile([0, 1, 2], 2), [0, 3, 6]), shape=(2, 3))
    model = fit(zeros, use_cg=False)
    np.testing.assert_array_equal(model.user_factors, np.zeros((2, 6)))
    assert np.isfinite(model.report_.losses).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("factors", [1, 12])
@pytest.mark.parametrize("use_cg", [False, True])
def test_one_row_and_one_column(shape, factors, use_cg):
    model = fit(sp.csr_matrix(np.full(shape, 3.0)), factors=factors, use_cg=use_cg, iterations=20)
    scores = model.user_factors @ model.item_factors.T
    assert np.abs(scores - 1).max() < 0.1
    assert model.report_.losses[-1] == pytest.approx(
        documented_loss(model, sp.csr_matrix(np.full(shape, 3.0))), rel=1e-4
    )


@pytest.mark.parametrize("use_cg", [False, True])
def test_rows_on_which_no_cell_pulls_are_zero_and_not_singular(use_cg):
    """Their ridge is that of one cell, whatever the exponent."""
    plays = sp.csr_matrix(np.array([[1.0, 0, 2], [0, 0, 0], [3, 0, 1]]))
    model = fit(plays, unobserved_weight=0.0, regularization_exponent=1.0, use_cg=use_cg)
    assert model.report_.singular_rows == 0
    assert not model.user_factors[1].any()
    assert not model.item_factors[1].any()
    assert model.user_factors[[0, 2]].any(axis=1).all()


def test_more_factors_than_users_and_items():
    likes = sp.csr_matrix(random_ratings(6, 5, 0.5, 123))
    for use_cg in (False, True):
        model = fit(likes, factors=50, use_cg=use_cg, iterations=10, dtype=np.float64)
        assert model.report_.singular_rows == 0
        assert model.report_.losses[-1] == pytest.approx(documented_loss(model, likes), rel=1e-10)


def test_a_transposed_matrix_is_recognised():
    model = fit()
    with pytest.raises(InputError, match=r"transposed.*users x items.*None"):
        model.fit(PLAYS.T.tocsr())
    with pytest.raises(InputError, match=r"user_factors has shape.*set it to None"):
        model.fit(PLAYS[:10])
    assert model.user_factors.shape == (150, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"userid": 150}, IdRangeError, "userid.*0 to 149"),
        ({"userid": -1}, IdRangeError, "userid"),
        ({"userid": "ann"}, InputError, "userid"),
        ({"userid": 0, "N": 0}, InputError, "N must be"),
        ({"userid": 0, "user_items": None}, InputError, "user_items is needed to filter"),
        (
            {"userid": 0, "user_items": None, "recalculate_user": True,
             "filter_already_liked_items": False},
            InputError, "user_items is needed to recalculate",
        ),
        ({"userid": 0, "user_items": PLAYS}, InputError, "1 row for every requested user"),
        ({"userid": 0, "user_items": sp.csr_matrix((1, 91))}, InputError, "91 columns"),
        ({"userid": 0, "items": [3], "filter_items": [4]}, InputError, "both"),
        ({"userid": 0, "items": [90]}, IdRangeError, "items.*0 to 89"),
        ({"userid": 0, "filter_items": [90]}, IdRangeError, "filter_items"),
    ],
)  # fmt: skip
def test_bad_recommend(arguments, error, message):
    with pytest.raises(error, match=message):
        fit().recommend(**{"user_items": PLAYS[0]} | arguments)


# --- parameters and files ------------------------------------------------------------------------


def test_parameters_round_trip():
    given = {
        "factors": 7, "regularization": 0.2, "alpha": 2.0, "dtype": np.dtype(np.float64),
        "use_native": False, "use_cg": False, "use_gpu": False, "iterations": 3,
        "calculate_training_loss": True, "num_threads": 2, "random_state": 5,
        "unobserved_weight": 0.5, "regularization_exponent": 0.75,
        "precision": "tf32x3", "solver_tol": 1e-6,
    }  # fmt: skip
    model = AlternatingLeastSquares(**given)
    assert model.get_params() == given
    copy = type(model)(**model.get_params())
    assert copy.get_params() == given
    for name, value in copy.get_params().items():  # what sklearn.base.clone insists on
        assert value is model.get_params()[name]
    assert "alpha=2.0" in repr(model)
    assert model.set_params(alpha=3.0) is model
    assert (model.alpha, model.factors) == (3.0, 7)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"factors": 0}, "factors must be an integer of at least 1"),
        ({"factors": 1.5}, "factors"),
        ({"regularization": -1}, "regularization must be a finite number of at least 0"),
        ({"regularization": np.nan}, "regularization"),
        ({"alpha": 0}, "alpha must be a finite number above 0"),
        ({"alpha": -1.0}, "alpha"),
        ({"dtype": np.float16}, "dtype"),
        ({"dtype": "text"}, "dtype"),
        ({"iterations": -1}, "iterations"),
        ({"num_threads": -1}, "num_threads"),
        ({"unobserved_weight": -1}, "unobserved_weight"),
        ({"regularization_exponent": -0.5}, "regularization_exponent"),
        ({"regularization_exponent": "half"}, "regularization_exponent"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(InputError, match=message):
        AlternatingLeastSquares(**params)


@pytest.mark.parametrize(
    "params",
    [
        {"unobserved_weight": 0.5, "regularization_exponent": 0.75},
        {"random_state": np.random.RandomState(4)},
    ],
)
def test_save_and_load(tmp_path, params):
    model = fit(**params)
    model.cg_steps = 5
    model.save(tmp_path / "model")
    loaded = AlternatingLeastSquares.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.user_factors, model.user_factors)
    np.testing.assert_array_equal(loaded.item_factors, model.item_factors)
    expected = model.get_params()
    if not isinstance(expected["random_state"], int):
        expected["random_state"] = None
    assert loaded.get_params() == expected
    assert loaded.cg_steps == 5
    assert loaded.user_factors.dtype == model.dtype
    np.testing.assert_array_equal(loaded.recommend(3, PLAYS[3])[0], model.recommend(3, PLAYS[3])[0])
    loaded.fit(PLAYS, show_progress=False)  # goes on where the saved model stood


def test_ids_are_saved():
    buffer = io.BytesIO()
    plays = Interactions.from_triples(["b", "a", "c"], [30, 10, 20])
    fit(plays).save(buffer)
    buffer.seek(0)
    loaded = AlternatingLeastSquares.load(buffer)
    np.testing.assert_array_equal(loaded.user_index(["c", "a"]), [2, 0])
    np.testing.assert_array_equal(loaded.item_index([30]), [2])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.npz"
    fit().save(path)
    return path


def test_a_truncated_file(saved):
    content = saved.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 5):
        saved.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"model\.npz"):
            AlternatingLeastSquares.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_factors": None}, "user_factors is missing"),
        ({"item_factors": None}, "item_factors is missing"),
        ({"item_factors": np.zeros((90, 5), np.float32)}, "do not fit"),
        ({"user_factors": np.zeros(6, np.float32)}, "user_factors.*no matrix"),
        ({"user_factors": np.full((150, 6), "a")}, "user_factors.*no matrix"),
        ({"user_factors": np.full((150, 6), np.nan)}, "user_factors holds NaN"),
        ({"factors": 7}, "factors=7"),
        ({"factors": np.arange(3)}, "parameter"),
        ({"factors": "six"}, "parameter.*factors"),
        ({"regularization": -1.0}, "parameter.*regularization"),
        ({"dtype": "int8"}, "parameter.*dtype"),
        ({"cg_steps": 0}, "parameter.*cg_steps"),
        ({"user_ids": np.arange(3)}, "user_ids"),
    ],
)
def test_an_inconsistent_file(saved, changes, message):
    with np.load(saved) as archive:
        arrays = {**archive, **changes}
    np.savez(saved, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ModelFileError, match=message):
        AlternatingLeastSquares.load(saved)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "foreign.npz"
    path.write_bytes(b"user,item\n1,2\n")
    with pytest.raises(ModelFileError, match=r"foreign\.npz"):
        AlternatingLeastSquares.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ModelFileError, match="no AlternatingLeastSquares model"):
        AlternatingLeastSquares.load(path)
    np.savez(path, user_factors=np.array([[{}]], dtype=object))
    with pytest.raises(ModelFileError, match="pickled"):
        AlternatingLeastSquares.load(path)
    with pytest.raises(FileNotFoundError):
        AlternatingLeastSquares.load(tmp_path / "missing.npz")
