"""``gpu-als recommend``: the best items for some users, or for all."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpu_als.cli.options import (
    add_device_options,
    add_min_ratings_option,
    add_reading_options,
    new_command,
    refuse_reading_options,
)
from gpu_als.cli.output import check_folder, printable
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "recommend",
        short="print the best items for some users or all",
        description="Prints, as CSV, the user, the rank, the item and the score of the best items. "
        "Ids are those of the file that the model was trained on. An implicit model ranks; an "
        "explicit one predicts ratings, and its lists are of what a user would rate best.",
        example="  gpu-als recommend model.npz --users 7 12 -n 5\n"
        "  gpu-als recommend model.npz --users-file users.txt --unknown popular -o lists.csv",
    )
    parser.add_argument("model", metavar="MODEL", help="a file that 'gpu-als fit' saved")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--users", nargs="+", metavar="ID", help="the users (default: all)")
    who.add_argument("--users-file", metavar="FILE", help="a file with one user id per line")
    parser.add_argument(
        "--unknown", choices=("error", "skip", "popular"), default="error",
        help="what becomes of a user that the model does not know: error; skip; popular: the items "
        "that most users have, with their number as the score (default: error)",
    )  # fmt: skip
    parser.add_argument("-n", type=int, default=10, metavar="N", help="items each (default: 10)")
    add_min_ratings_option(parser)
    left_out = parser.add_mutually_exclusive_group()
    left_out.add_argument(
        "--ratings", metavar="RATINGS",
        help="leave out the items that a user has in this file or folder of shards (default: those "
        "that the model remembers from 'gpu-als fit')",
    )  # fmt: skip
    left_out.add_argument("--no-seen", action="store_true", help="leave nothing out")
    parser.add_argument(
        "--item-names", metavar="FILE",
        help="show the names of items, from a table of ids and names such as movies.csv",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="write there, as .csv, .csv.gz, .parquet, .json or .npy (default: CSV to the screen)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON in place of CSV")
    add_device_options(parser)
    add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from gpu_als.cli.models import load_model
    from gpu_als.cli.scoring import best_lists, frequent_items, popular_items, seen_items
    from gpu_als.ranking.to_file import check_ending

    if args.output is not None:
        check_folder(args.output, "-o")
        check_ending(args.output)
    if args.ratings is not None and os.path.isdir(args.ratings):
        refuse_reading_options(args, args.ratings)
    if args.n < 1:
        raise InputError(f"-n must be at least 1, not {args.n}")
    model = load_model(args, args.model)
    candidates = frequent_items(args, model)
    names = args.users if args.users_file is None else _read_ids(args.users_file)
    if names is None:
        users, user_ids = np.arange(len(model.user_factors)), model.user_ids
    else:
        users = model.user_index(names, unknown="raise" if args.unknown == "error" else "skip")
        user_ids = np.array(names)
        if args.unknown == "skip":
            user_ids, users = user_ids[users >= 0], users[users >= 0]
            if len(users) < len(names):
                print(f"Skipped {len(names) - len(users):,} unknown users", file=sys.stderr)
    seen = None if args.no_seen else model.seen_items
    if args.ratings is not None:
        seen = seen_items(args, model, args.ratings)
    popular = popular_items(model, args.n, candidates) if users.min(initial=0) < 0 else None
    n_best = min(args.n, len(model.item_factors) if candidates is None else len(candidates))
    ids = user_ids, model.item_ids, _item_names(args, model)
    shape, dtype = (len(users), n_best), model.user_factors.dtype
    done, n_written = 0, 0
    with _opened(args, shape, dtype, ids) as write:
        for batch, found, scores in best_lists(model, users, seen, args.n, candidates):
            if popular is not None:
                found[batch < 0], scores[batch < 0] = popular
            write(np.arange(done, done + len(batch)) if names else batch, found, scores)
            done, n_written = done + len(batch), n_written + int(np.count_nonzero(found >= 0))
    if args.output is not None:
        print(f"Wrote {n_written:,} recommendations for {len(users):,} users to {args.output}")
    return 0


def _item_names(args: argparse.Namespace, model: Any) -> Any:
    """Return the name of each of the model's items, empty where there is none; or None."""
    import numpy as np

    from gpu_als.cli.tables import read_names

    if args.item_names is None:
        return None
    names = read_names(args.item_names)
    ids = np.arange(len(model.item_factors)) if model.item_ids is None else model.item_ids
    return np.array([names.get(str(id_), "") for id_ in ids.tolist()])


def _read_ids(file: str) -> list[str]:
    with open(file, encoding="utf-8-sig") as stream:
        ids = [line.strip() for line in stream if not line.isspace()]
    if not ids:
        raise InputError(f"--users-file: {file} holds no id; write one per line")
    return ids


@contextmanager
def _opened(args: argparse.Namespace, shape: Any, dtype: Any, ids: Any) -> Iterator[Any]:
    """Give the function that writes recommendations to where they are wanted."""
    from gpu_als.ranking.to_file import csv_lines, json_lines, recommendation_file

    if args.output is not None:
        with recommendation_file(
            args.output, shape, dtype=dtype, ids=ids, show_progress=False
        ) as write:
            yield write
        return
    to_lines = json_lines if args.json else csv_lines
    sys.stdout.flush()
    with to_lines(sys.stdout.buffer, shape, dtype, tuple(map(printable, ids))) as write:
        yield write
