"""The commands on a folder of shards: what they do is what they do on the file it was made from."""

import json
import re
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

from gpu_als import AlternatingLeastSquares, ExplicitALS
from gpu_als.cli import main
from gpu_als.data.shards import ShardedMatrix


@pytest.fixture(scope="module")
def shards(files, tmp_path_factory):
    """Return a folder of what train.csv holds."""
    folder = tmp_path_factory.mktemp("made") / "train.shards"
    source = str(files / "train.csv")
    assert main(["convert", source, str(folder), "--duplicates", "last", "-q"]) == 0
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


def fit(source, output, *options):
    options = options or ("--factors", "3", "--regularization", "0.02", "--backend", "numpy")
    return run("fit", source, "-o", output, "-q", *options)


def loaded(file):
    return np.load(file)


def test_a_fit_on_shards_is_that_on_the_file(files, shards, tmp_path, capsys):
    assert fit(shards, tmp_path / "m.npz") == 0
    printed = capsys.readouterr().out
    assert re.search(r"Found [\d,]+ ratings of 120 users on 60 items in \S+train.shards", printed)
    found, expected = loaded(tmp_path / "m.npz"), loaded(files / "explicit.npz")
    assert set(expected.files) - set(found.files) == {"seen_indptr", "seen_indices"}
    for name in set(found.files) - {"about"}:
        np.testing.assert_array_equal(found[name], expected[name])


def test_validation_goes_by_the_ids_of_the_folder(files, shards, tmp_path, capsys):
    results = []
    for source in (shards, files / "train.csv"):
        options = ["--validation", files / "test.csv", "--factors", "3", "--json", "-q"]
        assert run("fit", source, *options) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["validation"] == results[1]["validation"]
    assert results[0]["validation_ratings"] == results[1]["validation_ratings"] > 100
    # how to read that file may be said
    strange = tmp_path / "strange.txt"
    strange.write_text((files / "test.csv").read_text().replace(",", ";"))
    assert run("fit", shards, "--validation", strange, "--delimiter", ";", "-q") == 0


def test_the_ranking_of_an_implicit_model_leaves_out_what_the_folder_holds(files, shards, capsys):
    results = []
    for source in (shards, files / "train.csv"):
        options = ["--validation", files / "test.csv", "--model", "implicit", "--factors", "3"]
        assert run("fit", source, *options, "--json", "-q") == 0
        results.append(json.loads(capsys.readouterr().out)["validation"])
    assert results[0] == pytest.approx(results[1])
    assert results[0]["NDCG@10"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validation-fraction", "0.1"], "needs a file.*convert' and pass --validation FILE"),
        (["--duplicates", "last"], "--duplicates was settled.*leave it out"),
        (["--user-column", "0"], "--user-column is for reading files.*leave it out"),
        (["--no-header"], "--header is for reading files"),
        (["--validation", "{folder}"], "--validation: .* is a folder; pass a file"),
        (["-o", "{folder}/m.npz"], "-o: .* would lie among the shards; pass a file elsewhere"),
        (["--checkpoint", "{folder}/users/s"], "--checkpoint: .* would lie among the shards"),
        (["-o", "{folder}"], "-o: .* is a folder"),
    ],
)
def test_what_a_fit_cannot_do_with_a_folder_is_said(shards, capsys, options, message):
    before = sorted(shards.rglob("*"))
    assert run("fit", shards, "-q", *(each.format(folder=shards) for each in options)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(shards.rglob("*")) == before


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
@pytest.mark.parametrize("which", [["--users", "u7", "u100"], []])
def test_recommendations_leave_out_what_the_folder_holds(files, shards, capsys, kind, which):
    printed = []
    for source in (shards, files / "train.csv"):
        assert run("recommend", files / f"{kind}.npz", *which, "-n", 50, "--ratings", source) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert run("recommend", files / f"{kind}.npz", *which, "-n", 50, "--no-seen") == 0
    assert capsys.readouterr().out != printed[0]
    assert run("recommend", files / f"{kind}.npz", *which, "-n", 50) == 0  # remembers them
    assert capsys.readouterr().out == printed[0]


def test_the_folder_may_hold_other_users_and_items_than_the_model(files, shards, tmp_path, capsys):
    """Those that the model does not know are passed over, and those it alone knows have nothing."""
    grown = shutil.copytree(shards, tmp_path / "grown")
    (tmp_path / "more.csv").write_text("user,item,rating\na,5,1\nu7,5,2\nu7,9999,3\n")
    assert run("convert", tmp_path / "more.csv", grown, "--append", "-q") == 0
    few = tmp_path / "few.csv"
    lines = (files / "train.csv").read_text().splitlines()
    few.write_text("\n".join([lines[0], *(line for line in lines if line.startswith("u7,"))]))
    assert run("convert", few, tmp_path / "few", "-q") == 0
    capsys.readouterr()
    printed = []
    for source in (grown, tmp_path / "few", files / "train.csv"):
        command = ["recommend", files / "explicit.npz", "--users", "u7", "-n", 9]
        assert run(*command, "--ratings", source) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    command = ["recommend", files / "explicit.npz", "--users", "u3", "-n", 9]
    assert run(*command, "--ratings", tmp_path / "few") == run(*command, "--no-seen") == 0
    first, second = capsys.readouterr().out.split("user,rank,item,score\n")[1:]
    assert first == second


def test_row_numbers_are_the_ids_of_a_model_and_a_folder_without_any(tmp_path, capsys):
    rng = np.random.default_rng(33)
    matrix = sp.random(40, 30, density=0.2, format="csr", rng=rng, dtype=np.float32)
    ShardedMatrix.from_matrix(matrix, tmp_path / "s")
    sp.save_npz(tmp_path / "m.npz", matrix)
    model = AlternatingLeastSquares(4, random_state=5, use_gpu=False)
    model.fit(matrix, show_progress=False)
    model.save(tmp_path / "model.npz")
    printed = []
    for source in (tmp_path / "s", tmp_path / "m.npz"):
        assert run("recommend", tmp_path / "model.npz", "--ratings", source, "-n", 30) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].count("\n") == 1 + 40 * 30 - matrix.nnz


