"""``gpu-als fit``: parameters, held-out ratings, files, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from gpu_als import AlternatingLeastSquares, ExplicitALS, metrics, read_interactions
from gpu_als.cli import main
from gpu_als.data import train_test_split
from gpu_als.data.readers import read_triples

FIT = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from gpu_als.cli import main; sys.exit(main(sys.argv[1:]))"
)


def fit_json(capsys, *arguments):
    assert main(["fit", *map(str, arguments), "--json", "-q", "--backend", "numpy"]) == 0
    return json.loads(capsys.readouterr().out)


def test_explicit_model_has_the_parameters_and_ids(files, tmp_path, capsys):
    target = tmp_path / "m.npz"
    fit_json(
        capsys, files / "train.csv", "-o", target, "--factors", 4, "--regularization", "0.3,0.2",
        "--scale-regularization", "none", "--no-bias", "--nonnegative", "items", "--iterations", 3,
        "--tol", "1e-9", "--dtype", "float64", "--threads", 1, "--seed", 9,
    )  # fmt: skip
    model = ExplicitALS.load(target)
    wanted = ExplicitALS(
        4, (0.3, 0.2), scale_regularization=None, bias=False, nonnegative="items", iterations=3,
        tol=1e-9, dtype=np.float64, random_state=9,
    )  # fmt: skip
    assert model.get_params() == wanted.get_params()
    ratings = read_interactions(files / "train.csv", dtype=np.float64)
    wanted.fit(ratings)
    np.testing.assert_array_equal(model.user_ids, ratings.user_ids)
    np.testing.assert_array_equal(model.item_ids, ratings.item_ids)
    np.testing.assert_allclose(model.user_factors, wanted.user_factors)
    assert (model.item_factors >= 0).all()


def test_implicit_model_has_the_parameters_and_ids(files, tmp_path, capsys):
    target = tmp_path / "m.npz"
    found = fit_json(
        capsys, files / "train.csv", "-o", target, "--model", "implicit", "--factors", 5,
        "--alpha", 7, "--use-cg", "--cg-steps", 2, "--unobserved-weight", 0.3,
        "--regularization-exponent", 0.5, "--seed", 9,
    )  # fmt: skip
    assert found["kind"] == "implicit"
    assert found["report"]["user_rows"] == {"cg": found["users"]}
    model = AlternatingLeastSquares.load(target)
    assert (model.factors, model.alpha, model.use_cg, model.cg_steps) == (5, 7, True, 2)
    assert (model.unobserved_weight, model.regularization_exponent) == (0.3, 0.5)
    ratings = read_interactions(files / "train.csv")
    np.testing.assert_array_equal(model.user_ids, ratings.user_ids)
    np.testing.assert_array_equal(model.item_ids, ratings.item_ids)
    assert model.user_index(["u7"]) == ratings.user_index(["u7"])


@pytest.mark.parametrize("model", ["explicit", "implicit"])
@pytest.mark.parametrize(("way", "rows"), [("--exact", "primal"), ("--use-cg", "cg")])
def test_ways_to_solve(model, way, rows, files, capsys):
    found = fit_json(capsys, files / "train.csv", "--model", model, "--factors", 2, way)
    assert rows in found["report"]["item_rows"]
    assert found["model"] is None


def test_validation_fraction_rmse_is_that_of_an_independent_split(files, tmp_path, capsys):
    target = tmp_path / "m.npz"
    found = fit_json(
        capsys, files / "train.csv", "-o", target, "--factors", 3, "--validation-fraction", 0.25,
        "--seed", 11, "--patience", 2,
    )  # fmt: skip
    matrix = read_interactions(files / "train.csv").user_items
    _, held_out = train_test_split(matrix, 0.75, random_state=12)
    held_out = held_out.tocoo()
    predicted = ExplicitALS.load(target).without_ids().predict(held_out.row, held_out.col)
    assert found["validation_ratings"] == held_out.nnz
    assert found["validation"]["rmse"] == pytest.approx(
        metrics.rmse(held_out.data, predicted), rel=1e-6
    )
    assert found["report"]["stopped"] in ("patience", "iterations")


def test_validation_file(files, capsys):
    arguments = ["fit", str(files / "train.csv"), "-q", "--factors", "3", "--backend", "numpy"]
    assert main([*arguments, "--validation", str(files / "test.csv")]) == 0
    shown = capsys.readouterr().out
    total = len(read_triples(files / "test.csv").users)
    assert f"Read {total:,} ratings for validation" in shown
    assert "dropped 2 of users or items" in shown
    assert "validation rmse" in shown
    assert "not saved" in shown


@pytest.mark.parametrize("model", ["explicit", "implicit"])
def test_validation_file_without_any_known_id(model, files, tmp_path, capsys):
    strange = tmp_path / "strange.csv"
    strange.write_text("user,item,rating\nx,1,2\n")
    arguments = ["fit", str(files / "train.csv"), "--model", model]
    assert main([*arguments, "--validation", str(strange)]) == 2
    assert "no rating in" in capsys.readouterr().err


def test_implicit_validation_is_ranked(files, capsys):
    found = fit_json(
        capsys, files / "train.csv", "--model", "implicit", "--factors", 3, "--validation",
        files / "test.csv",
    )  # fmt: skip
    assert 0 < found["validation"]["NDCG@10"] < 1


def test_columns_delimiter_header_and_duplicates(tmp_path, capsys):
    source = tmp_path / "plays.txt"
    source.write_text("3;song;x;eve\n1;song;x;adam\n5;song;x;adam\n2;tune;x;adam\n")
    arguments = [
        source, "--delimiter", ";", "--no-header", "--user-column", 3, "--item-column", 1,
        "--rating-column", 0, "--factors", 1,
    ]  # fmt: skip
    totals = {}
    for kind, duplicates in (("explicit", None), ("implicit", None), ("explicit", "sum")):
        more = [] if duplicates is None else ["--duplicates", duplicates]
        target = tmp_path / f"{kind}{duplicates}.npz"
        fit_json(capsys, *arguments, "--model", kind, "-o", target, *more)
        totals[kind, duplicates] = target
    last, summed = (ExplicitALS.load(totals["explicit", way]).global_mean for way in (None, "sum"))
    assert last == pytest.approx((3 + 5 + 2) / 3)
    assert summed == pytest.approx((3 + 6 + 2) / 3)
    model = AlternatingLeastSquares.load(totals["implicit", None])
    assert model.user_ids.tolist() == ["adam", "eve"]
    assert model.item_ids.tolist() == ["song", "tune"]


def test_output_never_overwrites_the_ratings(tmp_path, capsys):
    source = tmp_path / "ratings.npz"
    np.savez(source, users=[1, 2], items=[3, 4], ratings=[1.0, 2.0])
    before = source.read_bytes()
    assert main(["fit", str(source), "-o", str(tmp_path / "ratings")]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_plot(files, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    target = tmp_path / "curve.png"
    fit_json(
        capsys, files / "train.csv", "--factors", 2, "--iterations", 2, "--plot", target,
        "--validation-fraction", 0.2,
    )  # fmt: skip
    assert target.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["fit", str(files / "train.csv"), "--plot", str(tmp_path / "c.png")]) == 2
    assert 'pip install "gpu-als[plot]"' in capsys.readouterr().err


@contextmanager
def running(*command, **pipes):
    """Run a command, and kill it if the test fails."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream, pattern):
    """Read a pipe byte by byte until what came matches."""
    seen = b""
    while not re.search(pattern, seen):
        byte = stream.read(1)
        assert byte, seen.decode()
        seen += byte


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("model", ["explicit", "implicit"])
def test_interrupt_saves_the_last_complete_iteration(model, files, tmp_path):
    target = tmp_path / "m.npz"
    command = [
        sys.executable, "-c", FIT, "fit", str(files / "train.csv"), "-o", str(target), "--model",
        model, "--factors", "3", "--iterations", "100000", "--backend", "numpy", "--json",
    ]  # fmt: skip
    with running(*command, stdout=subprocess.PIPE) as process:
        read_until(process.stderr, rb"[1-9]\d*/100000")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=200)
    assert process.returncode == 130
    found = json.loads(rest)
    assert found["interrupted"] is True
    assert 1 <= len(found["report"]["losses"]) < 100000
    assert len(found["report"]["seconds"]) == len(found["report"]["losses"])
    kind = ExplicitALS if model == "explicit" else AlternatingLeastSquares
    loaded = kind.load(target)
    assert loaded.user_ids.tolist() == read_interactions(files / "train.csv").user_ids.tolist()
    assert os.listdir(tmp_path) == ["m.npz"]


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_second_interrupt_aborts_at_once(files, tmp_path):
    target = tmp_path / "m.npz"
    # A callback that never returns stands for a long iteration.
    slow = FIT.replace("sys.exit(", "").replace(
        "main(sys.argv[1:]))",
        "from gpu_als.cli.interrupt import GracefulInterrupt as G; import time; "
        "G.callback = lambda *_: time.sleep(1000); main(sys.argv[1:])",
    )
    command = [
        sys.executable, "-c", slow, "fit", str(files / "train.csv"), "-o", str(target),
        "--factors", "3", "--iterations", "100000", "--backend", "numpy",
    ]  # fmt: skip
    with running(*command, stdout=subprocess.DEVNULL) as process:
        read_until(process.stderr, b"0/100000")  # the progress bar: training is under way
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, b"again to abort")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=200) == -signal.SIGINT
    assert os.listdir(tmp_path) == []
