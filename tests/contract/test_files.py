"""``save``, ``load`` and pickles, of our models and of ``implicit``'s."""

import io
import pickle

import numpy as np
import pytest

from contract.common import (
    FACTORS,
    N_ITEMS,
    N_USERS,
    PLAYS,
    assert_same_ranking,
    fitted,
    make,
    on_host,
    trained,
)
from gpu_als import AlternatingLeastSquares
from gpu_als.errors import NotFittedError

KEYS = {
    "user_factors", "item_factors", "regularization", "factors", "num_threads", "iterations",
    "use_native", "use_cg", "cg_steps", "calculate_training_loss", "dtype", "random_state", "alpha",
}  # fmt: skip
PARAMETERS = KEYS - {"user_factors", "item_factors"}
OTHER_THAN_DEFAULT = {
    "factors": FACTORS, "regularization": 0.2, "alpha": 2.5, "dtype": np.float64,
    "use_native": False, "use_cg": False, "iterations": 2, "calculate_training_loss": True,
    "num_threads": 1, "random_state": 11,
}  # fmt: skip
USERS = np.array([1, 3, 77])

any_parameters = pytest.mark.parametrize(
    "params",
    [{}, OTHER_THAN_DEFAULT, {"random_state": None}],
    ids=["defaults", "others", "no seed"],
)


def assert_same_model(found, expected):
    for name in PARAMETERS:
        assert getattr(found, name) == getattr(expected, name), name
    for ours, other in zip(on_host(found), on_host(expected), strict=True):
        assert ours.dtype == other.dtype
        np.testing.assert_array_equal(ours, other)


# --- our own -------------------------------------------------------------------------------------


def test_save_writes_the_keys_of_implicit(use_gpu, tmp_path):
    trained(use_gpu, calculate_training_loss=True).save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz", allow_pickle=False) as stored:
        assert set(stored) == KEYS | {"item_counts", "about"}  # which others leave alone
        assert stored["user_factors"].shape == (N_USERS, FACTORS)
        assert stored["item_factors"].shape == (N_ITEMS, FACTORS)
        assert str(stored["dtype"]) == "float32"
        assert stored["factors"].shape == ()


def test_save_leaves_out_what_is_none(tmp_path):
    fitted(random_state=None, iterations=1).save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as stored:
        assert set(stored) == KEYS - {"random_state"} | {"item_counts", "about"}


@pytest.mark.parametrize("seed", [2**63, 2**64, 3**99])
def test_seeds_beyond_64_bits_are_saved(tmp_path, seed):
    fitted(random_state=seed, iterations=1).save(tmp_path / "model.npz")
    assert AlternatingLeastSquares.load(tmp_path / "model.npz").random_state == seed


def test_save_and_load_keep_every_parameter_and_the_factors(use_gpu, tmp_path):
    model = trained(use_gpu, **OTHER_THAN_DEFAULT)
    model.cg_steps = 5
    model.save(tmp_path / "model.npz")
    loaded = AlternatingLeastSquares.load(tmp_path / "model.npz")
    assert loaded.cg_steps == 5
    assert_same_model(loaded, model)


def test_a_loaded_model_answers_as_the_saved_one(use_gpu, tmp_path):
    """Whichever device saved it, and whichever it works on now."""
    model = trained(use_gpu)
    model.save(tmp_path / "model.npz")
    loaded = AlternatingLeastSquares.load(tmp_path / "model.npz")
    for back in (loaded, loaded.to_cpu()):
        assert_same_ranking(
            back.recommend(USERS, PLAYS[USERS]), model.recommend(USERS, PLAYS[USERS])
        )
        assert_same_ranking(back.similar_items(USERS), model.similar_items(USERS))