def test_evaluation_leaves_out_what_the_folder_holds(files, shards, capsys):
    results = []
    for source in (shards, files / "train.csv"):
        command = ["evaluate", files / "explicit.npz", files / "test.csv", "--json"]
        assert run(*command, "--train", source) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]


def test_folders_are_not_tested_on_or_split(files, shards, capsys):
    assert run("evaluate", files / "explicit.npz", shards) == 2
    assert "pass the file of held-out ratings" in capsys.readouterr().err
    assert run("evaluate", "--split", "0.1", shards) == 2
    assert "--split needs a file; hold ratings out before" in capsys.readouterr().err


def write_day(path, rows):
    path.write_text("user,item,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r in rows))


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_the_daily_cycle(tmp_path, capsys, kind):
    """Convert, fit, append, fit from the former model, recommend to a user of today."""
    rng = np.random.default_rng(34)
    rows = [
        (f"u{u:02}", i, 1 + (u + i) % 5) for u in range(60) for i in range(40) if rng.random() < 0.4
    ]
    new = [row for row in rows if row[0] >= "u55" or row[1] >= 37]
    write_day(tmp_path / "all.csv", [row for row in rows if row not in new])
    write_day(tmp_path / "today.csv", new)
    folder, model = tmp_path / "r.shards", tmp_path / "model.npz"
    assert run("convert", tmp_path / "all.csv", folder, "-q") == 0
    assert fit(folder, model, "--model", kind, "--factors", "6", "--regularization", "0.03") == 0
    assert run("convert", tmp_path / "today.csv", folder, "--append", "-q") == 0
    before = loaded(model)
    again = ["fit", folder, "-o", model, "-q", "--json", "--warm-start", model]
    capsys.readouterr()
    assert run(*again, "--iterations", "2") == 0
    warm = json.loads(capsys.readouterr().out)
    assert warm["kind"] == kind
    options = ["--model", kind, "--factors", "6", "--regularization", "0.03", "--json", "-q"]
    assert run("fit", folder, *options) == 0
    cold = json.loads(capsys.readouterr().out)["report"]["losses"]
    assert warm["report"]["losses"][0] - cold[-1] < 0.25 * (cold[0] - cold[-1])
    after = loaded(model)
    parameter = "param_regularization" if kind == "explicit" else "regularization"
    assert after[parameter] == before[parameter] == 0.03
    assert after["user_factors"].shape == (60, 6)
    assert run("recommend", model, "--users", "u59", "-n", 40, "--ratings", folder) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    had = {item for user, item, _ in rows if user == "u59"}
    assert {int(line.split(",")[2]) for line in lines} == set(range(40)) - had


def test_a_warm_start_from_a_file_of_ratings(files, tmp_path, capsys):
    train, model = files / "train.csv", files / "explicit.npz"
    options = ["--warm-start", model, "--iterations", "0", "--backend", "numpy"]
    assert fit(train, tmp_path / "same.npz", *options) == 0
    assert "Starting from" in capsys.readouterr().out
    np.testing.assert_array_equal(
        loaded(tmp_path / "same.npz")["user_factors"], loaded(model)["user_factors"]
    )
    assert fit(train, tmp_path / "m.npz", *options, "--regularization", "0.5") == 0
    found = ExplicitALS.load(tmp_path / "m.npz")
    assert found.get_params()["regularization"] == 0.5
    assert found.factors == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "implicit"], "--model: .*explicit.npz is an explicit model; leave it out"),
        (["--factors", "4"], "--factors: .* has factors=3, and a model that starts from it keeps"),
        (["--no-bias"], "--bias: .* has bias=True"),
        (["--alpha", "2"], "--alpha belongs to --model implicit"),
        (["--checkpoint", "{model}"], "--checkpoint: .* would overwrite"),
    ],
)
def test_what_does_not_go_with_the_former_model_is_refused(files, capsys, options, message):
    model = files / "explicit.npz"
    options = [each.format(model=model) for each in options]
    assert run("fit", files / "train.csv", "-q", "--warm-start", model, *options) == 2
    assert re.search(message, capsys.readouterr().err)
