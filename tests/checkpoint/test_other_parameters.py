"""Parameters that change the factors are refused by name; others may change."""

import json
import re

import numpy as np
import pytest

from checkpoint.common import (
    HELD_OUT,
    ITERATIONS,
    assert_same,
    explicit,
    fit,
    implicit,
    refuse,
    rewritten,
    state,
)
from gpu_als.core import solvers
from gpu_als.data.model_file import read_arrays
from gpu_als.errors import CheckpointError

CHANGES = {
    explicit: {
        "factors": 6,
        "regularization": 0.06,
        "scale_regularization": None,
        "bias": False,
        "nonnegative": "items",
        "solver": solvers.ConjugateGradient(2),
        "dtype": np.float64,
        "precision": "float16",
        "random_state": 8,
        "solver_tol": 1e-6,
    },
    implicit: {
        "factors": 7,
        "regularization": 0.02,
        "alpha": 2.0,
        "dtype": np.float64,
        "use_cg": False,
        "random_state": np.random.default_rng(7),
        "unobserved_weight": 0.5,
        "regularization_exponent": 0.5,
        "precision": "tf32x3",
        "solver_tol": 1e-6,
    },
}
NO_CHANGES = {
    explicit: {
        "iterations": ITERATIONS + 3,
        "tol": 1e-12,
        "patience": 20,
        "num_threads": 2,
    },
    implicit: {
        "iterations": ITERATIONS + 3,
        "use_native": False,
        "calculate_training_loss": True,
        "num_threads": 2,
    },
}


@pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make, changes in CHANGES.items() for name in changes]
)
def test_a_parameter_that_changes_the_factors_is_refused_by_name(make, name, tmp_path):
    file = state(tmp_path, make())
    value = CHANGES[make][name]
    before = file.read_bytes()
    with pytest.raises(CheckpointError) as error:
        fit(make(**{name: value}), resume=True, checkpoint=file)
    found = re.fullmatch(
        r".* is the state of another fit; different: (.*)\. Continue with the parameters and the "
        "data it was started with, or start afresh without resume",
        str(error.value),
    )
    names = re.findall(r"(\w+) \(then ", found[1])
    assert names[0] == name
    assert name == "dtype" or len(names) == 1  # numbers of another type are other data too
    assert file.read_bytes() == before


def test_every_parameter_is_known_to_change_the_factors_or_not():
    """A new parameter has to be put into one of the lists above."""
    for make, device in ((explicit, "backend"), (implicit, "use_gpu")):
        names = [*CHANGES[make], *NO_CHANGES[make], device]
        assert sorted(names) == sorted(make().get_params())


@pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make, changes in NO_CHANGES.items() for name in changes]
)
def test_a_parameter_that_does_not_change_the_factors_may_change(make, name, tmp_path):
    how = {"validation": HELD_OUT} if make is explicit else {}
    file = state(tmp_path, make(), **how)
    params = {name: NO_CHANGES[make][name]}
    assert_same(fit(make(**params), resume=file, **how), fit(make(**params), **how))


def test_cg_steps_are_a_parameter_too(tmp_path):
    file = state(tmp_path, implicit())
    model = implicit()
    model.cg_steps = 4
    with pytest.raises(CheckpointError, match=r"different: cg_steps \(then 3, now 4\)"):
        fit(model, resume=file)


def test_a_parameter_that_the_state_does_not_know_is_refused_by_name(saved, tmp_path):
    content = json.loads(str(read_arrays(saved[explicit])["state"]))
    del content["fit"]["solver"]
    file = rewritten(saved[explicit], tmp_path, state=json.dumps(content))
    refuse(file, r"different: solver \(then None, now 'auto'\)\.")


def test_a_generator_is_not_taken_for_a_seed(tmp_path):
    file = state(tmp_path, explicit())
    model = explicit(random_state=np.random.default_rng(7))
    with pytest.raises(CheckpointError, match=r"random_state \(then 7, now 'Generator'\)\."):
        fit(model, resume=file)


def test_a_state_of_the_other_model_is_refused(tmp_path):
    file = state(tmp_path, explicit())
    with pytest.raises(CheckpointError, match=r"model \(then 'explicit', now 'implicit'\)"):
        fit(implicit(), resume=file)


def test_a_fit_goes_on_on_another_device(cupy_backend, tmp_path):
    """Not to the bit: devices round differently."""
    file = state(tmp_path, implicit(use_cg=False))
    moved = fit(implicit(use_cg=False, use_gpu=True), resume=file)
    expected = fit(implicit(use_cg=False))
    np.testing.assert_allclose(moved.user_factors, expected.user_factors, rtol=1e-3, atol=1e-4)
    assert moved.report_.device == cupy_backend.device
