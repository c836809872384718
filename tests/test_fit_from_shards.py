# ruff: noqa: F811 (fixtures are arguments of the same name)
"""Fits on shards find what fits on the same matrix in memory do, and hold little of it."""

import re
import tracemalloc
import weakref
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from checkpoint.common import assert_same, fitted_arrays
from hypothesis import given
from hypothesis import strategies as st
from test_cupy_backend import cupy_backend as device  # noqa: F401  (a fixture)
from test_streaming import (
    IMPLICIT,
    STEEP,
    cut_always,
    interactions,
    steep_data,
    steep_fit,
)

import gpu_als
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import CheckpointError, InputError, ReadError
from gpu_als.train import engine, row_blocks
from gpu_als.train.loop import StopTraining
from gpu_als.train.row_blocks import ShardRows

ITERATIONS = 3
EXPLICIT = {
    "bias": {},
    "plain": {"bias": False},
    "nonnegative": {"nonnegative": True},
    "unscaled": {"scale_regularization": None},
}
CASES = {f"implicit {name}": ("implicit", options) for name, options in IMPLICIT.items()}
CASES |= {f"explicit {name}": ("explicit", options) for name, options in EXPLICIT.items()}
CASES["explicit validation"] = ("explicit", {"regularization": 0.01, "factors": 12})


def data():
    """Return small counts, which every type of values holds; one of them is a rating of zero."""
    matrix = interactions()
    matrix.data[5] = 0
    return matrix


def sharded(folder, matrix=None, **options):
    """Write shards of few rows each."""
    matrix = data() if matrix is None else matrix
    found = ShardedMatrix.from_matrix(matrix, folder, **{"shard_bytes": 900} | options)
    assert min(len(found.users), len(found.items)) > 1
    return ShardedMatrix.open(folder)


def fit(case, source, use_gpu=False, *, options=(), **how):
    """Fit what the case says; return the model."""
    kind, own = CASES[case]
    options = {"factors": 8, "iterations": ITERATIONS, "random_state": 11} | own | dict(options)
    if kind == "implicit":
        model = gpu_als.AlternatingLeastSquares(**options, use_gpu=use_gpu)
        model.fit(source, show_progress=False, **how)
        return model
    if case.endswith("validation"):
        how = {"validation": interactions(seed=31)} | how
    backend = "cupy" if use_gpu else "numpy"
    return gpu_als.ExplicitALS(**options, backend=backend).fit(source, **how)


def in_small_parts(monkeypatch, n_bytes=2500):
    monkeypatch.setattr(row_blocks, "_BLOCK_BYTES", n_bytes)


def assert_close(model, expected, atol):
    found, wanted = fitted_arrays(model), fitted_arrays(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("case", "value_type"),
    [*((case, "codes") for case in CASES), *(("explicit bias", f"float{n}") for n in (16, 32))],
)
def test_in_one_part_the_fit_is_that_in_memory_to_the_bit(tmp_path, case, value_type):
    found = fit(case, sharded(tmp_path / "s", value_type=value_type))
    assert_same(found, fit(case, data()))


@pytest.mark.parametrize(
    ("case", "shards_are", "dtype"),
    [*((case, "cut", np.float32) for case in CASES), ("implicit cg", "joined", np.float64),
     ("explicit validation", "joined", np.float64)],
)  # fmt: skip
def test_in_many_parts_too(tmp_path, monkeypatch, case, shards_are, dtype):
    options = {"dtype": dtype}
    expected = fit(case, data(), options=options)
    in_small_parts(monkeypatch, 1500 if shards_are == "cut" else 5500)
    source = sharded(tmp_path / "s", value_type="codes")
    for shards in (source.users, source.items):
        bounds, starts = ShardRows.of(shards, np.float64).bounds, len(shards)
        assert len(bounds) > 3
        assert len(bounds) - 1 > starts if shards_are == "cut" else len(bounds) - 1 < starts
    found = fit(case, source, options=options)
    assert_close(found, expected, 0)
    assert found.report_.losses == pytest.approx(expected.report_.losses, rel=1e-12)
    assert found.report_.metrics == [
        {"rmse": pytest.approx(each["rmse"], rel=1e-12)} for each in expected.report_.metrics
    ]
    assert found.report_.user_rows == expected.report_.user_rows
    assert found.report_.entries == expected.report_.entries == source.nnz


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("case", ["implicit cg", "explicit bias"])
def test_on_a_device(device, tmp_path, monkeypatch, case, streamed):
    expected = fit(case, data(), use_gpu=True)
    in_small_parts(monkeypatch)
    source = sharded(tmp_path / "s", value_type="float16")
    if streamed:
        cut_always(monkeypatch, 3000)
    found = fit(case, source, use_gpu=True)
    assert_close(found, expected, 2e-4)
    assert found.report_.losses == pytest.approx(expected.report_.losses, rel=1e-5)


