"""Conversions give the matrix that reading at once gives, whatever is in memory at a time."""

import csv
import gzip
import io
import os
import re

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als import read_interactions
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError, ReadError
from shards.common import BY_HYPOTHESIS, SMALL, converted, cut_small, holds, stacked

INTEGERS = st.integers(-3, 12) | st.sampled_from([2**62, 2**63 - 1, -(2**63)])
ANY_ID = st.sampled_from(["7", "007", "a", "b c", 'q"u,o', "7.0", "ü", "-1"]) | INTEGERS
STARS = st.integers(1, 10).map(lambda half: half / 2)
ROWS = st.one_of(
    st.lists(st.tuples(user, item, STARS), min_size=1, max_size=50)
    for user in (INTEGERS, ANY_ID)
    for item in (INTEGERS, ANY_ID)
)


def write_csv(path, rows, header=("user", "item", "rating")):
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows] if header else rows)
    return path


def oracle(rows, duplicates="sum"):
    """Return the matrix and the ids as texts, by the definition."""
    cells = {}
    for user, item, value in rows:
        key = str(user), str(item)
        cells[key] = value + (cells.get(key, 0) if duplicates == "sum" else 0)
    sides = [{key[side] for key in cells} for side in (0, 1)]
    ids = [
        sorted(texts, key=int) if all(map(is_plain_integer, texts)) else sorted(texts)
        for texts in sides
    ]
    dense = sp.lil_matrix((len(ids[0]), len(ids[1])), dtype=np.float32)
    for (user, item), value in cells.items():
        dense[ids[0].index(user), ids[1].index(item)] = value
    return dense.tocsr(), *ids


def is_plain_integer(text):
    return re.fullmatch(r"0|-?[1-9]\d*", text) is not None


@BY_HYPOTHESIS
@given(
    rows=ROWS,
    duplicates=st.sampled_from(["sum", "last"]),
    value_type=st.sampled_from(["float32", "float16", "codes"]),
    shard_bytes=st.integers(1, 300),
    entries=st.integers(1, 20),
)
def test_any_rows_in_any_order(
    tmp_path_factory, rows, duplicates, value_type, shard_bytes, entries
):
    folder = tmp_path_factory.mktemp("convert")
    with cut_small(entries):
        matrix = converted(
            write_csv(folder / "r.csv", rows), folder / "m",
            duplicates=duplicates, value_type=value_type, shard_bytes=shard_bytes,
        )  # fmt: skip
    expected, users, items = oracle(rows, duplicates)
    assert list(map(str, matrix.user_ids.tolist())) == users
    assert list(map(str, matrix.item_ids.tolist())) == items
    assert holds(matrix, expected)
    matrix.verify(show_progress=False)
    assert sorted(os.listdir(folder / "m"))[-3:] == ["items", "manifest.json", "users"]


@BY_HYPOTHESIS
@given(
    rows=ROWS.map(lambda rows: list({(str(row[0]), str(row[1])): row for row in rows}.values())),
    value_type=st.sampled_from(["float32", "float16", "codes"]),
    shard_bytes=st.integers(1, 300),
)
def test_without_duplicates_the_files_are_those_of_the_same_matrix_in_memory(
    tmp_path_factory, rows, value_type, shard_bytes
):
    folder = tmp_path_factory.mktemp("same")
    options = {"value_type": value_type, "shard_bytes": shard_bytes}
    path = write_csv(folder / "r.csv", rows)
    with cut_small():
        matrix = converted(path, folder / "m", **options)
    expected = ShardedMatrix.from_matrix(read_interactions(path), folder / "n", **options)
    assert matrix.digest == expected.digest


def test_it_is_what_reading_at_once_gives(tmp_path):
    rng = np.random.default_rng(31)
    rows = np.column_stack([rng.integers(0, 400, 20_000), rng.integers(10**9, 10**9 + 90, 20_000)])
    path = write_csv(
        tmp_path / "r.csv", [(*row, rng.integers(1, 100) / 7) for row in rows.tolist()]
    )
    expected = read_interactions(path)
    with cut_small(entries=900, rows=700):
        matrix = converted(path, tmp_path / "m", shard_bytes=3000)
    assert len(matrix.users) > 20
    assert matrix.user_ids.dtype == expected.user_ids.dtype
    assert (matrix.user_ids == expected.user_ids).all()
    assert (matrix.item_ids == expected.item_ids).all()
    found = stacked(matrix.users)
    assert (found.indices == expected.user_items.indices).all()
    assert (found.indptr == expected.user_items.indptr).all()
    np.testing.assert_allclose(found.data, expected.user_items.data, rtol=1e-6)
    assert (found != stacked(matrix.items).T).nnz == 0  # to the last bit


