"""Where users, items and ratings are in the lines of delimited text."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from gpu_als.data.columns import COLUMNS, Column, find_column, named_column
from gpu_als.data.text_stream import Chunk
from gpu_als.errors import InputError, ReadError

__all__ = ["Header", "Layout", "check_arguments", "find_layout", "is_number"]

Header = bool | Literal["auto"]

_MOST_LIKELY_DELIMITER = {".csv": ",", ".tsv": "\t"}
_DELIMITERS = ("\t", "::", ",", ";")
_MISSING = {"na", "n/a", "none", "null"}


@dataclass(frozen=True)
class Layout:
    """Where things are in the lines of one file."""

    path: Path
    delimiter: str | None  # None: any run of blanks
    user: int
    item: int
    rating: int | None

    @property
    def n_needed(self) -> int:
        """How many columns a line must have."""
        return 1 + max(self.user, self.item, -1 if self.rating is None else self.rating)

    @property
    def quotes(self) -> bool:
        """Whether double quotes group; between blanks they are characters like any other."""
        return _quotes(self.delimiter)


def check_arguments(columns: Sequence[Column], delimiter: str | None, header: Header) -> None:
    """Refuse what no text can look like.

    The arguments are those of :func:`~gpu_als.data.readers.read_triples`; columns are those of
    users, items and ratings.

    Raises
    ------
    InputError
    """
    for which, column in zip(COLUMNS, columns, strict=True):
        is_position = isinstance(column, int) and not isinstance(column, bool) and column >= 0
        if not (column is None or isinstance(column, str) or is_position):
            raise InputError(
                f"{which}: found {column!r}; pass a column name or a position counted from 0"
            )
        if isinstance(column, str) and header is False:
            raise InputError(
                f"{which}: found the name {column!r} with header=False; pass a position"
            )
    is_text = isinstance(delimiter, str) and delimiter and not set(delimiter) & set('\r\n"')
    if delimiter is not None and not is_text:
        raise InputError(
            f"delimiter: found {delimiter!r}; pass for example ',' or None to detect it"
        )
    if header not in (True, False, "auto"):
        raise InputError(f"header: found {header!r}; pass True, False or 'auto'")


def find_layout(
    path: Path,
    suffix: str,
    chunk: Chunk,
    columns: tuple[Column, Column, Column],
    delimiter: str | None,
    header: Header,
) -> tuple[Layout, Chunk]:
    """Return the layout that the first lines show, and the chunk without its header.

    Parameters
    ----------
    path : Path
    suffix : str
        That of ``path`` without ``.gz``.
    chunk : Chunk
        The first of the file.
    columns, delimiter, header
        As :func:`check_arguments` takes them.

    Raises
    ------
    ReadError
        If no column has the name of one of users or of items.
    InputError
        If a column that was named does not exist, or columns are not distinct.
    """
    line, text = chunk
    if delimiter is None:
        delimiter = _sniff(next(_lines(text))[1], suffix)
    (end, fields), *rest = islice(_records(text, delimiter), 2)
    following = rest[0][1] if rest else []
    has_header = _is_header(fields, following, columns) if header == "auto" else header
    names = fields if has_header else None
    layout = Layout(path, delimiter, *_positions(path, names, len(fields), columns))
    if has_header:
        line, text = line + text.count("\n", 0, end), text[end:]
    return layout, (line, text)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, each after the position where it ends."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        if not text[start:end].isspace():
            yield end, text[start:end].rstrip("\n")
        start = end


def _records(text: str, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of the rows, each after the position where it ends.

    As in all rows, quotes can hold a row together over several lines.
    """
    taken = done = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for taken_now, line in _lines(text):
            taken = taken_now
            yield line + "\n"

    if _quotes(delimiter):
        # An error is reported, with its line, when the rows are read.
        with suppress(csv.Error):
            for fields in csv.reader(lines(), delimiter=delimiter or ",", strict=True):
                done = taken
                yield done, [field.strip() for field in fields]
    for end, line in _lines(text):
        if end > done:
            yield end, [field.strip() for field in line.split(delimiter)]


def _sniff(line: str, suffix: str) -> str | None:
    likely = _MOST_LIKELY_DELIMITER.get(suffix, _DELIMITERS[0])
    if line.count(";") > line.count(","):
        likely = ";"  # as spreadsheets write csv where the comma is the decimal point
    return next((mark for mark in (likely, *_DELIMITERS) if mark in line), None)


def _quotes(delimiter: str | None) -> bool:
    return delimiter is not None and len(delimiter) == 1 and not delimiter.isspace()


def _is_header(fields: list[str], following: list[str], columns: Sequence[Column]) -> bool:
    if any(isinstance(column, str) for column in columns):
        return True
    if None not in (find_column(fields, "user"), find_column(fields, "item")):
        return True
    if any(map(is_number, fields)):
        return False
    if len(fields) > 2:
        # There is a rating, so a line without any number is not data; unless the rating is
        # missing or written in another way, which is for the rows' reader to refuse.
        position = columns[2] if isinstance(columns[2], int) else 2
        rating = fields[position] if position < len(fields) else ""
        return bool(rating.strip("0123456789.,'+- ")) and rating.lower() not in _MISSING
    return bool(following) and all(map(is_number, following))


def _positions(
    path: Path,
    names: list[str] | None,
    n_columns: int,
    columns: tuple[Column, Column, Column],
) -> tuple[int, int, int | None]:
    found: list[int | None] = []
    for which, column in zip(COLUMNS, columns, strict=True):
        if isinstance(column, str):
            found.append(named_column(path, names or [], which, column))
        elif column is None and names is not None:
            found.append(find_column(names, which))
        else:
            found.append(column)
    user, item, rating = found
    if names is None or (user is None and item is None):
        user = 0 if user is None else user
        item = 1 if item is None else item
        rating = 2 if rating is None and n_columns > 2 else rating
    if user is None or item is None:
        which = "user" if user is None else "item"
        raise ReadError(
            f"{path}: found no {which} column among {', '.join(map(repr, names or []))}; pass "
            f"{which}=<column name or position>"
        )
    if user == item or rating in (user, item):
        raise InputError(
            f"user, item, rating: columns {user}, {item} and {rating} of {path} are not distinct; "
            "pass three different columns"
        )
    return user, item, rating


def is_number(text: str) -> bool:
    """Return whether Python reads a text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