@pytest.mark.parametrize(("n_bytes", "ridges"), [(900, STEEP[1]), *((5000, one) for one in STEEP)])
def test_blocks_change_no_bit_where_ridges_differ_by_row(tmp_path, monkeypatch, n_bytes, ridges):
    expected = steep_fit(steep_data(), ridges)
    in_small_parts(monkeypatch, n_bytes)
    source = ShardedMatrix.from_matrix(steep_data(), tmp_path / "s", shard_bytes=3000)
    assert_close(steep_fit(source, ridges), expected, 0)


def test_rows_are_taken_out_of_rows_that_were_taken_out():
    counts = np.arange(1, 31)
    every = ShardRows((SimpleNamespace(start=0, stop=30),), 9, np.dtype("f4"), counts, (0, 30))
    some = every.between(8, 27).between(11, 20)
    assert (some.bounds[0], some.bounds[-1]) == (11, 20)
    assert some.counts().tolist() == counts[11:20].tolist()


@given(data=st.data())
def test_a_part_has_rows_of_one_shard_or_whole_shards_that_fit(data):
    counts = np.array(data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=30)))
    rows = st.integers(0, len(counts))
    starts = sorted({0, *data.draw(st.lists(rows, max_size=6))} - {len(counts)})
    ends = [*starts[1:], len(counts)]
    shards = tuple(
        SimpleNamespace(start=start, stop=stop) for start, stop in zip(starts, ends, strict=True)
    )
    every = ShardRows(shards, 9, np.dtype(np.float32), counts, (0, len(counts)))
    some = every.between(*sorted(data.draw(st.tuples(rows, rows).filter(lambda x: x[0] != x[1]))))
    most = data.draw(st.integers(1, 400))
    for whole in (every, some):
        found = whole.partition(most, 3, 5).bounds
        assert (found[0], found[-1]) == (whole.bounds[0], whole.bounds[-1])
        for first, last in pairwise(found):
            assert first < last
            assert last - first == 1 or np.sum(3 * counts[first:last] + 5) <= most
            within = [each for each in starts if first < each < last]
            ends_of_shards = {*starts, *ends, *whole.bounds}
            assert not within or {first, last} <= ends_of_shards


def test_a_device_that_takes_large_parts_does_not_make_them_large_on_the_host(
    tmp_path, monkeypatch
):
    in_small_parts(monkeypatch)
    rows = ShardRows.of(sharded(tmp_path / "s").users, np.float32)
    assert rows.partition(1 << 40, 12, 40).bounds == rows.bounds


@pytest.fixture
def reading(tmp_path, monkeypatch):
    """Return shards, and what is read of them: side and number of each block, and most at once."""
    in_small_parts(monkeypatch, 1500)
    source = sharded(tmp_path / "s")
    seen = SimpleNamespace(source=source, read=[], most=0)
    block, held = ShardRows.block, []

    def counted(self, number):
        made = block(self, number)
        seen.read.append((self.n_fixed, number))
        held.append(weakref.ref(made.values))
        seen.most = max(seen.most, sum(each() is not None for each in held))
        return made

    monkeypatch.setattr(ShardRows, "block", counted)
    seen.users, seen.items = (
        [(n_fixed, number) for number in range(len(ShardRows.of(shards, np.float32).bounds) - 1)]
        for shards, n_fixed in ((source.users, 40), (source.items, 70))
    )
    assert len(seen.users) > 8
    return seen


