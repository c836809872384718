"""``gpu-als predict``: what a model says of pairs of users and items."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gpu_als.cli.options import (
    add_device_options,
    add_reading_options,
    new_command,
    reading_arguments,
)
from gpu_als.cli.output import refuse_folder
from gpu_als.cli.tables import add_output_options, check_output, write_table
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "predict",
        short="predict the ratings of pairs of users and items",
        description="Prints, for each line of PAIRS, the rating that an explicit model predicts, "
        "or the score of an implicit one.",
        example="  gpu-als predict model.npz pairs.csv -o predicted.csv --unknown skip",
    )
    parser.add_argument("model", metavar="MODEL", help="a file that 'gpu-als fit' saved")
    parser.add_argument("pairs", metavar="PAIRS", help="a file with a user and an item per line")
    parser.add_argument(
        "--unknown", choices=("error", "skip", "mean"), default="error",
        help="what becomes of pairs with a user or an item that the model does not know: error; "
        "skip; mean: what is known of the rest, as if its factors and bias were zero (default: "
        "error)",
    )  # fmt: skip
    add_output_options(parser)
    add_device_options(parser)
    add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from gpu_als.cli.models import load_model
    from gpu_als.data.readers import read_triples

    check_output(args)
    refuse_folder(args.pairs, "PAIRS", "pass a file")
    model = load_model(args, args.model)
    users, items, _ = read_triples(args.pairs, **reading_arguments(args))
    if args.unknown == "skip":
        rows, columns = (
            index(ids, unknown="skip")
            for index, ids in ((model.user_index, users), (model.item_index, items))
        )
        known = (rows >= 0) & (columns >= 0)
        users, items = users[known], items[known]
        if not known.all():
            print(f"Skipped {np.count_nonzero(~known):,} unknown pairs", file=sys.stderr)
    if len(users) == 0:
        raise InputError(f"PAIRS: the model knows no pair of {args.pairs}")
    unknown: Any = "raise" if args.unknown == "error" else "skip"
    scores = model.predict(users, items, unknown=unknown)
    users, items = (ids if ids.dtype.kind == "i" else ids.astype(str) for ids in (users, items))
    write_table(args, {"user": users, "item": items, "prediction": scores})
    return 0
