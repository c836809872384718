"""``recommend_to_file`` writes what ``recommend`` returns, block by block, whole or not at all."""

import os
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_ratings

from gpu_als import AlternatingLeastSquares, ExplicitALS, Interactions
from gpu_als.errors import InputError
from gpu_als.models import estimator
from gpu_als.ranking.to_file import recommendation_file

N_USERS, N_ITEMS = 23, 17
PLAYS = random_ratings(N_USERS, N_ITEMS, 0.3, 7, np.float32)
USER_IDS = np.array([f"user {number}" for number in range(N_USERS)])[::-1]
ITEM_IDS = np.arange(N_ITEMS) * 10 + 1000
LOWEST = np.finfo(np.float32).min


def implicit(plays=PLAYS, **options):
    model = AlternatingLeastSquares(4, iterations=2, random_state=5, use_gpu=False, **options)
    model.fit(plays, show_progress=False)
    return model


def explicit(ratings=PLAYS, **options):
    model = ExplicitALS(4, iterations=2, random_state=5, backend="numpy", **options)
    return model.fit(ratings)


both_models = pytest.mark.parametrize("make", [implicit, explicit])
both_formats = pytest.mark.parametrize("ending", [".npy", ".parquet"])


@pytest.fixture(autouse=True)
def few_users_at_once(monkeypatch):
    """Make several blocks of the few users here, the last of them smaller."""
    monkeypatch.setattr(estimator, "_USERS_AT_ONCE", 5)


@pytest.fixture
def parquet():
    """Return the module that reads Parquet files."""
    pytest.importorskip("pyarrow", reason="Parquet files need pyarrow")
    import pyarrow.parquet

    return pyarrow.parquet


def write(model, path, *arguments, **options):
    model.recommend_to_file(path, *arguments, show_progress=False, **options)


def as_records(found, users):
    """Return what ``recommend`` gave as the lists that a file holds."""
    return [
        (int(user), ids.tolist(), scores.tolist())
        for user, ids, scores in zip(users, *found, strict=True)
    ]


def read_npy(path):
    records = np.load(path, mmap_mode="r")
    return [(int(one["user"]), one["item"].tolist(), one["score"].tolist()) for one in records]


def read_columns(parquet, path):
    return parquet.read_table(path).to_pydict()


def expected_columns(found, users, user_ids=None, item_ids=None):
    """Return the columns of a Parquet file: a row for each place that holds an item."""
    columns = {"user": [], "rank": [], "item": [], "score": []}
    for user, ids, scores in zip(users, *found, strict=True):
        for rank, (item, score) in enumerate(zip(ids, scores, strict=True), 1):
            if item >= 0:
                columns["user"].append(user if user_ids is None else user_ids[user])
                columns["rank"].append(rank)
                columns["item"].append(item if item_ids is None else item_ids[item])
                columns["score"].append(score)
    return columns


@both_models
def test_an_npy_file_holds_a_record_for_each_user(tmp_path, make):
    model = make()
    write(model, tmp_path / "r.npy", PLAYS, N=6)
    records = np.load(tmp_path / "r.npy", mmap_mode="r")
    assert isinstance(records, np.memmap)
    assert records.shape == (N_USERS,)
    assert records.dtype.names == ("user", "item", "score")
    assert records["user"].dtype == np.int64
    assert (records["item"].dtype, records["item"].shape) == (np.int32, (N_USERS, 6))
    assert (records["score"].dtype, records["score"].shape) == (np.float32, (N_USERS, 6))
    everybody = np.arange(N_USERS)
    found = model.recommend(everybody, PLAYS, N=6)
    assert read_npy(tmp_path / "r.npy") == as_records(found, everybody)


def test_scores_are_of_the_dtype_of_the_factors(tmp_path):
    write(implicit(dtype=np.float64), tmp_path / "r.npy", PLAYS)
    assert np.load(tmp_path / "r.npy")["score"].dtype == np.float64


@both_models
def test_a_parquet_file_holds_a_row_for_each_place(tmp_path, parquet, make):
    model = make()
    write(model, tmp_path / "r.parquet", PLAYS, N=6)
    everybody = np.arange(N_USERS)
    found = model.recommend(everybody, PLAYS, N=6)
    columns = read_columns(parquet, tmp_path / "r.parquet")
    assert columns == expected_columns(found, everybody)
    types = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "r.parquet")}
    assert types == {"user": "int64", "rank": "int32", "item": "int32", "score": "float"}


