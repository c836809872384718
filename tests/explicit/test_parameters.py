"""Parameters: what may be given, got and set, and seeds that repeat."""

import numpy as np
import pytest

from explicit.common import fit
from gpu_als import ExplicitALS
from gpu_als.errors import InputError


def test_parameters_round_trip():
    given = {
        "factors": 7, "regularization": (0.2, 0.3), "scale_regularization": None, "bias": False,
        "nonnegative": "items", "iterations": 3, "tol": 0.1, "patience": 2, "solver": "cg",
        "backend": "numpy", "num_threads": 2, "dtype": np.dtype(np.float64), "random_state": 5,
        "precision": "float16", "solver_tol": 1e-6,
    }  # fmt: skip
    model = ExplicitALS(**given)
    assert model.get_params() == given
    assert model.get_params(deep=False) == given
    copy = type(model)(**model.get_params())
    assert copy.get_params() == given
    for name, value in copy.get_params().items():  # what sklearn.base.clone insists on
        assert value is model.get_params()[name]
    assert "factors=7" in repr(model)
    assert "iterations" not in repr(ExplicitALS())


def test_set_params():
    model = ExplicitALS(factors=7)
    assert model.set_params(iterations=2, regularization=0.5) is model
    assert (model.factors, model.iterations, model.regularization) == (7, 2, 0.5)
    for bad in ({"iterations": -1}, {"rank": 3}, {"iterations": 9, "factors": 0}):
        with pytest.raises(InputError):
            model.set_params(**bad)
    assert (model.factors, model.iterations) == (7, 2)


def test_set_params_keeps_the_factors():
    model = fit()
    before = model.user_factors
    model.set_params(iterations=1)
    assert model.user_factors is before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"factors": 0}, "factors must be an integer of at least 1"),
        ({"factors": -3}, "factors"),
        ({"factors": 2.5}, "factors"),
        ({"factors": True}, "factors"),
        ({"factors": "8"}, "factors"),
        ({"regularization": -0.1}, "regularization must be a finite number of at least 0"),
        ({"regularization": np.nan}, "regularization"),
        ({"regularization": np.inf}, "regularization"),
        ({"regularization": (0.1, -1)}, "regularization"),
        ({"regularization": (1, 2, 3)}, "regularization must be one number or two"),
        ({"regularization": "much"}, "regularization"),
        ({"scale_regularization": "sum"}, "scale_regularization must be 'count' or None"),
        ({"nonnegative": "both"}, "nonnegative"),
        ({"iterations": -1}, "iterations"),
        ({"iterations": 2.0}, "iterations"),
        ({"tol": -1e-3}, "tol"),
        ({"tol": np.nan}, "tol"),
        ({"patience": 0}, "patience"),
        ({"solver": "magic"}, "solver must be one of.*cholesky"),
        ({"backend": "tpu"}, "backend must be 'auto', 'numpy' or 'cupy'"),
        ({"num_threads": -1}, "num_threads"),
        ({"dtype": np.float16}, "dtype must be numpy.float32 or numpy.float64"),
        ({"dtype": "text"}, "dtype"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(InputError, match=message):
        ExplicitALS(**params)


def test_bad_random_state():
    with pytest.raises(InputError, match="random_state"):
        fit(random_state="lucky")


@pytest.mark.parametrize("make", [int, np.random.default_rng, np.random.RandomState])
def test_seeds_repeat(make):
    first, second, other = (fit(random_state=make(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.user_factors, second.user_factors)
    assert (first.user_factors != other.user_factors).any()
