"""Runs sections of measurements, each within its time, and shows and keeps what they yield."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Section = tuple[Callable[[Any], Iterator[Row]], float]

_SLACK = 1.25  # how far a single measurement may outrun its section's limit,
_GRACE = 5.0  # and how many seconds the end of the whole run


class TimeIsUp(BaseException):
    """A section has used its time; no ``except Exception`` on the way holds it up."""


class Table:
    """Prints rows in the columns of the first; rows of another kind as ``name=value``."""

    def __init__(self) -> None:
        self._columns: tuple[str, ...] = ()

    def show(self, row: Row) -> None:
        """Print one row, its note last."""
        cells = {name: value for name, value in row.items() if name != "note"}
        if cells and not self._columns and "note" not in row:
            self._columns = tuple(cells)
            print("  ".join(f"{name:>{_width(name)}}" for name in cells))
        if "note" not in row and tuple(cells) == self._columns:
            print("  ".join(f"{text_of(value):>{_width(name)}}" for name, value in cells.items()))
        else:
            words = [f"{name}={text_of(value)}" for name, value in cells.items()]
            print("  ".join([*words, row["note"]] if "note" in row else words))
        sys.stdout.flush()


def _width(name: str) -> int:
    wide = {"path": 20, "what": 40, "target": 46, "shape": 7, "k": 5, "rows": 8}
    return wide.get(name, max(len(name), 9))


def text_of(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp where the interpreter stands when the time has passed."""

    def ring(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run_section(
    name: str,
    section: Callable[[Any], Iterator[Row]],
    bench: Any,
    entry: dict[str, Any],
    limit: float,
    hard_limit: float,
    save: Callable[[], None],
    clock: Callable[[], float],
) -> None:
    """Run one section into ``entry``, whatever happens in it.

    Past ``limit`` seconds no further measurement begins; at ``hard_limit`` the one under way ends.
    """
    begin, table = clock(), Table()
    bench.left = lambda: begin + limit - clock()
    print(f"\n== {name}: {limit:.0f} s at most")
    try:
        with _alarm(hard_limit):
            for row in section(bench):
                entry["rows"].append(row)
                table.show(row)
                save()
                if bench.left() <= 0:
                    raise TimeIsUp
    except TimeIsUp:
        entry["note"] = (
            f"stopped after {clock() - begin:.0f} s of {limit:.0f}; the rest is left out"
        )
        print(entry["note"])
    except Exception:
        entry["error"] = traceback.format_exc()
        print(entry["error"])
    entry["seconds"] = clock() - begin
    save()


def run_sections(
    sections: dict[str, Section],
    bench: Any,
    found: dict[str, dict[str, Any]],
    total: float,
    save: Callable[[], None],
    clock: Callable[[], float],
) -> None:
    """Run sections one after another, each within its share of what is left of ``total`` seconds.

    Parameters
    ----------
    sections : dict of str to (function, share)
        Functions that take ``bench`` and yield rows; between two rows their time is looked at.
    bench : object
        Its ``left()`` is made to say how many seconds the section has left.
    found : dict
        Gets an entry for each section, with its rows and what became of it.
    save : callable
        Called whenever ``found`` has something new.
    """
    end = clock() + total
    for number, (name, (section, share)) in enumerate(sections.items()):
        entry = found[name] = {"rows": []}
        left = end - clock()
        if left <= 0:
            entry["note"] = "left out: no time"
            print(f"\n== {name}: {entry['note']}")
            save()
            continue
        shares = sum(later for _, later in list(sections.values())[number:])
        limit = left * share / shares
        hard_limit = min(limit * _SLACK, left + _GRACE)
        _run_section(name, section, bench, entry, limit, hard_limit, save, clock)


def write_whole(path: Path, results: dict[str, Any]) -> None:
    """Write results to a file that is never half there; what JSON does not know, in words."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=2, default=str) + "\n")
    unfinished.replace(path)


def failures(sections: dict[str, dict[str, Any]]) -> list[str]:
    """Name the sections that failed, or in which a check did."""
    return [
        name
        for name, entry in sections.items()
        if "error" in entry or any(not row.get("ok", True) for row in entry["rows"])
    ]
