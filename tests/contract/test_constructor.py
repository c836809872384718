"""The constructor: parameters, their order and defaults, and the attributes of a new model."""

import inspect

import numpy as np
import pytest

from contract.common import PLAYS, assert_agree, exact_rows, fitted, make, on_host
from gpu_als import AlternatingLeastSquares, backends
from gpu_als.errors import InputError, NoGpuError

PARAMETERS = {
    "factors": 100,
    "regularization": 0.01,
    "alpha": 1.0,
    "dtype": np.float32,
    "use_native": True,
    "use_cg": True,
    "use_gpu": None,  # theirs: whether there is a GPU
    "iterations": 15,
    "calculate_training_loss": False,
    "num_threads": 0,
    "random_state": None,
}

START = on_host(fitted(iterations=0))


def test_parameters_and_their_order():
    signature = inspect.signature(AlternatingLeastSquares)
    by_position = [
        p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert by_position == list(PARAMETERS)


def test_defaults():
    signature = inspect.signature(AlternatingLeastSquares)
    assert {name: signature.parameters[name].default for name in PARAMETERS} == PARAMETERS


def test_parameters_are_those_of_implicit():
    als = pytest.importorskip("implicit.als")
    theirs = inspect.signature(als.AlternatingLeastSquares).parameters
    assert list(theirs) == list(PARAMETERS)
    defaults = {name: parameter.default for name, parameter in theirs.items()}
    assert defaults | {"use_gpu": None} == PARAMETERS


def test_parameters_of_our_own_go_by_keyword_only():
    ours = list(inspect.signature(AlternatingLeastSquares).parameters.values())[len(PARAMETERS) :]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours)


def test_every_parameter_is_an_attribute():
    given = 7, 0.2, 2.0, np.float64, False, False, False, 3, True, 2, 5
    model = AlternatingLeastSquares(*given)
    assert tuple(getattr(model, name) for name in PARAMETERS) == given


def test_attributes_of_a_new_model():
    model = AlternatingLeastSquares()
    assert model.cg_steps == 3
    assert model.fit_callback is None
    assert model.user_factors is None
    assert model.item_factors is None


@pytest.mark.parametrize("dtype", [np.float32, "float32", np.dtype("float64"), np.float64])
def test_dtype_is_that_of_the_factors(use_gpu, dtype):
    model = fitted(dtype=dtype, iterations=1, use_gpu=use_gpu)
    assert model.dtype == model.user_factors.dtype == model.item_factors.dtype == np.dtype(dtype)


def test_use_native_changes_nothing():
    found, expected = (fitted(use_native=native) for native in (False, True))
    np.testing.assert_array_equal(found.user_factors, expected.user_factors)


@pytest.mark.parametrize("there", [False, True])
def test_without_use_gpu_a_gpu_is_taken_where_there_is_one(monkeypatch, there):
    def gpu(precision):
        if not there:
            raise NoGpuError("none")
        return "the GPU's"

    monkeypatch.setattr(backends, "_cupy_backend", gpu)
    found = make(use_gpu=None)._get_backend()
    assert (found == "the GPU's") == there


def test_num_threads_is_the_number_of_threads():
    for threads, named in ((1, "1 thread"), (3, "3 threads")):
        assert fitted(num_threads=threads, iterations=1).report_.device.endswith(named)


@pytest.mark.parametrize("name", ["factors", "iterations", "num_threads"])
def test_numbers_are_below_2_to_the_31(name):
    assert getattr(make(**{name: 2**31 - 1}), name) == 2**31 - 1
    with pytest.raises(InputError, match=rf"{name} must be an integer .* below 2\^31"):
        make(**{name: 2**31})


def test_num_threads_does_not_change_the_factors():
    one, three = (fitted(num_threads=threads, use_cg=False) for threads in (1, 3))
    for found, expected in zip(on_host(three), on_host(one), strict=True):
        assert_agree(found, expected, 1e-6)


def test_cg_steps_is_the_number_of_conjugate_gradient_steps(use_gpu):
    """More of them come closer to the exact half-sweep, as many as there are factors reach it."""
    exact = on_host(fitted(use_cg=False, iterations=1, dtype=np.float64, use_gpu=use_gpu))[0]
    errors = []
    for steps in (1, 3, 6, 30):
        model = make(iterations=1, dtype=np.float64, use_gpu=use_gpu)
        model.cg_steps = steps
        model.fit(PLAYS, show_progress=False)
        errors.append(np.linalg.norm(on_host(model)[0] - exact) / np.linalg.norm(exact))
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] < 1e-9


def test_cg_steps_below_1_are_refused():
    model = make()
    model.cg_steps = 0
    with pytest.raises(InputError, match="cg_steps must be at least 1"):
        model.fit(PLAYS, show_progress=False)


def test_conjugate_gradients_start_from_the_former_factors(use_gpu):
    """One step from the minimum stays there; from anywhere else it does not arrive."""
    items = on_host(fitted())[1].astype(np.float64)
    best = exact_rows(items, PLAYS, alpha=1.0, regularization=0.05)
    errors = []
    for start in (best, np.zeros_like(best)):
        model = make(iterations=1, dtype=np.float64, use_gpu=use_gpu)
        model.cg_steps = 1
        model.user_factors, model.item_factors = start, items
        model.fit(PLAYS, show_progress=False)
        errors.append(np.linalg.norm(on_host(model)[0] - best) / np.linalg.norm(best))
    assert errors[0] < 1e-9
    assert errors[1] > 1e-2


def test_use_cg_false_is_exact_on_every_device(use_gpu):
    found, expected = (
        make(use_cg=False, dtype=dtype, use_gpu=device)
        for dtype, device in ((np.float32, use_gpu), (np.float64, False))
    )
    for model in (found, expected):
        model.user_factors, model.item_factors = START
        model.fit(PLAYS, show_progress=False)
    for side, other in zip(on_host(found), on_host(expected), strict=True):
        assert_agree(side, other)
