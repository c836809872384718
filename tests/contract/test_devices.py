"""Where a model works and where its factors are: on the host or on a GPU."""

import pickle

import numpy as np
import pytest

import gpu_als
from contract.common import (
    FACTORS,
    N_ITEMS,
    N_USERS,
    PLAYS,
    assert_agree,
    assert_same_ranking,
    fitted,
    make,
    on_gpus,
    on_host,
    trained,
)
from gpu_als import backends
from gpu_als.errors import BackendError, NoGpuError

USERS = np.array([0, 3, 77, 149])


@pytest.fixture
def no_gpu(monkeypatch):
    """Return a function that takes the GPU away."""

    def fail(precision="float32"):
        raise NoGpuError("backend 'cupy' found no usable GPU")

    return lambda: monkeypatch.setattr(backends, "_cupy_backend", fail)


@on_gpus
def test_has_cuda_where_there_is_a_gpu(use_gpu, no_gpu):
    assert gpu_als.HAS_CUDA is True
    no_gpu()
    assert gpu_als.HAS_CUDA is False


def test_use_gpu_without_one_is_an_error_that_says_so(no_gpu):
    no_gpu()
    for call in (
        lambda: fitted(use_gpu=True),
        lambda: fitted(iterations=1).to_gpu(),
        lambda: make().to_gpu(),
    ):
        with pytest.raises(BackendError, match="GPU"):
            call()


def test_factors_on_the_cpu_are_numpy_arrays():
    model = fitted(iterations=1)
    assert type(model.user_factors) is type(model.item_factors) is np.ndarray


# --- factors on the GPU --------------------------------------------------------------------------


@on_gpus
def test_factors_on_a_gpu_have_a_shape_and_come_to_numpy(use_gpu):
    model = trained(use_gpu)
    for factors, size in ((model.user_factors, N_USERS), (model.item_factors, N_ITEMS)):
        assert not isinstance(factors, np.ndarray)
        assert factors.shape == (size, FACTORS)
        assert len(factors) == size
        assert factors.ndim == 2
        assert factors.dtype == np.float32
        host = factors.to_numpy()
        assert type(host) is np.ndarray
        assert host.shape == factors.shape
        np.testing.assert_array_equal(np.asarray(factors), host)
        assert np.asarray(factors, np.float64).dtype == np.float64


@on_gpus
@pytest.mark.parametrize("rows", [slice(3, 9), [4, 0, 4], np.array([7]), 5], ids=str)
def test_factors_on_a_gpu_give_rows_by_index(use_gpu, rows):
    factors = trained(use_gpu, iterations=1).user_factors
    found = factors[rows]
    assert type(found) is type(factors)
    np.testing.assert_array_equal(found.to_numpy(), factors.to_numpy()[rows])


@on_gpus
def test_factors_on_a_gpu_have_the_cuda_array_interface(use_gpu):
    factors = trained(use_gpu, iterations=1).item_factors
    interface = factors.__cuda_array_interface__
    assert interface["shape"] == factors.shape
    assert interface["typestr"] == "<f4"
    assert interface["data"][0] > 0


@on_gpus
def test_factors_on_a_gpu_may_be_set_from_either_device(use_gpu):
    model = trained(use_gpu)
    expected = model.recommend(USERS, PLAYS[USERS])
    users, items = on_host(model)
    for given in (
        (users, items),
        (model.user_factors, model.item_factors),
        (users, model.item_factors),
    ):
        other = make(use_gpu=use_gpu)
        other.user_factors, other.item_factors = given
        assert_same_ranking(other.recommend(USERS, PLAYS[USERS]), expected)
        other.fit(PLAYS, show_progress=False)


@on_gpus
def test_factors_stay_on_the_gpu_through_partial_fits(use_gpu):
    model = trained(use_gpu)
    kind = type(model.user_factors)
    model.partial_fit_users([0, N_USERS + 3], PLAYS[[3, 77]])
    model.partial_fit_items([0], PLAYS.T.tocsr()[5])
    assert type(model.user_factors) is type(model.item_factors) is kind
    assert model.user_factors.shape == (N_USERS + 4, FACTORS)


# --- the same on every device --------------------------------------------------------------------


