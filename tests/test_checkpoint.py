"""Fits that are saved, stopped and gone on with find what an uninterrupted one does, to the bit."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_ratings
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cupy_backend import cupy_backend  # noqa: F401

from gpu_als import (
    AlternatingLeastSquares,
    Checkpoint,
    ExplicitALS,
    Interactions,
    StopTraining,
    checkpoint,
    solvers,
)
from gpu_als.checkpoint import Saved
from gpu_als.data import atomic
from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.errors import CheckpointError, InputError

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


def check_every_stop(folder, case, where, stops=slice(None)):
    """Assert that fits stopped after each iteration and gone on with find what one fit finds."""
    make, params, how = CASES[case]
    whole = fit(make(**params, **where), **how)
    files = states(folder, make(**params, **where), **how)
    assert len(files) == whole.report_.iterations > 3
    for file in files[stops]:
        assert_same(fit(make(**params, **where), resume=file, **how), whole)
    return whole.report_


@pytest.mark.parametrize("case", CASES)
def test_a_fit_gone_on_with_is_the_uninterrupted_one_to_the_bit(case, tmp_path):
    report = check_every_stop(tmp_path, case, {})
    if "tol" in case or "patience" in case:
        assert report.stopped in ("tol", "patience")
    if "best" in case:  # so that stops come before and after the best iteration
        best = {"start": [1], "middle": [3, 4, 5], "end": [ITERATIONS]}[case.split()[-1]]
        assert report.best_iteration in best


@pytest.mark.parametrize(
    "case",
    [
        "explicit", "explicit, float64", "explicit, non-negative", "explicit, patience",
        "implicit, cg", "implicit, exact", "implicit, ials",
    ],
)  # fmt: skip
def test_a_fit_gone_on_with_on_a_gpu_is_the_uninterrupted_one_to_the_bit(
    case,
    cupy_backend,  # noqa: F811
    tmp_path,
):
    where = {"backend": "cupy"} if case.startswith("explicit") else {"use_gpu": True}
    check_every_stop(tmp_path, case, where, slice(0, None, 3))


# Where a fit begins and ends


@pytest.mark.parametrize(
    "case", ["explicit, tol", "explicit, patience", "explicit", "implicit, exact"]
)
def test_a_fit_that_had_ended_does_nothing_more(case, tmp_path):
    make, params, how = CASES[case]
    whole = fit(make(**params), checkpoint=tmp_path / "s.npz", **how)
    saved = (tmp_path / "s.npz").read_bytes()
    called = []
    again = make(**params)
    fit(
        again,
        resume=True,
        checkpoint=tmp_path / "s.npz",
        callback=lambda *_: called.append(1),
        **how,
    )
    assert_same(again, whole)
    assert called == []
    assert (tmp_path / "s.npz").read_bytes() == saved


@pytest.mark.parametrize("make", [explicit, implicit])
def test_a_fit_that_a_callback_stopped_goes_on(make, tmp_path):
    stopped = make()
    file = state(tmp_path, stopped, 3)
    assert stopped.report_.stopped == "callback"
    assert_same(fit(make(), resume=file), fit(make()))


@pytest.mark.parametrize(
    "case",
    ["explicit", "explicit, best in the middle", "explicit, best at the end", "implicit, cg"],
)
def test_more_iterations_lengthen_a_fit(case, tmp_path):
    make, params, how = CASES[case]
    fit(make(**params), checkpoint=tmp_path / "s", **how)
    longer = fit(make(**params, iterations=13), resume=tmp_path / "s", **how)
    assert_same(longer, fit(make(**params, iterations=13), **how))


def test_a_smaller_tol_or_more_patience_lengthens_a_fit(tmp_path):
    make, params, how = CASES["explicit, patience"]
    for change in ({"patience": 6}, {"tol": 1e-9, "patience": 6}):
        fit(make(**params, tol=0.05), checkpoint=tmp_path / "s", **how)
        patient = make(**params | change)
        assert_same(fit(patient, resume=tmp_path / "s", **how), fit(make(**params | change), **how))


@pytest.mark.parametrize("make", [explicit, implicit])
def test_fewer_iterations_than_were_run_are_refused(make, tmp_path):
    file = state(tmp_path, make(), 3)
    assert fit(make(iterations=3), resume=file).report_.iterations == 3
    with pytest.raises(CheckpointError, match=r"3 iterations .* pass iterations=3 or more"):
        fit(make(iterations=2), resume=file)


@pytest.mark.parametrize("make", [explicit, implicit])
def test_callbacks_and_the_progress_bar_count_from_the_very_start(make, tmp_path, capsys):
    file = state(tmp_path, make(), 3)
    seen = []
    make().fit(
        RATINGS, show_progress=True, resume=file, callback=lambda *told: seen.append(told[0])
    )
    assert seen == [3, 4, 5, 6, 7]
    assert "8/8" in capsys.readouterr().err


def test_a_fit_can_be_stopped_and_gone_on_with_again_and_again(tmp_path):
    make, params, how = CASES["explicit, best in the middle"]
    whole = fit(make(**params), **how)
    for iterations in range(1, ITERATIONS + 1):
        one_more = make(**params | {"iterations": iterations})
        fit(one_more, checkpoint=tmp_path / "s", resume=True, **how)
    assert_same(one_more, whole)


def test_an_interrupted_model_goes_on_itself(tmp_path):
    """Ctrl-C in a notebook, then the same cell with resume."""
    for model, expected in ((explicit(), fit(explicit())), (implicit(), fit(implicit()))):

        def interrupt(iteration, *_):
            if iteration == 4:
                raise KeyboardInterrupt

        file = tmp_path / type(model).__name__
        with pytest.raises(KeyboardInterrupt):
            fit(model, checkpoint=file, callback=interrupt)
        assert_same(fit(model, checkpoint=file, resume=True), expected)


def test_a_warm_started_fit_goes_on_from_its_state_and_not_from_the_factors_it_was_given(tmp_path):
    rng = np.random.default_rng(5)
    given_users = rng.random((N_USERS, 8), dtype=np.float32)

    def warm():
        model = implicit()
        model.user_factors = given_users
        return model

    whole = fit(warm())
    assert not np.array_equal(whole.user_factors, fit(implicit()).user_factors)
    for file in states(tmp_path, warm()):
        assert_same(fit(warm(), resume=file), whole)
        assert_same(fit(implicit(), resume=file), whole)  # the state is complete without them


@pytest.mark.parametrize("make", [explicit, implicit])
@pytest.mark.parametrize(
    "random_state",
    [
        lambda: 3,
        lambda: np.int64(3),
        lambda: np.random.default_rng(3),
        lambda: np.random.RandomState(3),
    ],
    ids=["int", "numpy int", "Generator", "RandomState"],
)
def test_fits_of_every_random_state_go_on(make, random_state, tmp_path):
    whole = fit(make(random_state=random_state()))
    file = state(tmp_path, make(random_state=random_state()))
    assert_same(fit(make(random_state=random_state()), resume=file), whole)


@pytest.mark.parametrize("make", [explicit, implicit])
def test_a_fit_without_a_seed_goes_on_from_the_factors_it_had(make, tmp_path):
    model = make(random_state=None)
    whole = None
    files = states(tmp_path, model)
    for file in files:
        found = fit(make(random_state=None), resume=file)
        assert_same(found, model)
        whole = whole or fit(make(random_state=None))
    assert not np.array_equal(whole.item_factors, model.item_factors)


# When the state is saved


def saved_after(place, *, tick=lambda: None, resume=None):
    """Fit; return after which iterations the state was saved."""
    after = set()

    def look(*_):
        tick()
        if place.path.exists():
            after.add(Saved.read(place.path).report.iterations)

    fit(explicit(), checkpoint=place, callback=look, resume=resume)
    look()
    return sorted(after)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (None, [1, 2, 3, 4, 5, 6, 7, 8]), (1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 6, 8]), (8, [8]),
        (np.int64(5), [5, 8]), (100, [8]),
    ],
)  # fmt: skip
def test_every_n_iterations_and_after_the_last(every, expected, tmp_path):
    assert saved_after(Checkpoint(tmp_path / "s", iterations=every)) == expected


def test_iterations_are_counted_from_the_state_gone_on_from(tmp_path):
    file = state(tmp_path, explicit(), 2)
    assert saved_after(Checkpoint(tmp_path / "s", iterations=3), resume=file) == [5, 8]


@pytest.mark.parametrize(
    ("seconds", "every", "expected"),
    [
        (0, None, [1, 2, 3, 4, 5, 6, 7, 8]),
        (24, None, [3, 6, 8]),  # not 5: the clock starts once the state is saved
        (np.float32(30), None, [3, 6, 8]),
        (31, None, [4, 8]),
        (24, 5, [3, 6, 8]),
        (24, 2, [2, 4, 6, 8]),
        (1e9, 5, [5, 8]),
    ],
)
def test_every_so_many_seconds_and_after_the_last(seconds, every, expected, tmp_path, monkeypatch):
    """Each iteration takes 10 seconds, and saving 4."""
    now, write = [1000.0], checkpoint.write_arrays

    def pass_time(seconds):
        now[0] += seconds

    def slow_write(*args):
        pass_time(4)
        write(*args)

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoint, "write_arrays", slow_write)
    place = Checkpoint(tmp_path / "s", iterations=every, seconds=seconds)
    assert saved_after(place, tick=lambda: pass_time(10)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be an integer from 1 or None, not 0"),
        ({"iterations": 2.0}, "iterations must be an integer from 1"),
        ({"iterations": True}, "iterations must be an integer from 1"),
        ({"seconds": -1}, "seconds must be a finite number from 0 or None, not -1"),
        ({"seconds": float("nan")}, "seconds must be a finite number"),
        ({"seconds": float("inf")}, "seconds must be a finite number"),
        ({"seconds": "1"}, "seconds must be a finite number"),
        ({"file": 3}, "its file must be a path, not 3"),
        ({"file": None}, "its file must be a path"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(InputError, match=f"checkpoint: {message}"):
        Checkpoint(**{"file": "state"} | options)


# Where it is saved, and what is read


def test_a_checkpoint_is_a_path_or_a_schedule(tmp_path):
    for place in (tmp_path / "a", str(tmp_path / "b.npz"), Checkpoint(tmp_path / "c")):
        fit(explicit(), checkpoint=place)
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz", "c.npz"]
    with pytest.raises(InputError, match="checkpoint: its file must be a path, not True"):
        fit(explicit(), checkpoint=True)


@pytest.mark.parametrize("place", ["nowhere/s.npz", "folder"])
def test_a_place_that_cannot_be_written_is_refused_before_training(place, tmp_path):
    (tmp_path / "folder.npz").mkdir()
    called = []
    with pytest.raises(InputError, match=r"checkpoint: .* pass a file in a folder that exists"):
        fit(explicit(), checkpoint=tmp_path / place, callback=lambda *_: called.append(1))
    assert called == []


@pytest.mark.parametrize("make", [explicit, implicit])
def test_resume_true_goes_on_from_the_file_of_the_checkpoint_or_starts_afresh(make, tmp_path):
    whole = fit(make())
    place = Checkpoint(tmp_path / "state", iterations=2)
    assert_same(fit(make(), checkpoint=place, resume=True), whole)
    file = state(tmp_path, make(), 3)
    begun = []
    fit(make(), checkpoint=place, resume=True, callback=lambda *told: begun.append(told[0]))
    assert begun[0] == 3
    shutil.copy(file, tmp_path / "elsewhere")
    for resume in (False, None):  # both start afresh
        begun.clear()
        fit(make(), checkpoint=place, resume=resume, callback=lambda *told: begun.append(told[0]))
        assert begun[0] == 0


def test_resume_true_needs_a_checkpoint():
    with pytest.raises(InputError, match=r"resume=True .* pass checkpoint=FILE too, or resume=F"):
        fit(explicit(), resume=True)


def test_a_file_named_in_resume_has_to_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        fit(explicit(), resume=tmp_path / "missing.npz", checkpoint=tmp_path / "s.npz")


def test_a_folder_of_the_same_name_is_not_taken_for_the_file(tmp_path):
    (tmp_path / "state").mkdir()
    state(tmp_path, explicit(), 3)
    model = fit(explicit(), checkpoint=tmp_path / "state", resume=True)
    assert_same(model, fit(explicit()))


def test_a_fit_can_go_on_in_another_file(tmp_path):
    first = state(tmp_path, explicit(), 3)
    before = first.read_bytes()
    fit(explicit(), resume=first, checkpoint=tmp_path / "second")
    assert first.read_bytes() == before
    assert Saved.read(tmp_path / "second.npz").report.iterations == ITERATIONS


def test_best_factors_are_stored_only_where_they_are_not_the_last(tmp_path):
    make, params, how = CASES["explicit, best in the middle"]
    best = fit(make(**params), **how).report_.best_iteration
    for iterations, file in enumerate(states(tmp_path, make(**params), **how), 1):
        assert ("best_user_factors" in read_arrays(file)) == (iterations > best)


# What is refused


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
        r".* is the state of another fit; different: (.*)\. Go on with the parameters and the data "
        "it was started with, or start afresh without resume",
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


def test_a_fit_goes_on_on_another_device(cupy_backend, tmp_path):  # noqa: F811
    """Not to the bit: devices round differently."""
    file = state(tmp_path, implicit(use_cg=False))
    moved = fit(implicit(use_cg=False, use_gpu=True), resume=file)
    expected = fit(implicit(use_cg=False))
    np.testing.assert_allclose(moved.user_factors, expected.user_factors, rtol=1e-3, atol=1e-4)
    assert moved.report_.device == cupy_backend.device


def other_value(matrix, draw):
    changed = matrix.copy()
    changed.data[draw(st.integers(0, matrix.nnz - 1))] += draw(st.sampled_from([-0.25, 1e-4, 3]))
    return changed


def one_entry_less(matrix, draw):
    dense = matrix.toarray()
    rows, columns = matrix.nonzero()
    entry = draw(st.integers(0, matrix.nnz - 1))
    dense[rows[entry], columns[entry]] = 0
    return sp.csr_matrix(dense)


def entry_elsewhere(matrix, draw):
    """Move an entry to an empty cell, of its row or of another."""
    dense = matrix.toarray()
    rows, columns = matrix.nonzero()
    empty_rows, empty_columns = np.nonzero(dense == 0)
    old, new = (draw(st.integers(0, len(of) - 1)) for of in (rows, empty_rows))
    dense[empty_rows[new], empty_columns[new]] = dense[rows[old], columns[old]]
    dense[rows[old], columns[old]] = 0
    return sp.csr_matrix(dense)


def larger(matrix, draw):
    """Add empty rows or columns."""
    rows, columns = draw(st.sampled_from([(1, 0), (0, 1), (2, 3)]))
    changed = matrix.copy()
    changed.resize((N_USERS + rows, N_ITEMS + columns))
    return changed


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return files of the state after three iterations, by what made them."""
    return {make: state(tmp_path_factory.mktemp("state"), make()) for make in (explicit, implicit)}


