"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
import textwrap
from typing import Any

from gpu_als.backends import BACKENDS, PRECISIONS
from gpu_als.errors import InputError

__all__ = [
    "EXPLICIT_OPTIONS",
    "IMPLICIT_OPTIONS",
    "MODEL_OPTIONS",
    "READING_OPTIONS",
    "add_device_options",
    "add_json_option",
    "add_min_ratings_option",
    "add_model_options",
    "add_precision_option",
    "add_reading_options",
    "fraction",
    "new_command",
    "reading_arguments",
    "refuse_reading_options",
    "size",
]

EXPLICIT_OPTIONS = ("bias", "scale_regularization", "nonnegative", "tol", "patience")
IMPLICIT_OPTIONS = ("alpha", "unobserved_weight", "regularization_exponent")
MODEL_OPTIONS = (
    *("factors", "regularization", "iterations", "precision", "duplicates", "use_cg", "cg_steps"),
    *EXPLICIT_OPTIONS,
    *IMPLICIT_OPTIONS,
)
"""What is None unless it was given, so that the estimator's own default holds."""
READING_OPTIONS = ("user_column", "item_column", "rating_column", "delimiter", "header")

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def new_command(
    commands: Any, name: str, *, short: str, description: str, example: str, **more: Any
) -> argparse.ArgumentParser:
    """Add a command whose help ends in examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=textwrap.fill(description, 80),
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    return parser


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the work is done."""
    group = parser.add_argument_group("device")
    group.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="numpy: the processors; cupy: the GPU; auto: the GPU where there is one "
        "(default: auto)",
    )
    group.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads of the numpy backend (default: 0, all processors)",
    )


def add_min_ratings_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--min-ratings``."""
    parser.add_argument(
        "--min-ratings", type=int, metavar="N",
        help="rank only items with at least so many ratings in training (default: 5 for explicit "
        "models, whose predictions of rarer ones are mostly chance; 0 for implicit ones)",
    )  # fmt: skip


def add_precision_option(group: Any) -> None:
    """Add ``--precision``."""
    group.add_argument(
        "--precision", choices=PRECISIONS,
        help="how a GPU multiplies float32 factors (default: float32)",
    )  # fmt: skip


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a file of ratings looks like."""
    group = parser.add_argument_group(
        "reading files",
        "Files may be .csv, .tsv, .txt, .data, .dat or .mtx, each also with .gz, or\n  .npz. By "
        "default the columns are found by their names, or else are user, item,\n  rating.",
    )
    for side in ("user", "item", "rating"):
        group.add_argument(
            f"--{side}-column",
            type=_column,
            metavar="COLUMN",
            help=f"name or position, from 0, of the {side}s (default: found by name)",
        )
    group.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="TEXT",
        help=r"what separates the columns, such as ',' or '\t' (default: detected)",
    )
    group.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line names the columns (default: detected)",
    )


def reading_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the readers of :mod:`gpu_als.data` call these options."""
    return {
        "user": args.user_column,
        "item": args.item_column,
        "rating": args.rating_column,
        "delimiter": args.delimiter,
        "header": "auto" if args.header is None else args.header,
    }


def refuse_reading_options(args: argparse.Namespace, folder: str) -> None:
    """Refuse options that say how to read files where there are only shards."""
    for name in READING_OPTIONS:
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise InputError(
                f"--{option} is for reading files, and {folder} is a folder of shards; leave it out"
            )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the kind of model and its parameters; None means the estimator's own default."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        choices=("explicit", "implicit"),
        default="explicit",
        help="explicit: predict ratings; implicit: rank by clicks, plays or purchases "
        "(default: explicit)",
    )
    group.add_argument(
        "--factors", type=int, metavar="K",
        help="number of factors (default: 64 for explicit, 100 for implicit)",
    )  # fmt: skip
    group.add_argument(
        "--regularization", type=_one_or_two, metavar="L",
        help="penalty on the size of the factors; for explicit also two, for users and items, as "
        "0.1,0.05 (default: 0.1 for explicit, 0.01 for implicit)",
    )  # fmt: skip
    group.add_argument("--iterations", type=int, metavar="N", help="most iterations (default: 15)")
    group.add_argument("--dtype", choices=("float32", "float64"), default="float32",
                       help="precision of the factors (default: float32)")  # fmt: skip
    add_precision_option(group)
    group.add_argument(
        "--seed", type=int, default=1, metavar="N",
        help="seed of the initial factors and of random splits (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--duplicates", choices=("sum", "last"),
        help="what becomes of several ratings for one user and item (default: last for explicit, "
        "sum for implicit)",
    )  # fmt: skip
    ways = group.add_mutually_exclusive_group()
    ways.add_argument(
        "--exact", dest="use_cg", action="store_false", default=None,
        help="solve every row exactly (the default for explicit)",
    )  # fmt: skip
    ways.add_argument(
        "--use-cg", dest="use_cg", action="store_true", default=None,
        help="take a few conjugate-gradient steps per row (the default for implicit)",
    )  # fmt: skip
    group.add_argument("--cg-steps", type=int, metavar="N",
                       help="steps with --use-cg (default: 3)")  # fmt: skip
    _add_explicit_options(parser)
    _add_implicit_options(parser)


def _add_explicit_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("only with --model explicit")
    group.add_argument(
        "--bias", action=argparse.BooleanOptionalAction,
        help="learn the mean and a bias per user and item (default: yes)",
    )  # fmt: skip
    group.add_argument(
        "--scale-regularization", choices=("count", "none"),
        help="count: multiply the penalty of a row by its number of ratings (default: count)",
    )  # fmt: skip
    group.add_argument(
        "--nonnegative", choices=("both", "users", "items"),
        help="ask for factors of at least 0 (default: off)",
    )  # fmt: skip
    group.add_argument(
        "--tol", type=float, metavar="F",
        help="stop when an iteration lowers the loss by no more than this fraction (default: off)",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=int, metavar="N",
        help="stop when the validation RMSE has not improved for N iterations (default: off)",
    )  # fmt: skip


def _add_implicit_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("only with --model implicit")
    group.add_argument("--alpha", type=float, metavar="A",
                       help="scales values to confidences (default: 1)")  # fmt: skip
    group.add_argument(
        "--unobserved-weight", type=float, metavar="W",
        help="weight of every cell, alpha0 of iALS (default: off)",
    )  # fmt: skip
    group.add_argument(
        "--regularization-exponent", type=float, metavar="E",
        help="how the penalty grows with the number of entries, nu of iALS (default: off)",
    )  # fmt: skip


def _column(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _delimiter(text: str) -> str:
    return text.replace("\\t", "\t")


def _one_or_two(text: str) -> float | tuple[float, float]:
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) > 2:
        raise ValueError
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


_one_or_two.__name__ = "number"  # what argparse says it expected


def fraction(text: str) -> float:
    """Return a number above 0 and below 1."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(
            f"found {text}; pass a fraction between 0 and 1, such as 0.1"
        )
    return number


def size(text: str) -> int:
    """Return the bytes that a number with a unit says."""
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    found = float(number.removesuffix(unit)) * _UNITS[unit]
    if not math.isfinite(found):
        raise ValueError
    return int(found)
