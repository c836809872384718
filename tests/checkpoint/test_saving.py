"""When and where the state is saved, and which file a fit continues from."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from checkpoint.common import CASES, ITERATIONS, assert_same, explicit, fit, implicit, state, states
from gpu_als import Checkpoint
from gpu_als.data.model_file import read_arrays
from gpu_als.errors import InputError
from gpu_als.train import checkpoint
from gpu_als.train.checkpoint import Saved

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