@BY_HYPOTHESIS
@given(data=st.data())
@pytest.mark.parametrize("make", [explicit, implicit])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_value, "data"),
        (one_entry_less, "entries"),
        (entry_elsewhere, "data"),
        (larger, "shape"),
    ],
)
def test_other_ratings_are_refused_by_name(change, named, make, saved, data):
    if named == "data":
        named = "ratings" if make is explicit else "user_items"
    with pytest.raises(CheckpointError, match=rf"different: .*\b{named} \(then"):
        fit(make(), change(RATINGS, data.draw), resume=saved[make])


def test_the_message_says_how_large_both_were(saved):
    smaller = RATINGS[:-1]
    message = (
        rf"shape \(then \[40, 30\], now \[39, 30\]\), "
        rf"entries \(then {RATINGS.nnz}, now {smaller.nnz}\), ratings \(then"
    )
    with pytest.raises(CheckpointError, match=message):
        fit(explicit(), smaller, resume=saved[explicit])


@BY_HYPOTHESIS
@given(entry=st.integers(0, RATINGS.nnz - 1), weight=st.sampled_from([None, 1e-3, 1.001, 5]))
def test_other_weights_are_refused_by_name(entry, weight, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighted")
    weights = np.ones(RATINGS.nnz)
    file = state(folder, explicit(iterations=1), 1, sample_weight=weights)
    changed = None
    if weight is not None:
        changed = weights.copy()
        changed[entry] = weight
    with pytest.raises(
        CheckpointError, match=r"different: sample_weight \(then '\w+', now '\w+'\)\."
    ):
        fit(explicit(), resume=file, sample_weight=changed)


@BY_HYPOTHESIS
@given(data=st.data())
def test_another_validation_set_is_refused_by_name(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("validated")
    triples = HELD_OUT.tocoo()
    triples = [triples.row, triples.col, triples.data]
    file = state(folder, explicit(iterations=1), 1, validation=tuple(triples))
    changed = None
    part = data.draw(st.sampled_from([None, 0, 1, 2]))
    if part is not None:
        changed = [array.copy() for array in triples]
        place = data.draw(st.integers(0, HELD_OUT.nnz - 1))
        changed[part][place] = (changed[part][place] + 1) % N_ITEMS
        changed = tuple(changed)
    with pytest.raises(CheckpointError, match=r"different: validation \(then '\w+', now '\w+'\)\."):
        fit(explicit(), resume=file, validation=changed)


# What counts as the same data


def wide(matrix):
    """Return the same matrix with 64-bit indices."""
    same = matrix.copy()
    same.indices, same.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return same


def shuffled(matrix):
    """Return the same matrix with the entries of each row in another order."""
    triples = matrix.tocoo()
    order = np.random.default_rng(4).permutation(matrix.nnz)
    order = order[np.argsort(triples.row[order], kind="stable")]
    return sp.csr_matrix((triples.data[order], triples.col[order], matrix.indptr), matrix.shape)


@pytest.mark.parametrize("make", [explicit, implicit])
@pytest.mark.parametrize(
    "as_given",
    [
        wide,
        shuffled,
        lambda matrix: matrix.toarray(),
        lambda matrix: matrix.astype(np.float32),
        sp.csr_array,
        lambda matrix: Interactions(matrix, np.array([f"u{n}" for n in range(N_USERS)])),
    ],
    ids=["int64 indices", "unsorted", "dense", "float32", "array", "with ids"],
)
def test_the_same_ratings_in_another_form_are_the_same_data(make, as_given, saved):
    assert_same(fit(make(), as_given(RATINGS), resume=saved[make]), fit(make()))


def test_a_validation_set_in_another_form_is_the_same_data(tmp_path):
    triples = HELD_OUT.tocoo()
    file = state(tmp_path, explicit(), validation=HELD_OUT)
    as_tuple = triples.row.astype(np.int64), triples.col.astype(np.uint16), triples.data
    whole = fit(explicit(), validation=HELD_OUT)
    assert_same(fit(explicit(), resume=file, validation=as_tuple), whole)


# Files that are no checkpoint


def refuse(file, message, make=explicit):
    """Assert that a file is refused, and that the model stays as it was."""
    model = make()
    with pytest.raises(CheckpointError, match=message):
        fit(model, resume=file)
    assert model.user_factors is None
    assert model.report_ is None


@BY_HYPOTHESIS
@given(data=st.data())
def test_every_truncation_is_refused(saved, data, tmp_path_factory):
    whole = saved[explicit].read_bytes()
    file = tmp_path_factory.mktemp("cut") / "s.npz"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refuse(file, "truncated|corrupted")


@BY_HYPOTHESIS
@given(data=st.data())
def test_a_flipped_byte_is_refused_or_harmless(saved, data, tmp_path_factory):
    whole = bytearray(saved[explicit].read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    file = tmp_path_factory.mktemp("flipped") / "s.npz"
    file.write_bytes(whole)
    try:
        model = fit(explicit(), resume=file)
    except CheckpointError:
        return
    assert_same(model, fit(explicit()))  # only dates and the like are outside the checksums


@pytest.mark.parametrize("content", [b"", b"user,item\n1,2\n", b"PK\x05\x06", b"\x93NUMPY"])
def test_files_of_another_kind_are_refused(content, tmp_path):
    file = tmp_path / "s.npz"
    file.write_bytes(content)
    refuse(file, r"s\.npz: ")


def test_models_and_other_arrays_are_refused(tmp_path):
    fit(explicit()).save(tmp_path / "model.npz")
    np.savez(tmp_path / "arrays.npz", user_factors=np.ones((N_USERS, 8), np.float32))
    sp.save_npz(tmp_path / "matrix.npz", RATINGS)
    for name in ("model", "arrays", "matrix"):
        refuse(tmp_path / f"{name}.npz", "no checkpoint of this version of gpu_als; pass a file")


def rewritten(file, folder, **changes):
    """Return a copy of a file with some arrays replaced, or left out where None."""
    arrays = read_arrays(file) | changes
    write_arrays(folder / "s.npz", {name: a for name, a in arrays.items() if a is not None})
    return folder / "s.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_factors": np.full((N_USERS, 8), np.nan, np.float32)}, "hold NaN or inf"),
        ({"item_factors": np.full((N_ITEMS, 8), np.inf, np.float32)}, "hold NaN or inf"),
        ({"user_factors": np.ones((N_USERS, 7), np.float32)}, r"of the shapes \(\(40, 8\)"),
        ({"item_factors": np.ones(N_ITEMS * 8, np.float32)}, "of the shapes"),
        ({"item_factors": np.ones((N_USERS, 8), np.float32)}, "of the shapes"),
        ({"user_factors": np.ones((N_USERS, 8))}, "no float32 arrays"),
        ({"user_factors": np.full((N_USERS, 8), "x")}, "incomplete or contradicts itself"),
        ({"user_factors": None}, "incomplete or contradicts itself"),
        ({"kind": "gpu_als checkpoint 0"}, "no checkpoint of this version"),
        ({"state": None}, "incomplete or contradicts itself"),
        ({"state": ""}, "incomplete or contradicts itself"),
        ({"state": np.zeros(3)}, "incomplete or contradicts itself"),
        ({"state": "[]"}, "incomplete or contradicts itself"),
        ({"state": 100_000 * "["}, "incomplete or contradicts itself"),
    ],
)
def test_a_state_that_lacks_something_is_refused(change, message, saved, tmp_path):
    refuse(rewritten(saved[explicit], tmp_path, **change), message)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": [1.0]},
        {"losses": [1.0, 2.0, "3"]},
        {"losses": 3},
        {"seconds": [[1.0]] * 3},
        {"metrics": [{"rmse": 1.0}]},
        {"metrics": [{}] * 3},
        {"metrics": [{"rmse": None}] * 3},
        {"best_iteration": 4},
        {"best_iteration": -1},
        {"best_iteration": 1},  # without a validation set the last is the best
        {"max_residual": "0"},
        {"mood": "good"},
    ],
)
def test_a_report_that_contradicts_itself_is_refused(change, saved, tmp_path):
    content = json.loads(str(read_arrays(saved[explicit])["state"]))
    content["report"] |= change
    file = rewritten(saved[explicit], tmp_path, state=json.dumps(content))
    refuse(file, "incomplete or contradicts itself .* start afresh without resume")


