"""Input that once got through: each case is refused with the argument's name, or has an answer."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.sparse as sp

from gpu_als import AlternatingLeastSquares, ExplicitALS, als_step, factorize, loss_and_gradient
from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.data.readers import read_triples
from gpu_als.errors import InputError, ModelFileError, ReadError
from gpu_als.evaluation import ndcg_at_k

RATINGS = sp.random(20, 15, density=0.4, format="csr", random_state=7)
RATINGS.data = np.ceil(RATINGS.data * 5)
DENSE = RATINGS.toarray()


def explicit(**options):
    return ExplicitALS(**{"factors": 3, "iterations": 2, "random_state": 5, **options})


@pytest.mark.parametrize("interruption", ["validation", "callback"])
def test_a_failed_fit_leaves_the_model_as_it_was(interruption):
    model = explicit().fit(RATINGS)
    before = model.predict(0, 0)

    def fail(*_):
        raise KeyboardInterrupt

    failing = {"validation": RATINGS[:3]} if interruption == "validation" else {"callback": fail}
    with pytest.raises((InputError, KeyboardInterrupt)):
        model.fit(RATINGS * 100, **failing)
    np.testing.assert_array_equal(model.predict(0, 0), before)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: explicit(scale_regularization=None, **options),
        lambda **options: AlternatingLeastSquares(3, iterations=1, use_cg=False, **options),
    ],
    ids=["explicit", "implicit"],
)
def test_a_penalty_whose_square_float32_cannot_hold_is_refused(make):
    """It holds up to 3.4e38, the square of 1.8e19."""
    with pytest.raises(InputError, match=r"regularization.* exceeds 2e\+19"):
        make(regularization=2e19).fit(RATINGS)
    make(regularization=1.8e19).fit(RATINGS)
    make(regularization=2e19, dtype=np.float64).fit(RATINGS)


@pytest.mark.parametrize("change", [{"factors": 7}, {"bias": False}])
@pytest.mark.parametrize("make", [explicit, AlternatingLeastSquares])
def test_a_model_changed_after_training_serves_and_is_saved_as_it_was_trained(make, change):
    model = make(factors=3, iterations=1, random_state=5)
    model.fit(RATINGS, show_progress=False)
    expected = model.fold_in_users(RATINGS)
    model.set_params(**{name: change[name] for name in change if name in model.get_params()})
    np.testing.assert_array_equal(model.fold_in_users(RATINGS), expected)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = make.load(file) if make is AlternatingLeastSquares else ExplicitALS.load(file)
    assert loaded.factors == 3
    assert loaded.bias == (make is explicit)
    np.testing.assert_array_equal(loaded.fold_in_users(RATINGS), expected)


@pytest.mark.parametrize(
    ("model", "prefix"), [(ExplicitALS(3), "param_"), (AlternatingLeastSquares(3), "")]
)
def test_a_file_without_its_parameters_is_refused(model, prefix):
    model.fit(RATINGS)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    arrays = read_arrays(file)
    del arrays[f"{prefix}iterations"]
    damaged = io.BytesIO()
    write_arrays(damaged, arrays)
    damaged.seek(0)
    with pytest.raises(ModelFileError, match="'iterations'"):
        type(model).load(damaged)


def test_masked_arrays_are_refused():
    masked = np.ma.masked_greater(DENSE, 2)
    with pytest.raises(InputError, match="X is a masked array"):
        factorize(masked, 2, regularization=0.1)
    with pytest.raises(InputError, match="X is a masked array"):
        loss_and_gradient(masked, np.ones((20, 2)), np.ones((15, 2)))


@pytest.mark.parametrize(
    ("fit", "names"),
    [
        (lambda: explicit(regularization=1e39).fit(RATINGS), "regularization"),
        (lambda: factorize(DENSE.astype("f4"), 2, regularization=1e39), "regularization"),
        (lambda: explicit().fit(RATINGS, sample_weight=DENSE * 1e30), "sample_weight"),
        (
            lambda: AlternatingLeastSquares(2, regularization_exponent=1e30).fit(RATINGS),
            "regularization",
        ),
        (lambda: AlternatingLeastSquares(2, unobserved_weight=1e-300).fit(RATINGS), "unobserved"),
    ],
)
def test_numbers_beyond_the_dtype_are_refused(fit, names):
    with pytest.raises(InputError, match=names):
        fit()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: explicit(bias=-1), "bias"),
        (lambda: explicit(bias=None), "bias"),
        (lambda: explicit(regularization=(1,)), "regularization"),
        (lambda: explicit(regularization=10**400), "regularization"),
        (lambda: explicit(tol="x"), "tol"),
        (lambda: explicit(patience=[]), "patience"),
        (lambda: explicit(solver=[]), "solver"),
        (lambda: explicit(nonnegative=np.ones(3)), "nonnegative"),
        (lambda: explicit(factors=2**63), "factors"),
        (lambda: explicit().fit(RATINGS, callback=3), "callback"),
        (lambda: explicit().fit(RATINGS, validation=([0], [0], ["a"])), "validation"),
        (lambda: AlternatingLeastSquares(use_gpu="x"), "use_gpu"),
        (lambda: AlternatingLeastSquares(use_cg=[]), "use_cg"),
        (lambda: AlternatingLeastSquares(alpha=10**400), "alpha"),
        (lambda: factorize([[1, 2], [3]], 2, regularization=0.1), "X"),
        (lambda: factorize(DENSE, 2, regularization=0.1, nonnegative="users"), "nonnegative"),
        (
            lambda: factorize(DENSE, 2, regularization=0.1, missing=sp.csr_matrix(DENSE == 0)),
            "missing",
        ),
        (lambda: loss_and_gradient(DENSE, "x", np.ones((15, 2))), "W"),
        (lambda: ExplicitALS.load(3), "file"),
        (lambda: ndcg_at_k(DENSE, RATINGS, RATINGS, show_progress=False), "model"),
    ],
)
def test_wrong_types_are_named(make, names):
    with pytest.raises(InputError, match=names):
        make()


def test_read_only_factors_are_refused_before_the_work():
    x = np.ones((20, 2))
    x.flags.writeable = False
    with pytest.raises(InputError, match="x is read-only"):
        als_step(DENSE, x, np.ones((15, 2)), "x", 2, 0.1)


@pytest.mark.parametrize("factors", [[[1.0]], np.ones(20), np.ones((20, 3), int), np.ones((20, 4))])
def test_factors_assigned_by_hand_are_checked(factors):
    model = AlternatingLeastSquares(3, iterations=1, random_state=5)
    model.fit(RATINGS, show_progress=False)
    model.user_factors = factors
    with pytest.raises(InputError, match="user_factors"):
        model.recommend(0, RATINGS[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,1\x00\nc,d,2\n", ":1: found a NUL byte"),
        ('a,"b,1\nc,d,2\n', "quote"),
        ("a,b,1_0\nc,d,2\n", "'1_0' is not a number"),
        ("a;b;1,5\nc;d;2,5\n", "is not a number"),
    ],
)
def test_odd_text_files_are_refused(tmp_path, text, message):
    path = tmp_path / "ratings.csv"
    path.write_text(text)
    with pytest.raises(ReadError, match=message):
        read_triples(path)


def test_semicolons_separate(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("a;b;1.5\nc;d;2\n")
    users, items, ratings = read_triples(path)
    assert (list(users), list(items), list(ratings)) == (["a", "c"], ["b", "d"], [1.5, 2.0])
