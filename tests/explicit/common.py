"""Small ratings, quick fits on them, and the objective as documented."""

import numpy as np
from helpers import random_ratings
from reference import objective_value

from gpu_als import ExplicitALS
from gpu_als.core import solvers

RATINGS = random_ratings(30, 20, 0.4, 71)
EXACT = {"dtype": np.float64, "random_state": 7, "iterations": 4}


def fit(ratings=RATINGS, *, weights=None, validation=None, callback=None, **params):
    return ExplicitALS(**{"factors": 4, "regularization": 0.1} | EXACT | params).fit(
        ratings, sample_weight=weights, validation=validation, callback=callback
    )


def loss_of(model, ratings, weights=None):
    """Return the objective as documented, from the model's public attributes."""
    dense = ratings.toarray()
    observed = np.zeros(dense.shape, bool)
    observed[ratings.nonzero()] = True
    weight = np.ones(dense.shape) if weights is None else weights
    lambdas = np.broadcast_to(model.regularization, 2)
    ridges = []
    for axis, penalty in zip((1, 0), lambdas, strict=True):
        counts = np.maximum(observed.sum(axis), 1)
        scaled = model.scale_regularization == "count"
        ridges.append(penalty * counts if scaled else np.full(len(counts), penalty))
    ones = [np.ones((n, 1)) for n in dense.shape]
    users = np.hstack([model.user_factors, model.user_biases[:, None], ones[0]])
    items = np.hstack([model.item_factors, ones[1], model.item_biases[:, None]])
    zeros = [np.zeros(n) for n in dense.shape]
    target = dense - model.global_mean
    loss = objective_value(observed, weight, target, 0, users, items, *zeros)
    for ridge, factors, biases in (
        (ridges[0], model.user_factors, model.user_biases),
        (ridges[1], model.item_factors, model.item_biases),
    ):
        loss += ridge @ ((factors**2).sum(axis=1) + biases**2)
    return loss


VARIANTS = {
    "default": {},
    "one ridge": {"scale_regularization": None},
    "no bias": {"bias": False},
    "per side": {"regularization": (0.05, 0.4), "scale_regularization": None},
    "per side, scaled": {"regularization": (0.02, 0.1)},
    "non-negative": {"nonnegative": True},
    "non-negative items": {"nonnegative": "items", "bias": False},
    "cg": {"solver": "cg"},
    "solver object": {"solver": solvers.ConjugateGradient(steps=8)},
}
