# ruff: noqa: F811 (fixtures are arguments of the same name)
"""Fits that begin with a former one's factors, with users and items that have come and gone."""

import numpy as np
import pytest
import scipy.sparse as sp
from checkpoint.common import assert_same, fitted_arrays
from helpers import random_ratings
from test_cupy_backend import cupy_backend as device  # noqa: F401  (a fixture)

from gpu_als import AlternatingLeastSquares, ExplicitALS, Interactions, StopTraining
from gpu_als.data.shards import ShardedMatrix, append, convert
from gpu_als.errors import InputError, NotFittedError

N_USERS, N_ITEMS, FACTORS = 50, 35, 5
PLAYS = random_ratings(N_USERS, N_ITEMS, 0.3, 271)
MORE = random_ratings(N_USERS + 7, N_ITEMS + 4, 0.3, 272)
MODELS = ["implicit", "explicit", "plain"]
every_model = pytest.mark.parametrize("kind", MODELS)


def make(kind, **options):
    options = {
        "factors": FACTORS,
        "iterations": 4,
        "random_state": 19,
        "dtype": np.float64,
    } | options
    if kind == "implicit":
        return AlternatingLeastSquares(**{"use_cg": False, "use_gpu": False} | options)
    return ExplicitALS(**{"backend": "numpy", "bias": kind == "explicit"} | options)


def again(model, data, **how):
    """Go on from the model's factors."""
    if isinstance(model, ExplicitALS):
        how = {"warm_start": True} | how
    model.fit(data, show_progress=False, **how)
    return model


def fit(kind, data, **options):
    model = make(kind, **options)
    model.fit(data, show_progress=False)
    return model


def beginning(model, data):
    """Return the factors that a warm start begins with."""
    model.iterations = 0
    return fitted_arrays(again(model, data))


def of_ids(matrix, users, items):
    return Interactions.from_matrix(matrix, user_ids=users, item_ids=items)


@every_model
def test_two_short_fits_are_one_long_one(kind):
    short = again(fit(kind, PLAYS), PLAYS)
    long = fit(kind, PLAYS, iterations=8)
    for name, array in fitted_arrays(long).items():
        np.testing.assert_array_equal(fitted_arrays(short)[name], array)
    assert short.report_.losses == long.report_.losses[4:]


@every_model
def test_without_ids_new_rows_come_behind(kind):
    before = fitted_arrays(model := fit(kind, PLAYS))
    found = beginning(model, MORE)
    assert found["user_factors"].shape == (N_USERS + 7, FACTORS)
    assert found["item_factors"].shape == (N_ITEMS + 4, FACTORS)
    for side, n_before in (("user", N_USERS), ("item", N_ITEMS)):
        factors = found[f"{side}_factors"]
        np.testing.assert_array_equal(factors[:n_before], before[f"{side}_factors"])
        assert factors[n_before:].all()
        if kind != "implicit":
            biases = found[f"{side}_biases"]
            np.testing.assert_array_equal(biases[:n_before], before[f"{side}_biases"])
            assert not biases[n_before:].any()


@every_model
def test_known_ids_keep_their_factors_wherever_they_are_now(kind):
    """Some ids are gone, some are new, and those that stay are in another order."""
    users = np.array([f"u{n}" for n in range(N_USERS)])
    items = np.arange(N_ITEMS) + 100
    model = fit(kind, of_ids(PLAYS, users, items))
    before = fitted_arrays(model)
    new_users = ["new", *users[:9:-1], "newer"]
    new_items = [3, *items[5:], 9]
    data = of_ids(random_ratings(len(new_users), len(new_items), 0.4, 273), new_users, new_items)
    found = beginning(model, data)
    assert found["user_factors"].shape == (N_USERS - 8, FACTORS)
    assert found["item_factors"].shape == (N_ITEMS - 3, FACTORS)
    for side, old in (("user", slice(None, 9, -1)), ("item", slice(5, None))):
        for name in (f"{side}_factors", f"{side}_biases"):
            if name in found:
                np.testing.assert_array_equal(found[name][1:-1], before[name][old])
        assert found[f"{side}_factors"][[0, -1]].all()
    assert model.user_ids.tolist() == new_users
    assert model.item_index([9, 100 + 34]).tolist() == [len(new_items) - 1, N_ITEMS - 5]


