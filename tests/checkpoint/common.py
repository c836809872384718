"""Small fits, and files of their states; what two fits have found, compared."""

import shutil

import numpy as np
import pytest
from helpers import random_ratings
from hypothesis import settings

from gpu_als import AlternatingLeastSquares, ExplicitALS, StopTraining
from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.errors import CheckpointError

N_USERS, N_ITEMS, ITERATIONS = 40, 30, 8
RATINGS = random_ratings(N_USERS, N_ITEMS, 0.3, 11)
HELD_OUT = random_ratings(N_USERS, N_ITEMS, 0.1, 12)
WEIGHTS = np.random.default_rng(13).choice([0, 0.5, 1, 4], RATINGS.nnz)
BY_HYPOTHESIS = settings(max_examples=40)


def explicit(**params):
    params = {"iterations": ITERATIONS, "random_state": 7, "backend": "numpy"} | params
    # with biases eight columns, like implicit(): kernels are compiled for a number of columns
    return ExplicitALS(**{"factors": 7, "regularization": 0.05, "num_threads": 1} | params)


def implicit(**params):
    params = {"iterations": ITERATIONS, "random_state": 7, "use_gpu": False} | params
    return AlternatingLeastSquares(**{"factors": 8, "num_threads": 1} | params)


def fit(model, ratings=RATINGS, **how):
    """Fit, without a progress bar; return the model."""
    model.fit(ratings, show_progress=False, **how)
    return model


def fitted_arrays(model):
    """Return what a fit finds."""
    names = ["user_factors", "item_factors", "user_biases", "item_biases", "global_mean"]
    return {name: np.asarray(getattr(model, name)) for name in names if hasattr(model, name)}


def course(report):
    """Return a report without what depends on the machine's mood."""
    plain = report.to_dict() | {"iterations": report.iterations}
    return {name: plain[name] for name in plain.keys() - {"seconds", "workspace_bytes"}}


def assert_same(model, expected):
    """Assert that two fits have found the same, to the bit, on the same way."""
    found, wanted = fitted_arrays(model), fitted_arrays(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name
    assert course(model.report_) == course(expected.report_)


def states(folder, model, ratings=RATINGS, **how):
    """Fit, and return files of the state after each iteration, as kill -9 would leave them."""
    file, kept = folder / "state.npz", []

    def copy(iteration, *_):
        if iteration:  # callbacks come before the state of their iteration is saved
            kept.append(shutil.copy(file, folder / f"{iteration}.npz"))

    fit(model, ratings, callback=copy, checkpoint=file, **how)
    return [*kept, shutil.copy(file, folder / "last.npz")]


def state(folder, model, iterations=3, ratings=RATINGS, **how):
    """Fit, and return the file of the state after some iterations."""

    def stop(iteration, *_):
        if iteration + 1 == iterations:
            raise StopTraining

    fit(model, ratings, callback=stop, checkpoint=folder / "state", **how)
    return folder / "state.npz"


CASES = {
    "explicit": (explicit, {}, {}),
    "explicit, float64": (explicit, {"dtype": np.float64}, {}),
    "explicit, no bias": (explicit, {"bias": False}, {}),
    "explicit, one ridge per side": (
        explicit, {"regularization": (0.1, 0.3), "scale_regularization": None}, {},
    ),
    "explicit, cg": (explicit, {"solver": "cg"}, {}),
    "explicit, weights": (explicit, {}, {"sample_weight": WEIGHTS}),
    "explicit, non-negative": (explicit, {"nonnegative": True}, {}),
    "explicit, non-negative users, no bias": (
        explicit, {"nonnegative": "users", "bias": False}, {},
    ),
    "explicit, tol": (explicit, {"tol": 0.02, "iterations": 50}, {}),
    "explicit, best at the end": (explicit, {"regularization": 0.01}, {"validation": HELD_OUT}),
    "explicit, best in the middle": (
        explicit, {"regularization": 0.01, "bias": False}, {"validation": HELD_OUT},
    ),
    "explicit, best at the start": (explicit, {}, {"validation": HELD_OUT}),
    "explicit, patience": (
        explicit,
        {"regularization": 0.01, "bias": False, "patience": 3, "iterations": 50},
        {"validation": HELD_OUT},
    ),
    "explicit, patience and tol and float64 and weights": (
        explicit,
        {"patience": 9, "tol": 0.005, "iterations": 50, "dtype": np.float64},
        {"validation": HELD_OUT, "sample_weight": WEIGHTS},
    ),
    "implicit, cg": (implicit, {}, {}),
    "implicit, cg, float64": (implicit, {"dtype": np.float64}, {}),
    "implicit, exact": (implicit, {"use_cg": False}, {}),
    "implicit, exact, float64": (implicit, {"use_cg": False, "dtype": np.float64}, {}),
    "implicit, confidences below 1": (implicit, {"use_cg": False, "alpha": 0.3}, {}),
    "implicit, ials": (
        implicit, {"unobserved_weight": 0.3, "regularization_exponent": 0.5, "alpha": 2}, {},
    ),
}  # fmt: skip


def refuse(file, message, make=explicit):
    """Assert that a file is refused, and that the model stays as it was."""
    model = make()
    with pytest.raises(CheckpointError, match=message):
        fit(model, resume=file)
    assert model.user_factors is None
    assert model.report_ is None


def rewritten(file, folder, **changes):
    """Return a copy of a file with some arrays replaced, or left out where None."""
    arrays = read_arrays(file) | changes
    write_arrays(folder / "s.npz", {name: a for name, a in arrays.items() if a is not None})
    return folder / "s.npz"