@pytest.mark.parametrize("value_type", ["float32", "codes"])
def test_the_memory_changes_nothing(tmp_path, value_type):
    rng = np.random.default_rng(32)
    rows = [(*rng.integers(0, 60, 2).tolist(), rng.choice([0.1, 0.7, 2.5])) for _ in range(2000)]
    path = write_csv(tmp_path / "r.csv", rows)
    digests = set()
    for number, entries in enumerate((10, 333, 10**6)):
        with cut_small(entries, rows=entries):
            digests.add(
                converted(
                    path, tmp_path / str(number), shard_bytes=900, value_type=value_type
                ).digest
            )
    assert len(digests) == 1


def test_sums_are_the_same_in_both_orientations_however_long_a_row_is(tmp_path):
    """Every user's values for one item are added up, in pieces of 5, 1/3 and the like."""
    rng = np.random.default_rng(33)
    rows = [(int(u), int(i), 1 / v) for u, i, v in rng.integers(1, [4, 3, 900], (4000, 3))]
    path = write_csv(tmp_path / "r.csv", rows)
    expected = oracle(rows)[0]  # added up one after the other
    with cut_small(entries=5):
        assert holds(converted(path, tmp_path / "m"), expected)


def test_a_row_with_more_entries_than_memory_is_cut(tmp_path):
    rows = [(u, 0, 1) for u in range(200)] + [(7, i, 2) for i in range(150)]
    path = write_csv(tmp_path / "r.csv", rows)
    with cut_small(entries=10):
        matrix = converted(path, tmp_path / "m", shard_bytes=100)
    assert holds(matrix, oracle(rows)[0])
    assert matrix.users[-1].stop == 200
    assert matrix.items[0].nnz == 200


MATRIX = sp.csr_matrix(np.array([[0, 1.5, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0.5]]))
TRIPLES = pd.DataFrame({"user": [2, 0, 0, 2], "item": [0, 3, 1, 3], "rating": [3, 2, 1.5, 0.5]})


def as_bytes(write, *arguments, **options):
    out = io.BytesIO()
    write(out, *arguments, **options)
    return out.getvalue()


WITH_IDS = {
    "r.csv": TRIPLES.to_csv(index=False).encode(),
    "r.csv.gz": gzip.compress(TRIPLES.to_csv(index=False).encode()),
    "r.tsv": TRIPLES.to_csv(index=False, sep="\t").encode(),
    "u.data": b"2\t0\t3\t0\n0\t3\t2\t0\n0\t1\t1.5\t0\n2\t3\t.5\t0\n",
    "r.dat": b"2::0::3\n0::3::2\n0::1::1.5\n2::3::0.5\n",
    "q.csv": b'user,item,rating,note\n2,0,3,"a\nb"\n0,3,2,\n0,1,1.5,\n"2",3,0.5,""\n',
    "r.npz": as_bytes(np.savez, **TRIPLES),
    "c.npz": as_bytes(np.savez_compressed, **TRIPLES),
    "f.npz": as_bytes(np.savez, user=TRIPLES.user.astype(float), item=TRIPLES.item.astype("u1"),
                      rating=TRIPLES.rating.astype("f2")),
    "s.npz": as_bytes(np.savez, user=TRIPLES.user.to_numpy().astype("U"), item=TRIPLES.item,
                      rating=TRIPLES.rating),
}  # fmt: skip
WITHOUT_IDS = {
    f"{kind}{compressed}.npz": as_bytes(sp.save_npz, MATRIX.asformat(kind), compressed=compressed)
    for kind in ("csr", "csc", "coo")
    for compressed in (False, True)
} | {
    "m.mtx": as_bytes(scipy.io.mmwrite, MATRIX),
    "m.mtx.gz": gzip.compress(as_bytes(scipy.io.mmwrite, MATRIX)),
}


@pytest.mark.parametrize("name", WITH_IDS)
def test_files_with_ids(tmp_path, name):
    (tmp_path / name).write_bytes(WITH_IDS[name])
    with cut_small():
        matrix = converted(tmp_path / name, tmp_path / "m")
    assert list(map(str, matrix.user_ids.tolist())) == ["0", "2"]
    assert matrix.item_ids.tolist() == [0, 1, 3]
    assert holds(matrix, MATRIX[[0, 2]][:, [0, 1, 3]].astype(np.float32))


