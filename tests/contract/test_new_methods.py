"""What ``implicit`` has not: scores of pairs, and recommendations written to a file."""

import numpy as np
import pytest

from contract.common import (
    N_ITEMS,
    N_USERS,
    PLAYS,
    assert_agree,
    assert_same_ranking,
    make,
    on_host,
    trained,
)
from gpu_als import Interactions
from gpu_als.models import estimator

LOWEST = float(np.finfo(np.float32).min)


@pytest.fixture
def model(use_gpu):
    return trained(use_gpu)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make files grow in several blocks, the last of them partly filled."""
    monkeypatch.setattr(estimator, "_USERS_AT_ONCE", 40)


# --- predict -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predict_gives_the_inner_products_of_pairs(use_gpu, dtype):
    model = trained(use_gpu, dtype=dtype)
    users, items = (side.astype(np.float64) for side in on_host(model))
    rng = np.random.default_rng(41)
    rows, columns = rng.integers(0, N_USERS, 70_000), rng.integers(0, N_ITEMS, 70_000)
    found = model.predict(rows, columns)
    assert found.dtype == dtype
    expected = (users[rows] * items[columns]).sum(axis=1)
    assert_agree(found, expected, 1e-6 if dtype == np.float32 else 1e-14)


def test_predict_takes_single_numbers_on_either_side(model):
    many = model.predict([3, 3, 3], [0, 4, 9])
    np.testing.assert_array_equal(model.predict(3, [0, 4, 9]), many)
    np.testing.assert_array_equal(model.predict([3, 77], 4)[0], many[1])
    np.testing.assert_array_equal(model.predict(3, 4), many[1:2])
    assert model.predict([], []).shape == (0,)


def test_predict_agrees_with_recommend(model):
    ids, scores = model.recommend(3, filter_already_liked_items=False)
    np.testing.assert_allclose(model.predict(3, ids), scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("users", "items", "error"),
    [
        ([N_USERS], [0], IndexError),
        ([-1], [0], IndexError),
        ([0], [N_ITEMS], IndexError),
        ([0, 1], [0, 1, 2], ValueError),
        ([0.5], [1], ValueError),
    ],
)
def test_predict_refuses_what_is_no_pair(model, users, items, error):
    with pytest.raises(error):
        model.predict(users, items)


# --- recommend_to_file: on every device; the rest is in test_recommendation_file.py --------------


def write(model, path, *args, **kwargs):
    return model.recommend_to_file(path, *args, **{"show_progress": False} | kwargs)


def test_a_npy_file_has_a_record_for_every_user(model, small_blocks, tmp_path):
    path = tmp_path / "best.npy"
    assert write(model, path, PLAYS, N=7) is None
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    assert stored.dtype.names == ("user", "item", "score")
    assert stored.shape == (N_USERS,)
    np.testing.assert_array_equal(stored["user"], np.arange(N_USERS))
    expected = model.recommend(np.arange(N_USERS), PLAYS, N=7)
    assert_same_ranking((stored["item"], stored["score"]), expected, 1e-6)
    assert stored["item"].dtype == np.int32
    assert stored["score"].dtype == np.float32


@pytest.mark.parametrize(
    "arguments",
    [
        {"filter_already_liked_items": False},
        {"filter_items": [0, 4]},
        {"filter_items": PLAYS[::-1]},
        {"items": [60, 4, 9, 4]},
        {"min_score": 0.2},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_file_takes_the_arguments_of_recommend(model, small_blocks, tmp_path, arguments):
    path = tmp_path / "best.npy"
    rows = None if "filter_already_liked_items" in arguments else PLAYS
    write(model, path, rows, **arguments)
    stored = np.load(path)
    expected = model.recommend(np.arange(N_USERS), rows, **arguments)
    assert_same_ranking((stored["item"], stored["score"]), expected, 1e-6)


def test_a_parquet_file_has_a_row_for_every_item(model, small_blocks, tmp_path):
    """Places below ``min_score``, those of filtered items among them, hold none."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "best.parquet"
    write(model, path, PLAYS, N=7, min_score=0.1)
    table = parquet.read_table(path).to_pydict()
    ids, scores = model.recommend(np.arange(N_USERS), PLAYS, N=7, min_score=0.1)
    users, places = np.nonzero(scores > LOWEST)
    assert len(users) < ids.size
    np.testing.assert_array_equal(table["user"], users)
    np.testing.assert_array_equal(table["rank"], places + 1)
    np.testing.assert_array_equal(table["item"], ids[users, places])
    np.testing.assert_allclose(table["score"], scores[users, places], rtol=1e-6)


def test_a_parquet_file_holds_the_ids_of_the_training_data(use_gpu, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    users, items = PLAYS.nonzero()
    plays = Interactions.from_triples(
        [f"user {user}" for user in users], items + 1000, PLAYS.data.astype(float)
    )
    model = make(use_gpu=use_gpu)
    model.fit(plays, show_progress=False)
    path = tmp_path / "best.parquet"
    write(model, path, plays.user_items, N=3, min_score=-1e3)
    table = parquet.read_table(path).to_pydict()
    assert set(table["user"]) <= set(plays.user_ids.tolist())
    found = model.predict(table["user"], table["item"])
    np.testing.assert_allclose(found, table["score"], rtol=1e-4, atol=1e-6)
    best = model.recommend(table["user"][0], plays, N=3)[0]
    np.testing.assert_array_equal(table["item"][:3], best)