def test_ids_of_one_text_are_the_same():
    model = fit("implicit", of_ids(PLAYS, np.arange(N_USERS), np.arange(N_ITEMS)))
    before = fitted_arrays(model)["user_factors"]
    texts = of_ids(PLAYS[::-1], [str(n) for n in range(N_USERS)][::-1], np.arange(N_ITEMS))
    np.testing.assert_array_equal(beginning(model, texts)["user_factors"], before[::-1])


@every_model
def test_what_is_drawn_follows_from_the_seed(kind):
    first, same = (beginning(fit(kind, PLAYS), MORE) for _ in range(2))
    other = fit(kind, PLAYS)
    other.random_state = 20
    third = beginning(other, MORE)
    for name in ("user_factors", "item_factors"):
        n_before = N_USERS if name == "user_factors" else N_ITEMS
        np.testing.assert_array_equal(first[name], same[name])
        assert (first[name][n_before:] != third[name][n_before:]).all()


@every_model
def test_rows_are_not_matched_by_ids_that_only_one_side_has(kind):
    """Of the same number of rows it is taken that they are the same, as ever."""
    ids = np.arange(N_USERS) * 3, np.arange(N_ITEMS) * 3
    model = fit(kind, PLAYS)
    before = fitted_arrays(model)["user_factors"]
    np.testing.assert_array_equal(beginning(model, of_ids(PLAYS, *ids))["user_factors"], before)
    np.testing.assert_array_equal(beginning(model, PLAYS)["user_factors"], before)
    more = of_ids(MORE, np.arange(N_USERS + 7), np.arange(N_ITEMS + 4))
    with pytest.raises(InputError, match=r"57 users and the model 50.* has user_ids, the model"):
        again(model, more)
    model = fit(kind, of_ids(PLAYS, *ids))
    with pytest.raises(InputError, match=r"the model has user_ids, (ratings|user_items) has none"):
        again(model, MORE)


@every_model
def test_ids_of_factors_that_were_replaced_do_not_count(kind):
    model = fit(kind, of_ids(PLAYS, np.arange(N_USERS) * 3, np.arange(N_ITEMS) * 3))
    replaced = np.random.default_rng(276).random((N_USERS - 1, FACTORS)) + 0.1
    model.user_factors = replaced
    if kind != "implicit":
        model.user_biases = np.zeros(N_USERS - 1)
    ids = np.arange(N_USERS - 1)[::-1] * 3, np.arange(N_ITEMS) * 3
    found = beginning(model, of_ids(PLAYS[1:], *ids))
    np.testing.assert_array_equal(found["user_factors"], replaced)


@every_model
def test_fewer_rows_without_ids_are_an_error(kind):
    remedy = "set it to None" if kind == "implicit" else "fit with warm_start=False"
    model = fit(kind, PLAYS)
    before = model.user_factors
    for data, message in (
        (
            PLAYS[1:],
            rf"user_factors has shape \(50, 5\).* need \(49, 5\) \(fewer users.*; {remedy}",
        ),
        (
            PLAYS[:, 1:],
            rf"item_factors has shape \(35, 5\).* need \(34, 5\) \(fewer items.*{remedy}",
        ),
        (PLAYS.T.tocsr(), rf"seems to be transposed: it must be users x items\); {remedy}"),
    ):
        with pytest.raises(InputError, match=message):
            again(model, data)
    assert model.user_factors is before


@every_model
def test_a_transposed_matrix_with_more_rows_than_before_is_recognised(kind):
    model = fit(kind, PLAYS.T.tocsr())
    with pytest.raises(InputError, match=r"item_factors has shape.*transposed"):
        again(model, PLAYS)


@every_model
def test_data_of_which_no_id_is_known_are_refused(kind):
    ids = np.arange(N_USERS), np.arange(N_ITEMS)
    model = fit(kind, of_ids(PLAYS, *ids))
    with pytest.raises(
        InputError, match=r"knows no user and no item of (ratings|user_items) by id"
    ):
        again(model, of_ids(PLAYS, ids[0] + 100, ids[1] + 100))
    again(model, of_ids(PLAYS, ids[0], ids[1] + 100))  # all items are new


def test_a_model_without_factors_has_none_to_start_from():
    with pytest.raises(NotFittedError):
        ExplicitALS(3).fit(PLAYS, warm_start=True)
    with pytest.raises(InputError, match="warm_start must be True or False"):
        ExplicitALS(3).fit(PLAYS, warm_start="yes")


