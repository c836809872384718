"""What programs do with a class: subclass, clone, copy, share between threads."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from contract.common import (
    N_USERS,
    PLAYS,
    assert_same_ranking,
    fitted,
    make,
    on_host,
    trained,
    with_defaults,
    without_stand_in,
)
from gpu_als import AlternatingLeastSquares, evaluation

USERS = np.array([0, 3, 77, 149])


class Renamed(AlternatingLeastSquares):
    """A subclass that changes nothing but a method."""

    def recommend(self, *args, **kwargs):
        ids, scores = super().recommend(*args, **kwargs)
        return ids[..., ::-1], scores[..., ::-1]


class Narrowed(AlternatingLeastSquares):
    """A subclass with fewer parameters, and one of its own."""

    def __init__(self, factors=5, label="none"):
        super().__init__(factors=factors, alpha=7.0, random_state=9, use_gpu=False)
        self.label = label


class Widened(AlternatingLeastSquares):
    """A subclass that hands on what it does not know."""

    def __init__(self, label="none", **parameters):
        super().__init__(**parameters)
        self.label = label


class Unconventional(AlternatingLeastSquares):
    """A subclass whose constructor calls its object by another name."""

    def __init__(this, factors=5):
        super().__init__(factors=factors, random_state=9, use_gpu=False)


# --- subclasses ----------------------------------------------------------------------------------


def test_a_model_is_an_instance_of_its_class():
    assert isinstance(AlternatingLeastSquares, type)
    assert isinstance(make(), AlternatingLeastSquares)


def test_a_subclass_inherits_and_overrides(use_gpu):
    model = Renamed(**with_defaults({}), use_gpu=use_gpu)
    model.user_factors, model.item_factors = on_host(trained(use_gpu))
    expected = trained(use_gpu).recommend(USERS, PLAYS[USERS])
    found = model.recommend(USERS, PLAYS[USERS])
    np.testing.assert_array_equal(found[0], expected[0][:, ::-1])
    split = evaluation.train_test_split(PLAYS, random_state=3)
    theirs, ours = (
        evaluation.ndcg_at_k(each, *split, show_progress=False)
        for each in (model, trained(use_gpu))
    )
    assert theirs != ours  # evaluation asks the subclass


def test_a_subclass_stays_one_when_moved_copied_pickled_and_loaded(tmp_path):
    model = Renamed(**with_defaults({}), use_gpu=False)
    model.fit(PLAYS, show_progress=False)
    model.save(tmp_path / "model.npz")
    for other in (
        model.to_cpu(), copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
        Renamed.load(tmp_path / "model.npz"),
    ):  # fmt: skip
        assert type(other) is Renamed
        np.testing.assert_array_equal(other.recommend(3, PLAYS[3]), model.recommend(3, PLAYS[3]))


def test_a_subclass_may_have_other_parameters(tmp_path):
    model = Narrowed(label="mine")
    assert model.get_params() == {"factors": 5, "label": "mine"}
    assert repr(model) == "Narrowed(label='mine')"
    model.fit(PLAYS, show_progress=False)
    assert pickle.loads(pickle.dumps(model)).label == copy.deepcopy(model).label == "mine"
    model.save(tmp_path / "model.npz")
    loaded = Narrowed.load(tmp_path / "model.npz")
    assert (loaded.factors, loaded.alpha, loaded.label) == (5, 7.0, "none")


def test_a_subclass_may_call_itself_what_it_likes():
    model = Unconventional(7)
    assert model.get_params() == {"factors": 7}
    assert repr(model) == "Unconventional(factors=7)"
    model.fit(PLAYS, show_progress=False)
    assert model.user_factors.shape[1] == 7


def test_a_subclass_may_hand_on_keyword_arguments(tmp_path):
    model = Widened("mine", **with_defaults({"alpha": 3.0}), use_gpu=False)
    model.fit(PLAYS, show_progress=False)
    assert "Widened" in repr(model)
    model.save(tmp_path / "model.npz")
    loaded = Widened.load(tmp_path / "model.npz")
    assert (loaded.alpha, loaded.regularization) == (3.0, 0.05)
    np.testing.assert_array_equal(loaded.user_factors, model.user_factors)


# --- clones and copies ---------------------------------------------------------------------------


def clone(model):
    """Do what ``sklearn.base.clone`` does, and check what it checks."""
    parameters = {name: copy.deepcopy(value) for name, value in model.get_params().items()}
    new = type(model)(**parameters)
    for name, value in new.get_params(deep=False).items():
        assert value is parameters[name], name
    return new


@pytest.mark.parametrize(
    "params",
    [{}, {"dtype": np.float64}, {"dtype": "float32"}, {"random_state": np.random.RandomState(3)},
     {"random_state": np.random.default_rng(3)}, {"regularization": 1, "alpha": np.float64(2)},
     {"factors": np.int64(4)}],
    ids=lambda params: str(params).partition(" at ")[0],
)  # fmt: skip
def test_a_clone_has_the_parameters_and_no_factors(params):
    model = fitted(iterations=1, **params)
    new = clone(model)
    assert new.user_factors is None
    names = set(model.get_params()) - {"random_state"}
    assert all(getattr(new, name) == getattr(model, name) for name in names)


def test_set_params_changes_parameters_and_returns_the_model():
    model = make()
    assert model.set_params(alpha=3.0, iterations=7) is model
    assert (model.alpha, model.iterations) == (3.0, 7)
    with pytest.raises(ValueError, match="no_such"):
        model.set_params(no_such=1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(use_gpu, copied):
    model = trained(use_gpu)
    model.similar_items(3)
    before = [side.copy() for side in on_host(model)]
    other = copied(model)
    assert type(other.user_factors) is type(model.user_factors)
    assert_same_ranking(other.similar_items(3), model.similar_items(3))
    other.partial_fit_users([0], PLAYS[77])
    other.fit(PLAYS, show_progress=False)
    other.set_params(alpha=9.0)
    assert model.alpha == 1.0
    for found, expected in zip(on_host(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_deep_copy_shares_no_factors():
    model = fitted(iterations=1)
    other = copy.deepcopy(model)
    other.user_factors[:] = 0
    assert model.user_factors.any()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_an_unfitted_model_is_copied(use_gpu, copied):
    other = copied(make(use_gpu=use_gpu))
    other.fit(PLAYS, show_progress=False)
    np.testing.assert_array_equal(on_host(other)[0], on_host(fitted(use_gpu=use_gpu))[0])


# --- threads -------------------------------------------------------------------------------------


@without_stand_in
@pytest.mark.parametrize("warm", [False, True])
def test_many_threads_read_one_model(use_gpu, warm):
    """Each gets what it would get alone, also when all of them are the first to ask."""
    calls = [
        lambda m: m.recommend(np.arange(N_USERS), PLAYS, N=20),
        lambda m: m.recommend(3, PLAYS[3], recalculate_user=True),
        lambda m: m.similar_items(np.arange(40)),
        lambda m: m.similar_users(3, users=np.arange(9, 80)),
        lambda m: (m.fold_in_users(PLAYS), m.item_norms),
        lambda m: (m.predict(USERS, 4), np.array(m.explain(3, PLAYS, 5)[0])),
    ]
    alone, model = trained(use_gpu), trained(use_gpu)
    expected = [call(alone) for call in calls]
    if warm:
        _ = [call(model) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(call, model) for call in 20 * calls]
        for future, other in zip(found, 20 * expected, strict=True):
            for part, same in zip(future.result(), other, strict=True):
                np.testing.assert_array_equal(part, same)


@without_stand_in
def test_two_threads_train_two_models(use_gpu):
    expected = [fitted(use_gpu=use_gpu, random_state=seed, use_cg=False) for seed in (3, 4)]
    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(fitted, use_gpu=use_gpu, random_state=seed, use_cg=False) for seed in (3, 4)
        ]
        for future, other in zip(running, expected, strict=True):
            for found, side in zip(on_host(future.result()), on_host(other), strict=True):
                np.testing.assert_array_equal(found, side)