def test_best_factors_are_checked_like_the_others(tmp_path):
    make, params, how = CASES["explicit, best at the start"]
    file = state(tmp_path, make(**params), **how)
    users = read_arrays(file)["best_user_factors"]
    for change, message in ((users * np.nan, "NaN"), (users[:3], "shapes"), (None, "incomplete")):
        (tmp_path / "broken").mkdir(exist_ok=True)
        broken = rewritten(file, tmp_path / "broken", best_user_factors=change)
        with pytest.raises(CheckpointError, match=message):
            fit(make(**params), resume=broken, **how)


# Disks that fill up, and kill -9


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_former_state_and_says_which_file(failing, tmp_path, monkeypatch):
    file = tmp_path / "s.npz"
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise full

    def fill_up(iteration, *_):
        if iteration == 4:
            if failing == "write":
                monkeypatch.setattr(checkpoint, "write_arrays", fail)
            else:
                monkeypatch.setattr(atomic.os, failing, fail)

    model = explicit()
    with pytest.raises(OSError, match=r"No space left on device: '.*s\.npz'"):
        fit(model, checkpoint=file, callback=fill_up)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["s.npz"]
    assert Saved.read(file).report.iterations == 4
    assert_same(fit(explicit(), checkpoint=file, resume=True), fit(explicit()))


