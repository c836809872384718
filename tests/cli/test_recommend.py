"""``gpu-als recommend``: the file's own ids, filters, formats."""

import csv
import gzip
import io
import json

import numpy as np
import pytest
import scipy.sparse as sp

from gpu_als import AlternatingLeastSquares, ExplicitALS
from gpu_als.cli import main
from gpu_als.cli.output import printable
from gpu_als.data.readers import read_triples

ALL = "--min-ratings", 0


def recommend(capsys, *arguments):
    assert main(["recommend", *map(str, arguments)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def load(files, kind):
    loader = ExplicitALS if kind == "explicit" else AlternatingLeastSquares
    return loader.load(files / f"{kind}.npz")


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_ids_are_those_of_the_file_and_scores_those_of_the_model(kind, files, capsys):
    lines = recommend(capsys, files / f"{kind}.npz", "--users", "u7", "u11", "-n", 4, "--no-seen")
    model = load(files, kind)
    assert [line["user"] for line in lines] == ["u7"] * 4 + ["u11"] * 4
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4"] * 2
    users = model.user_index([line["user"] for line in lines])
    items = model.item_index([line["item"] for line in lines])
    if kind == "explicit":
        wanted = model.without_ids().predict(users, items)
    else:
        wanted = np.sum(model.user_factors[users] * model.item_factors[items], axis=1)
    np.testing.assert_allclose([float(line["score"]) for line in lines], wanted, rtol=1e-4)
    everything = model.user_factors[users[0]] @ model.item_factors.T
    if kind == "implicit":
        assert items[:4].tolist() == np.argsort(-everything)[:4].tolist()


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
@pytest.mark.parametrize(
    "source",
    [lambda files: ("--ratings", files / "train.csv"), lambda files: ()],
    ids=["file", "model"],
)
def test_what_users_have_is_left_out(kind, source, files, capsys):
    lines = recommend(capsys, files / f"{kind}.npz", "-n", 1000, *source(files), *ALL)
    users, items, _ = read_triples(files / "train.csv")
    had = set(zip(users.tolist(), map(str, items.tolist()), strict=True))
    listed = {(line["user"], line["item"]) for line in lines}
    assert not had & listed
    n_users, n_items = len(set(users.tolist())), len(set(items.tolist()))
    assert len(had) + len(listed) == len(lines) + len(had) == n_users * n_items
    assert all(np.isfinite(float(line["score"])) for line in lines)


def test_users_file_and_output_file(files, tmp_path, capsys):
    wanted, target = tmp_path / "users.txt", tmp_path / "out.csv"
    wanted.write_text("u3\n\nu5\n")
    arguments = ["recommend", str(files / "implicit.npz"), "--users-file", str(wanted)]
    assert main([*arguments, "-n", "2", "-o", str(target)]) == 0
    assert "Wrote 4 recommendations for 2 users" in capsys.readouterr().out
    lines = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [line["user"] for line in lines] == ["u3", "u3", "u5", "u5"]


def test_unknown_user_is_an_error(files, capsys):
    assert main(["recommend", str(files / "explicit.npz"), "--users", "u3", "zoe"]) == 2
    assert "'zoe'" in capsys.readouterr().err


def test_model_without_ids_takes_row_numbers(tmp_path, capsys):
    matrix = sp.csr_matrix(np.random.default_rng(3).integers(0, 3, (9, 7)).astype(np.float32))
    model = AlternatingLeastSquares(2, random_state=3)
    model.fit(matrix, show_progress=False)
    model.save(tmp_path / "plain.npz")
    lines = recommend(capsys, tmp_path / "plain.npz", "--users", 8, "-n", 7)
    assert sorted(line["item"] for line in lines) == list("0123456")
    assert main(["recommend", str(tmp_path / "plain"), "--users", "9"]) == 2
    assert "user ids" in capsys.readouterr().err


def test_rare_items_are_left_out_of_explicit_lists(files, capsys):
    counts = load(files, "explicit").item_counts
    names = load(files, "explicit").item_ids.astype(str)
    least = int(np.quantile(counts, 0.6))
    for kind, given, limit in (
        ("explicit", ("--min-ratings", least), least),
        ("explicit", (), 5),
        ("implicit", (), 0),
    ):
        lines = recommend(capsys, files / f"{kind}.npz", "-n", 1000, "--no-seen", *given)
        assert {line["item"] for line in lines} == set(names[counts >= limit])
    assert main(["recommend", str(files / "explicit.npz"), "--min-ratings", "999999"]) == 2
    assert "no item has 999999 ratings" in capsys.readouterr().err


def test_unknown_users_are_skipped_or_get_what_is_popular(files, capsys):
    model = load(files, "implicit")
    command = files / "implicit.npz", "--users", "zoe", "u7", "-n", 3, "--unknown"
    skipped = recommend(capsys, *command, "skip")
    assert [line["user"] for line in skipped] == ["u7"] * 3
    lines = recommend(capsys, *command, "popular")
    assert lines[3:] == skipped
    order = np.lexsort((np.arange(len(model.item_ids)), -model.item_counts))[:3]
    assert [line["item"] for line in lines[:3]] == model.item_ids[order].astype(str).tolist()
    assert [float(line["score"]) for line in lines[:3]] == model.item_counts[order].tolist()


def test_every_format_holds_the_same_lists(files, tmp_path, capsys):
    command = files / "implicit.npz", "--users", "u7", "u3", "-n", 4
    expected = recommend(capsys, *command)
    assert main(["recommend", *map(str, command), "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    for suffix in ("csv", "csv.gz", "json", "parquet", "npy"):
        assert main(["recommend", *map(str, command), "-o", str(tmp_path / f"r.{suffix}")]) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == as_json
    listed = [(user["user"], item) for user in as_json for item in user["items"]]
    assert listed == [(line["user"], int(line["item"])) for line in expected]
    text = (tmp_path / "r.csv").read_text()
    assert list(csv.DictReader(io.StringIO(text))) == expected
    assert gzip.decompress((tmp_path / "r.csv.gz").read_bytes()).decode() == text
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "r.parquet").to_pydict()
    assert list(zip(parquet["user"], parquet["item"], strict=True)) == listed
    ids = load(files, "implicit").item_ids
    assert ids[np.load(tmp_path / "r.npy")["item"]].ravel().tolist() == [item for _, item in listed]
    assert main(["recommend", *map(str, command), "-o", str(tmp_path / "r.xls")]) == 2
    assert ".csv.gz" in capsys.readouterr().err


def test_control_characters_do_not_reach_a_terminal(monkeypatch):
    ids = np.array(["a\x1b[31mb", "caf\xe9"])
    assert printable(ids) is ids
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert printable(ids).tolist() == ["a\\x1b[31mb", "caf\xe9"]
