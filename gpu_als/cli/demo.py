"""``gpu-als demo``: made-up ratings, a model, and how close it comes to the best possible."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from gpu_als.cli.options import add_device_options, add_json_option, new_command
from gpu_als.cli.output import print_json, print_table, say
from gpu_als.cli.plotting import check_plot, plot_learning_curve

if TYPE_CHECKING:
    from gpu_als.train.report import FitReport

__all__ = ["add_command", "run"]

_PLANTED_FACTORS = 8
_NOISE = 0.5
_HELD_OUT = 0.1
# Found by trying: from 0.01 to 0.02 the held-out RMSE differs by less than 0.3%.
_REGULARIZATION = 0.01
_NEXT = """\
Next, with your own ratings (columns user, item, rating):
  gpu-als fit ratings.csv -o model.npz
  gpu-als recommend model.npz --users ID --ratings ratings.csv
  gpu-als evaluate model.npz test.csv
  gpu-als info"""


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "demo",
        short="train on made-up ratings and see how close the model comes to the best possible",
        description="Makes ratings from known factors and known noise, holds out 10%, trains, and "
        "compares the error on the held-out ratings with the noise, which no model can beat.",
        example="  gpu-als demo --plot curve.png",
    )
    for name, default, text in (
        ("users", 6000, "number of users"),
        ("items", 2000, "number of items"),
        ("ratings", 1_000_000, "number of ratings"),
        ("factors", _PLANTED_FACTORS, "factors of the model; the ratings are made with 8"),
        ("iterations", 8, "number of iterations"),
        ("seed", 7, "seed of the ratings, the split and the initial factors"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the learning curve")
    add_json_option(parser)
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    check_plot(args.plot)
    import scipy.sparse as sp

    from gpu_als.backends import get_backend
    from gpu_als.data import train_test_split
    from gpu_als.data.synthetic import planted_ratings
    from gpu_als.models import ExplicitALS

    get_backend(args.backend)  # says at once if there is no such device
    say(
        args,
        f"Making {args.ratings:,} ratings of {args.users:,} users on {args.items:,} items, from "
        f"{_PLANTED_FACTORS} factors plus noise of {_NOISE} ...",
    )
    begin = time.perf_counter()
    planted = planted_ratings(
        args.users, args.items, args.ratings,
        rank=_PLANTED_FACTORS, noise=_NOISE, random_state=args.seed,
    )  # fmt: skip
    matrix = sp.csr_matrix(
        (planted.values, (planted.rows, planted.cols)), shape=(args.users, args.items)
    )
    train, held_out = train_test_split(matrix, 1 - _HELD_OUT, random_state=args.seed + 1)
    model = ExplicitALS(
        args.factors, _REGULARIZATION, iterations=args.iterations, backend=args.backend,
        num_threads=args.threads, random_state=args.seed + 2,
    )  # fmt: skip
    say(args, f"Training {args.factors} factors on 90% of them ...")
    model.fit(train, validation=held_out, show_progress=True)
    report = model.report_
    assert report is not None
    result = _result(report, train.nnz, held_out.nnz, planted.noise)
    result["total_seconds"] = time.perf_counter() - begin
    if args.plot and report.iterations:
        title = f"ExplicitALS, {args.factors} factors, {train.nnz:,} training ratings"
        plot_learning_curve(args.plot, report, title=title, noise=planted.noise)
    if args.json:
        print_json(result)
    else:
        _print_result(result, args.plot)
    return 0


def _result(report: FitReport, n_train: int, n_held_out: int, noise: float) -> dict[str, Any]:
    rmse = [entry["rmse"] for entry in report.metrics]
    seconds = report.total_seconds
    return {
        "device": report.device,
        "training_ratings": n_train,
        "held_out_ratings": n_held_out,
        "noise_floor": noise,
        "best_iteration": report.best_iteration,
        "best_held_out_rmse": min(rmse, default=None),
        "iterations": [
            {"loss": loss, "held_out_rmse": error, "seconds": sum(pair)}
            for loss, error, pair in zip(report.losses, rmse, report.seconds, strict=True)
        ],
        "ratings_per_second": n_train * report.iterations / seconds if seconds else None,
    }


def _print_result(result: dict[str, Any], plot: str | None) -> None:
    floor, best, rate = (
        result[name] for name in ("noise_floor", "best_held_out_rmse", "ratings_per_second")
    )
    print()
    print_table(
        ("iteration", "training loss", "held-out RMSE", "noise floor", "seconds"),
        [
            (
                str(number),
                f"{row['loss']:,.1f}",
                f"{row['held_out_rmse']:.4f}",
                f"{floor:.4f}",
                f"{row['seconds']:.2f}",
            )
            for number, row in enumerate(result["iterations"], 1)
        ],
    )
    print(f"\nNoise floor {floor:.4f}: no model can do better.")
    if best is not None:
        print(f"The best iteration is {100 * (best / floor - 1):.1f}% above it.")
    print(f"Device: {result['device']}")
    if rate is not None:
        print(
            f"Throughput: {rate / 1e6:.1f} million ratings per second, each counted once per "
            "iteration"
        )
    if plot and best is not None:
        print(f"Learning curve: {plot}")
    print(f"Total: {result['total_seconds']:.1f} s\n")
    print(_NEXT)