@both_models
def test_a_parquet_file_holds_ids_where_the_model_has_some(tmp_path, parquet, make):
    model = make(Interactions(PLAYS, USER_IDS, ITEM_IDS))
    users = np.array([20, 0, 7])
    write(model, tmp_path / "r.parquet", PLAYS[users], N=3, userids=USER_IDS[users])
    found = model.without_ids().recommend(users, PLAYS[users], N=3)
    columns = read_columns(parquet, tmp_path / "r.parquet")
    assert columns == expected_columns(found, users, USER_IDS, ITEM_IDS)
    assert columns["user"][::3] == ["user 2", "user 22", "user 15"]
    assert min(columns["item"]) >= 1000


def test_an_npy_file_holds_row_numbers_even_where_the_model_has_ids(tmp_path):
    write(implicit(Interactions(PLAYS, USER_IDS, ITEM_IDS)), tmp_path / "with.npy", PLAYS)
    write(implicit(), tmp_path / "without.npy", PLAYS)
    assert (tmp_path / "with.npy").read_bytes() == (tmp_path / "without.npy").read_bytes()


@both_formats
@pytest.mark.parametrize("users", [[3], [22, 3, 3, 11, 0, 1, 2, 9], np.arange(N_USERS)[::-1]])
def test_users_come_in_the_order_asked(tmp_path, request, ending, users):
    model, path = implicit(), tmp_path / f"r{ending}"
    write(model, path, PLAYS[users], N=4, userids=users)
    found = model.recommend(users, PLAYS[users], N=4)
    if ending == ".npy":
        assert read_npy(path) == as_records(found, users)
    else:
        parquet = request.getfixturevalue("parquet")
        assert read_columns(parquet, path) == expected_columns(found, users)


@pytest.mark.parametrize("at_once", [1, 4, 23, 100])
def test_the_size_of_the_blocks_changes_nothing(tmp_path, monkeypatch, at_once):
    model = implicit()
    write(model, tmp_path / "expected.npy", PLAYS)
    monkeypatch.setattr(estimator, "_USERS_AT_ONCE", at_once)
    write(model, tmp_path / "found.npy", PLAYS)
    found, expected = (np.load(tmp_path / f"{name}.npy") for name in ("found", "expected"))
    np.testing.assert_array_equal(found["item"], expected["item"])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("items", "length"), [(None, N_ITEMS), ([4, 2, 2, 9], 3)])
def test_lists_are_as_long_as_there_are_candidates(tmp_path, items, length):
    model = implicit()
    write(model, tmp_path / "r.npy", None, 1000, False, items=items)
    records = np.load(tmp_path / "r.npy")
    assert records["item"].shape == (N_USERS, length)
    candidates = sorted(set(range(N_ITEMS) if items is None else items))
    assert (np.sort(records["item"], axis=1) == candidates).all()


def test_filters_are_those_of_recommend(tmp_path):
    model, everybody = implicit(), np.arange(N_USERS)
    denied = random_ratings(N_USERS, N_ITEMS, 0.2, 9, np.float32)
    for filter_items in ([1, 5], denied):
        write(model, tmp_path / "r.npy", PLAYS, N=N_ITEMS, filter_items=filter_items)
        found = model.recommend(everybody, PLAYS, N=N_ITEMS, filter_items=filter_items)
        assert read_npy(tmp_path / "r.npy") == as_records(found, everybody)
        assert (found[1] == LOWEST).any()


def test_places_below_min_score_hold_minus_one(tmp_path, parquet):
    """In a table they are left out: users may have fewer rows, or none."""
    model, everybody = implicit(), np.arange(N_USERS)
    full = model.recommend(everybody, PLAYS, N=5)
    limit = float(np.median(full[1].max(axis=1)))
    options = {"N": 5, "min_score": limit}
    write(model, tmp_path / "r.npy", PLAYS, **options)
    records = np.load(tmp_path / "r.npy")
    low = full[1] < limit
    np.testing.assert_array_equal(records["item"], np.where(low, -1, full[0]))
    np.testing.assert_array_equal(records["score"], np.where(low, LOWEST, full[1]))
    assert low.all(axis=1).any()

    write(model, tmp_path / "r.parquet", PLAYS, **options)
    columns = read_columns(parquet, tmp_path / "r.parquet")
    assert columns == expected_columns((records["item"], full[1]), everybody)
    assert len(columns["item"]) == (~low).sum()
    assert min(columns["score"]) >= limit


