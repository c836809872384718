"""Rows taken out of a folder of shards are those of the matrix in memory."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als import AlternatingLeastSquares
from gpu_als.data.shards import Shard, ShardedMatrix, array_files
from gpu_als.errors import IdRangeError, InputError, ReadError
from shards.common import BY_HYPOTHESIS, same

TYPES = ("float32", "float16", "codes")
RNG = np.random.default_rng(71)
SOURCE = sp.csr_matrix(RNG.integers(1, 11, (40, 15)) / 2 * (RNG.random((40, 15)) < 0.2), dtype="f4")


@pytest.fixture(scope="module", params=TYPES)
def matrix(request, tmp_path_factory):
    """Return the source in several shards, a row of its own among them."""
    folder = tmp_path_factory.mktemp("rows") / "m"
    made = ShardedMatrix.from_matrix(SOURCE, folder, value_type=request.param, shard_bytes=130)
    assert len(made.users) > 5
    return made


@BY_HYPOTHESIS
@given(st.lists(st.integers(0, 39), max_size=60))
def test_any_rows_in_any_order(matrix, numbers):
    found = matrix.rows(numbers)
    assert found.dtype == np.float32
    assert found.has_canonical_format
    assert same(found, SOURCE[np.array(numbers, np.int64)])


BOUND = st.none() | st.integers(-45, 45)


@BY_HYPOTHESIS
@given(BOUND, BOUND, st.none() | st.sampled_from([1, 2, 7, -1, -3]))
def test_slices_are_those_of_any_sequence(matrix, start, stop, step):
    found = matrix.rows(slice(start, stop, step))
    assert same(found, SOURCE[np.arange(40)[start:stop:step]])


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ([3, 40], IdRangeError, r"numbers: found 1 .* out of range, the first 40; .* to 39"),
        ([-1], IdRangeError, "out of range, the first -1"),
        ([0.5], InputError, "numbers: found values of type float64"),
        (np.ones(40, bool), InputError, "numbers: found values of type bool"),
        ([[1, 2]], InputError, "numbers: found 2 dimensions"),
    ],
)  # fmt: skip
def test_numbers_that_are_none_of_a_row_are_refused(matrix, numbers, error, message):
    with pytest.raises(error, match=message):
        matrix.rows(numbers)


def test_they_filter_what_is_recommended(tmp_path):
    data = ShardedMatrix.from_matrix(SOURCE, tmp_path / "m", shard_bytes=130)
    model = AlternatingLeastSquares(factors=4, iterations=2, random_state=3)
    model.fit(SOURCE, show_progress=False)
    users = np.array([31, 2, 17])
    found, expected = (
        model.recommend(users, entries, N=5) for entries in (data.rows(users), SOURCE[users])
    )
    assert (found[0] == expected[0]).all()
    assert not any(
        np.isin(found[0][row], SOURCE[user].indices).any() for row, user in enumerate(users)
    )


def test_only_the_shards_of_the_rows_are_opened(tmp_path, monkeypatch):
    data = ShardedMatrix.from_matrix(SOURCE, tmp_path / "m", shard_bytes=130)
    wanted = data.users[2], data.users[4]
    original, opened = array_files.open_file, set()

    def open_file(folder, record):
        opened.add(record.name)
        return original(folder, record)

    monkeypatch.setattr(array_files, "open_file", open_file)
    data.rows([shard.start for shard in wanted])
    assert {name.split(".")[0] for name in opened} == {"0-000002", "0-000004"}


def overwrite(path, dtype, change):
    values = np.fromfile(path, dtype)
    change(values)
    values.tofile(path)


DAMAGE = {
    "a row that ends before it begins": ("indptr", "<i8", 2, 0),
    "a row beyond the entries": ("indptr", "<i8", 2, 2**40),
    "a row from before the entries": ("indptr", "<i8", 1, -1),
    "a column that is none": ("indices", "<i4", 5, 15),
    "a negative column": ("indices", "<i4", 5, -1),
    "a value that is not finite": ("data", "<f4", 5, np.nan),
}


@pytest.mark.parametrize(("kind", "dtype", "place", "value"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_rows_are_refused_and_others_are_not(tmp_path, kind, dtype, place, value):
    full = sp.csr_matrix(np.tile(np.arange(15, dtype=np.float32), (9, 1)) + 1)
    data = ShardedMatrix.from_matrix(full, tmp_path / "m")

    def change(values):
        values[place] = value

    overwrite(tmp_path / "m" / "users" / f"0-000000.{kind}", dtype, change)
    with pytest.raises(ReadError, match=r"users.* damaged .*; convert the data again"):
        data.rows([1, 0])
    assert same(data.rows([8, 5]), full[[8, 5]])


def test_shards_are_pickled_without_their_content(tmp_path):
    large = sp.csr_matrix(np.random.default_rng(73).random((300, 200), np.float32))
    ids = [f"user {number}" for number in range(300)]
    data = ShardedMatrix.from_matrix(large, tmp_path / "m", user_ids=ids)
    assert data.user_ids.tolist() == ids
    data.users[0].load()
    for original in (data, data.users[0]):
        content = pickle.dumps(original)
        assert len(content) < 4000
        copy = pickle.loads(content)
        shard = copy if isinstance(copy, Shard) else copy.users[0]
        assert same(shard.load()[2], large)
    assert pickle.loads(pickle.dumps(data)).user_ids.tolist() == ids
