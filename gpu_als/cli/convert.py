"""``gpu-als convert``: turn files of ratings into shards, in bounded memory."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gpu_als.cli.options import (
    add_json_option,
    add_reading_options,
    new_command,
    reading_arguments,
    size,
)
from gpu_als.cli.output import print_json, say
from gpu_als.errors import InputError

__all__ = ["add_command", "run"]


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "convert",
        usage="gpu-als convert RATINGS... OUT.shards [options]",
        short="turn files of ratings larger than memory into shards",
        description="Makes a folder of shards, from which data larger than memory are read in "
        "blocks. It takes no more memory than --memory says, in which the distinct ids have "
        "to fit, and up to 56 bytes per rating on disk while it works.",
        example="  gpu-als convert ratings.csv ratings.shards --memory 2G --value-type codes\n"
        "  gpu-als convert ratings.csv ratings.shards --memory 2G --value-type codes --resume\n"
        "  gpu-als convert today.csv ratings.shards --append",
    )
    parser.add_argument(
        "files", nargs="+", metavar="RATINGS... OUT.shards",
        help="the files to read, also .parquet (needs pyarrow), and the folder to make",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=size, default="2G", metavar="SIZE",
        help="how much memory the process may take, as 800M or 2G (default: 2G)",
    )  # fmt: skip
    parser.add_argument(
        "--shard-size", type=size, default="256M", metavar="SIZE",
        help="how large a shard is at most, unless it has one row (default: 256M)",
    )  # fmt: skip
    parser.add_argument(
        "--value-type", choices=("float32", "float16", "codes"),
        help="how ratings are stored; codes take one byte each and are for up to 256 different "
        "ratings (default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--lossy", action="store_true",
        help="let float16 round (default: what it cannot hold is an error)",
    )  # fmt: skip
    parser.add_argument(
        "--duplicates", choices=("sum", "last"),
        help="what becomes of several ratings for one user and item (default: sum)",
    )  # fmt: skip
    parser.add_argument(
        "--append", action="store_true",
        help="add to the shards that are there; --value-type and --duplicates are theirs",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="continue what an interrupted run of the same command has left (default: discard it)",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress bars")
    add_json_option(parser)
    add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from gpu_als.data.shards import append, convert

    if len(args.files) < 2:
        raise InputError("RATINGS... OUT.shards: pass the files to read and the folder to make")
    *sources, folder = args.files
    chosen: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("value_type", "duplicates")
        if getattr(args, name) is not None
    }
    if args.append and chosen:
        option = next(iter(chosen)).replace("_", "-")
        raise InputError(f"--{option}: --append keeps that of the folder; leave it out")
    begin = time.perf_counter()
    matrix = (append if args.append else convert)(
        sources,
        folder,
        lossy=args.lossy,
        shard_bytes=args.shard_size,
        memory=args.memory,
        resume=args.resume,
        show_progress=not args.quiet,
        **chosen,
        **reading_arguments(args),
    )
    n_users, n_items = matrix.shape
    n_bytes = sum(record.bytes for _, record in matrix.manifest.files())
    n_shards = len(matrix.users) + len(matrix.items)
    say(
        args,
        f"{folder}: {matrix.nnz:,} ratings of {n_users:,} users on {n_items:,} items, "
        f"{n_bytes:,} bytes in {n_shards} shards, in {time.perf_counter() - begin:.1f} s",
    )
    if args.json:
        print_json(
            {
                "folder": folder,
                "users": n_users,
                "items": n_items,
                "ratings": matrix.nnz,
                "value_type": matrix.value_type,
                "bytes": n_bytes,
                "shards": {"users": len(matrix.users), "items": len(matrix.items)},
            }
        )
    return 0
