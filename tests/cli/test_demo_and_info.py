"""``gpu-als demo`` and ``gpu-als info``."""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import scipy

from gpu_als.cli import main

SMALL = ["--users", "400", "--items", "150", "--ratings", "20000", "--backend", "numpy"]


def test_demo_in_a_process_of_its_own(tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "curve.png"
    command = [sys.executable, "-m", "gpu_als", "demo", *SMALL, "--plot", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for text in (
        "held-out RMSE", "0.5000", "no model can do better", "million ratings per second",
        "Device: CPU", "gpu-als fit ratings.csv -o model.npz", "gpu-als recommend", "gpu-als info",
    ):  # fmt: skip
        assert text in done.stdout
    assert "8/8" in done.stderr  # the progress bar
    assert target.read_bytes().startswith(b"\x89PNG")


def test_demo_approaches_the_noise(capsys):
    arguments = ["--users", "900", "--items", "400", "--ratings", "100000", "--seed", "3"]
    assert main(["demo", *arguments, "--backend", "numpy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rmse = [row["held_out_rmse"] for row in found["iterations"]]
    assert found["best_held_out_rmse"] == min(rmse)
    assert 0.95 * found["noise_floor"] < min(rmse) < 1.15 * found["noise_floor"] < rmse[0]
    losses = [row["loss"] for row in found["iterations"]]
    assert losses == sorted(losses, reverse=True)
    assert found["training_ratings"] + found["held_out_ratings"] == 100000


def test_demo_is_repeatable(capsys):
    runs = []
    for _ in range(2):
        assert main(["demo", *SMALL, "--iterations", "2", "--json"]) == 0
        runs.append(json.loads(capsys.readouterr().out)["best_held_out_rmse"])
    assert runs[0] == runs[1]


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["scipy"] == scipy.__version__
    assert 1 <= found["processors"] <= os.cpu_count()
    assert (found["gpu"] is None) == (found["gpu_problem"] is not None)
    assert main(["info"]) == 0
    assert np.__version__ in capsys.readouterr().out
