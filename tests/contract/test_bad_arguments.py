"""What cannot be used is refused in words, before anything breaks inside."""

import numpy as np
import pytest
import scipy.sparse as sp

from contract.common import FACTORS, N_ITEMS, N_USERS, PLAYS, fitted
from gpu_als import AlternatingLeastSquares, datasets, evaluation
from gpu_als.errors import InputError

ITEM_USERS = PLAYS.T.tocsr()
RAGGED = [[0], [1, 2]]


def by_hand(users, items):
    model = AlternatingLeastSquares(FACTORS, use_gpu=False)
    model.user_factors, model.item_factors = users, items
    return model


def filled(*shape):
    return np.full(shape, 0.5, np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.explain([], PLAYS, 3), "userid"),
        (lambda m: m.explain([1, 2], PLAYS, 3), "userid"),
        (lambda m: m.explain(1, PLAYS, [3, 4]), "itemid"),
        (lambda m: m.recommend(0, PLAYS[0], 10, [1, 2]), "filter_items"),
        (lambda m: m.recommend_to_file("x.npy", PLAYS, items=[0, None]), "items"),
        (lambda m: m.recommend_to_file("x.npy", PLAYS, items=RAGGED), "items"),
        (lambda m: m.recommend_to_file("x.npy", PLAYS, filter_items=PLAYS[:3]), "filter_items"),
        (lambda m: m.partial_fit_users(RAGGED, PLAYS[:2]), "userids"),
        (lambda m: m.partial_fit_items(RAGGED, ITEM_USERS[:2]), "itemids"),
        (lambda m: m.recalculate_user({3, 4}, PLAYS[:1]), "2 users"),
        (lambda m: m.similar_items(RAGGED, 3, True, ITEM_USERS[:2]), "itemid"),
        (lambda m: evaluation.ndcg_at_k(m, PLAYS, PLAYS, K=2**70), "K"),
        (lambda m: evaluation.recall_at_k(m, PLAYS, PLAYS, K=2**40), "K"),
        (lambda m: datasets.movielens(["1m"]), "release"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        call(fitted())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:rank_items")
@pytest.mark.parametrize("selected", [[], RAGGED])
def test_items_that_cannot_be_ranked_are_named(selected):
    with pytest.raises(InputError, match="items"):
        fitted().rank_items(0, PLAYS[0], selected)


@pytest.mark.parametrize("ids", [[3, 4], ("a", "b"), np.array([3, 4]), {3, 4}, range(2)])
def test_recalculation_counts_ids_whatever_they_are(ids):
    """As in implicit: only their number counts."""
    assert fitted().recalculate_user(ids, PLAYS[[3, 4]]).shape == (2, FACTORS)


@pytest.mark.parametrize("one", [3, "ab", np.int64(3), np.array(3)])
def test_one_id_gets_one_row(one):
    assert fitted().recalculate_item(one, ITEM_USERS[3]).shape == (FACTORS,)


@pytest.mark.parametrize("make", [sp.coo_matrix, sp.bsr_matrix, sp.csr_array])
def test_items_denied_to_each_user_may_be_sparse_of_any_kind_in_a_file(tmp_path, make):
    model = fitted()
    model.recommend_to_file(
        tmp_path / "found.npy", PLAYS, 5, filter_items=make(PLAYS[::-1]), show_progress=False
    )
    expected = model.recommend(np.arange(N_USERS), PLAYS, 5, filter_items=PLAYS[::-1])
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_array_equal(found["item"], expected[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.recommend(0, None, filter_already_liked_items=False),
        lambda m: m.recommend([0, 1], None, filter_already_liked_items=False),
        lambda m: m.similar_items([]),
    ],
)
def test_a_model_without_items_has_nothing_to_recommend(call):
    model = by_hand(filled(4, FACTORS), filled(0, FACTORS))
    with pytest.raises(InputError, match="no items to choose from"):
        call(model)


def test_factors_without_columns_are_refused():
    with pytest.raises(InputError, match="column"):
        by_hand(filled(4, 0), filled(N_ITEMS, 0)).recommend(0, PLAYS[0], recalculate_user=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_of_broken_factors_are_not_explained(value):
    items = filled(N_ITEMS, FACTORS)
    items[3, 2] = value
    with pytest.raises(InputError, match="NaN"):
        by_hand(filled(N_USERS, FACTORS), items).explain(0, PLAYS, 1)