@pytest.mark.parametrize("name", WITHOUT_IDS)
def test_files_of_matrices_keep_their_shape_and_have_no_ids(tmp_path, name):
    (tmp_path / name).write_bytes(WITHOUT_IDS[name])
    with cut_small():
        matrix = converted(tmp_path / name, tmp_path / "m")
    assert matrix.user_ids is matrix.item_ids is None
    assert holds(matrix, MATRIX.astype(np.float32))


def test_there_may_be_more_cells_than_32_bits_number(tmp_path):
    shape = 70_000, 80_000
    places = [0, 30_000, 30_000, 69_999, 69_999], [79_999, 0, 71_000, 1, 79_999]
    expected = sp.csr_matrix((np.arange(1, 6, dtype=np.float32), places), shape=shape)
    sp.save_npz(tmp_path / "m.npz", expected)
    assert holds(converted(tmp_path / "m.npz", tmp_path / "m"), expected)


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("kind", ["integers", "texts", "categories"])
def test_parquet(tmp_path, kind, index):
    pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    frame = TRIPLES.astype({"user": index, "item": index})
    if kind != "integers":
        frame["item"] = "i" + frame["item"].astype(str)
    if kind == "categories":
        frame["item"] = frame["item"].astype("category")
    frame = frame.assign(when=0)[["when", "rating", "item", "user"]]
    frame.to_parquet(tmp_path / "r.parquet", row_group_size=3)
    with cut_small():
        matrix = converted(tmp_path / "r.parquet", tmp_path / "m", memory=SMALL + (96 << 20))
        other = converted(
            tmp_path / "r.parquet", tmp_path / "n", memory=SMALL + (96 << 20),
            user=3, item="item", rating=0,
        )  # fmt: skip
    assert matrix.user_ids.tolist() == [0, 2]
    assert matrix.item_ids.tolist() == ([0, 1, 3] if kind == "integers" else ["i0", "i1", "i3"])
    assert holds(matrix, MATRIX[[0, 2]][:, [0, 1, 3]].astype(np.float32))
    assert not stacked(other.users).data.any()


@pytest.mark.parametrize("name", ["r.npz", "csrFalse.npz"])
def test_checksums_of_archives_are_compared(tmp_path, name):
    content = bytearray({**WITH_IDS, **WITHOUT_IDS}[name])
    place = content.index(np.array([1.5]).tobytes())
    content[place : place + 8] = np.array([2.5]).tobytes()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReadError, match=re.escape(name) + ": .*Bad CRC-32"):
        converted(tmp_path / name, tmp_path / "m")


def test_a_matrix_without_entries_is_one(tmp_path):
    sp.save_npz(tmp_path / "m.npz", sp.csr_matrix((3, 5)))
    matrix = converted(tmp_path / "m.npz", tmp_path / "m", shard_bytes=1)
    assert holds(matrix, sp.csr_matrix((3, 5), dtype=np.float32))
    assert len(matrix.items) == 5


def test_several_files_are_one_after_the_other(tmp_path):
    rows = [[(1, 2, 3.0), (5, 2, 1.0)], [("x", 2, 2.0), (1, 3, 1.0)], [(1, 2, 4.0)]]
    paths = [write_csv(tmp_path / f"{n}.csv", part) for n, part in enumerate(rows)]
    for duplicates in ("sum", "last"):
        matrix = converted(paths, tmp_path / duplicates, duplicates=duplicates)
        expected, users, items = oracle([*rows[0], *rows[1], *rows[2]], duplicates)
        assert matrix.user_ids.tolist() == users
        assert list(map(str, matrix.item_ids.tolist())) == items
        assert holds(matrix, expected)


def test_several_matrices_are_added_up(tmp_path):
    sp.save_npz(tmp_path / "a.npz", MATRIX)
    scipy.io.mmwrite(tmp_path / "b.mtx", sp.csr_matrix(np.full((2, 6), 0.25)))
    matrix = converted([tmp_path / "a.npz", tmp_path / "b.mtx"], tmp_path / "m")
    expected = np.zeros((3, 6), np.float32)
    expected[:, :4] = MATRIX.toarray()
    expected[:2] += 0.25
    assert holds(matrix, sp.csr_matrix(expected))


