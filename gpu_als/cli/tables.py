"""Tables of results: to the screen as CSV or JSON, or to a file whose ending says the format."""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import sys
from typing import BinaryIO, cast

import numpy as np

from gpu_als.cli.output import check_folder, printable
from gpu_als.errors import InputError

__all__ = ["add_output_options", "check_output", "read_names", "write_file", "write_table"]

_ENDINGS = ".csv", ".csv.gz", ".json", ".parquet"
Columns = dict[str, np.ndarray]


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``-o`` and ``--json``."""
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help=f"write there, as {', '.join(_ENDINGS)} (default: CSV to the screen)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON in place of CSV")


def check_output(args: argparse.Namespace) -> None:
    """Refuse, before any work is done, a file that could not be written after it."""
    if args.output is None:
        return
    check_folder(args.output, "-o")
    if not args.output.endswith(_ENDINGS):
        raise InputError(f"-o: {args.output} must end in {', '.join(_ENDINGS)}")


def write_table(args: argparse.Namespace, columns: Columns) -> None:
    """Write columns to where they are wanted."""
    if args.output is not None:
        write_file(args.output, columns)
        return
    sys.stdout.flush()
    if args.json:
        _json(sys.stdout.buffer, columns)
        return
    shown = {
        name: np.array([f"{number:.6g}" for number in column.tolist()])
        if column.dtype.kind == "f"
        else cast(np.ndarray, printable(column))
        for name, column in columns.items()
    }
    _csv(sys.stdout.buffer, shown)


def write_file(file: str, columns: Columns) -> None:
    """Write columns to a file, with all digits, and say so."""
    from gpu_als.data.atomic import replacing

    with replacing(file) as stream:
        if file.endswith(".csv.gz"):
            with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
                _csv(cast(BinaryIO, packed), columns)
        elif file.endswith(".csv"):
            _csv(stream, columns)
        elif file.endswith(".json"):
            _json(stream, columns)
        else:
            _parquet(stream, columns)
    print(f"Wrote {len(next(iter(columns.values()))):,} lines to {file}")


def read_names(file: str) -> dict[str, str]:
    """Return the name of each id in a table: of the column "title" or "name", or of the second.

    Raises
    ------
    InputError
        A line has no second column.
    """
    names: dict[str, str] = {}
    place = 1
    with open(file, encoding="utf-8-sig", newline="") as stream:
        first = stream.readline()
        stream.seek(0)
        separator = max("\t|;,", key=first.count)
        for number, row in enumerate(csv.reader(stream, delimiter=separator), 1):
            if not row:
                continue
            if number == 1:
                known = [cell.strip().lower() for cell in row]
                place = next((known.index(each) for each in ("title", "name") if each in known), 1)
            if len(row) <= place:
                raise InputError(f"{file}, line {number}: found {len(row)} columns; names need two")
            names[row[0]] = row[place]
    return names


def _csv(stream: BinaryIO, columns: Columns) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    try:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        # NumPy writes a float32 with no more digits than it has
        lists = (
            (column.astype(str) if column.dtype.kind == "f" else column).tolist()
            for column in columns.values()
        )
        writer.writerows(zip(*lists, strict=True))
    finally:
        text.detach()  # flushes


def _json(stream: BinaryIO, columns: Columns) -> None:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
    stream.write(("[\n" + ",\n".join(lines) + "\n]\n").encode())


def _parquet(stream: BinaryIO, columns: Columns) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"-o: a .parquet file needs pyarrow, which cannot be imported ({error}); install it "
            "with pip install pyarrow, or choose a name that ends in .csv"
        ) from error
    arrays = {
        name: pyarrow.array(column if column.ndim == 1 else list(column))
        for name, column in columns.items()
    }
    pyarrow.parquet.write_table(pyarrow.table(arrays), stream)
