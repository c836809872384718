"""Disks that fill up and processes that are killed leave a whole state behind."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoint.common import CASES, assert_same, course, explicit, fit, fitted_arrays
from gpu_als.data import atomic
from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.train import checkpoint
from gpu_als.train.checkpoint import Saved


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


KILLS = 20
LINES = 6000
"""A child is killed within so many lines of training and saving, those of a few iterations."""
KILLED_IN = {"checkpoint.py", "atomic.py", "model_file.py", "loop.py", "zipfile.py"}


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
def test_fits_killed_at_any_moment_never_break_the_state_and_end_as_if_never_killed(tmp_path):
    """They are forked by a process of its own, because this one may have threads."""
    code = (
        "import sys, json, checkpoint.test_killed as t; "
        "print(json.dumps(t.kill_fits(*sys.argv[1:])))"
    )
    told = json.loads(
        subprocess.run(
            [sys.executable, "-c", code, "explicit, best in the middle", str(tmp_path)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
            timeout=200,
        ).stdout
    )
    assert told["killed"] == KILLS
    assert told["half-written"] >= 2  # the kills were where it matters,
    assert told["ended"] >= 1  # and yet the fits have come to their end
