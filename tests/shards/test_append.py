"""What is appended adds to what is there, which keeps its rows and stays readable meanwhile."""

import os

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data.shards import ShardedMatrix, append
from gpu_als.errors import InputError, ReadError
from shards.common import BY_HYPOTHESIS, SMALL, converted, cut_small, holds, stacked
from shards.test_convert import ROWS, oracle, write_csv


def appended(sources, folder, **options):
    return append(sources, folder, show_progress=False, **{"memory": SMALL} | options)


def dense(matrix):
    """Return values by the texts of their ids."""
    users, items = (list(map(str, ids.tolist())) for ids in (matrix.user_ids, matrix.item_ids))
    found = stacked(matrix.users).tocoo()
    return {
        (users[row], items[column]): value
        for row, column, value in zip(found.row, found.col, found.data.tolist(), strict=True)
    }


def expected_cells(rows, duplicates):
    matrix, users, items = oracle(rows, duplicates)
    matrix = matrix.tocoo()
    return {
        (users[row], items[column]): value
        for row, column, value in zip(matrix.row, matrix.col, matrix.data.tolist(), strict=True)
    }


@BY_HYPOTHESIS
@given(
    parts=st.lists(ROWS, min_size=2, max_size=3),
    duplicates=st.sampled_from(["sum", "last"]),
    value_type=st.sampled_from(["float32", "float16", "codes"]),
    shard_bytes=st.integers(1, 300),
)
def test_parts_add_up_to_the_whole(tmp_path_factory, parts, duplicates, value_type, shard_bytes):
    folder = tmp_path_factory.mktemp("append")
    paths = [write_csv(folder / f"{n}.csv", rows) for n, rows in enumerate(parts)]
    with cut_small():
        matrix = converted(
            paths[0], folder / "m", duplicates=duplicates, value_type=value_type,
            shard_bytes=shard_bytes,
        )  # fmt: skip
        for path in paths[1:]:
            before = list(map(str, matrix.user_ids.tolist()))
            matrix = appended(path, folder / "m", shard_bytes=shard_bytes)
            after = list(map(str, matrix.user_ids.tolist()))
            assert after[: len(before)] == before
    whole = [row for rows in parts for row in rows]
    assert dense(matrix) == expected_cells(whole, duplicates)
    assert matrix.value_type == value_type
    assert (stacked(matrix.items) != stacked(matrix.users).T).nnz == 0
    matrix.verify(show_progress=False)


def test_new_ids_come_behind_in_ascending_order(tmp_path):
    converted(write_csv(tmp_path / "a.csv", [(5, "x", 1), (3, "b", 1)]), tmp_path / "m")
    matrix = appended(
        write_csv(tmp_path / "b.csv", [(4, "c", 1), (3, "a", 1), (1, "x", 1)]), tmp_path / "m"
    )
    assert matrix.user_ids.tolist() == [3, 5, 1, 4]
    assert matrix.item_ids.tolist() == ["b", "x", "a", "c"]


def test_matrices_grow_to_the_largest_shape(tmp_path):
    first = sp.csr_matrix(np.array([[1.0, 0, 2], [0, 3, 0]]))
    sp.save_npz(tmp_path / "a.npz", first)
    converted(tmp_path / "a.npz", tmp_path / "m")
    scipy.io.mmwrite(tmp_path / "b.mtx", sp.csr_matrix(np.array([[0, 4], [0, 0], [5, 0.5]])))
    with cut_small():
        matrix = appended(tmp_path / "b.mtx", tmp_path / "m")
    expected = np.array([[1, 4, 2], [0, 3, 0], [5, 0.5, 0]], np.float32)
    assert holds(matrix, sp.csr_matrix(expected))
    assert matrix.user_ids is None
    path = write_csv(tmp_path / "r.csv", [(1, 2, 3)])
    with pytest.raises(InputError, match=r"r\.csv has ids, but .*m holds a matrix"):
        appended(path, tmp_path / "m")
    assert holds(ShardedMatrix.open(tmp_path / "m", verify=True), sp.csr_matrix(expected))


def test_a_failure_leaves_what_was_there(tmp_path):
    good = converted(write_csv(tmp_path / "a.csv", [(1, 2, 3)]), tmp_path / "m", value_type="codes")
    names = sorted(path for path in tmp_path.rglob("*") if path.suffix != ".csv")
    bad = write_csv(tmp_path / "b.csv", [(1, 2, "x")])
    with pytest.raises(ReadError, match=r"b\.csv:2: the rating 'x' is not a number"):
        appended(bad, tmp_path / "m")
    assert sorted(path for path in tmp_path.rglob("*") if path.suffix != ".csv") == names
    many = write_csv(tmp_path / "c.csv", [(1, item, item) for item in range(300)])
    with pytest.raises(InputError, match="more than 256 different ratings"):
        appended(many, tmp_path / "m")
    assert ShardedMatrix.open(tmp_path / "m", verify=True).digest == good.digest


def test_there_must_be_something_to_append_to(tmp_path):
    path = write_csv(tmp_path / "a.csv", [(1, 2, 3)])
    with pytest.raises(FileNotFoundError, match="no such folder of shards"):
        appended(path, tmp_path / "m")
    (tmp_path / "n").mkdir()
    with pytest.raises(ReadError, match=r"has no manifest\.json"):
        appended(path, tmp_path / "n")
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "n"]


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("indptr", np.array([0, 9, 2], "<i8"), "its rows do not begin and end where they should"),
        ("indptr", np.array([-1, 1, 2], "<i8"), "its rows do not begin and end where they should"),
        ("indptr", np.array([0, 1, 1], "<i8"), "its rows end at 1"),
        ("indices", np.array([0, 7], "<i4"), "its columns leave the matrix"),
        ("indices", np.array([0, 1], "<i4"), "its columns leave the matrix"),
        ("indices", np.array([0, -1], "<i4"), "its columns leave the matrix"),
        ("data", np.array([0, np.nan], "<f4"), "a value is not finite"),
        ("data", np.array([0, 9], "u1"), "index 9 is out of bounds .*"),
    ],
)
def test_damaged_shards_are_not_appended_to(tmp_path, name, values, problem):
    path = write_csv(tmp_path / "a.csv", [(1, 2, 3), (2, 2, 3)])
    value_type = "codes" if values.dtype == np.uint8 else "float32"
    converted(path, tmp_path / "m", value_type=value_type)
    values.tofile(tmp_path / "m" / "users" / f"0-000000.{name}")
    with pytest.raises(ReadError, match=rf"this shard is damaged \({problem}\); convert the data"):
        appended(path, tmp_path / "m")