def test_a_loaded_model_goes_on_training(use_gpu, tmp_path):
    four = fitted(use_gpu=use_gpu, iterations=4)
    fitted(use_gpu=use_gpu, iterations=2).save(tmp_path / "model.npz")
    loaded = AlternatingLeastSquares.load(tmp_path / "model.npz").set_params(use_gpu=use_gpu)
    loaded.fit(PLAYS, show_progress=False)
    for found, expected in zip(on_host(loaded), on_host(four), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_ending_npz_may_be_left_out_of_strings(tmp_path):
    model = fitted(iterations=1)
    model.save(str(tmp_path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]
    for name in ("model", "model.npz"):
        assert_same_model(AlternatingLeastSquares.load(str(tmp_path / name)), model)


def test_file_objects_are_written_and_read(use_gpu):
    model, file = trained(use_gpu, iterations=1), io.BytesIO()
    model.save(file)
    file.seek(0)
    assert_same_model(AlternatingLeastSquares.load(file), model)


@pytest.mark.parametrize("params", [{}, OTHER_THAN_DEFAULT])
def test_an_unfitted_model_is_saved_without_factors(use_gpu, tmp_path, params):
    model = make(use_gpu=use_gpu, **params)
    model.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as stored:
        assert set(stored) == PARAMETERS
    loaded = AlternatingLeastSquares.load(tmp_path / "model.npz")
    assert loaded.get_params() | {"use_gpu": use_gpu} == model.get_params()
    assert loaded.user_factors is loaded.item_factors is None
    with pytest.raises(NotFittedError):
        loaded.recommend(0, PLAYS[0])
    loaded.fit(PLAYS, show_progress=False)


# --- files of implicit ---------------------------------------------------------------------------


@any_parameters
def test_files_of_implicit_load(use_gpu, theirs, tmp_path, params):
    other = theirs(PLAYS, **params)
    other.save(str(tmp_path / "theirs.npz"))
    loaded = AlternatingLeastSquares.load(str(tmp_path / "theirs"))
    assert_same_model(loaded, other)
    loaded = loaded.to_gpu() if use_gpu else loaded
    assert_same_ranking(loaded.recommend(USERS, PLAYS[USERS]), other.recommend(USERS, PLAYS[USERS]))


def test_a_model_of_implicits_goes_on_training_here(theirs, tmp_path):
    params = {"use_cg": False, "iterations": 2}
    other = theirs(PLAYS, **params)
    other.save(str(tmp_path / "theirs.npz"))
    loaded = AlternatingLeastSquares.load(tmp_path / "theirs.npz")
    loaded.fit(PLAYS, show_progress=False)
    other.fit(PLAYS, show_progress=False)
    for found, expected in zip(on_host(loaded), on_host(other), strict=True):
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@any_parameters
def test_implicit_loads_our_files(use_gpu, their_class, tmp_path, params):
    model = trained(use_gpu, **params)
    model.save(tmp_path / "ours.npz")
    other = their_class.load(str(tmp_path / "ours"))
    assert_same_model(other, model)
    assert_same_ranking(other.recommend(USERS, PLAYS[USERS]), model.recommend(USERS, PLAYS[USERS]))


def test_unfitted_models_go_to_implicit_and_back(their_class, tmp_path):
    their_class(factors=7, alpha=3.0).save(str(tmp_path / "theirs.npz"))
    loaded = AlternatingLeastSquares.load(tmp_path / "theirs.npz")
    assert (loaded.factors, loaded.alpha, loaded.user_factors) == (7, 3.0, None)
    make(alpha=5.0).save(tmp_path / "ours.npz")
    other = their_class.load(str(tmp_path / "ours.npz"))
    assert (other.factors, other.alpha, other.user_factors) == (FACTORS, 5.0, None)


def test_float16_factors_of_implicits_gpu_model_load(theirs, tmp_path):
    other = theirs(PLAYS)
    other.user_factors = other.user_factors.astype(np.float16)
    other.item_factors = other.item_factors.astype(np.float16)
    other.dtype = np.dtype(np.float16)
    other.save(str(tmp_path / "theirs.npz"))
    loaded = AlternatingLeastSquares.load(tmp_path / "theirs.npz")
    assert loaded.dtype == loaded.user_factors.dtype == np.float32
    np.testing.assert_array_equal(loaded.user_factors, other.user_factors)


# --- pickles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_fitted_model_is_pickled(use_gpu, protocol):
    model = trained(use_gpu)
    model.similar_items(3)
    back = pickle.loads(pickle.dumps(model, protocol))
    assert_same_model(back, model)
    assert back.get_params() == model.get_params()
    assert type(back.user_factors) is type(model.user_factors)
    assert_same_ranking(back.recommend(USERS, PLAYS[USERS]), model.recommend(USERS, PLAYS[USERS]))
    assert_same_ranking(back.similar_items(USERS), model.similar_items(USERS))
    back.partial_fit_users([0], PLAYS[3])
    back.fit(PLAYS, show_progress=False)


def test_an_unfitted_model_is_pickled(use_gpu):
    model = make(use_gpu=use_gpu, alpha=3.0)
    back = pickle.loads(pickle.dumps(model))
    assert back.get_params() == model.get_params()
    assert back.user_factors is back.item_factors is None
    back.fit(PLAYS, show_progress=False)
    expected = fitted(use_gpu=use_gpu, alpha=3.0)
    for found, other in zip(on_host(back), on_host(expected), strict=True):
        np.testing.assert_array_equal(found, other)


def test_a_pickle_holds_the_factors_and_nothing_that_follows_from_them(use_gpu):
    model = trained(use_gpu)
    before = len(pickle.dumps(model))
    model.similar_items(3)
    model.similar_users(3)
    model.recalculate_user(3, PLAYS[3])
    assert len(pickle.dumps(model)) == before
    assert before < 4 * FACTORS * (N_USERS + N_ITEMS) + 4096