def test_what_killed_fits_left_beside_the_file_is_deleted_and_nothing_else(tmp_path):
    left = tmp_path / ".s.npz.0123456789abcdef.tmp"
    others = [
        ".other.npz.0123456789abcdef.tmp", ".s.npz.0123456789abcdeg.tmp", "s.npz.tmp",
        ".s.npz.0123456789abcdef.tmp.gz",
    ]  # fmt: skip
    for name in (left, *others):
        (tmp_path / name).write_bytes(b"half a state")
    fit(explicit(), checkpoint=tmp_path / "s")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "s.npz"])


def test_a_name_that_looks_like_a_pattern_stands_for_itself_alone(tmp_path):
    left, other = (f".{name}.npz.0123456789abcdef.tmp" for name in ("s[12]*", "s1"))
    for name in (left, other):
        (tmp_path / name).write_bytes(b"half a state")
    fit(explicit(), checkpoint=tmp_path / "s[12]*")
    assert sorted(os.listdir(tmp_path)) == sorted([other, "s[12]*.npz"])


KILLS = 50
LINES = 6000
"""A child is killed within so many lines of training and saving, those of a few iterations."""
KILLED_IN = {"checkpoint.py", "atomic.py", "model_file.py", "training.py", "zipfile.py"}


def kill_at(line):
    """Have this process killed once so many lines of training and saving have been run."""
    done = 0

    def on_line(frame, event, _):
        nonlocal done
        done += event == "line"
        if done >= line:
            os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    def on_call(frame, *_):
        return on_line if Path(frame.f_code.co_filename).name in KILLED_IN else None

    sys.settrace(on_call)


