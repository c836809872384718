"""Fits that are stopped and gone on with are the uninterrupted one, from start to end."""

import numpy as np
import pytest

from checkpoint.common import (
    CASES,
    ITERATIONS,
    N_USERS,
    RATINGS,
    assert_same,
    explicit,
    fit,
    implicit,
    state,
    states,
)
from gpu_als.errors import CheckpointError


def check_stops(folder, case, where, every):
    """Assert that fits stopped every so many iterations and gone on with find what one does."""
    make, params, how = CASES[case]
    whole = fit(make(**params, **where), **how)
    files = states(folder, make(**params, **where), **how)
    assert len(files) == whole.report_.iterations > 3
    for file in files[::every]:
        assert_same(fit(make(**params, **where), resume=file, **how), whole)
    return whole.report_


@pytest.mark.parametrize("case", CASES)
def test_a_fit_gone_on_with_is_the_uninterrupted_one_to_the_bit(case, tmp_path):
    report = check_stops(tmp_path, case, {}, 2)
    if "tol" in case or "patience" in case:
        assert report.stopped in ("tol", "patience")
    if "best" in case:  # so that stops come before and after the best iteration
        best = {"start": [1], "middle": [3, 4, 5], "end": [ITERATIONS]}[case.split()[-1]]
        assert report.best_iteration in best


@pytest.mark.parametrize(
    "case",
    ["explicit, float64", "explicit, non-negative", "implicit, cg", "implicit, ials"],
)
def test_a_fit_gone_on_with_on_a_gpu_is_the_uninterrupted_one_to_the_bit(
    case,
    cupy_backend,
    tmp_path,
):
    where = {"backend": "cupy"} if case.startswith("explicit") else {"use_gpu": True}
    check_stops(tmp_path, case, where, 3)


# Where a fit begins and ends


@pytest.mark.parametrize("case", ["explicit, patience", "implicit, exact"])
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
    ["explicit, best in the middle", "explicit, best at the end", "implicit, cg"],
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


@pytest.mark.parametrize(
    ("make", "random_state"),
    [
        (explicit, lambda: np.int64(3)),
        (explicit, lambda: np.random.default_rng(3)),
        (implicit, lambda: np.random.default_rng(3)),
        (implicit, lambda: np.random.RandomState(3)),
    ],
    ids=["numpy int", "Generator", "Generator, implicit", "RandomState"],
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
