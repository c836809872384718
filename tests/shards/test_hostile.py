"""A folder that is damaged or hostile is refused before anything reads outside its files."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data.shards import ShardedMatrix
from gpu_als.data.shards.id_files import read_ids
from gpu_als.data.shards.records import FileRecord, IdRecord
from gpu_als.errors import ReadError
from shards.common import BY_HYPOTHESIS, holds

SOURCE = sp.csr_matrix(np.array([[0, 2, 3, 0], [4, 0, 0, 5], [0, 0, 6, 0]], np.float32))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a folder with two shards of users, two of items, and ids of both kinds."""
    folder = tmp_path_factory.mktemp("good") / "m"
    matrix = ShardedMatrix.from_matrix(
        SOURCE, folder, user_ids=["ann", "böb", "cat"], item_ids=[3, 1, 9, 7],
        value_type="codes", shard_bytes=40,
    )  # fmt: skip
    assert len(matrix.users) == len(matrix.items) == 2
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """Return a copy that a test may damage."""
    return shutil.copytree(good, tmp_path / "m")


def rewrite(folder, change):
    """Change the JSON of the manifest, and give it the checksum it then ought to have."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    del body["checksum"]
    change(body)
    text = json.dumps(body, sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(body | {"checksum": checksum}))


def shard(body, side="users", number=0):
    return body["shards"][side][number]


def move_an_entry(shards):
    for record, by in zip(shards, (-1, 1), strict=True):
        record["nnz"] += by


HOSTILE = {
    "another format": lambda b: b.update(format="gpu_als shards 2"),
    "no shape": lambda b: b.pop("shape"),
    "a shape of three": lambda b: b.update(shape=[3, 4, 5]),
    "no rows": lambda b: b.update(shape=[0, 4]),
    "more rows than shards cover": lambda b: b.update(shape=[4, 4]),
    "more rows than shards cover, without ids":
        lambda b: (b.update(shape=[4, 4]), b["ids"].update(users=None)),
    "fewer rows than shards cover, without ids":
        lambda b: (b.update(shape=[2, 4]), b["ids"].update(users=None)),
    "a shape of fractions": lambda b: b.update(shape=[3.0, 4]),
    "a true shape": lambda b: b.update(shape=[True, 4]),
    "a shape beyond 64 bits": lambda b: b.update(shape=[2**70, 4]),
    "columns that need wider indices": lambda b: b.update(shape=[3, 2**31]),
    "another nnz": lambda b: b.update(nnz=6),
    "a negative nnz": lambda b: b.update(nnz=-5),
    "dtypes of something else": lambda b: b["dtypes"].update(indptr="<i4"),
    "object dtypes": lambda b: b["dtypes"].update(data="|O"),
    "an unknown value type": lambda b: b.update(value_type="float64"),
    "a value type of other sizes": lambda b: b.update(value_type="float32"),
    "too many codes": lambda b: b.update(codes=[1.0] * 257),
    "codes that are no numbers": lambda b: b.update(codes=["1"]),
    "codes that are not finite": lambda b: b.update(codes=[float("nan")]),
    "codes beyond float32": lambda b: b.update(codes=[1e300]),
    "codes that are a number": lambda b: b.update(codes=5),
    "unknown duplicates": lambda b: b.update(duplicates="mean"),
    "a source that is a number": lambda b: b.update(source=5),
    "no users": lambda b: b["shards"].pop("users"),
    "shards that are a text": lambda b: b["shards"].update(users="abc"),
    "no shards of users": lambda b: b["shards"].update(users=[]),
    "a gap between shards": lambda b: shard(b, number=1).update(start=3),
    "overlapping shards": lambda b: shard(b, number=1).update(start=1),
    "shards in another order": lambda b: b["shards"]["users"].reverse(),
    "a shard without rows": lambda b: shard(b).update(stop=0),
    "a shard that begins before the matrix": lambda b: shard(b).update(start=-1),
    "an entry moved between shards": lambda b: move_an_entry(b["shards"]["users"]),
    "a size that is wrong": lambda b: shard(b)["data"].update(bytes=5),
    "a size that is a text": lambda b: shard(b)["data"].update(bytes="4"),
    "a size beyond 64 bits": lambda b: shard(b)["data"].update(bytes=10**30),
    "a file that is not there": lambda b: shard(b)["data"].update(name="0-000009.data"),
    "a file of the other side": lambda b: shard(b)["data"].update(name="../items/0-000000.data"),
    "a file elsewhere": lambda b: shard(b)["data"].update(name="/etc/passwd"),
    "a file above": lambda b: shard(b)["data"].update(name=".."),
    "a hidden file": lambda b: shard(b)["data"].update(name=".data"),
    "a backslash in a name": lambda b: shard(b)["data"].update(name="..\\data"),
    "a line end in a name": lambda b: shard(b)["data"].update(name="0-000000.data\n"),
    "a NUL in a name": lambda b: shard(b)["data"].update(name="0-000000.data\0"),
    "a name that is a number": lambda b: shard(b)["data"].update(name=3),
    "no name": lambda b: shard(b)["data"].pop("name"),
    "a checksum that is none": lambda b: shard(b)["data"].update(sha256="0" * 63),
    "ids of an unknown kind": lambda b: b["ids"]["users"].update(kind="pickles"),
    "ids with a file too few": lambda b: b["ids"]["users"]["files"].pop(),
    "ids for other rows": lambda b: b["ids"].update(items=b["ids"]["users"]),
    "no word on ids": lambda b: b.pop("ids"),
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_manifests_are_refused(folder, change):
    rewrite(folder, change)
    with pytest.raises(
        ReadError, match=r"manifest\.json: not the manifest of .* or a damaged one|missing"
    ):
        ShardedMatrix.open(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[1, 2]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b"1" * 5000],
)
def test_what_is_no_manifest_at_all_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ReadError, match=r"manifest\.json: not the manifest"):
        ShardedMatrix.open(folder)


@BY_HYPOTHESIS
@given(st.data())
def test_a_flipped_bit_of_the_manifest_is_noticed(good, data):
    path = good / "manifest.json"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        matrix = ShardedMatrix.open(good)
    except ReadError:
        pass
    else:  # blanks between the words of JSON may become other blanks
        assert json.loads(bytes(changed)) == json.loads(whole)
        assert holds(matrix, SOURCE)
    finally:
        path.write_bytes(whole)


def test_a_folder_without_a_manifest_is_said_to_be_unfinished(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ReadError, match=r"has no manifest\.json, .*unfinished; .* --resume"):
        ShardedMatrix.open(folder)
    with pytest.raises(FileNotFoundError, match="no such folder of shards"):
        ShardedMatrix.open(folder / "nowhere")


FILES = ["users/0-000000.indptr", "items/0-000001.data", "0-users.utf8", "0-items.int64"]


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_size_are_refused_when_the_folder_is_opened(folder, name):
    content = (folder / name).read_bytes()
    for other in (content[:-1], content + b"\0", b""):
        (folder / name).write_bytes(other)
        with pytest.raises(
            ReadError, match=r"found \d+ bytes where the manifest says a file of \d+"
        ):
            ShardedMatrix.open(folder)
    (folder / name).unlink()
    with pytest.raises(ReadError, match="is missing from the folder"):
        ShardedMatrix.open(folder)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
@pytest.mark.parametrize("name", FILES)
def test_links_are_not_followed(folder, tmp_path, name):
    path = folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReadError, match="where the manifest says a file"):
        ShardedMatrix.open(folder)
    path.unlink()
    size = (tmp_path / "elsewhere").stat().st_size
    path.symlink_to("x" * size)  # so a link has the right size itself
    (tmp_path / "elsewhere").rename(path.parent / ("x" * size))
    with pytest.raises(ReadError, match="where the manifest says a file"):
        ShardedMatrix.open(folder)


def overwrite(path, dtype, values):
    """Put other values into a file, of the same number and type."""
    array = np.array(values, dtype)
    assert array.nbytes == path.stat().st_size
    array.tofile(path)


@pytest.mark.parametrize(
    ("name", "dtype", "values"),
    [
        ("users/0-000000.indptr", "<i8", [1, 3, 4]),
        ("users/0-000000.indptr", "<i8", [0, 5, 4]),
        ("users/0-000000.indptr", "<i8", [0, -1, 4]),
        ("users/0-000000.indptr", "<i8", [0, 2, 3]),
        ("users/0-000000.indptr", "<i8", [0, 2, 2**40]),
        ("users/0-000000.indices", "<i4", [1, 2, 0, 4]),
        ("users/0-000000.indices", "<i4", [1, 2, -1, 3]),
        ("users/0-000000.indices", "<i4", [2, 1, 0, 3]),
        ("users/0-000000.indices", "<i4", [1, 1, 0, 3]),
        ("users/0-000000.data", "u1", [0, 1, 2, 200]),
    ],
)
def test_arrays_that_make_no_matrix_are_refused_when_they_are_loaded(folder, name, dtype, values):
    if name.endswith("indptr"):
        assert ShardedMatrix.open(folder).users[0].nnz == 4
    overwrite(folder / name, dtype, values)
    matrix = ShardedMatrix.open(folder)
    for _ in range(2):
        with pytest.raises(ReadError, match=r"this shard is damaged .*; convert the data again"):
            matrix.users[0].load()


def test_values_that_are_not_finite_are_refused(tmp_path):
    ShardedMatrix.from_matrix(SOURCE, tmp_path / "m")
    overwrite(tmp_path / "m" / "users" / "0-000000.data", "<f4", [1, 2, np.nan, 4, 5])
    with pytest.raises(ReadError, match=r"damaged .*NaN"):
        ShardedMatrix.open(tmp_path / "m").users[0].load()


@BY_HYPOTHESIS
@given(st.data())
def test_verifying_notices_any_flipped_bit(good, data):
    names = sorted(str(p.relative_to(good)) for p in good.rglob("0-*") if p.stat().st_size)
    path = good / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        with pytest.raises(
            ReadError, match=path.name + ": its checksum is wrong; convert the data"
        ):
            ShardedMatrix.open(good).verify(show_progress=False)
    finally:
        path.write_bytes(whole)
    ShardedMatrix.open(good).verify(show_progress=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0-users.ends", np.array([3, 2, 10], "<i8"), "its ids do not end where they should"),
        ("0-users.ends", np.array([3, 7, 9], "<i8"), "its ids do not end where they should"),
        ("0-users.ends", np.array([-1, 7, 10], "<i8"), "its ids do not end where they should"),
        ("0-users.ends", np.array([3, 5, 10], "<i8"), "an id is not UTF-8"),
        ("0-users.utf8", np.full(10, 255, "u1"), "an id is not UTF-8"),
    ],
)
def test_texts_that_are_none_are_refused(folder, name, content, message):
    overwrite(folder / name, content.dtype, content)
    matrix = ShardedMatrix.open(folder)
    with pytest.raises(ReadError, match=r"0-users\.utf8: " + message):
        _ = matrix.user_ids
    assert matrix.item_ids.tolist() == [3, 1, 9, 7]


def test_what_ids_take_in_memory_is_four_bytes_for_each_character_of_the_longest(tmp_path):
    """Here 100 MB, of which the files account for 18; with one byte each they would be let in."""
    ends = np.append(np.arange(1, 20_001), 20_000 + 1250)

    def read(name, dtype):
        return ends if dtype == "<i8" else np.full(ends[-1], ord("x"), np.uint8)

    files = tuple(FileRecord(name, 1, "0" * 64) for name in ("0-users.ends", "0-users.utf8"))
    with pytest.raises(
        ReadError, match=r"an id of 1250 bytes would make all of them take 100005000"
    ):
        read_ids(IdRecord("texts", files), read, tmp_path)
