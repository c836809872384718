"""``gpu-als split``: divide a file of ratings into one to train and one to test on."""

from __future__ import annotations

import argparse
from typing import Any

from gpu_als.cli.options import add_reading_options, fraction, new_command, reading_arguments
from gpu_als.cli.output import check_folder, refuse_folder
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "split",
        short="divide a file of ratings into one to train and one to test on",
        description="Writes two files with the columns user, item and rating: at random, the "
        "latest ratings, or some of each user's.",
        example="  gpu-als split ratings.csv train.csv test.csv --test 0.2\n"
        "  gpu-als split ratings.csv train.csv test.csv --by-time timestamp --test 0.1\n"
        "  gpu-als split ratings.csv train.csv test.csv --leave-out 1",
    )
    parser.add_argument("ratings", metavar="RATINGS", help="the file to divide")
    parser.add_argument("train", metavar="TRAIN.csv", help="where to write the training part")
    parser.add_argument("test", metavar="TEST.csv", help="where to write the test part")
    parser.add_argument("--test", dest="share", type=fraction, default=0.2, metavar="F",
                        help="the share of the test part (default: 0.2)")  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--by-time", metavar="COLUMN",
                     help="test on what is latest by this column (default: at random)")  # fmt: skip
    how.add_argument("--leave-out", type=int, metavar="K",
                     help="test on K ratings of each user with more than K + 1")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, metavar="N",
                        help="of random splits (default: 1)")  # fmt: skip
    parser.add_argument(
        "--duplicates", choices=("sum", "last"), default="last",
        help="what becomes of several ratings for one user and item (default: last)",
    )  # fmt: skip
    add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from gpu_als.cli.tables import write_file
    from gpu_als.data import (
        leave_k_out_split,
        read_interactions,
        temporal_split,
        train_test_split,
    )

    refuse_folder(args.ratings, "RATINGS", "pass a file of ratings")
    for name in ("train", "test"):
        file = getattr(args, name)
        check_folder(file, f"{name.upper()}.csv")
        if not file.endswith((".csv", ".csv.gz")):
            raise InputError(f"{name.upper()}.csv: {file} must end in .csv or .csv.gz")
    how: dict[str, Any] = {"duplicates": args.duplicates, "dtype": np.float64}
    reading = reading_arguments(args)
    ratings = read_interactions(args.ratings, **reading, **how)
    if args.by_time is not None:
        times = read_interactions(
            args.ratings, **(reading | {"rating": args.by_time}), **(how | {"duplicates": "last"})
        )
        parts = temporal_split(ratings, times, 1 - args.share)
    elif args.leave_out is not None:
        parts = leave_k_out_split(ratings, args.leave_out, random_state=args.seed)
    else:
        parts = train_test_split(ratings, 1 - args.share, random_state=args.seed)
    for file, part in zip((args.train, args.test), parts, strict=True):
        entries = part.user_items.tocoo()
        sides = (part.user_ids, entries.row), (part.item_ids, entries.col)
        users, items = (rows if ids is None else ids[rows] for ids, rows in sides)
        write_file(file, {"user": users, "item": items, "rating": entries.data})
    return 0
