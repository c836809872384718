"""The names that programs import, and the signatures that they call."""

import inspect

import pytest

import gpu_als
from contract.common import make
from gpu_als import AlternatingLeastSquares, evaluation

REQUIRED = inspect.Parameter.empty
METHODS = {
    "fit": {"user_items": REQUIRED, "show_progress": True, "callback": None},
    "recommend": {
        "userid": REQUIRED, "user_items": REQUIRED, "N": 10, "filter_already_liked_items": True,
        "filter_items": None, "recalculate_user": False, "items": None,
    },
    "similar_users": {"userid": REQUIRED, "N": 10, "filter_users": None, "users": None},
    "similar_items": {
        "itemid": REQUIRED, "N": 10, "recalculate_item": False, "item_users": None,
        "filter_items": None, "items": None,
    },
    "recalculate_user": {"userid": REQUIRED, "user_items": REQUIRED},
    "recalculate_item": {"itemid": REQUIRED, "item_users": REQUIRED},
    "partial_fit_users": {"userids": REQUIRED, "user_items": REQUIRED},
    "partial_fit_items": {"itemids": REQUIRED, "item_users": REQUIRED},
    "explain": {
        "userid": REQUIRED, "user_items": REQUIRED, "itemid": REQUIRED, "user_weights": None,
        "N": 10,
    },
    "rank_items": {
        "userid": REQUIRED, "user_items": REQUIRED, "selected_items": REQUIRED,
        "recalculate_user": False,
    },
    "recommend_all": {
        "user_items": REQUIRED, "N": 10, "recalculate_user": False,
        "filter_already_liked_items": True, "filter_items": None, "users_items_offset": 0,
    },
}  # fmt: skip
EVALUATION = {
    "train_test_split": {"ratings": REQUIRED, "train_percentage": 0.8, "random_state": None},
    "leave_k_out_split": {
        "ratings": REQUIRED, "K": 1, "train_only_size": 0.0, "random_state": None,
    },
}  # fmt: skip
METRICS = [
    "precision_at_k",
    "mean_average_precision_at_k",
    "ndcg_at_k",
    "AUC_at_k",
    "ranking_metrics_at_k",
]
MEASURED = {
    "model": REQUIRED, "train_user_items": REQUIRED, "test_user_items": REQUIRED, "K": 10,
    "show_progress": True, "num_threads": 1,
}  # fmt: skip
EVALUATION |= {name: MEASURED for name in METRICS}


def by_position(function):
    """Return the parameters that may be given by position, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
    }


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_the_arguments_of_implicit(name):
    found = by_position(getattr(AlternatingLeastSquares, name))
    assert list(found) == list(METHODS[name])
    for argument, default in METHODS[name].items():
        # what is required there may be left out here where nothing needs it
        assert found[argument] == default or (default is REQUIRED and found[argument] is None)


@pytest.mark.parametrize("name", METHODS)
def test_the_arguments_are_those_of_the_installed_implicit(their_class, name):
    assert by_position(getattr(their_class, name)) == METHODS[name]


@pytest.mark.parametrize("name", EVALUATION)
def test_functions_of_evaluation_take_the_arguments_of_implicit(name):
    assert by_position(getattr(evaluation, name)) == EVALUATION[name]


@pytest.mark.parametrize("name", ["to_cpu", "to_gpu", "save", "load"])
def test_the_other_methods_exist(name):
    assert callable(getattr(AlternatingLeastSquares, name))


@pytest.mark.parametrize(
    "name", ["user_factors", "item_factors", "user_norms", "item_norms", "YtY", "XtX",
             "cg_steps", "fit_callback"],
)  # fmt: skip
def test_attributes_exist(name):
    assert name in dir(make())


def test_errors_and_warnings_have_the_names_of_implicit():
    assert issubclass(gpu_als.ModelFitError, Exception)
    assert issubclass(gpu_als.ParameterWarning, Warning)


def test_has_cuda_is_a_flag_of_the_package():
    assert isinstance(gpu_als.HAS_CUDA, bool)
    assert "HAS_CUDA" in gpu_als.__all__


def test_calculate_loss_takes_the_arguments_of_implicit():
    assert by_position(gpu_als.calculate_loss) == {
        "Cui": REQUIRED, "X": REQUIRED, "Y": REQUIRED, "regularization": REQUIRED,
        "num_threads": 0,
    }  # fmt: skip