@both_formats
@pytest.mark.parametrize("known", [False, True])
def test_a_failure_in_the_middle_leaves_what_was_there(
    tmp_path, request, monkeypatch, ending, known
):
    if ending == ".parquet":
        request.getfixturevalue("parquet")
    path, model, calls = tmp_path / f"r{ending}", implicit(), []
    if known:
        path.write_bytes(b"old")
    rank = AlternatingLeastSquares.recommend

    def fail_at_the_third(*arguments, **options):
        calls.append(sorted(os.listdir(tmp_path)))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rank(*arguments, **options)

    monkeypatch.setattr(AlternatingLeastSquares, "recommend", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write(model, path, PLAYS)
    assert any(name.endswith(".tmp") for name in calls[-1])  # it had begun
    assert os.listdir(tmp_path) == [path.name] * known
    assert not known or path.read_bytes() == b"old"


@pytest.mark.parametrize("shown", [True, False])
def test_a_progress_bar_counts_users_if_it_is_wanted(tmp_path, capsys, shown):
    implicit().recommend_to_file(tmp_path / "r.npy", PLAYS, show_progress=shown)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (f"{N_USERS}/{N_USERS}" in printed.err) == shown
    assert shown or printed.err == ""


@pytest.mark.parametrize("file", ["r", "r.tsv", "r.npz", "npy", 3, None, sys.stdout, b"r.npy"])
def test_other_files_are_refused(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"file must be a path that ends in \.csv, .*\.parquet"):
        write(implicit(), file, PLAYS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, InputError, "user_items is needed to filter"),
        ({"user_items": PLAYS[:3]}, InputError, "3 rows for 23 users"),
        ({"user_items": PLAYS, "N": 0}, InputError, "N must be"),
        ({"user_items": PLAYS[:1], "userids": [N_USERS]}, IndexError, "userids"),
        ({"user_items": PLAYS, "items": []}, InputError, "items is empty"),
        ({"user_items": PLAYS, "min_score": "a"}, InputError, "min_score"),
        ({"user_items": PLAYS, "filter_items": [N_ITEMS]}, IndexError, "filter_items"),
    ],
)
def test_bad_arguments_leave_no_file(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        write(implicit(), tmp_path / "r.npy", **arguments)
    assert os.listdir(tmp_path) == []


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install pyarrow, or choose .* \.npy"):
        write(implicit(), tmp_path / "r.parquet", PLAYS)
    assert os.listdir(tmp_path) == []


@both_formats
def test_memory_does_not_grow_with_the_number_of_users(tmp_path, request, ending):
    if ending == ".parquet":
        request.getfixturevalue("parquet")

    def peak(n_blocks):
        shape = (n_blocks * 1000, 20)
        items, scores = np.ones((1000, 20), np.int32), np.ones((1000, 20), np.float32)
        tracemalloc.start()
        with recommendation_file(
            tmp_path / f"r{ending}", shape, dtype="f4", ids=(None, None, None), show_progress=False
        ) as write_block:
            for block in range(n_blocks):
                write_block(np.arange(1000) + block * 1000, items, scores)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return taken

    peak(1)  # imports
    assert peak(100) < peak(2) + 2_000_000  # the file has 16 MB


def test_a_matrix_wider_or_narrower_than_the_model(tmp_path):
    """As in ``recommend``: items the model does not know are an error, missing ones are not."""
    model, everybody = implicit(), np.arange(N_USERS)
    narrow = PLAYS[:, : N_ITEMS - 3]
    write(model, tmp_path / "r.npy", narrow, N=4)
    found = model.recommend(everybody, narrow, N=4)
    assert read_npy(tmp_path / "r.npy") == as_records(found, everybody)
    with pytest.raises(InputError, match="columns"):
        write(model, tmp_path / "r.npy", sp.hstack([PLAYS, PLAYS[:, :1]], "csr"))
