"""Trained beside ``implicit``, from the same initial factors on the same data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.common import (
    FACTORS,
    FEEDBACK,
    PLAYS,
    any_alpha,
    any_feedback,
    any_regularization,
    assert_agree,
    assert_same_ranking,
    feedback,
    fitted,
    on_host,
)
from gpu_als import calculate_loss, evaluation


def disliked(confidence):
    """Return by how much their loss is above ours: the dislikes, which it counts as liked.

    Of a disliked cell theirs adds ``c (1 - s^2 ...)`` with ``p = 1``'s constant: ``abs(c)`` too
    much, over the same divisor.
    """
    data = confidence.data.astype(np.float64)
    cells = confidence.shape[0] * confidence.shape[1] - confidence.nnz
    return -data[data < 0].sum() / (np.abs(data).sum() + cells)


# --- factors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", [int, np.random.default_rng])
def test_initial_factors_are_those_of_implicit(use_gpu, theirs, seed, dtype):
    expected = theirs(PLAYS, iterations=0, dtype=dtype, random_state=seed(11))
    model = fitted(iterations=0, dtype=dtype, random_state=seed(11), use_gpu=use_gpu)
    for found, other in zip(on_host(model), on_host(expected), strict=True):
        np.testing.assert_array_equal(found, other)
        assert found.dtype == other.dtype


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("alpha", [1.0, 3.0])
@pytest.mark.parametrize("regularization", [0.01, 5.0])
def test_exact_factors_are_those_of_implicit(use_gpu, theirs, name, alpha, regularization):
    params = {"alpha": alpha, "regularization": regularization, "use_cg": False}
    expected = theirs(FEEDBACK[name], **params)
    model = fitted(FEEDBACK[name], use_gpu=use_gpu, **params)
    for found, other in zip(on_host(model), on_host(expected), strict=True):
        assert_agree(found, other, 1e-4)


@any_feedback
@given(feedback(), any_alpha, any_regularization, st.integers(1, 4))
def test_exact_factors_are_those_of_implicit_on_any_data(
    theirs, user_items, alpha, regularization, iterations
):
    params = {
        "alpha": alpha, "regularization": regularization, "iterations": iterations,
        "use_cg": False, "dtype": np.float64,
    }  # fmt: skip
    expected, model = theirs(user_items, **params), fitted(user_items, **params)
    for found, other in zip(on_host(model), on_host(expected), strict=True):
        assert_agree(found, other, 1e-6)


def test_a_warm_start_goes_on_as_in_implicit(use_gpu, theirs):
    params = {"use_cg": False, "iterations": 2}
    expected, model = theirs(PLAYS, **params), fitted(use_gpu=use_gpu, **params)
    more = PLAYS.copy()
    more.data[::3] += 2
    for each in (expected, model):
        each.fit(more, show_progress=False)
    for found, other in zip(on_host(model), on_host(expected), strict=True):
        assert_agree(found, other, 1e-4)


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_training_losses_are_those_of_implicit(use_gpu, theirs, name, alpha):
    """Apart from a constant with dislikes, by which theirs is not the stated formula."""
    found = []
    params = {"alpha": alpha, "use_cg": False}
    fitted(
        FEEDBACK[name],
        lambda iteration, seconds, loss: found.append(loss),
        calculate_training_loss=True,
        use_gpu=use_gpu,
        **params,
    )
    expected = np.array(theirs(FEEDBACK[name], **params).losses)
    np.testing.assert_allclose(found, expected - disliked(alpha * FEEDBACK[name]), rtol=1e-4)


@pytest.mark.parametrize("name", FEEDBACK)
def test_conjugate_gradients_are_never_behind_those_of_implicit(use_gpu, theirs, name):
    """Both take three steps, ours in coordinates in which they go further."""
    expected = np.array(theirs(FEEDBACK[name], iterations=15).losses) - disliked(FEEDBACK[name])
    found = fitted(FEEDBACK[name], iterations=15, use_gpu=use_gpu).report_.losses
    assert (np.array(found) < 1.001 * expected).all()


@pytest.mark.parametrize("name", FEEDBACK)
def test_conjugate_gradients_end_where_those_of_implicit_do(theirs, name):
    expected = theirs(FEEDBACK[name], iterations=120).losses[-1] - disliked(FEEDBACK[name])
    found = fitted(FEEDBACK[name], iterations=120).report_.losses[-1]
    assert found == pytest.approx(expected, rel=2e-3)


@any_feedback
@given(feedback(), any_alpha, any_regularization)
def test_calculate_loss_is_that_of_implicit(their_class, user_items, alpha, regularization):
    """Of any factors, again apart from the dislikes."""
    from implicit.cpu.als import calculate_loss as theirs

    rng = np.random.default_rng(user_items.nnz + 3)
    users, items = (rng.standard_normal((n, FACTORS)) for n in user_items.shape)
    confidence = alpha * user_items
    expected = theirs(confidence, users, items, regularization, num_threads=1)
    found = calculate_loss(confidence, users, items, regularization)
    assert found == pytest.approx(expected - disliked(confidence), rel=1e-6, abs=1e-6)


def test_calculate_loss_takes_what_implicit_takes(use_gpu, their_class):
    from implicit.cpu.als import calculate_loss as theirs

    model = fitted(use_gpu=use_gpu)
    users, items = on_host(model)
    expected = theirs(PLAYS, users, items, 0.05, num_threads=1)
    found = calculate_loss(PLAYS, model.user_factors, model.item_factors, 0.05, num_threads=1)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == pytest.approx(model.report_.losses[-1], rel=1e-5)


# --- rankings and metrics of models trained apart ------------------------------------------------


@pytest.mark.parametrize("name", FEEDBACK)
def test_models_trained_apart_recommend_alike(use_gpu, theirs, name):
    user_items = FEEDBACK[name]
    params = {"use_cg": False, "dtype": np.float64}
    expected, model = theirs(user_items, **params), fitted(user_items, use_gpu=use_gpu, **params)
    users = np.arange(user_items.shape[0])
    assert_same_ranking(model.recommend(users, user_items), expected.recommend(users, user_items))


def test_evaluation_metrics_are_those_of_implicit(use_gpu, theirs):
    from implicit import evaluation as their_evaluation

    train, test = evaluation.train_test_split(PLAYS, random_state=17)
    params = {"use_cg": False, "dtype": np.float64}
    other, model = theirs(train, **params), fitted(train, use_gpu=use_gpu, **params)
    arguments = {"K": 5, "show_progress": False, "num_threads": 1}
    expected = their_evaluation.ranking_metrics_at_k(other, train, test, **arguments)
    found = evaluation.ranking_metrics_at_k(model, train, test, **arguments)
    assert found == pytest.approx(expected, rel=1e-9)
    for function, key in (
        (evaluation.precision_at_k, "precision"),
        (evaluation.mean_average_precision_at_k, "map"),
        (evaluation.ndcg_at_k, "ndcg"),
        (evaluation.AUC_at_k, "auc"),
    ):
        assert function(model, train, test, **arguments) == pytest.approx(expected[key], rel=1e-9)


def test_implicits_evaluation_takes_our_model(use_gpu, their_class):
    from implicit import evaluation as their_evaluation

    train, test = evaluation.train_test_split(PLAYS, random_state=18)
    model = fitted(train, use_gpu=use_gpu)
    expected = their_evaluation.ranking_metrics_at_k(model, train, test, show_progress=False)
    found = evaluation.ranking_metrics_at_k(model, train, test, show_progress=False)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", [3, 2024])
def test_train_test_split_is_that_of_implicit(their_class, seed):
    from implicit import evaluation as their_evaluation

    expected = their_evaluation.train_test_split(PLAYS, 0.7, random_state=seed)
    found = evaluation.train_test_split(PLAYS, 0.7, random_state=seed)
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.toarray(), other.toarray())
