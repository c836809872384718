"""``gpu-als convert``: options reach the conversion, and what comes out is said."""

import json
import os
import re

import pytest

from gpu_als import read_interactions
from gpu_als.cli import main
from gpu_als.data.shards import ShardedMatrix


def run(*arguments):
    return main(["convert", *map(str, arguments)])


def test_it_makes_a_folder_and_says_what_is_in_it(files, tmp_path, capsys):
    folder = tmp_path / "r.shards"
    assert run(files / "train.csv", folder, "-q") == 0
    shown = capsys.readouterr()
    matrix, expected = (
        ShardedMatrix.open(folder, verify=True),
        read_interactions(files / "train.csv"),
    )
    assert matrix.nnz == expected.nnz
    assert matrix.user_ids.tolist() == expected.user_ids.tolist()
    n_users, n_items = expected.shape
    assert re.search(
        rf"r\.shards: {expected.nnz:,} ratings of {n_users} users on {n_items} items, [\d,]+ bytes "
        r"in 2 shards, in \d",
        shown.out,
    )
    assert shown.err == ""


def test_options_reach_the_conversion(files, tmp_path, capsys):
    folder = tmp_path / "m"
    options = ["--value-type", "float16", "--lossy", "--shard-size", "2K", "--memory", "0.25GiB"]
    reading = ["--user-column", "movieId", "--item-column", "userId", "--rating-column", "2"]
    arguments = [files / "train.csv", folder, *options, *reading, "--duplicates", "last", "--json"]
    assert run(*arguments, "-q") == 0
    said = json.loads(capsys.readouterr().out)
    matrix = ShardedMatrix.open(folder)
    assert said == {
        "folder": str(folder),
        "users": matrix.shape[0],
        "items": matrix.shape[1],
        "ratings": matrix.nnz,
        "value_type": "float16",
        "bytes": sum(p.stat().st_size for p in folder.rglob("?-*")),
        "shards": {"users": len(matrix.users), "items": len(matrix.items)},
    }
    assert len(matrix.users) > 5
    assert matrix.item_ids.dtype.kind == "U"  # users, in this file
    assert matrix.manifest.duplicates == "last"


def test_several_files_and_options_between_them(files, tmp_path, capsys):
    both = [files / "train.csv", "-q", files / "test.csv"]
    assert run(*both, tmp_path / "m") == 0
    alone = ShardedMatrix.open(tmp_path / "m").shape
    assert run(files / "train.csv", tmp_path / "n", "-q") == 0
    assert run(files / "test.csv", tmp_path / "n", "-q", "--append") == 0
    assert ShardedMatrix.open(tmp_path / "n").shape == alone
    assert run(files / "test.csv", tmp_path / "n", "-q", "--append", "--resume") == 0
    assert ShardedMatrix.open(tmp_path / "n").manifest.version == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.csv"], "pass the files to read and the folder to make"),
        (["missing.csv", "m"], "missing.csv: No such file"),
        (["a.csv", "m", "--memory", "64M"], "memory: found 67108864 bytes; pass at least 128 MiB"),
        (["a.csv", "m", "--memory", "2X"], "argument --memory: invalid size value: '2X'"),
        (["a.csv", "m", "--memory", "inf"], "argument --memory: invalid size value: 'inf'"),
        (["a.csv", "m", "--shard-size", "M"], "argument --shard-size: invalid size value: 'M'"),
        (["a.csv", "m", "--shard-size", "0"], "shard_bytes: found 0"),
        (["a.csv", "m", "--value-type", "int8"], "invalid choice: 'int8'"),
        (["a.csv", "m", "--lossy"], "lossy: float32 never rounds"),
        (["a.csv", "m", "--append"], "m: no such folder of shards"),
        (
            ["a.csv", "m", "--append", "--value-type", "codes"],
            "--value-type: --append keeps",
        ),
        (["a.csv", "a.csv"], "a.csv: File exists"),
    ],
)
def test_errors_are_one_line_and_set_the_exit_code(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("1,2,3\n")
    of_files = re.search("[Nn]o such f|File exists", said)
    assert run(*arguments) == (1 if of_files else 2)
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert os.listdir(tmp_path) == ["a.csv"]


def test_an_interrupted_run_is_gone_on_with(files, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "m"
    with monkeypatch.context() as patch:
        patch.setattr("gpu_als.data.shards.conversion.build", interrupt)
        assert run(files / "train.csv", folder, "-q") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("gpu_als.data.shards.conversion.read_input", interrupt)  # was done already
        assert run(files / "train.csv", folder, "-q", "--resume") == 0
    assert ShardedMatrix.open(folder, verify=True).nnz == read_interactions(files / "train.csv").nnz