@on_gpus
@pytest.mark.parametrize("use_cg", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gpu_trains_the_same_factors_as_the_cpu(use_gpu, use_cg, dtype):
    found, expected = (
        fitted(use_gpu=device, use_cg=use_cg, dtype=dtype, alpha=2.0) for device in (use_gpu, False)
    )
    for side, other in zip(on_host(found), on_host(expected), strict=True):
        assert_agree(side, other, 1e-4 if dtype == np.float32 else 1e-9)


ANSWERS = {
    "recommend": lambda m: m.recommend(USERS, PLAYS[USERS], N=30),
    "recommend, recalculated": lambda m: m.recommend(USERS, PLAYS[USERS], recalculate_user=True),
    "recommend among items": lambda m: m.recommend(USERS, PLAYS[USERS], items=[4, 60, 33]),
    "similar users": lambda m: m.similar_users(USERS),
    "similar items": lambda m: m.similar_items([3, 60]),
}
NUMBERS = {
    "predict": lambda m: m.predict(USERS, [4, 60, 33, 4]),
    "fold in users": lambda m: m.fold_in_users(PLAYS),
    "fold in items": lambda m: m.fold_in_items(PLAYS.T.tocsr()),
    "recalculate_user": lambda m: m.recalculate_user(3, PLAYS[3]),
    "recalculate_item": lambda m: m.recalculate_item([3], PLAYS.T.tocsr()[3]),
    "explain": lambda m: m.explain(3, PLAYS, 5)[0],
    "user_norms": lambda m: m.user_norms,
    "YtY": lambda m: m.YtY,
    "partial fit": lambda m: (m.partial_fit_users([3], PLAYS[77]), on_host(m)[0])[1],
}


@on_gpus
@pytest.mark.parametrize("name", [*ANSWERS, *NUMBERS])
def test_a_model_answers_the_same_on_a_gpu_and_on_the_cpu(use_gpu, name):
    model = fitted(use_cg=False)
    if name in ANSWERS:
        assert_same_ranking(ANSWERS[name](model.to_gpu()), ANSWERS[name](model), 1e-4)
    else:
        assert_agree(NUMBERS[name](model.to_gpu()), NUMBERS[name](model))


# --- moving --------------------------------------------------------------------------------------


@on_gpus
def test_to_gpu_and_to_cpu_keep_parameters_and_factors(use_gpu):
    model = fitted(alpha=2.0, random_state=4)
    model.cg_steps = 5
    on_gpu = model.to_gpu()
    back = on_gpu.to_cpu()
    for moved, device in ((on_gpu, True), (back, False)):
        assert moved.get_params() == model.get_params() | {"use_gpu": device}
        assert moved.cg_steps == 5
        for found, expected in zip(on_host(moved), on_host(model), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert hasattr(on_gpu.user_factors, "to_numpy")
    assert type(back.user_factors) is np.ndarray


@on_gpus
def test_to_gpu_and_to_cpu_return_models_of_their_own(use_gpu):
    model = fitted()
    before = [side.copy() for side in on_host(model)]
    for moved in (model.to_cpu(), model.to_gpu(), model.to_gpu().to_cpu()):
        moved.partial_fit_users([0], PLAYS[77])
        if not moved.use_gpu:
            moved.item_factors[:] = 0
        moved.fit(PLAYS, show_progress=False)
        for found, expected in zip(on_host(model), before, strict=True):
            np.testing.assert_array_equal(found, expected)


@on_gpus
def test_an_unfitted_model_moves_and_trains_where_it_is(use_gpu):
    model = make().to_gpu()
    assert model.user_factors is None
    model.fit(PLAYS, show_progress=False)
    assert hasattr(model.user_factors, "to_numpy")
    model = make(use_gpu=True).to_cpu()
    model.fit(PLAYS, show_progress=False)
    assert type(model.user_factors) is np.ndarray


@on_gpus
def test_a_pickle_from_a_gpu_comes_back_where_there_is_none(use_gpu, no_gpu):
    model = trained(use_gpu)
    expected = model.recommend(USERS, PLAYS[USERS])
    content = pickle.dumps(model)
    no_gpu()
    back = pickle.loads(content)
    with pytest.raises(BackendError, match="GPU"):
        back.recommend(USERS, PLAYS[USERS])
    assert_same_ranking(back.to_cpu().recommend(USERS, PLAYS[USERS]), expected)
