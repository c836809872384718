"""What is written as shards is read back, in both orientations, however it is cut."""

import mmap

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als import Interactions
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError, NotFiniteError
from shards.common import BY_HYPOTHESIS, holds, same, stacked

TYPES = ("float32", "float16", "codes")
STARS = st.integers(1, 10).map(lambda half: half / 2)


@st.composite
def triples(draw, values=STARS):
    """Draw a shape, and entries in any order, some for the same cell, some rows without any."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    cell = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1), values)
    return shape, draw(st.lists(cell, max_size=60))


def as_coo(shape, entries):
    rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
    rows, columns = np.array(rows, np.int64), np.array(columns, np.int64)
    return sp.coo_matrix((np.array(values, np.float64), (rows, columns)), shape=shape)


@BY_HYPOTHESIS
@given(triples(), st.sampled_from(TYPES), st.integers(1, 400))
def test_any_matrix_comes_back_from_any_shards(tmp_path_factory, drawn, value_type, shard_bytes):
    source = as_coo(*drawn)
    folder = tmp_path_factory.mktemp("round") / "m.shards"
    matrix = ShardedMatrix.from_matrix(
        source, folder, value_type=value_type, shard_bytes=shard_bytes
    )
    assert holds(matrix, source.tocsr().astype(np.float32))
    assert holds(ShardedMatrix.open(folder, verify=True), source.tocsr().astype(np.float32))


def test_files_are_raw_arrays_that_anything_can_read(tmp_path):
    source = sp.csr_matrix(np.array([[0, 1.5, 0], [2, 0, 0], [0, 0, 0], [4, 5, 6]], np.float32))
    ShardedMatrix.from_matrix(source, tmp_path / "m", shard_bytes=1)
    for side, expected in (("users", source), ("items", source.T.tocsr())):
        for row in range(expected.shape[0]):
            found = {
                kind: np.fromfile(tmp_path / "m" / side / f"0-{row:06}.{kind}", dtype)
                for kind, dtype in (("indptr", "<i8"), ("indices", "<i4"), ("data", "<f4"))
            }
            assert found["indptr"].tolist() == [0, expected[row].nnz]
            assert found["indices"].tolist() == expected[row].indices.tolist()
            assert found["data"].tolist() == expected[row].data.tolist()


@pytest.mark.parametrize(
    ("value_type", "entry_bytes"), [("float32", 8), ("float16", 6), ("codes", 5)]
)
def test_shards_are_as_large_as_they_may_be(tmp_path, value_type, entry_bytes):
    """A shard that took the first row of the next one would be too large."""
    limit = 900
    source = sp.random(80, 50, 0.2, format="csr", random_state=3)
    source.data[:] = 1
    matrix = ShardedMatrix.from_matrix(
        source, tmp_path / "m", value_type=value_type, shard_bytes=limit
    )
    for shards, full in ((matrix.users, source), (matrix.items, source.T.tocsr())):
        row_bytes = 8 + entry_bytes * np.diff(full.indptr)
        assert len(shards) > 3
        for shard in shards:
            assert row_bytes[shard.start : shard.stop].sum() <= limit
        for shard in shards[:-1]:
            assert row_bytes[shard.start : shard.stop + 1].sum() > limit


def is_map(array):
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


def test_index_arrays_and_single_precision_values_are_not_copied(tmp_path):
    source = sp.random(30, 20, 0.3, format="csr", random_state=4, dtype=np.float32)
    matrix = ShardedMatrix.from_matrix(source, tmp_path / "m").users[0].load()[2]
    assert is_map(matrix.indices)
    assert is_map(matrix.data)
    assert not is_map(source.data)
    with pytest.raises(ValueError, match="read-only"):
        matrix.data[0] = 1


@pytest.mark.parametrize("value_type", TYPES)
def test_values_are_loaded_as_float32(tmp_path, value_type):
    source = sp.csr_matrix(np.array([[0.5, 5.0], [3.0, 0]]))
    matrix = ShardedMatrix.from_matrix(source, tmp_path / "m", value_type=value_type)
    assert matrix.value_type == value_type
    assert matrix.dtype == matrix.users[0].load()[2].dtype == np.float32


IDS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3, unique=True) | st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    min_size=3, max_size=3, unique=True,
)  # fmt: skip


@BY_HYPOTHESIS
@given(IDS, IDS | st.none())
def test_ids_come_back(tmp_path_factory, user_ids, item_ids):
    folder = tmp_path_factory.mktemp("ids") / "m"
    matrix = ShardedMatrix.from_matrix(np.eye(3), folder, user_ids=user_ids, item_ids=item_ids)
    expected = Interactions.from_matrix(np.eye(3), user_ids=user_ids, item_ids=item_ids)
    assert matrix.user_ids.tolist() == user_ids
    assert matrix.user_ids.dtype == expected.user_ids.dtype
    assert (matrix.item_ids is None) == (item_ids is None)
    assert item_ids is None or matrix.item_ids.tolist() == item_ids


def test_interactions_bring_their_ids(tmp_path):
    data = Interactions.from_triples(["b", "a", "b"], [7, 7, 5], [1, 2, 3])
    matrix = ShardedMatrix.from_matrix(data, tmp_path / "m")
    assert matrix.user_ids.tolist() == ["a", "b"]
    assert matrix.item_ids.tolist() == [5, 7]
    assert holds(matrix, data.user_items)
    with pytest.raises(InputError, match="user_ids, item_ids: Interactions have their own"):
        ShardedMatrix.from_matrix(data, tmp_path / "n", user_ids=[1, 2])


def test_float16_refuses_what_it_cannot_hold_unless_told_to_round(tmp_path):
    with pytest.raises(
        InputError, match=r"value_type: float16 cannot hold .* 0\.1; pass 'float32'"
    ):
        ShardedMatrix.from_matrix([[0.1, 2]], tmp_path / "m", value_type="float16")
    matrix = ShardedMatrix.from_matrix([[0.1, 2]], tmp_path / "m", value_type="float16", lossy=True)
    assert stacked(matrix.users).data.tolist() == [float(np.float16(0.1)), 2]
    with pytest.raises(InputError, match="float16 cannot hold the rating 70000"):
        ShardedMatrix.from_matrix([[7e4]], tmp_path / "n", value_type="float16", lossy=True)


def test_codes_take_256_values_and_no_more(tmp_path):
    values = np.arange(1, 257, dtype=np.float32)[None, :] / 8
    matrix = ShardedMatrix.from_matrix(values, tmp_path / "m", value_type="codes")
    assert same(stacked(matrix.users), sp.csr_matrix(values))
    more = np.arange(1, 258, dtype=np.float32)[None, :]
    with pytest.raises(InputError, match="more than 256 different ratings, too many for codes"):
        ShardedMatrix.from_matrix(more, tmp_path / "n", value_type="codes")
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_type": "int8"}, "value_type: found 'int8'; pass one of 'float32', 'float16', 'co"),
        ({"value_type": "codes", "lossy": True}, "lossy: codes never rounds"),
        ({"shard_bytes": 0}, "shard_bytes: found 0; pass a number of bytes from 1"),
        ({"shard_bytes": 1.5}, "shard_bytes: found 1.5"),
    ],
)
def test_bad_options_are_refused_before_a_folder_is_made(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        ShardedMatrix.from_matrix(np.eye(2), tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


def test_a_bad_matrix_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(NotFiniteError):
        ShardedMatrix.from_matrix([[1, np.nan]], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"holds other files \(notes\.txt\); pass the name of a new"
    ):
        ShardedMatrix.from_matrix(np.eye(2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    ShardedMatrix.from_matrix(np.eye(2), tmp_path / "m")
    with pytest.raises(InputError, match="holds shards already"):
        ShardedMatrix.from_matrix(2 * np.eye(2), tmp_path / "m")
    assert holds(ShardedMatrix.open(tmp_path / "m"), sp.eye(2, dtype=np.float32, format="csr"))


def test_the_digest_tells_content_apart(tmp_path):
    def digest(name, matrix, **ids):
        return ShardedMatrix.from_matrix(matrix, tmp_path / name, **ids).digest

    first = digest("a", np.eye(3))
    assert digest("b", np.eye(3)) == first
    others = {
        digest("c", 2 * np.eye(3)),
        digest("d", np.eye(4)),
        digest("e", np.eye(3), user_ids=[1, 2, 3]),
    }
    assert len(others | {first}) == 4
