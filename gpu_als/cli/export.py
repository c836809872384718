"""``gpu-als export``: the factors of a model, for other programs."""

from __future__ import annotations

import argparse
from typing import Any

from gpu_als.cli.options import new_command
from gpu_als.cli.output import check_folder
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]

_ENDINGS = ".npy", ".csv", ".csv.gz", ".parquet"


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "export",
        short="write the factors of users or items for other programs",
        description="Writes one line for each item: its id, its bias in a model with biases, and "
        "its factors (a list in Parquet, columns f0, f1, ... in CSV); as .npy the factors alone, "
        "in the order of the model's rows.",
        example="  gpu-als export model.npz items.parquet\n"
        "  gpu-als export model.npz users.npy --users",
    )
    parser.add_argument("model", metavar="MODEL", help="a file that 'gpu-als fit' saved")
    parser.add_argument("output", metavar="FILE", help=f"ends in {', '.join(_ENDINGS)}")
    parser.add_argument("--users", action="store_true", help="those of users (default: of items)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from gpu_als.cli.tables import write_file
    from gpu_als.data.atomic import replacing
    from gpu_als.models import ExplicitALS, load

    check_folder(args.output, "FILE")
    if not args.output.endswith(_ENDINGS):
        raise InputError(f"FILE: {args.output} must end in {', '.join(_ENDINGS)}")
    model = load(args.model)
    side = "user" if args.users else "item"
    factors = np.asarray(getattr(model, f"{side}_factors"))
    if args.output.endswith(".npy"):
        with replacing(args.output) as stream:
            np.save(stream, factors, allow_pickle=False)
        print(f"Wrote {len(factors):,} lines to {args.output}")
        return 0
    ids = getattr(model, f"{side}_ids")
    columns = {side: np.arange(len(factors)) if ids is None else ids}
    if isinstance(model, ExplicitALS) and model.bias:
        columns["bias"] = getattr(model, f"{side}_biases")
    if args.output.endswith(".parquet"):
        columns["factors"] = factors
    else:
        columns |= {f"f{number}": column for number, column in enumerate(factors.T)}
    write_file(args.output, columns)
    return 0
