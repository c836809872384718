"""What a model knows of its past: its data, its fit, what users have; and how it is loaded."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

import gpu_als
from gpu_als import AlternatingLeastSquares, ExplicitALS, Interactions
from gpu_als.errors import InputError, ModelFileError

KINDS = AlternatingLeastSquares, ExplicitALS
N_USERS, N_ITEMS = 900, 500
both = pytest.mark.parametrize("kind", KINDS)


def plays():
    rng = np.random.default_rng(17)
    rows, columns = rng.integers(0, N_USERS, 6000), rng.integers(0, N_ITEMS - 1, 6000)
    values = rng.integers(1, 6, 6000).astype(np.float32)
    matrix = sp.csr_matrix((values, (rows, columns)), shape=(N_USERS, N_ITEMS))
    matrix.data[:] = np.clip(matrix.data, 1, 5)
    return matrix


def trained(kind, data=None, **more):
    model = kind(factors=40, iterations=2, random_state=5, num_threads=1, **more)
    model.fit(plays() if data is None else data, show_progress=False)
    return model


def changed(path, **changes):
    with np.load(path) as stored:
        arrays = {**stored, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@both
def test_the_data_of_a_fit_is_remembered(kind):
    model, data = trained(kind), plays()
    assert model.item_counts.tolist() == np.diff(data.tocsc().indptr).tolist()
    past = model.about_
    assert (past["users"], past["items"], past["interactions"]) == (N_USERS, N_ITEMS, data.nnz)
    assert past["values"] == pytest.approx([1, 5, data.data.mean()])
    assert past["gpu_als"] == gpu_als.__version__
    data.data[7] += 1
    assert trained(kind, data).about_["fingerprint"] != past["fingerprint"]
    assert trained(kind).about_["fingerprint"] == past["fingerprint"]


@both
def test_the_past_goes_through_files(kind, tmp_path):
    model = trained(kind)
    model.seen_items = plays()
    model.save(tmp_path / "m")
    loaded = gpu_als.load(tmp_path / "m")
    assert type(loaded) is kind
    assert loaded.about_ == model.about_
    assert loaded.report_ == model.report_
    assert loaded.item_counts.tolist() == model.item_counts.tolist()
    assert (loaded.seen_items != model.seen_items).nnz == 0
    users = np.arange(N_USERS)
    for found, expected in zip(
        loaded.recommend(users), model.recommend(users, plays()), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
    assert str(loaded).splitlines()[1:] == str(model).splitlines()[1:]


@both
def test_a_card_says_what_the_model_is(kind):
    assert str(kind(factors=7)) == f"{kind.__name__}(factors=7)\nnot fitted"
    named = Interactions(plays(), [f"u{n}" for n in range(N_USERS)], np.arange(N_ITEMS))
    model = trained(kind, named)
    model.seen_items = named
    lines = str(model).splitlines()
    assert lines[0] == repr(model)
    assert "40 factors of 900 users with ids and 500 items with ids" in lines[1]
    assert f"{plays().nnz:,} interactions, 1 to 5, mean " in lines[2]
    assert f"{plays().nnz:,} seen items" in lines[4]
    assert "u1" not in str(model)
    assert len(lines) < 16


@both
def test_large_factors_stay_in_the_file(kind, tmp_path):
    options = {"bias": False} if kind is ExplicitALS else {}
    model = trained(kind, **options)
    model.save(tmp_path / "m.npz")
    loaded = gpu_als.load(tmp_path / "m.npz", mmap_mode="r")
    base = loaded.user_factors.base
    assert isinstance(base if base is not None else loaded.user_factors, np.memmap)
    assert loaded.user_factors.ctypes.data % 64 == 0
    users = np.arange(N_USERS)
    for found, expected in zip(
        loaded.recommend(users, plays()), model.recommend(users, plays()), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    loaded.partial_fit_users([3], plays()[[5]])  # which copies what it changes
    model.partial_fit_users([3], plays()[[5]])
    np.testing.assert_array_equal(loaded.user_factors, model.user_factors)
    with pytest.raises(InputError, match="mmap_mode"):
        gpu_als.load(tmp_path / "m.npz", mmap_mode="r+")


@both
def test_partial_fits_bring_counts_up_to_date(kind):
    model, before = trained(kind), trained(kind).item_counts
    rows = plays().T.tocsr()[[4, 9]]
    model.partial_fit_items([7, N_ITEMS + 1], rows)
    expected = np.concatenate([before, [0, 0]])
    expected[[7, N_ITEMS + 1]] = np.diff(rows.indptr)
    assert model.item_counts.tolist() == expected.tolist()
    model.partial_fit_users([0], plays()[[1]])
    assert model.item_counts.tolist()[:N_ITEMS] == expected.tolist()[:N_ITEMS]


def test_what_fits_no_longer_is_forgotten_with_the_factors():
    model = trained(AlternatingLeastSquares)
    model.seen_items = plays()
    model.item_factors = model.item_factors[:-1]
    assert model.seen_items is None
    assert model.item_counts is None


def test_a_file_of_the_other_class_names_it(tmp_path):
    for kind, other in (KINDS, KINDS[::-1]):
        trained(kind).save(tmp_path / "m.npz")
        with pytest.raises(ModelFileError, match=rf"but one of {kind.__name__}.*gpu_als\.load"):
            other.load(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    with pytest.raises(ModelFileError, match="no AlternatingLeastSquares or ExplicitALS model"):
        gpu_als.load(tmp_path / "m.npz")


@both
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": "{"}, "'about' cannot be read"),
        ({"about": "[]"}, "'about' cannot be read"),
        ({"about": json.dumps({"format": 2})}, "'about' cannot be read"),
        ({"about": json.dumps({"format": 2, "report": {"x": 1}})}, "'about' cannot be read"),
        ({"about": json.dumps({"format": 9, "gpu_als": "7.5", "report": None})}, r"gpu_als 7\.5"),
        ({"item_counts": np.zeros(3, np.int64)}, "item_counts"),
        ({"item_counts": np.zeros(N_ITEMS)}, "item_counts"),
        ({"seen_indices": np.full(6, N_ITEMS)}, "seen items"),
        ({"seen_indptr": np.arange(3)}, "seen items"),
        ({"seen_indptr": np.full(N_USERS + 1, -1)}, "seen items"),
    ],
)
def test_a_past_that_does_not_fit_is_refused(kind, changes, message, tmp_path):
    model = trained(kind)
    model.seen_items = plays()
    model.save(tmp_path / "m.npz")
    changed(tmp_path / "m.npz", **changes)
    with pytest.raises(ModelFileError, match=message):
        kind.load(tmp_path / "m.npz")
