"""``gpu-als plan``: the memory that a fit will take, without data."""

from __future__ import annotations

import argparse
from typing import Any

from gpu_als.cli.options import add_json_option, new_command, size
from gpu_als.cli.output import print_json, print_table
from gpu_als.errors import BackendError

__all__ = ["add_command", "run"]

_PARTS = {
    "data": "data",
    "factors": "factors",
    "sweep": "fixed side in its coordinates",
    "workspace": "workspace",
    "around": "before and after, beyond that",
    "total": "total",
}


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "plan",
        short="show how much memory a fit will need, and how it will run",
        description="Predicts the memory of each part of a fit, on the host and on a GPU, whether "
        "the data can stay there, and what would fit where this does not. Nothing is read or "
        "allocated. Exits with 2 where the fit does not fit.",
        example="  gpu-als plan --users 1M --items 200K --nnz 500M --factors 128 --host-memory 8G\n"
        "  gpu-als plan --users 100M --items 10M --nnz 10G --factors 128 --model implicit \\\n"
        "    --device-memory 80G --host-memory 256G",
    )
    for name, what in (
        ("users", "number of users"),
        ("items", "number of items"),
        ("nnz", "number of ratings or interactions"),
    ):
        parser.add_argument(
            f"--{name}", type=_number, required=True, metavar="N",
            help=f"{what}, as 100000, 100K, 5M or 2G (powers of 1000)",
        )  # fmt: skip
    parser.add_argument("--factors", type=int, required=True, metavar="K", help="number of factors")
    for name, what in (
        ("device", "free on the GPU (default: none, the plan is for the CPU)"),
        ("host", "of the host that the fit may take (default: no limit)"),
    ):
        parser.add_argument(
            f"--{name}-memory", type=size, metavar="SIZE", help=f"memory {what}, as 512M or 80G"
        )
    parser.add_argument(
        "--model", choices=("explicit", "implicit"), default="explicit",
        help="the model that is fitted (default: explicit)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32",
                        help="precision of the factors (default: float32)")  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N",
        help="threads on the CPU (default: 0, all processors)",
    )  # fmt: skip
    parser.add_argument(
        "--ones", type=float, metavar="SHARE",
        help="only with --model implicit: the share of interactions whose confidence is 1, which "
        "are set apart (default: 1, the most it can take)",
    )  # fmt: skip
    parser.add_argument(
        "--longest", type=_number, default=0, metavar="N",
        help="interactions of the busiest user or item, if that is known",
    )  # fmt: skip
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from gpu_als.train.planning import plan

    found = plan(
        args.users,
        args.items,
        args.nnz,
        args.factors,
        model=args.model,
        dtype=args.dtype,
        ones=args.ones,
        longest=args.longest,
        threads=args.threads,
        device_memory=args.device_memory,
        host_memory=args.host_memory,
    )
    numbers = found.to_dict()
    if args.json:
        print_json(numbers)
    else:
        places = [place for place in ("host", "device") if numbers[place] is not None]
        rows = [
            [_PARTS[part], *(_bytes(numbers[place].get(part, 0)) for place in places)]
            for part in _PARTS
        ]
        rows.append(["given", *(_bytes(numbers[f"{place}_memory"]) for place in places)])
        print_table(["", *places], rows)
        if found.fits:
            print(found.summary)
    if not found.fits:
        raise BackendError(found.summary)
    return 0


def _bytes(number: int | None) -> str:
    if number is None:
        return "-"
    unit, name = (1 << 30, "GiB") if number >= 1 << 30 else (1 << 20, "MiB")
    return f"{number / unit:,.1f} {name}"


def _number(text: str) -> int:
    """Return what a number with a unit says, as 5M for five million."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
    unit = units.get(text[-1:].upper())
    return int(text) if unit is None else round(float(text[:-1]) * unit)


_number.__name__ = "number"  # what argparse says it expected