def test_each_block_is_read_once_in_a_fit(reading):
    fit("explicit bias", reading.source)
    assert reading.read == 2 * reading.users + reading.items  # first the values are looked at


def test_blocks_beyond_what_the_host_keeps_are_read_in_every_half_sweep(reading, monkeypatch):
    """And few of them are held: one in use, one being read while one takes its place."""
    monkeypatch.setattr(engine, "HOST_BYTES", 0)
    fit("explicit bias", reading.source)
    assert reading.read == reading.users + ITERATIONS * (reading.users + reading.items)
    assert reading.most <= 3


@pytest.mark.parametrize("streamed", [False, True], ids=["host", "device"])
def test_the_host_keeps_as_many_problems_as_its_bytes_allow(reading, monkeypatch, streamed):
    if streamed:
        cut_always(monkeypatch, 1500)
    sizes, size_of = [], engine._owned_bytes

    def noted(problem):
        sizes.append(size_of(problem))
        return sizes[-1]

    monkeypatch.setattr(engine, "_owned_bytes", noted)
    expected = fit("implicit ones", reading.source)
    assert len(sizes) == len(reading.users + reading.items)
    kept = sum(sizes[-len(reading.items) :]) // 2
    monkeypatch.setattr(engine, "HOST_BYTES", kept)
    reading.read.clear()
    sizes.clear()
    assert_same(fit("implicit ones", reading.source), expected)
    reads = [reading.read.count(block) for block in reading.items]
    assert set(reads) == {1, ITERATIONS}
    assert 0.3 < reads.count(1) / len(reads) < 0.7


def test_of_a_shard_no_more_than_the_part_is_decoded(tmp_path):
    rng = np.random.default_rng(17)
    matrix = sp.random(20_000, 300, density=0.05, format="csr", rng=rng, dtype=np.float32)
    matrix.data = rng.integers(1, 6, matrix.nnz).astype(np.float32)
    source = ShardedMatrix.from_matrix(matrix, tmp_path / "s", value_type="codes")
    assert len(source.users) == 1
    rows = ShardRows.of(source.users, np.float32).partition(10_000, 12, 40)
    rows.block(100)  # what Python keeps of a first call is not the part's
    tracemalloc.start()
    try:
        rows.block(200)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The part takes 10 kB, other threads of the process a few more, the shard's values 1.2 MB.
    assert peak < 300_000
    assert 4 * matrix.nnz > 1_000_000


@pytest.mark.parametrize("case", ["implicit cg", "explicit bias"])
def test_ids_are_carried_over(tmp_path, case):
    users, items = [f"u{number:03}" for number in range(70)], np.arange(40) * 7 + 1000
    source = sharded(tmp_path / "s", user_ids=users, item_ids=items)
    model = fit(case, source)
    model.save(tmp_path / "model.npz")
    for each in (model, type(model).load(tmp_path / "model.npz")):
        assert each.user_ids.tolist() == users
        assert each.item_ids.tolist() == items.tolist()
        assert each.user_index(["u069", "u000"]).tolist() == [69, 0]
        assert each.item_index([1014]).tolist() == [2]


@pytest.mark.parametrize("case", ["implicit cg", "explicit validation"])
def test_a_fit_goes_on_from_a_checkpoint_to_the_bit(tmp_path, monkeypatch, case):
    in_small_parts(monkeypatch)
    file, expected = tmp_path / "state.npz", fit(case, sharded(tmp_path / "s"))

    def stop(iteration, *_):
        if iteration == 0:
            raise StopTraining

    fit(case, ShardedMatrix.open(tmp_path / "s"), callback=stop, checkpoint=file)
    # the content decides, not where it lies
    for place in (ShardedMatrix.open(tmp_path / "s"), sharded(tmp_path / "copy")):
        assert_same(fit(case, place, resume=file), expected)


