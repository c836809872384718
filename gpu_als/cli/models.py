"""From options to models, and from files to models."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from gpu_als.backends import get_backend
from gpu_als.cli.options import EXPLICIT_OPTIONS, IMPLICIT_OPTIONS, reading_arguments
from gpu_als.core import solvers
from gpu_als.data import Interactions, read_interactions, train_test_split
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError
from gpu_als.models import AlternatingLeastSquares, ExplicitALS, load
from gpu_als.train.training_data import TrainingData

__all__ = [
    "AnyModel", "build_model", "describe", "hold_out", "load_model", "read_ratings", "train",
]  # fmt: skip

AnyModel = AlternatingLeastSquares | ExplicitALS


def build_model(args: argparse.Namespace, former: AnyModel | None = None) -> AnyModel:
    """Return the model that the options describe.

    What was not given is as in ``former``, a model of the same kind whose factors the new one is
    to start from, or else has the default.
    """
    if args.backend != "auto":
        get_backend(args.backend)  # fails now, if at all, and not after a long file was read
    explicit = args.model == "explicit"
    for name in IMPLICIT_OPTIONS if explicit else EXPLICIT_OPTIONS:
        if getattr(args, name) is not None:
            other = "implicit" if explicit else "explicit"
            option = name.replace("_", "-")
            raise InputError(f"--{option} belongs to --model {other}; leave it out")
    if isinstance(args.regularization, tuple) and not explicit:
        raise InputError("--regularization takes one number with --model implicit")
    if args.cg_steps is not None and not (args.use_cg or (args.use_cg is None and not explicit)):
        raise InputError("--cg-steps needs --use-cg")
    own = EXPLICIT_OPTIONS if explicit else IMPLICIT_OPTIONS
    names = ("factors", "regularization", "iterations", "dtype", "precision", *own)
    chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    chosen |= {"num_threads": args.threads, "random_state": args.seed}
    for name in ("factors", "bias"):
        if former is not None and name in chosen and chosen[name] != getattr(former, name):
            raise InputError(
                f"--{name}: {args.warm_start} has {name}={getattr(former, name)}, and a model that "
                "starts from it keeps that; leave it out"
            )
    if explicit:
        return _explicit(args, chosen, former)
    return _implicit(args, chosen, former)


def read_ratings(args: argparse.Namespace, file: str) -> Interactions:
    """Read what a model is to be trained on."""
    duplicates: Any = args.duplicates or ("last" if args.model == "explicit" else "sum")
    return read_interactions(
        file, duplicates=duplicates, dtype=args.dtype, **reading_arguments(args)
    )


def hold_out(
    args: argparse.Namespace, ratings: Interactions, fraction: float
) -> tuple[Interactions, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return ratings to train on, and the rows, columns and values of a fraction held out."""
    kept, held_out = train_test_split(ratings, 1 - fraction, random_state=args.seed + 1)
    others = held_out.user_items.tocoo()
    return kept, (others.row, others.col, others.data)


def train(
    model: AnyModel,
    ratings: Interactions | ShardedMatrix | TrainingData,
    *,
    validation: Any = None,
    warm_start: bool = False,
    callback: Any = None,
    progress: bool = True,
    **state: Any,
) -> None:
    """Fit either kind of model; only an explicit one watches the validation set.

    With ``warm_start`` it starts from its factors, as an implicit one that has some always does.
    ``state`` is what ``fit`` takes to save its state and continue from one.
    """
    if isinstance(model, ExplicitALS):
        model.fit(
            ratings,
            validation=validation,
            warm_start=warm_start,
            callback=callback,
            show_progress=progress,
            **state,
        )
    else:
        model.fit(ratings, callback=callback, show_progress=progress, **state)


def load_model(args: argparse.Namespace, file: str) -> AnyModel:
    """Read a model of either kind, to be used on the device that the options name."""
    model = load(file)
    if isinstance(model, ExplicitALS):
        model.backend = args.backend
    else:
        model.use_gpu = _use_gpu(args)
    model.num_threads = args.threads
    return model


def describe(model: AnyModel) -> str:
    """Return the kind and size of a model in words."""
    kind = "explicit" if isinstance(model, ExplicitALS) else "implicit"
    users, items = len(model.user_factors), len(model.item_factors)
    return f"{kind}, {model.factors} factors, {users:,} users, {items:,} items"


def _explicit(args: argparse.Namespace, chosen: dict[str, Any], former: Any) -> ExplicitALS:
    if chosen.get("scale_regularization") == "none":
        chosen["scale_regularization"] = None
    if chosen.get("nonnegative") == "both":
        chosen["nonnegative"] = True
    if args.use_cg:
        steps = {} if args.cg_steps is None else {"steps": args.cg_steps}
        chosen["solver"] = solvers.ConjugateGradient(**steps)
    return (former or ExplicitALS()).set_params(backend=args.backend, **chosen)


def _implicit(
    args: argparse.Namespace, chosen: dict[str, Any], former: Any
) -> AlternatingLeastSquares:
    if args.use_cg is not None:
        chosen["use_cg"] = args.use_cg
    model: AlternatingLeastSquares = former or AlternatingLeastSquares()
    model.set_params(use_gpu=_use_gpu(args), **chosen)
    if args.cg_steps is not None:
        if args.cg_steps < 1:
            raise InputError(f"--cg-steps must be at least 1, not {args.cg_steps}")
        model.cg_steps = args.cg_steps
    return model


def _use_gpu(args: argparse.Namespace) -> bool | None:
    return {"auto": None, "cupy": True, "numpy": False}[args.backend]
