"""``gpu-als fit``: train a model on a file of ratings, or on a folder of shards."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpu_als.cli.interrupt import GracefulInterrupt
from gpu_als.cli.options import (
    add_device_options,
    add_json_option,
    add_model_options,
    add_reading_options,
    fraction,
    new_command,
    reading_arguments,
    refuse_reading_options,
)
from gpu_als.cli.output import check_folder, check_not_inside, print_json, refuse_folder, say
from gpu_als.cli.plotting import check_plot, plot_learning_curve
from gpu_als.errors import ClusterError, InputError

if TYPE_CHECKING:
    from gpu_als.train.checkpoint import Checkpoint
    from gpu_als.train.report import FitReport

__all__ = ["add_command", "run"]

_INTERRUPTED = 130
_RANKED = 10
_SCHEDULER_SECONDS = 20
"""How long to wait for the scheduler to answer."""
_WHY = {
    "iterations": "all iterations were run",
    "tol": "the loss had settled (--tol)",
    "patience": "the validation RMSE no longer improved (--patience)",
    "callback": "you pressed Ctrl-C",
}


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "fit",
        short="train a model on a file of ratings or clicks",
        description="Trains a model and saves it. Ctrl-C lets the current iteration finish and "
        "saves what there is; a second Ctrl-C aborts at once.",
        example="  gpu-als fit ratings.csv -o model.npz --factors 32 --validation-fraction 0.1\n"
        "  gpu-als fit plays.tsv -o model.npz --model implicit --alpha 40\n"
        "  gpu-als fit plays.shards -o new.npz --warm-start model.npz",
    )
    parser.add_argument(
        "ratings", metavar="RATINGS",
        help="the file to learn from, or a folder that 'gpu-als convert' made",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="MODEL.npz",
        help="where to save the model (default: it is not saved)",
    )  # fmt: skip
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument(
        "--validation-fraction", type=fraction, metavar="F",
        help="hold out this fraction of the ratings, at random, to measure the model: the RMSE "
        "after each iteration for explicit, the ranking at the end for implicit (default: none)",
    )  # fmt: skip
    held_out.add_argument(
        "--validation", metavar="FILE", help="measure the model on this file instead"
    )
    parser.add_argument(
        "--warm-start", metavar="MODEL.npz",
        help="start from the factors of this model: known users and items keep theirs, new ones "
        "get random ones; the kind and the parameters are those of the model unless given "
        "(default: all are random)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", metavar="STATE.npz",
        help="save the state of the training there (default: it is not saved)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-seconds", type=float, metavar="S",
        help="save it every so many seconds (default: after every iteration)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="continue from the state in --checkpoint if it exists: run a command that was killed "
        "once more with this option",
    )  # fmt: skip
    parser.add_argument(
        "--scheduler", metavar="ADDRESS",
        help="train on the Dask cluster with this scheduler, such as tcp://host:8786; a folder of "
        "shards must have the same path on all its machines (default: train in this process)",
    )  # fmt: skip
    parser.add_argument(
        "--no-seen", action="store_true",
        help="do not keep in the model which items each user has, which 'gpu-als recommend' leaves "
        "out (default: they are kept, but for those of shards)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE.png", help="draw the learning curve")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress bar")
    add_json_option(parser)
    add_model_options(parser)
    add_device_options(parser)
    add_reading_options(parser)
    # a model to start from has a kind and a type of its own
    parser.set_defaults(run=run, model=None, dtype=None)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from gpu_als.cli.models import build_model, describe, read_ratings, train
    from gpu_als.data.shards import ShardedMatrix

    former = _former(args)
    model = build_model(args, former)
    if args.patience is not None and args.validation is None and args.validation_fraction is None:
        raise InputError("--patience needs --validation-fraction or --validation")
    _check_output(args)
    check_plot(args.plot)
    checkpoint = _checkpoint(args)
    begin = time.perf_counter()
    in_shards = os.path.isdir(args.ratings)
    ratings: Any
    if in_shards:
        ratings = ShardedMatrix.open(args.ratings)
        _check_for_shards(args)
    else:
        ratings = read_ratings(args, args.ratings)
    n_users, n_items = ratings.shape
    found = f"{ratings.nnz:,} ratings of {n_users:,} users on {n_items:,} items"
    if in_shards:
        say(args, f"Found {found} in {args.ratings}")
    else:
        say(args, f"Read {found} from {args.ratings} in {time.perf_counter() - begin:.1f} s")
    if former is not None:
        say(args, f"Starting from {args.warm_start} ({describe(former)})")
    ratings, validation = _hold_out(args, ratings)
    with _on_cluster(args.scheduler, ratings) as data, GracefulInterrupt() as interrupt:
        train(
            model, data,
            validation=validation, warm_start=former is not None,
            callback=interrupt.callback, progress=not args.quiet,
            checkpoint=checkpoint, resume=args.resume,
        )  # fmt: skip
    report = model.report_
    assert report is not None
    saved = None
    if args.output is not None:
        if not (in_shards or args.no_seen):
            model.seen_items = ratings
        model.save(args.output)
        saved = _npz(args.output)
    if args.plot and report.iterations:
        plot_learning_curve(args.plot, report, title=f"Learning curve: {describe(model)}")
    quality = {}
    if args.model == "implicit" and validation is not None and not interrupt.requested:
        quality = _rank(model, ratings, validation)
    if args.json:
        print_json(
            {
                "kind": args.model,
                "users": n_users,
                "items": n_items,
                "training_ratings": ratings.nnz,
                "validation_ratings": 0 if validation is None else len(validation[2]),
                "validation": report.metrics[report.best_iteration - 1]
                if report.metrics
                else quality,
                "interrupted": interrupt.requested,
                "model": saved,
                "report": report.to_dict(),
            }
        )
    else:
        _print_report(args, report, quality, saved, interrupt.requested)
    return _INTERRUPTED if interrupt.requested else 0


def _former(args: argparse.Namespace) -> Any:
    """Return the model to start from or None, and settle what follows from it."""
    former = None
    kind, dtype = "explicit", "float32"
    if args.warm_start is not None:
        from gpu_als.cli.models import load_model
        from gpu_als.models import ExplicitALS

        former = load_model(args, args.warm_start)
        kind = "explicit" if isinstance(former, ExplicitALS) else "implicit"
        dtype = former.dtype.name
        if args.model not in (None, kind):
            raise InputError(f"--model: {args.warm_start} is an {kind} model; leave it out")
    args.model, args.dtype = args.model or kind, args.dtype or dtype
    return former


def _check_for_shards(args: argparse.Namespace) -> None:
    """Refuse what cannot be done with a folder of shards."""
    if args.validation_fraction is not None:
        raise InputError(
            f"--validation-fraction needs a file, and {args.ratings} is a folder of shards; hold "
            "ratings out before 'gpu-als convert' and pass --validation FILE"
        )
    if args.duplicates is not None:
        raise InputError(
            f"--duplicates was settled when 'gpu-als convert' made {args.ratings}; leave it out"
        )
    if args.validation is None:
        refuse_reading_options(args, args.ratings)
    check_not_inside(args.ratings, "-o", args.output)
    check_not_inside(args.ratings, "--checkpoint", args.checkpoint)


def _check_output(args: argparse.Namespace) -> None:
    sources = (args.ratings, args.validation)
    for option, file, others in (
        ("-o", args.output, sources),  # a new model may take the place of the former
        ("--checkpoint", args.checkpoint, (*sources, args.warm_start, _npz(args.output))),
    ):
        check_folder(file, option)
        target = _npz(file)
        for other in others:
            if target and other and _is_same_file(target, other):
                raise InputError(f"{option}: {target} would overwrite {other}; pass another name")


def _npz(file: str | None) -> str | None:
    from gpu_als.data.model_file import npz_path

    return None if file is None else str(npz_path(file))


def _is_same_file(one: str, other: str) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _checkpoint(args: argparse.Namespace) -> Checkpoint | None:
    """Return where the state goes; say where the fit begins."""
    from gpu_als.train.checkpoint import Checkpoint

    if args.checkpoint is None:
        if args.resume or args.checkpoint_seconds is not None:
            raise InputError("--resume and --checkpoint-seconds need --checkpoint STATE.npz")
        return None
    checkpoint = Checkpoint(args.checkpoint, seconds=args.checkpoint_seconds)
    if args.resume and checkpoint.path.exists():
        say(args, f"Continuing from {checkpoint.path}")
    elif args.resume:
        say(args, f"There is no {checkpoint.path} yet; starting afresh")
    return checkpoint


def _hold_out(args: argparse.Namespace, ratings: Any) -> tuple[Any, Any]:
    """Return the ratings to train on, and (rows, columns, values) to validate on or None."""
    from gpu_als.cli.models import hold_out
    from gpu_als.data.readers import read_triples

    if args.validation_fraction is not None:
        ratings, validation = hold_out(args, ratings, args.validation_fraction)
        say(args, f"Held out {len(validation[2]):,} ratings for validation")
        return ratings, validation
    if args.validation is None:
        return ratings, None
    refuse_folder(args.validation, "--validation", "pass a file of ratings")
    users, items, values = read_triples(args.validation, **reading_arguments(args))
    if values is None and args.model == "explicit":
        raise InputError(f"--validation: {args.validation} has no ratings; pass --rating-column")
    validation = ratings.encode(users, items, values, unknown="skip")
    if len(validation[2]) == 0:
        raise InputError(
            f"--validation: no rating in {args.validation} has a user and an item that occur in "
            f"{args.ratings}"
        )
    dropped = len(users) - len(validation[2])
    say(
        args,
        f"Read {len(users):,} ratings for validation from {args.validation}; dropped {dropped:,} "
        "of users or items that are not in the training data",
    )
    return ratings, validation


@contextmanager
def _on_cluster(scheduler: str | None, ratings: Any) -> Iterator[Any]:
    """Give what a model is to be trained on: on a cluster, if there is the address of one.

    Parameters
    ----------
    scheduler : str or None
    ratings : Interactions or ShardedMatrix

    Raises
    ------
    InputError
        dask.distributed is not installed; the message says how to install it.
    ClusterError
        The scheduler does not answer, or has no workers.
    """
    if scheduler is None:
        yield ratings
        return
    try:
        from gpu_als.dask import DaskInteractions
    except ImportError as error:
        raise InputError(f"--scheduler: {error}") from error
    from distributed import Client

    try:
        client = Client(scheduler, timeout=_SCHEDULER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--scheduler: no answer from {scheduler} ({error}); pass the address that 'dask "
            "scheduler' printed, such as tcp://host:8786"
        ) from error
    with client:
        yield DaskInteractions(client, ratings)


def _rank(model: Any, ratings: Any, validation: tuple[Any, Any, Any]) -> dict[str, float]:
    from gpu_als.cli.scoring import SeenInShards, pairs_matrix, ranking_metrics
    from gpu_als.data import Interactions

    in_memory = isinstance(ratings, Interactions)
    seen = ratings.user_items if in_memory else SeenInShards(ratings, model)
    test = pairs_matrix(model, validation[0], validation[1])
    return ranking_metrics(model, test, seen, _RANKED)[0]


def _print_report(
    args: argparse.Namespace,
    report: FitReport,
    quality: dict[str, float],
    saved: str | None,
    interrupted: bool,
) -> None:
    print(report)
    print(f"stopped because {_WHY['callback' if interrupted else report.stopped]}")
    if interrupted and args.checkpoint is not None:
        print("The same command with --resume continues from here.")
    if quality:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in quality.items())
        print(f"held-out ranking: {shown}")
    if args.plot and report.iterations:
        print(f"learning curve: {args.plot}")
    if saved is None:
        print("The model was not saved; pass -o MODEL.npz to keep it.")
    elif interrupted:
        print(f"Interrupted; saved the model of iteration {report.best_iteration} to {saved}")
    else:
        print(f"Saved the model to {saved}")
