"""``gpu-als evaluate``: how well a model does on ratings it has not seen."""

from __future__ import annotations

import argparse
from math import nan
from typing import Any

from gpu_als.cli.options import (
    MODEL_OPTIONS,
    add_device_options,
    add_json_option,
    add_min_ratings_option,
    add_model_options,
    add_reading_options,
    fraction,
    new_command,
    reading_arguments,
)
from gpu_als.cli.output import print_json, print_pairs, print_table, refuse_folder
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "evaluate",
        usage="gpu-als evaluate MODEL TEST [--train RATINGS] [options]\n"
        "       gpu-als evaluate --split F RATINGS [options]",
        short="measure a model on held-out ratings, or a choice of parameters on a split",
        description="Prints precision, recall, hit rate, NDCG and MAP of the first K "
        "recommendations, beside those of the most popular items, and RMSE and MAE of an explicit "
        "model. With --split a model is trained on one part of RATINGS, as 'gpu-als fit' would, "
        "and measured on the other.",
        example="  gpu-als evaluate model.npz test.csv\n"
        "  gpu-als evaluate model.npz test.csv --min-rating 4 -k 20\n"
        "  gpu-als evaluate --split 0.2 ratings.csv --factors 32 --regularization 0.05",
    )
    parser.add_argument(
        "files", nargs="+", metavar="MODEL TEST | RATINGS",
        help="a saved model and the held-out file; with --split one file of ratings",
    )  # fmt: skip
    parser.add_argument(
        "--split", type=fraction, metavar="F",
        help="hold out this fraction of RATINGS at random and train on the rest",
    )  # fmt: skip
    left_out = parser.add_mutually_exclusive_group()
    left_out.add_argument(
        "--train", metavar="RATINGS",
        help="leave the items that a user has in this file or folder of shards out of the "
        "recommendations (default: those that the model remembers from 'gpu-als fit')",
    )  # fmt: skip
    left_out.add_argument("--no-seen", action="store_true", help="leave nothing out")
    add_min_ratings_option(parser)
    parser.add_argument("-k", type=int, default=10, metavar="K",
                        help="length of the lists of recommendations (default: 10)")  # fmt: skip
    parser.add_argument(
        "--min-rating", type=float, metavar="R",
        help="a recommendation is a hit if the held-out rating is at least R (default: if there is "
        "one)",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress bar")
    add_json_option(parser)
    add_device_options(parser)
    add_reading_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from gpu_als.cli import scoring
    from gpu_als.cli.models import describe
    from gpu_als.models import ExplicitALS

    if args.k < 1:
        raise InputError(f"-k must be at least 1, not {args.k}")
    case = _saved(args) if args.split is None else _split(args)
    model, rows, columns, ratings, seen, n_dropped = case
    if len(rows) == 0:
        raise InputError("no test rating has a user and an item that the model knows")
    explicit = isinstance(model, ExplicitALS)
    errors = {}
    if explicit and ratings is not None:
        errors = scoring.rating_metrics(model, rows, columns, ratings)
    if args.min_rating is not None:
        if ratings is None:
            raise InputError("--min-rating: the test file has no ratings; leave it out")
        rows, columns = rows[ratings >= args.min_rating], columns[ratings >= args.min_rating]
    test = scoring.pairs_matrix(model, rows, columns)
    candidates = scoring.frequent_items(args, model)
    ranking, n_users = scoring.ranking_metrics(model, test, seen, args.k, candidates)
    baseline = scoring.popularity(model)
    popular = {}
    if baseline is not None:
        popular = scoring.ranking_metrics(baseline, test, seen, args.k, candidates)[0]
    if args.json:
        print_json(
            {
                "kind": "explicit" if explicit else "implicit",
                "test_ratings": len(case[1]),
                "dropped": n_dropped,
                "ranked_users": n_users,
                "metrics": errors | ranking,
                "popularity": popular,
            }
        )
        return 0
    lines = [("model", describe(model)), ("test ratings", f"{len(case[1]):,}")]
    if args.split is None:
        lines.append(("dropped", f"{n_dropped:,} of users or items unknown to the model"))
    left_out = "" if seen is not None else "; nothing is left out of their lists"
    lines.append(("users ranked", f"{n_users:,}{left_out}"))
    print_pairs([*lines, *((name, f"{value:.4f}") for name, value in errors.items())])
    table = [
        (name, f"{value:.4f}", f"{popular.get(name, nan):.4f}") for name, value in ranking.items()
    ]
    print_table(("", "model", "popularity"), table)
    if explicit:
        print("An explicit model predicts ratings; an implicit one ranks what users will choose.")
    return 0


def _saved(args: argparse.Namespace) -> tuple[Any, ...]:
    """Return model, test rows, columns and ratings, training matrix, number of dropped ratings."""
    from gpu_als.cli import scoring
    from gpu_als.cli.models import load_model
    from gpu_als.data.readers import read_triples

    if len(args.files) != 2:
        raise InputError(
            "evaluate takes two files, MODEL and TEST; or, with --split F, one file of ratings"
        )
    given = [name for name in MODEL_OPTIONS if getattr(args, name) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} needs --split; the model is trained")
    model = load_model(args, args.files[0])
    refuse_folder(args.files[1], "TEST", "pass the file of held-out ratings")
    users, items, ratings = read_triples(args.files[1], **reading_arguments(args))
    rows, columns, known = scoring.rows_of(model, users, items)
    seen: Any = None if args.no_seen else model.seen_items
    if args.train is not None:
        seen = scoring.seen_items(args, model, args.train)
    if ratings is not None:
        ratings = ratings[known]
    return model, rows[known], columns[known], ratings, seen, int((~known).sum())


def _split(args: argparse.Namespace) -> tuple[Any, ...]:
    """Train on one part of the ratings, and return what :func:`_saved` does."""
    from gpu_als.cli.models import build_model, hold_out, read_ratings, train

    if len(args.files) != 1 or args.train is not None:
        raise InputError("with --split pass one file of ratings, and no --train")
    refuse_folder(
        args.files[0], "RATINGS",
        "--split needs a file; hold ratings out before 'gpu-als convert' and evaluate on them",
    )  # fmt: skip
    if args.patience is not None:
        raise InputError("--patience needs a validation set, which --split does not make")
    model = build_model(args)
    ratings = read_ratings(args, args.files[0])
    kept, held_out = hold_out(args, ratings, args.split)
    train(model, kept, progress=not args.quiet)
    return model, *held_out, kept.user_items, 0