@pytest.mark.parametrize("case", ["implicit cg", "explicit bias"])
def test_a_checkpoint_is_of_one_folder(tmp_path, case):
    file = tmp_path / "state.npz"
    fit(case, sharded(tmp_path / "s"), checkpoint=file)
    other = data()
    other.data[100] += 1
    name = {"implicit cg": "user_items", "explicit bias": "ratings"}[case]
    with pytest.raises(CheckpointError, match=f"another fit; different: {name} "):
        fit(case, sharded(tmp_path / "other", other), resume=file)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-1])


def out_of_range(file):
    columns = np.frombuffer(file.read_bytes(), np.int32).copy()
    columns[-1] = 10**6
    file.write_bytes(columns.tobytes())


@pytest.mark.parametrize(
    ("case", "harm", "side"),
    [("implicit cg", cut_off, "users"), ("explicit bias", out_of_range, "items")],
)
def test_a_damaged_shard_is_refused_before_training(tmp_path, case, harm, side):
    source = sharded(tmp_path / "s")
    harm(sorted((tmp_path / "s" / side).glob("*.indices"))[-1])
    trained = []
    with pytest.raises(ReadError, match=f"{side}.*convert the data again, or restore"):
        fit(case, source, callback=lambda *_: trained.append(1))
    assert not trained


@pytest.mark.parametrize("case", ["implicit cg", "explicit bias"])
def test_a_value_out_of_range_is_named_by_its_row(tmp_path, monkeypatch, case):
    matrix = data()
    row = int(np.flatnonzero(np.diff(matrix.indptr))[-3])
    column = matrix.indices[matrix.indptr[row]]
    matrix.data[matrix.indptr[row]] = 3e12
    in_small_parts(monkeypatch)
    with pytest.raises(InputError, match=re.escape(f"({row}, {column})")):
        fit(case, sharded(tmp_path / "s", matrix))


def test_weights_are_refused(tmp_path):
    source = sharded(tmp_path / "s")
    with pytest.raises(InputError, match="sample_weight goes with ratings in memory"):
        fit("explicit bias", source, sample_weight=np.ones(source.nnz))


@pytest.mark.parametrize("case", ["implicit exact", "explicit bias"])
def test_parts_without_an_entry(tmp_path, monkeypatch, case):
    matrix = data().tolil()
    matrix[20:60] = 0
    matrix[:, 10:30] = 0
    matrix = matrix.tocsr()
    in_small_parts(monkeypatch, 400)
    source = sharded(tmp_path / "s", matrix)
    rows = ShardRows.of(source.users, np.float32)
    assert any(len(rows.block(number).values) == 0 for number in range(len(rows.bounds) - 1))
    float64 = {"dtype": np.float64}
    found = fit(case, source, options=float64)
    assert_close(found, fit(case, matrix, options=float64), 1e-11)
    assert not np.asarray(found.user_factors)[20:60].any()
    assert not np.asarray(found.item_factors)[10:30].any()


def test_held_out_ratings_of_other_ids_are_refused(tmp_path):
    matrix = data()
    source = sharded(tmp_path / "s", user_ids=np.arange(70) + 1, item_ids=np.arange(40))
    held_out = gpu_als.Interactions.from_matrix(
        matrix, user_ids=np.arange(70) + 2, item_ids=np.arange(40)
    )
    with pytest.raises(InputError, match="validation: its user_ids are not those of ratings"):
        fit("explicit bias", source, validation=held_out)


@pytest.mark.parametrize("with_ids", [True, False])
def test_held_out_triples_are_put_in_terms_of_the_folder(tmp_path, with_ids):
    ids = {"user_ids": np.arange(70)[::-1], "item_ids": [f"i{n}" for n in range(40)]}
    ids = ids if with_ids else {}
    triples = ([69, 3, 70], ["i1", "i39", "i1"] if with_ids else [1, 39, 1], [2.5, 4.0, 1.0])
    source = sharded(tmp_path / "s", **ids)
    expected = gpu_als.Interactions.from_matrix(data(), **ids).encode(*triples, unknown="skip")
    found = source.encode(*triples, unknown="skip")
    assert len(found[0]) == 2
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="users"):
        source.encode(*triples)
