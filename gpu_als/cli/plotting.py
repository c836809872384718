"""The learning curve as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_als.cli.output import check_folder
from gpu_als.errors import InputError

if TYPE_CHECKING:
    from gpu_als.train.report import FitReport

__all__ = ["check_plot", "plot_learning_curve"]

_FORMATS = (".png", ".pdf", ".svg")
_TRAINING, _HELD_OUT, _FLOOR = "#1f5fa8", "#c2501b", "#555555"


def check_plot(file: str | None) -> None:
    """Refuse, before training, a plot that could not be drawn or written after it."""
    if file is None:
        return
    check_folder(file, "--plot")
    if Path(file).suffix.lower() not in _FORMATS:
        raise InputError(f"--plot: found {file!r}; pass a name that ends in .png, .pdf or .svg")
    _figure_class()


def plot_learning_curve(
    file: str, report: FitReport, *, title: str, noise: float | None = None
) -> None:
    """Draw the training loss and, where there is one, the validation RMSE of each iteration.

    Parameters
    ----------
    file : str
    report : FitReport
    title : str
    noise : float, optional
        The RMSE that no model can beat.
    """
    rmse = [entry["rmse"] for entry in report.metrics if "rmse" in entry]
    panels = 2 if rmse else 1
    figure = _figure_class()(figsize=(5.2 * panels, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    figure.suptitle(title, fontsize=12)
    _curve(axes[0], report.losses, _TRAINING, "Training loss")
    if rmse:
        _curve(axes[1], rmse, _HELD_OUT, "Held-out RMSE")
        if noise is not None:
            label = f"noise floor {noise:.4f}: no model can do better"
            axes[1].axhline(noise, color=_FLOOR, linestyle="--", linewidth=1.4, label=label)
        best = report.best_iteration
        axes[1].plot(
            [best],
            [rmse[best - 1]],
            "o",
            color=_HELD_OUT,
            mfc="white",
            markersize=9,
            label=f"best: {rmse[best - 1]:.4f} in iteration {best}",
        )
        axes[1].legend(loc="upper right", fontsize=9)
    figure.savefig(file)


def _curve(axes: Any, values: list[float], color: str, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.plot(range(1, len(values) + 1), values, "o-", color=color, markersize=4, linewidth=1.6)
    axes.set_xlabel("Iteration")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if max(values) >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure_class() -> Any:
    """Return matplotlib's Figure, which draws to files by itself, without a display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f'--plot needs matplotlib ({error}); install it with pip install "gpu-als[plot]"'
        ) from error
    return Figure