def test_files_with_ids_and_matrices_do_not_mix(tmp_path):
    sp.save_npz(tmp_path / "a.npz", MATRIX)
    write_csv(tmp_path / "b.csv", [(1, 2, 3)])
    with pytest.raises(InputError, match=r"sources: .*b\.csv has ids, but .*a\.npz holds a matrix"):
        converted([tmp_path / "a.npz", tmp_path / "b.csv"], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_columns_and_text_are_read_as_told(tmp_path):
    (tmp_path / "r.txt").write_text("9;1;2;0.5\n9;3;4;1.5\n")
    matrix = converted(
        tmp_path / "r.txt", tmp_path / "m", user=1, item=2, rating=3, delimiter=";", header=False
    )
    assert matrix.user_ids.tolist() == [1, 3]
    assert matrix.item_ids.tolist() == [2, 4]
    assert stacked(matrix.users).data.tolist() == [0.5, 1.5]


BAD_FILES = {
    "e.csv": (b"", "the file is empty"),
    "h.csv": (b"user,item,rating\n", "found no ratings below the header"),
    "n.csv": (b"1,2,3\n1,2,nan\n", ":2: the rating 'nan' is not finite"),
    "w.csv": (b"1,2,3\n" * 40 + b"1,2,x\n", ":41: the rating 'x' is not a number"),
    "b.csv": (b"1,2,3\n" * 40 + b"\xff,2,3\n", ":41: found bytes that are not UTF-8"),
    "g.csv.gz": (gzip.compress(b"1,2,3\n" * 40)[:-9], "damaged gzip file"),
    "x.foo": (b"1,2,3\n", r"cannot read \.foo files"),
    "n.npz": (as_bytes(np.savez, user=[1], item=[2], rating=[np.inf]), "1 NaN or infinite value"),
    "l.npz": (as_bytes(np.savez, user=[1], item=[2, 3], rating=[1.0]), "arrays differ in length"),
    "u.npz": (as_bytes(np.savez, item=[2, 3], rating=[1.0]), "found no user array"),
    "t.npz": (as_bytes(np.savez, user=[1], item=[2], rating=["5"]), "found values of type"),
    "d.npz": (as_bytes(np.savez, user=[[1]], item=[2]), "it must have one dimension"),
    "o.npz": (as_bytes(np.savez, user=[0], item=[0], rating=[]), "differ in length"),
    "z.npz": (as_bytes(np.savez, user=[], item=[], rating=[]), "found no ratings"),
    "f.npz": (as_bytes(np.savez, user=[0.5], item=[0]), "not a whole number"),
    "p.npz": (as_bytes(np.savez, user=np.array([{}]), item=[0]), "pickled objects"),
    "v.npz": (b"no archive", "not a .npz file"),
    "b.npz": (as_bytes(sp.save_npz, sp.bsr_matrix(MATRIX)), "holds a 'bsr' matrix"),
    "i.npz": (
        as_bytes(np.savez, format="csr", shape=(1, 2), indptr=[0, 1], indices=[2], data=[1.0]),
        "its indices leave the shape",
    ),
    "q.npz": (
        as_bytes(np.savez, format="csr", shape=(2, 2), indptr=[0, 2, 1], indices=[0], data=[1.0]),
        "its indptr does not fit",
    ),
    "k.npz": (as_bytes(np.savez, format="coo", shape=(2, 2), row=[0], col=[0]), "it has no 'data'"),
    "h.mtx": (b"1 1 1\n", "not a Matrix Market file"),
    "a.mtx": (as_bytes(scipy.io.mmwrite, np.eye(2)), "cannot read array matrices"),
    "g.mtx.gz": (
        gzip.compress(WITHOUT_IDS["m.mtx"])[:20] + b"\xff" * 30,
        "not a Matrix Market file",
    ),
    "c.mtx": (as_bytes(scipy.io.mmwrite, MATRIX * 1j), "that are complex"),
    "r.mtx": (
        b"%%MatrixMarket matrix coordinate real general\n2 2 1\n3 1 1.0\n",
        "row numbers from 3 to 3 where only 1 to 2 exist",
    ),
    "s.mtx": (
        b"%%MatrixMarket matrix coordinate real general\n2 2 2\n2 1 1.0\n",
        "found 1 entries where its head says 2",
    ),
    "n.mtx": (
        b"%%MatrixMarket matrix coordinate real general\n2 2 1\nx 1 1.0\n",
        "row numbers that are not integers",
    ),
    "p.parquet": (b"PAR1 and no more", "not a sound Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_and_leave_nothing(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with cut_small(), pytest.raises(ReadError, match=re.escape(name) + ".*" + message):
        converted(tmp_path / name, tmp_path / "m", memory=SMALL + (96 << 20))
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1 << 20}, "memory: found 1048576 bytes; pass at least 128 MiB"),
        ({"memory": 1e9}, "memory: found 1000000000.0 bytes"),
        ({"duplicates": "mean"}, "duplicates: found 'mean'"),
        ({"value_type": "f4"}, "value_type: found 'f4'"),
        ({"shard_bytes": -1}, "shard_bytes: found -1"),
        ({"user": "who"}, "user: .* has no column 'who'"),
    ],
)
def test_bad_arguments_are_refused_and_leave_nothing(tmp_path, options, message):
    path = write_csv(tmp_path / "r.csv", [(1, 2, 3)])
    with pytest.raises(InputError, match=message):
        converted(path, tmp_path / "m", **options)
    assert os.listdir(tmp_path) == ["r.csv"]