def kill_fits(case, folder):
    """Fit in child processes, each of which goes on where the one before was killed.

    Return how many of them were killed, came to the end, and left a state behind half-written.
    """
    make, params, how = CASES[case]
    whole = fit(make(**params), **how)
    rng = np.random.default_rng(17)
    file, result = Path(folder, "s.npz"), Path(folder, "result.npz")
    told = {"killed": 0, "ended": 0, "half-written": 0}
    reached = 0
    while told["killed"] < KILLS:
        line = rng.integers(1, LINES)
        child = os.fork()
        if child == 0:
            kill_at(line)
            model = fit(make(**params), checkpoint=file, resume=True, **how)
            sys.settrace(None)
            found = fitted_arrays(model) | {"course": json.dumps(course(model.report_))}
            write_arrays(result, found)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            told["killed"] += 1
            left = os.listdir(folder)
            told["half-written"] += len(left) - file.exists()
            assert len(left) <= 2  # what others left was deleted
            if file.exists():
                iterations = Saved.read(file).report.iterations
                assert iterations >= reached
                reached = iterations
            continue
        assert status == 0
        told["ended"] += 1
        found = read_arrays(result)
        assert json.loads(str(found.pop("course"))) == course(whole.report_)
        for name, array in fitted_arrays(whole).items():
            assert found[name].tobytes() == array.tobytes()
        assert sorted(os.listdir(folder)) == ["result.npz", "s.npz"]
        result.unlink()
        file.unlink()
        reached = 0
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 and fork are of POSIX")
@pytest.mark.parametrize("case", ["explicit, best in the middle", "implicit, exact"])
def test_fits_killed_at_any_moment_never_break_the_state_and_end_as_if_never_killed(case, tmp_path):
    """They are forked by a process of its own, because this one may have threads."""
    code = "import sys, json, test_checkpoint as t; print(json.dumps(t.kill_fits(*sys.argv[1:])))"
    told = json.loads(
        subprocess.run(
            [sys.executable, "-c", code, case, str(tmp_path)],
            cwd=Path(__file__).parent,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
            timeout=200,
        ).stdout
    )
    assert told["killed"] == KILLS
    assert told["half-written"] >= 5  # the kills were where it matters,
    assert told["ended"] >= 2  # and yet the fits have come to their end
