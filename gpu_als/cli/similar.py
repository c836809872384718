"""``gpu-als similar``: the items, or users, most like others."""

from __future__ import annotations

import argparse
from typing import Any

from gpu_als.cli.options import add_device_options, new_command
from gpu_als.cli.tables import add_output_options, check_output, read_names, write_table
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "similar",
        short="print the items or users most like others",
        description="Prints the items with the most similar factors, by their cosine: the item "
        "itself first, with 1.",
        example="  gpu-als similar model.npz 318 356 -n 5 --item-names movies.csv\n"
        "  gpu-als similar model.npz 7 --users",
    )
    parser.add_argument("model", metavar="MODEL", help="a file that 'gpu-als fit' saved")
    parser.add_argument("ids", nargs="+", metavar="ID", help="items, or users with --users")
    parser.add_argument("--users", action="store_true", help="compare users")
    parser.add_argument("-n", type=int, default=10, metavar="N", help="how many (default: 10)")
    parser.add_argument("--item-names", metavar="FILE", help="a table of ids and names to show")
    add_output_options(parser)
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from gpu_als.cli.models import load_model

    check_output(args)
    if args.n < 1:
        raise InputError(f"-n must be at least 1, not {args.n}")
    if args.users and args.item_names is not None:
        raise InputError("--item-names is for items; leave it out with --users")
    names = None if args.item_names is None else read_names(args.item_names)
    model = load_model(args, args.model)
    side = "user" if args.users else "item"
    index = model.user_index if args.users else model.item_index
    rows = index(args.ids)
    found, scores = (model.similar_users if args.users else model.similar_items)(
        args.ids if getattr(model, f"{side}_ids") is not None else rows, args.n
    )
    columns = {
        side: np.repeat(np.array(args.ids), found.shape[1]),
        "rank": np.tile(np.arange(1, found.shape[1] + 1), len(found)),
        "similar": found.ravel(),
    }
    if names is not None:
        columns["name"] = np.array([names.get(str(id_), "") for id_ in found.ravel().tolist()])
    write_table(args, columns | {"score": scores.ravel()})
    return 0
