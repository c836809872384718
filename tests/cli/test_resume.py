"""``gpu-als fit --checkpoint --resume``: runs that were killed or interrupted are completed."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from cli.test_fit import FIT, read_until, running

from gpu_als.cli import main
from gpu_als.cli.interrupt import GracefulInterrupt

KINDS = {"explicit": ["--validation-fraction", "0.2"], "implicit": ["--model", "implicit"]}

# Stops for good in the callback of an iteration: its state, and what follows, are not yet saved.
HANGING = """
import sys, time
from gpu_als.cli import main
from gpu_als.cli.interrupt import GracefulInterrupt

def callback(self, iteration, seconds, loss):
    if iteration == 5:
        print("hangs", flush=True)
        time.sleep(1000)

GracefulInterrupt.callback = callback
main(sys.argv[1:])
"""
needs_signals = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def command(kind, files, tmp_path):
    """Return a function from the names of files to the arguments of ``fit``."""

    def arguments(model, state=None, *more):
        saving = [] if state is None else ["--checkpoint", str(tmp_path / state)]
        return [
            "fit", str(files / "train.csv"), "-o", str(tmp_path / model), "--factors", "3",
            "--iterations", "9", "--seed", "7", "--backend", "numpy", *KINDS[kind], *saving, *more,
        ]  # fmt: skip

    return arguments


@pytest.fixture
def whole(command, tmp_path):
    """Return the model of an uninterrupted run."""
    assert main(command("whole.npz", None, "-q")) == 0
    return arrays(tmp_path / "whole.npz")


def arrays(path):
    """Return the bytes of every array of a model's file, but of those that tell the time."""
    with np.load(path) as stored:
        return {name: stored[name].tobytes() for name in stored if name != "about"}


@needs_signals
def test_a_killed_run_is_completed_to_the_same_model(command, whole, tmp_path, capsys):
    hanging = [sys.executable, "-c", HANGING, *command("m.npz", "state", "-q")]
    with running(*hanging, stdout=subprocess.PIPE) as process:
        read_until(process.stdout, b"hangs")
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=200) == -signal.SIGKILL
    assert not (tmp_path / "m.npz").exists()
    assert main(command("m.npz", "state", "--resume")) == 0
    shown = capsys.readouterr()
    assert f"Continuing from {tmp_path / 'state.npz'}" in shown.out
    assert "9 iterations in" in shown.out
    assert re.search(r"\b5/9\b", shown.err)  # where the progress bar begins
    assert arrays(tmp_path / "m.npz") == whole


@needs_signals
def test_an_interrupted_run_is_completed_to_the_same_model(command, tmp_path, capsys):
    arguments = command("m.npz", "state", "--iterations", "100000", "--json")
    with running(sys.executable, "-c", FIT, *arguments, stdout=subprocess.PIPE) as process:
        read_until(process.stderr, rb"[1-9]\d*/100000")
        process.send_signal(signal.SIGINT)
        told = json.loads(process.communicate(timeout=200)[0])
    assert process.returncode == 130
    assert told["interrupted"] is True
    run = len(told["report"]["losses"])
    more = "--iterations", str(run + 4), "-q"
    assert main(command("m.npz", "state", *more, "--resume")) == 0
    assert main(command("whole.npz", None, *more)) == 0
    assert arrays(tmp_path / "m.npz") == arrays(tmp_path / "whole.npz")


def test_interrupted_runs_say_how_they_go_on(command, capsys, monkeypatch):
    original = GracefulInterrupt.callback

    def press_ctrl_c(self, *told):
        self.requested = True
        original(self, *told)

    monkeypatch.setattr(GracefulInterrupt, "callback", press_ctrl_c)
    assert main(command("m.npz", "state", "-q")) == 130
    assert "The same command with --resume continues from here." in capsys.readouterr().out
    assert main(command("m.npz", None, "-q")) == 130
    assert "--resume" not in capsys.readouterr().out


def test_an_interrupted_run_ends_without_ranking(files, capsys, monkeypatch):
    """That takes a while, and whoever pressed Ctrl-C wants an end."""
    arguments = ["fit", str(files / "train.csv"), "--model", "implicit", "--backend", "numpy"]
    arguments += ["--factors", "3", "--validation-fraction", "0.2", "--json", "-q"]
    assert main(arguments) == 0
    assert "NDCG@10" in json.loads(capsys.readouterr().out)["validation"]
    original = GracefulInterrupt.callback

    def press_ctrl_c(self, *told):
        self.requested = True
        original(self, *told)

    monkeypatch.setattr(GracefulInterrupt, "callback", press_ctrl_c)
    assert main(arguments) == 130
    told = json.loads(capsys.readouterr().out)
    assert told["interrupted"]
    assert told["validation"] == {}


def test_a_complete_run_is_not_run_again(command, whole, tmp_path, capsys):
    assert main(command("m.npz", "state", "-q")) == 0
    first = (tmp_path / "state.npz").read_bytes()
    capsys.readouterr()
    assert main(command("m.npz", "state", "-q", "--resume", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["report"]["losses"]) == 9
    assert told["interrupted"] is False
    assert (tmp_path / "state.npz").read_bytes() == first
    assert arrays(tmp_path / "m.npz") == whole


def test_without_a_file_a_run_starts_afresh_and_says_so(command, whole, tmp_path, capsys):
    assert main(command("m.npz", "state.npz", "-q", "--resume")) == 0
    shown = capsys.readouterr().out
    assert f"There is no {tmp_path / 'state.npz'} yet; starting afresh" in shown
    assert arrays(tmp_path / "m.npz") == whole


def test_without_resume_a_run_starts_afresh(command, whole, tmp_path, capsys):
    assert main(command("m.npz", "state", "-q", "--iterations", "20")) == 0
    capsys.readouterr()
    assert main(command("m.npz", "state", "-q")) == 0
    assert "Continuing" not in capsys.readouterr().out
    assert arrays(tmp_path / "m.npz") == whole


@pytest.mark.parametrize("options", [["--resume"], ["--checkpoint-seconds", "5"]])
def test_options_that_need_a_checkpoint_say_so(options, command, capsys):
    assert main(command("m.npz", None, *options)) == 2
    assert "need --checkpoint STATE.npz" in capsys.readouterr().err


def test_another_run_is_refused_and_the_difference_named(command, tmp_path, capsys):
    assert main(command("m.npz", "state", "-q")) == 0
    before = (tmp_path / "m.npz").read_bytes()
    capsys.readouterr()
    assert main(command("m.npz", "state", "-q", "--resume", "--regularization", "0.7")) == 1
    assert re.search(r"regularization \(then 0\.\d+, now 0\.7\)\.", capsys.readouterr().err)
    assert main(command("m.npz", "state", "-q", "--resume", "--iterations", "4")) == 1
    assert "pass iterations=9 or more" in capsys.readouterr().err
    assert (tmp_path / "m.npz").read_bytes() == before
