"""``explain``: a score as a sum over what the user liked."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
from reference import row_system

from contract.common import FACTORS, FEEDBACK, MIXED, PLAYS, exact_rows, on_host, trained
from gpu_als import AlternatingLeastSquares

USER, ITEM = 3, 5


def test_explain_returns_a_float_a_list_of_pairs_and_weights(use_gpu):
    model = trained(use_gpu)
    score, contributions, weights = model.explain(USER, PLAYS, ITEM)
    assert isinstance(score, float)
    assert isinstance(contributions, list)
    for item, share in contributions:
        assert isinstance(item, int)
        assert isinstance(share, float)
    assert np.shape(weights[0]) == (FACTORS, FACTORS)


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_the_score_is_that_of_the_user_solved_exactly(use_gpu, name, alpha):
    user_items = FEEDBACK[name]
    model = trained(use_gpu, name, alpha=alpha)
    items = on_host(model)[1].astype(np.float64)
    user = exact_rows(items, user_items[USER], alpha=alpha, regularization=0.05)[0]
    score, _, _ = model.explain(USER, user_items, ITEM)
    assert score == pytest.approx(user @ items[ITEM], rel=1e-5, abs=1e-7)


def test_the_score_needs_no_regularization_to_speak_of(use_gpu):
    """More factors than items: a Gram in float32 would not be definite."""
    rng = np.random.default_rng(8)
    model = AlternatingLeastSquares(60, regularization=1e-7, use_gpu=use_gpu, random_state=8)
    model.user_factors, model.item_factors = rng.random((2, 40, 60), np.float32) / 8
    plays = sp.random(40, 40, density=0.2, format="csr", dtype=np.float32, random_state=8)
    plays.data[:] = 3
    items = on_host(model)[1].astype(np.float64)
    for user in range(10):
        expected = exact_rows(items, plays[user], alpha=1.0, regularization=1e-7)[0] @ items[ITEM]
        assert model.explain(user, plays, ITEM)[0] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_contributions_add_up_to_the_score_and_fall(use_gpu):
    model = trained(use_gpu)
    score, contributions, _ = model.explain(USER, PLAYS, ITEM, N=1000)
    shares = [share for _, share in contributions]
    assert sum(shares) == pytest.approx(score)
    assert shares == sorted(shares, reverse=True)
    assert {item for item, _ in contributions} == set(PLAYS[USER].indices)


def test_a_contribution_is_the_share_of_its_item(use_gpu):
    """``c_j y_i^T W y_j`` with W the inverse of the user's system (section 5 of the paper)."""
    model = trained(use_gpu, alpha=2.0)
    items = on_host(model)[1].astype(np.float64)
    row = PLAYS[USER]
    c = 2.0 * row.data.astype(np.float64)
    lhs, _ = row_system(items, row.indices, c - 1, c, 0.05, items.T @ items)
    shares = c * (items[row.indices] @ np.linalg.solve(lhs, items[ITEM]))
    found = dict(model.explain(USER, PLAYS, ITEM, N=1000)[1])
    for item, share in zip(row.indices, shares, strict=True):
        assert found[item] == pytest.approx(share, rel=1e-5, abs=1e-7)


def test_n_is_the_number_of_contributions(use_gpu):
    model = trained(use_gpu)
    score, some, _ = model.explain(USER, PLAYS, ITEM, N=2)
    everything = model.explain(USER, PLAYS, ITEM, N=1000)
    assert some == everything[1][:2]
    assert score == everything[0]


def test_equal_contributions_go_by_rising_id(use_gpu):
    """Items with the same factors, liked alike, contribute alike."""
    model = trained(use_gpu)
    users, items = on_host(model)
    items[[4, 17, 31, 60]] = items[8]
    model.user_factors, model.item_factors = users, items
    liked = sp.csr_matrix((np.full(5, 3.0), ([0] * 5, [60, 8, 31, 4, 17])), shape=(1, len(items)))
    for n_best in (2, 5):
        _, contributions, _ = model.explain(0, liked, 8, N=n_best)
        assert [item for item, _ in contributions] == [4, 8, 17, 31, 60][:n_best]
        assert len({share for _, share in contributions}) == 1


def test_dislikes_contribute_nothing_but_change_the_weights(use_gpu):
    model = trained(use_gpu, "mixed")
    liked = MIXED[USER].indices[MIXED[USER].data > 0]
    assert 0 < len(liked) < MIXED[USER].nnz
    found = model.explain(USER, MIXED, ITEM, N=1000)
    assert {item for item, _ in found[1]} == set(liked)
    only_likes = MIXED.maximum(0)
    assert model.explain(USER, only_likes, ITEM)[0] != pytest.approx(found[0], rel=1e-3)


def test_user_weights_are_a_cholesky_factor_to_use_again(use_gpu):
    model = trained(use_gpu)
    _, _, weights = model.explain(USER, PLAYS, ITEM)
    expected = model.explain(USER, PLAYS, 9)
    assert model.explain(USER, PLAYS, 9, user_weights=weights)[:2] == expected[:2]
    items = on_host(model)[1].astype(np.float64)
    row = PLAYS[USER]
    lhs, rhs = row_system(items, row.indices, row.data - 1, row.data, 0.05, items.T @ items)
    np.testing.assert_allclose(
        scipy.linalg.cho_solve(weights, rhs), np.linalg.solve(lhs, rhs), rtol=1e-5
    )
    with pytest.raises(ValueError, match="user_weights"):
        model.explain(USER, PLAYS, 9, user_weights=np.eye(3))


def test_a_user_without_entries_has_no_explanation(use_gpu):
    model = trained(use_gpu)
    assert model.explain(0, sp.csr_matrix((1, PLAYS.shape[1])), ITEM)[:2] == (0.0, [])


@pytest.mark.parametrize(("user", "item"), [(150, 5), (-1, 5), (3, 90), (3, -1)])
def test_numbers_out_of_range_are_index_errors(use_gpu, user, item):
    with pytest.raises(IndexError):
        trained(use_gpu, iterations=1).explain(user, PLAYS, item)