def test_no_sources_and_missing_ones(tmp_path):
    with pytest.raises(InputError, match="sources: found none"):
        converted([], tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"r\.csv"):
        converted(tmp_path / "r.csv", tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        converted(write_csv(tmp_path / "r.csv", [(1, 2, 3)]), tmp_path / "nowhere" / "m")
    assert os.listdir(tmp_path) == ["r.csv"]


def test_ids_that_do_not_fit_are_refused_with_the_memory_they_need(tmp_path):
    rows = [(number, 1, 1) for number in range(300_000)]
    path = write_csv(tmp_path / "r.csv", rows)
    with pytest.raises(InputError, match=r"too little for the ids, .* pass at least 1\d\d MiB"):
        converted(path, tmp_path / "m", memory=130 << 20)
    assert os.listdir(tmp_path) == ["r.csv"]


def test_a_shape_beyond_memory_is_refused_before_there_is_an_array_for_it(tmp_path):
    path = tmp_path / "h.npz"
    np.savez(path, format="coo", shape=(10**12, 3), row=[5], col=[1], data=[1.0])
    with pytest.raises(InputError, match=r"memory: .* pass at least"):
        converted(path, tmp_path / "m")
    assert os.listdir(tmp_path) == ["h.npz"]


@pytest.mark.parametrize("value_type", ["float16", "codes"])
def test_what_a_value_type_cannot_hold_is_refused_as_soon_as_it_is_read(tmp_path, value_type):
    path = write_csv(tmp_path / "r.csv", [(1, number, number / 3) for number in range(300)])
    with pytest.raises(InputError, match=r"value_type: .*pass 'float32'"):
        converted(path, tmp_path / "m", value_type=value_type)
    assert os.listdir(tmp_path) == ["r.csv"]


def test_values_beyond_float32_are_refused(tmp_path):
    path = write_csv(tmp_path / "r.csv", [(1, 2, 1e39)])
    with pytest.raises(InputError, match=r"found 1e\+39, too large for float32"):
        converted(path, tmp_path / "m")


def test_finished_shards_are_not_overwritten(tmp_path):
    first = write_csv(tmp_path / "a.csv", [(1, 2, 3)])
    other = write_csv(tmp_path / "b.csv", [(1, 2, 4)])
    digest = converted(first, tmp_path / "m").digest
    for resume in (False, True):
        with pytest.raises(
            InputError, match="holds finished shards; pass the name of a new folder"
        ):
            converted(other, tmp_path / "m", resume=resume)
    assert ShardedMatrix.open(tmp_path / "m", verify=True).digest == digest


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
@pytest.mark.parametrize("name", ["users", "unfinished", "manifest.json"])
def test_nothing_is_written_or_removed_where_a_link_leads(tmp_path, name):
    path = write_csv(tmp_path / "r.csv", [(1, 2, 3)])
    elsewhere = tmp_path / "elsewhere"
    if name != "manifest.json":
        elsewhere.mkdir()
        (elsewhere / "0-000000.data").write_bytes(b"mine")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match=rf"m: holds other files \({name}\)"):
        converted(path, tmp_path / "m")
    assert os.listdir(tmp_path / "m") == [name]
    if name == "manifest.json":
        assert not elsewhere.exists()
    else:
        assert (elsewhere / "0-000000.data").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("user", "error", "message"),
    [
        ("a\ud800", InputError, "ids: found 'a.*', which UTF-8 cannot write"),
        ("a\0", ReadError, "r.parquet: users: found 'a.*', which ends in a NUL character"),
    ],
)
def test_texts_that_do_not_come_back_are_refused(tmp_path, user, error, message):
    pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    if user.endswith("\0"):
        path = tmp_path / "r.parquet"
        pd.DataFrame({"user": [user, "a"], "item": [1, 2]}).to_parquet(path)
    else:
        path = tmp_path / "r.npz"
        np.savez(path, user=np.array([user, "a"]), item=[1, 2])
    with pytest.raises(error, match=message):
        converted(path, tmp_path / "m", memory=SMALL + (96 << 20))
    assert os.listdir(tmp_path) == [path.name]
