"""Ids of users and items, rows that are not there, and methods before fit."""

import numpy as np
import pytest

from explicit.common import RATINGS, fit
from gpu_als import ExplicitALS, Interactions
from gpu_als.data.ids import IdMap
from gpu_als.errors import IdRangeError, InputError, NotFittedError
from gpu_als.models import fitted


def test_ids_of_users_and_items():
    ratings = Interactions.from_triples(["b", "a", "c"], [30, 10, 20], [5.0, 3.0, 1.0])
    model = ExplicitALS(2, random_state=1).fit(ratings)
    np.testing.assert_array_equal(model.user_index(["c", "a"]), [2, 0])
    np.testing.assert_array_equal(model.item_index([10, 30]), [0, 2])
    with pytest.raises(InputError, match="nobody"):
        model.user_index(["nobody"])
    model.fit(RATINGS)
    np.testing.assert_array_equal(model.user_index([29]), [29])
    with pytest.raises(IdRangeError):
        model.user_index([30])


def test_ids_are_numbered_once_for_many_lookups(monkeypatch):
    """A map of a million ids takes a second."""
    made = []

    def number(ids, size):
        made.append(ids)
        return IdMap(ids, size)

    monkeypatch.setattr(fitted, "IdMap", number)
    ratings = Interactions.from_triples(["b", "a", "c"], [30, 10, 20], [5.0, 3.0, 1.0])
    model = ExplicitALS(2, random_state=1).fit(ratings)
    for user in "abca":
        model.user_index([user])
        model.item_index([20])
    assert len(made) == 2
    others = Interactions.from_triples(["x", "a", "y"], [30, 10, 20], [5.0, 3.0, 1.0])
    model.fit(others)
    np.testing.assert_array_equal(model.user_index(["y", "x"]), [2, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.predict(0, 0),
        lambda m: m.recommend(0),
        lambda m: m.fold_in_users(RATINGS),
        lambda m: m.user_index([0]),
    ],
)
def test_methods_before_fit(call):
    with pytest.raises(NotFittedError, match="fit"):
        call(ExplicitALS())


@pytest.mark.parametrize(("users", "items"), [([30], [0]), ([0], [20]), ([-1], [0])])
def test_predict_out_of_range(users, items):
    with pytest.raises(IndexError, match=r"users|items"):
        fit().predict(users, items)


def test_predict_wants_pairs():
    with pytest.raises(InputError, match="users has 2 ids and items 3"):
        fit().predict([0, 1], [0, 1, 2])
