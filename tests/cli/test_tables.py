"""``similar``, ``predict``, ``split`` and ``export``; names of items."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

import gpu_als
from gpu_als.cli import main
from gpu_als.data import read_interactions
from gpu_als.errors import InputError


def run(*arguments):
    return main([*map(str, arguments)])


def printed(capsys, *arguments):
    assert run(*arguments) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def entries(file):
    ratings = read_interactions(file, dtype=np.float64)
    found = ratings.user_items.tocoo()
    users, items = ratings.user_ids[found.row], ratings.item_ids[found.col]
    return set(zip(users.tolist(), items.tolist(), found.data.tolist(), strict=True))


@pytest.mark.parametrize("side", ["item", "user"])
def test_similar_rows_are_those_of_the_model(files, capsys, side):
    model = gpu_als.load(files / "implicit.npz")
    wanted = ["1003", "1007"] if side == "item" else ["u3", "u7"]
    options = ["--users"] if side == "user" else []
    lines = printed(capsys, "similar", files / "implicit.npz", *wanted, "-n", 3, *options)
    found, scores = getattr(model, f"similar_{side}s")(
        [int(each) for each in wanted] if side == "item" else wanted, 3
    )
    assert [line["similar"] for line in lines] == found.astype(str).ravel().tolist()
    assert [line[side] for line in lines] == np.repeat(wanted, 3).tolist()
    np.testing.assert_allclose([float(line["score"]) for line in lines], scores.ravel(), rtol=1e-5)
    assert lines[0]["similar"] == wanted[0]


def test_items_are_shown_with_their_names(files, tmp_path, capsys):
    named = tmp_path / "names.csv"
    named.write_text('movieId,genre,Title\n1003,x,"Heat, 1995"\n1007,x,caf\xe9\n')
    model = files / "implicit.npz"
    lines = printed(capsys, "similar", model, 1003, "-n", 60, "--item-names", named)
    assert {line["similar"]: line["name"] for line in lines if line["name"]} == {
        "1003": "Heat, 1995",
        "1007": "caf\xe9",
    }
    named.write_text("1003|Heat\n1007|Up|3\n")  # no title: the second column
    options = "--users", "u7", "-n", 60, "--item-names", named, "--no-seen"
    lines = printed(capsys, "recommend", model, *options)
    assert {line["item"]: line["name"] for line in lines if line["name"]} == {
        "1003": "Heat",
        "1007": "Up",
    }
    assert run("recommend", model, *options, "--json") == 0
    user = json.loads(capsys.readouterr().out)[0]
    assert user["names"][user["items"].index(1007)] == "Up"
    named.write_text("1003\n")
    assert run("recommend", model, *options) == 2
    assert "line 1: found 1 columns" in capsys.readouterr().err


def test_predictions_are_those_of_the_model(files, tmp_path, capsys):
    model = gpu_als.load(files / "explicit.npz")
    target = tmp_path / "p.csv.gz"
    assert run("predict", files / "explicit.npz", files / "test.csv") == 2
    assert "'nobody'" in capsys.readouterr().err
    command = "predict", files / "explicit.npz", files / "test.csv", "--unknown"
    assert run(*command, "skip", "-o", target) == 0
    assert "Skipped 2 unknown pairs" in capsys.readouterr().err
    lines = list(csv.DictReader(io.StringIO(gzip.decompress(target.read_bytes()).decode())))
    users, items = ([line[side] for line in lines] for side in ("user", "item"))
    expected = model.predict(users, [int(item) for item in items])
    assert (
        np.array([line["prediction"] for line in lines], np.float32).tolist() == expected.tolist()
    )
    lines = printed(capsys, *command, "mean")
    assert float(lines[-2]["prediction"]) == pytest.approx(
        model.predict(["nobody"], [1001], unknown="skip")[0], rel=1e-5
    )


def test_splits_are_partitions_of_the_file(files, tmp_path, capsys):
    whole = entries(files / "train.csv")
    parts = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    for options in (["--test", 0.3], ["--leave-out", 2], ["--by-time", "rating", "--test", 0.25]):
        assert run("split", files / "train.csv", *parts, *options) == 0
        train, test = map(entries, parts)
        assert train | test == whole
        assert not train & test
    assert max(value for *_, value in train) <= min(value for *_, value in test)
    assert len(test) == pytest.approx(len(whole) / 4, abs=0.02 * len(whole))
    assert run("split", files / "train.csv", tmp_path / "a.txt", parts[1]) == 2
    assert "must end in .csv" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_exported_factors_are_those_of_the_model(files, tmp_path, kind):
    model = gpu_als.load(files / f"{kind}.npz")
    for suffix in ("npy", "csv", "parquet"):
        assert run("export", files / f"{kind}.npz", tmp_path / f"f.{suffix}") == 0
    assert np.load(tmp_path / "f.npy").tolist() == model.item_factors.tolist()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "f.csv").read_text())))
    assert [int(line["item"]) for line in lines] == model.item_ids.tolist()
    factors = [[line[f"f{n}"] for n in range(3)] for line in lines]
    assert np.array(factors, np.float32).tolist() == model.item_factors.tolist()
    assert ("bias" in lines[0]) == (kind == "explicit")
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "f.parquet").to_pydict()
    assert table["factors"] == model.item_factors.tolist()
    assert run("export", files / f"{kind}.npz", tmp_path / "f.csv", "--users") == 0
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 1 + len(model.user_ids)


def test_output_is_refused_before_work_is_done(files, tmp_path, capsys):
    for command in ("similar", "predict"):
        assert run(command, "no.npz", "x", "-o", tmp_path / "r.xls") == 2
        assert "must end in .csv" in capsys.readouterr().err
    assert run("export", "no.npz", tmp_path / "r.xls") == 2
    with pytest.raises(InputError):
        gpu_als.load(files / "implicit.npz").similar_items(3, 2)