@pytest.mark.parametrize("change", [{"factors": 6}, {"bias": False}])
def test_a_model_of_another_shape_is_refused(change):
    model = fit("explicit", PLAYS).set_params(**change)
    with pytest.raises(InputError, match="warm_start: factors or bias were changed"):
        again(model, PLAYS)
    model.fit(PLAYS)


def test_negative_factors_are_no_start_for_nonnegative_ones():
    model = fit("explicit", PLAYS).set_params(nonnegative="items")
    with pytest.raises(InputError, match=r"factors of items are negative.*warm_start=False"):
        again(model, PLAYS)
    again(model.fit(PLAYS), MORE)
    assert model.item_factors.min() >= 0


@pytest.mark.parametrize("kind", ["explicit", "plain"])
def test_an_explicit_model_starts_afresh_unless_told_otherwise(kind):
    model = fit(kind, PLAYS)
    assert_same(model.fit(PLAYS), fit(kind, PLAYS))


@every_model
def test_users_and_items_without_entries_are_zero(kind):
    model = fit(kind, PLAYS)
    fewer = MORE.tolil()
    fewer[[4, N_USERS + 2]] = 0
    fewer[:, [6, N_ITEMS + 1]] = 0
    again(model, fewer.tocsr())
    assert not model.user_factors[[4, N_USERS + 2]].any()
    assert not model.item_factors[[6, N_ITEMS + 1]].any()


@every_model
def test_a_warm_fit_is_resumed_to_the_bit(kind, tmp_path):
    before = fit(kind, PLAYS)
    before.save(tmp_path / "model.npz")

    def stop(iteration, *_):
        if iteration == 1:
            raise StopTraining

    again(before, MORE, callback=stop, checkpoint=tmp_path / "state.npz")
    load = type(before).load
    found = again(load(tmp_path / "model.npz"), MORE, resume=tmp_path / "state.npz")
    assert_same(found, again(load(tmp_path / "model.npz"), MORE))


def write_csv(path, matrix, rows, first_item=0):
    """Write some rows of a matrix as user, item, rating."""
    entries = sp.coo_matrix(matrix)
    lines = [
        f"u{row:03},{column + first_item},{value}\n"
        for row, column, value in zip(entries.row, entries.col, entries.data, strict=True)
        if row in rows
    ]
    path.write_text("user,item,rating\n" + "".join(lines))


@every_model
def test_shards_that_grow_are_gone_on_with(kind, tmp_path):
    """The daily cycle: fit, append new users and items, fit from where the former one ended."""
    whole = random_ratings(120, 60, 0.2, 274)
    write_csv(tmp_path / "a.csv", whole[:, :50], range(100))
    write_csv(tmp_path / "b.csv", whole[:, 50:], range(100), 50)
    write_csv(tmp_path / "c.csv", whole, range(100, 120))
    convert(tmp_path / "a.csv", tmp_path / "s", show_progress=False)
    model = fit(kind, ShardedMatrix.open(tmp_path / "s"), iterations=12)
    append([tmp_path / "b.csv", tmp_path / "c.csv"], tmp_path / "s", show_progress=False)
    data = ShardedMatrix.open(tmp_path / "s")
    assert data.shape == (120, 60)
    model.iterations = 1
    (warm,) = again(model, data).report_.losses
    cold, *_, settled = fit(kind, data, iterations=12).report_.losses
    assert warm - settled < 0.25 * (cold - settled)
    new = model.user_index(["u119"])
    ids, _ = model.without_ids().recommend(new, filter_already_liked_items=False, N=60)
    assert sorted(ids[0]) == list(range(60))
    assert model.user_factors[new].any()
    assert model.item_factors[model.item_index([59])].any()


def test_partial_fits_follow_a_warm_fit():
    model = again(fit("implicit", PLAYS), MORE)
    before = fitted_arrays(model)["user_factors"].copy()
    rows = random_ratings(2, N_ITEMS + 4, 0.5, 275)
    model.partial_fit_users([3, N_USERS + 6], rows)
    changed = (model.user_factors != before).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [3, N_USERS + 6]
    model.partial_fit_users([N_USERS + 9], rows[:1])
    assert len(again(model, sp.vstack([MORE, rows, rows[:1]], format="csr")).user_factors) == 60


def test_factors_that_live_on_a_device_grow(device):
    model = fit("implicit", PLAYS, use_gpu=True)
    before = fitted_arrays(model)
    found = beginning(model, MORE)
    np.testing.assert_array_equal(found["user_factors"][:N_USERS], before["user_factors"])
    assert found["item_factors"].shape == (N_ITEMS + 4, FACTORS)
