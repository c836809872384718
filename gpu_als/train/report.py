"""The report of a fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

__all__ = ["FitReport"]

_STEPS = "user_steps", "item_steps"
_COUNTS = "user_rows", "item_rows", *_STEPS


@dataclass
class FitReport:
    """The course of a fit.

    Attributes
    ----------
    device : str
    losses : list of float
        The training objective after each iteration (both half-sweeps).
    metrics : list of dict
        Validation metrics after each iteration; empty without a validation set.
    seconds : list of (float, float)
        Wall-clock seconds of each iteration's user and item half-sweep.
    user_rows, item_rows : Counter
        How many rows went which way in the last half-sweep of each side: "dual", "primal", "cg",
        "nnls", "long", "shared", "rescued" (docs/solvers.md).
    user_steps, item_steps : Counter
        How many rows took how many conjugate-gradient steps to an exact solution in the last
        half-sweep of each side; rows that were solved directly are not in it.
    bounds : list of (float or None, float or None)
        How far each iteration's user and item half-sweep left the objective above its exact
        minimum over that side, at most; see :class:`gpu_als.solvers.Certified`. In the units of
        ``losses``. None where that is not known: without a ridge, with negative weights, or with a
        solver that is not exact.
    launches : int
        Launches of GPU kernels of our own in the last iteration.
    transferred : list of (int, int)
        Bytes of factors that workers fetched from one another for each iteration's user and item
        half-sweep; zeros where one process does it all.
    singular_rows : int
        Rows with a singular system in the last iteration; they kept their former values.
    max_residual : float
        Largest relative residual ``|lhs z - rhs| / |rhs|`` of any exactly solved row of the fit, in
        the coordinates in which rows are solved (docs/mathematics.md, "The rotated basis").
    workspace_bytes : int
        Peak of the memory that batches used besides data and factors.
    entries : int
        Observed entries.
    stopped : str
        Why the fit ended: "iterations", "tol", "patience" or "callback".
    best_iteration : int
        The iteration whose factors were kept, from 1; 0 if none was run.
    """

    device: str
    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    user_rows: Counter[str] = field(default_factory=Counter)
    item_rows: Counter[str] = field(default_factory=Counter)
    user_steps: Counter[int] = field(default_factory=Counter)
    item_steps: Counter[int] = field(default_factory=Counter)
    bounds: list[tuple[float | None, float | None]] = field(default_factory=list)
    launches: int = 0
    transferred: list[tuple[int, int]] = field(default_factory=list)
    singular_rows: int = 0
    max_residual: float = 0.0
    workspace_bytes: int = 0
    entries: int = 0
    stopped: str = "iterations"
    best_iteration: int = 0

    @property
    def iterations(self) -> int:
        """Completed iterations."""
        return len(self.seconds)

    @property
    def total_seconds(self) -> float:
        """Wall-clock seconds of all half-sweeps."""
        return sum(map(sum, self.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, lists and dicts, ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("seconds", "transferred", "bounds"):
            plain[name] = [list(pair) for pair in plain[name]]
        for name in _COUNTS:
            plain[name] = {str(what): n for what, n in plain[name].items()}
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Return the report that :meth:`to_dict` was called on."""
        report = cls(**plain)
        report.seconds = [(float(users), float(items)) for users, items in report.seconds]
        report.transferred = [(int(users), int(items)) for users, items in report.transferred]
        report.bounds = [(users, items) for users, items in report.bounds]
        report.user_rows, report.item_rows = Counter(report.user_rows), Counter(report.item_rows)
        for name in _STEPS:
            setattr(report, name, Counter({int(n): rows for n, rows in plain[name].items()}))
        return report

    def __str__(self) -> str:
        """Return a summary in plain words."""
        seconds = self.total_seconds
        lines = [f"{self.iterations} iterations in {seconds:.2f} s on {self.device}"]
        if seconds > 0:
            rate = 2 * self.entries * self.iterations / seconds
            lines.append(f"{rate / 1e6:.1f} million entries per second and half-sweep")
        if self.losses:
            lines.append(f"loss {self.losses[0]:.6g} -> {self.losses[-1]:.6g}")
        if self.metrics:
            kept = self.metrics[self.best_iteration - 1]
            shown = ", ".join(f"{name} {value:.4f}" for name, value in kept.items())
            lines.append(f"kept iteration {self.best_iteration}: validation {shown}")
        for side, rows, steps in (
            ("users", self.user_rows, self.user_steps),
            ("items", self.item_rows, self.item_steps),
        ):
            ways = ", ".join(f"{n} {way}" for way, n in sorted(rows.items()))
            lines.append(f"{side}: {ways}" + (f" ({_in_words(steps)})" if steps else ""))
        if self.launches:
            lines.append(f"{self.launches} kernel launches in each iteration")
        if any(map(sum, self.transferred)):
            most = " and ".join(f"{max(side):,}" for side in zip(*self.transferred, strict=True))
            lines.append(f"up to {most} bytes between workers for users and for items")
        if self.max_residual:
            lines.append(f"largest relative residual {self.max_residual:.1e}")
        if self.bounds and None not in self.bounds[-1]:
            users, items = self.bounds[-1]
            lines.append(
                f"last half-sweeps within {users:.1e} and {items:.1e} of their exact minimum"
            )
        if self.singular_rows:
            lines.append(
                f"{self.singular_rows} rows had a singular system and kept their former values; "
                "raise regularization"
            )
        return "\n".join(lines)


def _in_words(steps: Counter[int]) -> str:
    """Return the median and the most of steps, given the number of rows by their steps."""
    middle = sum(steps.values()) / 2
    counts = sorted(steps.items())
    sums = accumulate(rows for _, rows in counts)
    median = next(n for (n, _), below in zip(counts, sums, strict=True) if below >= middle)
    return f"{median} steps in the median, {counts[-1][0]} at most"
