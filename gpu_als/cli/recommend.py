"""``gpu-als recommend``: the best items for some users, or for all."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from gpu_als.cli.options import (
    add_device_options,
    add_reading_options,
    new_command,
    refuse_reading_options,
)
from gpu_als.cli.output import check_folder
from gpu_als.data.atomic import replacing
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "recommend",
        short="print the best items for some users or all",
        description="Prints, as CSV, the user, the rank, the item and the score of the best items. "
        "Ids are those of the file that the model was trained on.",
        example="  gpu-als recommend model.npz --users 7 12 -n 5 --ratings ratings.csv\n"
        "  gpu-als recommend model.npz --users-file users.txt -o lists.csv",
    )
    parser.add_argument("model", metavar="MODEL", help="a file that 'gpu-als fit' saved")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--users", nargs="+", metavar="ID", help="the users (default: all)")
    who.add_argument("--users-file", metavar="FILE", help="a file with one user id per line")
    parser.add_argument("-n", type=int, default=10, metavar="N", help="items each (default: 10)")
    parser.add_argument(
        "--ratings", metavar="RATINGS",
        help="leave out the items that a user has in this file or folder of shards, usually what "
        "was trained on (default: nothing is left out)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="OUT.csv", help="write there (default: to the screen)"
    )
    add_device_options(parser)
    add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from gpu_als.cli.models import load_model
    from gpu_als.cli.scoring import best_lists, seen_items

    check_folder(args.output, "-o")
    if args.ratings is not None and os.path.isdir(args.ratings):
        refuse_reading_options(args, args.ratings)
    if args.n < 1:
        raise InputError(f"-n must be at least 1, not {args.n}")
    model = load_model(args, args.model)
    wanted = args.users if args.users_file is None else _read_ids(args.users_file)
    users = np.arange(len(model.user_factors)) if wanted is None else model.user_index(wanted)
    seen = None if args.ratings is None else seen_items(args, model, args.ratings)
    n_written = 0
    with _opened(args.output) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("user", "rank", "item", "score"))
        for batch, found, scores in best_lists(model, users, seen, args.n):
            row, place = np.nonzero(found >= 0)
            chosen, items = batch[row], found[row, place]
            writer.writerows(
                zip(
                    (chosen if model.user_ids is None else model.user_ids[chosen]).tolist(),
                    (place + 1).tolist(),
                    (items if model.item_ids is None else model.item_ids[items]).tolist(),
                    (f"{score:.6g}" for score in scores[row, place].tolist()),
                    strict=True,
                )
            )
            n_written += len(row)
    if args.output is not None:
        print(f"Wrote {n_written:,} recommendations for {len(users):,} users to {args.output}")
    return 0


def _read_ids(file: str) -> list[str]:
    with open(file, encoding="utf-8-sig") as stream:
        ids = [line.strip() for line in stream if not line.isspace()]
    if not ids:
        raise InputError(f"--users-file: {file} holds no id; write one per line")
    return ids


@contextmanager
def _opened(file: str | None) -> Iterator[TextIO]:
    if file is None:
        yield sys.stdout
        return
    with replacing(file) as binary:
        stream = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        yield stream
        stream.detach()  # flushes; the file is closed by whoever opened it
