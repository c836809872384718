"""Users, items and ratings from delimited text.

A file is read in pieces of whole lines. NumPy's text parser takes the pieces in which both ids are
plain integers. Every other piece is split in Python, which also handles strings and quotes and
knows the number of the line it cannot use.
"""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from gpu_als.errors import InputError, ReadError

__all__ = ["Column", "Header", "find_column", "named_column", "read_table"]

Column = str | int | None
Header = bool | Literal["auto"]
_Piece = tuple[int, str]  # the number of its first line, and some whole lines
_Row = tuple[int, list[str]]  # the number of its line, and its fields

_PIECE_BYTES = 1 << 24
_ROWS_AT_ONCE = 1 << 18
_UNIT_SEPARATOR = "\x1f"
_MOST_LIKELY_DELIMITER = {".csv": ",", ".tsv": "\t"}
_DELIMITERS = ("\t", "::", ",", ";")

# Best first; compared without case, blanks, "_" and "-".
_COMMON_NAMES = {
    "user": "userid user users uid username customerid customer reviewerid visitorid row",
    "item": "itemid item items iid movieid movie productid product parentasin asin artistid artist "
    "bookid book isbn songid song trackid track businessid col",
    "rating": "rating ratings score scores stars count counts value values plays playcount weight "
    "overall bookrating data",
}


class Triples(NamedTuple):
    """What a ratings file holds, one entry per rating."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray | None


@dataclass(frozen=True)
class _Layout:
    """Where things are in the lines of one file."""

    path: Path
    delimiter: str | None  # None: any run of blanks
    user: int
    item: int
    rating: int | None

    @property
    def n_needed(self) -> int:
        return 1 + max(self.user, self.item, -1 if self.rating is None else self.rating)


def read_table(
    path: Path,
    suffix: str,
    *,
    user: Column,
    item: Column,
    rating: Column,
    delimiter: str | None,
    header: Header,
) -> Triples:
    """Read a text file; ``suffix`` is that of ``path`` without ``.gz``.

    The other arguments are those of :func:`~gpu_als.data.readers.read_triples`.
    """
    _check_arguments(user, item, rating, delimiter, header)
    with _open(path) as stream:
        try:
            pieces = _pieces(stream, path)
            first = next(pieces, None)
            if first is None:
                raise ReadError(
                    f"{path}: the file is empty; it needs one line 'user,item,rating' per rating"
                )
            layout, body = _find_layout(
                path, suffix, first, (user, item, rating), delimiter, header
            )
            table = _Table(layout)
            table.read(chain([body], pieces))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ReadError(f"{path}: damaged gzip file ({error}); compress it again") from error
    return table.triples()


def find_column(names: Sequence[str], which: str) -> int | None:
    """Return the position of the column that by its name holds the users, items or ratings.

    Parameters
    ----------
    names : sequence of str
    which : {"user", "item", "rating"}

    Returns
    -------
    int or None
        None where no name is a common one.
    """
    plain = [name.strip("\"' ").lower() for name in names]
    plain = [name.replace("_", "").replace("-", "").replace(" ", "") for name in plain]
    for common in _COMMON_NAMES[which].split():
        if common in plain:
            return plain.index(common)
    return None


def named_column(path: Path, names: Sequence[str], which: str, column: str) -> int:
    """Return the position of the column called ``column``.

    Raises
    ------
    InputError
        If there is none; ``which`` is the argument at fault.
    """
    if column not in names:
        raise InputError(
            f"{which}: {path} has no column {column!r}; pass one of {', '.join(map(repr, names))}"
        )
    return names.index(column)


def _check_arguments(
    user: Column, item: Column, rating: Column, delimiter: str | None, header: Header
) -> None:
    for which, column in (("user", user), ("item", item), ("rating", rating)):
        is_position = isinstance(column, int) and not isinstance(column, bool) and column >= 0
        if not (column is None or isinstance(column, str) or is_position):
            raise InputError(
                f"{which}: found {column!r}; pass a column name or a position counted from 0"
            )
        if isinstance(column, str) and header is False:
            raise InputError(
                f"{which}: found the name {column!r} with header=False; pass a position"
            )
    if delimiter is not None and (delimiter == "" or set(delimiter) & set('\r\n"')):
        raise InputError(
            f"delimiter: found {delimiter!r}; pass for example ',' or None to detect it"
        )
    if header not in (True, False, "auto"):
        raise InputError(f"header: found {header!r}; pass True, False or 'auto'")


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _pieces(stream: BinaryIO, path: Path) -> Iterator[_Piece]:
    """Yield the decoded text, leaving out pieces that are all blank."""
    line = 1
    while piece := stream.read(_PIECE_BYTES):
        text = _decode(piece + stream.readline(), path, line)
        if line == 1:
            text = text.removeprefix("\ufeff")
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text and not text.isspace():
            yield line, text
        line += text.count("\n")


def _decode(piece: bytes, path: Path, line: int) -> str:
    if b"\0" in piece:
        line += piece.count(b"\n", 0, piece.index(b"\0"))
        raise ReadError(f"{path}:{line}: found a NUL byte; this is no text file, or a damaged one")
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError as error:
        line += piece.count(b"\n", 0, error.start)
        raise ReadError(
            f"{path}:{line}: found bytes that are not UTF-8 text; save the file as UTF-8"
        ) from None


def _find_layout(
    path: Path,
    suffix: str,
    piece: _Piece,
    columns: tuple[Column, Column, Column],
    delimiter: str | None,
    header: Header,
) -> tuple[_Layout, _Piece]:
    """Return the layout that the first lines show, and the piece without its header."""
    line, text = piece
    (end, first), *rest = _first_lines(text, 2)
    if delimiter is None:
        delimiter = _sniff(first, suffix)
    fields = _fields(first, delimiter)
    following = _fields(rest[0][1], delimiter) if rest else []
    has_header = _is_header(fields, following, columns) if header == "auto" else header
    names = fields if has_header else None
    layout = _Layout(path, delimiter, *_positions(path, names, len(fields), columns))
    if has_header:
        line, text = line + text.count("\n", 0, end), text[end:]
    return layout, (line, text)


def _first_lines(text: str, count: int) -> list[tuple[int, str]]:
    """Return the first lines that are not blank, each after the position where it ends."""
    lines: list[tuple[int, str]] = []
    start = 0
    while start < len(text) and len(lines) < count:
        end = text.find("\n", start) + 1 or len(text)
        if not text[start:end].isspace():
            lines.append((end, text[start:end].rstrip("\n")))
        start = end
    return lines


def _sniff(line: str, suffix: str) -> str | None:
    likely = _MOST_LIKELY_DELIMITER.get(suffix, _DELIMITERS[0])
    if line.count(";") > line.count(","):
        likely = ";"  # as spreadsheets write csv where the comma is the decimal point
    return next((mark for mark in (likely, *_DELIMITERS) if mark in line), None)


def _fields(line: str, delimiter: str | None) -> list[str]:
    if not _is_quoting(delimiter):
        return [field.strip() for field in line.split(delimiter)]
    try:
        fields = next(csv.reader([line], delimiter=delimiter or ","))
    except csv.Error:  # reported, with its line, when the rows are read
        fields = line.split(delimiter)
    return [field.strip() for field in fields]


def _is_quoting(delimiter: str | None) -> bool:
    """Tell whether double quotes group; between blanks they are characters like any other."""
    return delimiter is not None and len(delimiter) == 1 and not delimiter.isspace()


def _is_header(fields: list[str], following: list[str], columns: Sequence[Column]) -> bool:
    if any(isinstance(column, str) for column in columns):
        return True
    if None not in (find_column(fields, "user"), find_column(fields, "item")):
        return True
    if any(map(_is_number, fields)):
        return False
    # With three columns the last is a rating, so a line without any number is not data.
    return len(fields) > 2 or (bool(following) and all(map(_is_number, following)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _positions(
    path: Path,
    names: list[str] | None,
    n_columns: int,
    columns: tuple[Column, Column, Column],
) -> tuple[int, int, int | None]:
    found: list[int | None] = []
    for which, column in zip(_COMMON_NAMES, columns, strict=True):
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


class _Table:
    """The three columns, growing as pieces are read."""

    def __init__(self, layout: _Layout) -> None:
        self._layout = layout
        self._users = _IdColumn()
        self._items = _IdColumn()
        self._ratings: list[np.ndarray] = []

    def read(self, pieces: Iterator[_Piece]) -> None:
        for line, text in pieces:
            if _is_quoting(self._layout.delimiter) and '"' in text:
                # Quoted fields may contain line ends, and so run from one piece into the next.
                self._add_rows(_quoted_rows(chain([(line, text)], pieces), self._layout))
                return
            parsed = None if self._has_texts() else _parse_integers(text, self._layout)
            if parsed is None:
                self._add_rows(_plain_rows(line, text, self._layout.delimiter))
            else:
                self._users.add(parsed["user"])
                self._items.add(parsed["item"])
                if self._layout.rating is not None:
                    self._ratings.append(parsed["rating"].copy())

    def triples(self) -> Triples:
        users, items = self._users.result(), self._items.result()
        if len(users) == 0:
            raise ReadError(
                f"{self._layout.path}: found no ratings below the header; add one line per rating"
            )
        has_ratings = self._layout.rating is not None
        return Triples(users, items, np.concatenate(self._ratings) if has_ratings else None)

    def _has_texts(self) -> bool:
        return self._users.has_texts or self._items.has_texts

    def _add_rows(self, rows: Iterable[_Row]) -> None:
        layout = self._layout
        user, item, rating, n_needed = layout.user, layout.item, layout.rating, layout.n_needed
        block = _Block()
        for line, fields in rows:
            if len(fields) < n_needed:
                raise ReadError(
                    f"{layout.path}:{line}: found {len(fields)} column(s) where {n_needed} are "
                    f"needed; complete the line, or pass another delimiter than "
                    f"{layout.delimiter or 'blanks'!r}"
                )
            block.lines.append(line)
            block.users.append(fields[user].strip())
            block.items.append(fields[item].strip())
            if rating is not None:
                block.ratings.append(fields[rating])
            if len(block.lines) == _ROWS_AT_ONCE:
                self._add_block(block)
                block = _Block()
        self._add_block(block)

    def _add_block(self, block: _Block) -> None:
        path = self._layout.path
        for which, texts in (("user", block.users), ("item", block.items)):
            if "" in texts:
                line = block.lines[texts.index("")]
                raise ReadError(
                    f"{path}:{line}: the {which} id is empty; fill it in or delete the line"
                )
        if self._layout.rating is not None:
            self._ratings.append(_parse_ratings(block, path))
        self._users.add_texts(block.users)
        self._items.add_texts(block.items)


class _Block:
    """Some rows, as texts, with the numbers of their lines."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.users: list[str] = []
        self.items: list[str] = []
        self.ratings: list[str] = []


class _IdColumn:
    """Ids that are int64 until one turns out not to be an integer, and texts from then on."""

    def __init__(self) -> None:
        self.has_texts = False
        self._parts: list[np.ndarray] = []
        self._seen: dict[str, str] = {}  # so that equal ids are one object in memory

    def add(self, integers: np.ndarray) -> None:
        # A copy, because a field of a structured array keeps all of it alive.
        self._parts.append(integers.copy())

    def add_texts(self, texts: list[str]) -> None:
        integers = None if self.has_texts else _to_integers(texts)
        if integers is None:
            self.has_texts = True
            self._parts.append(self._shared(texts))
        else:
            self._parts.append(integers)

    def result(self) -> np.ndarray:
        if self.has_texts:
            self._parts = [
                part if part.dtype == object else self._shared(map(str, part.tolist()))
                for part in self._parts
            ]
        return np.concatenate(self._parts)

    def _shared(self, texts: Iterable[str]) -> np.ndarray:
        share = self._seen.setdefault
        return np.array([share(text, text) for text in texts], dtype=object)


def _to_integers(texts: list[str]) -> np.ndarray | None:
    """Return texts as int64, or None where that would lose one, as it does the zeros of "007"."""
    try:
        integers = np.array(list(map(int, texts)), dtype=np.int64)
    except (ValueError, OverflowError):
        return None
    return integers if list(map(str, integers.tolist())) == texts else None


def _parse_ratings(block: _Block, path: Path) -> np.ndarray:
    try:
        ratings = np.array(list(map(float, block.ratings)), dtype=np.float64)
    except ValueError:
        position = next(i for i, text in enumerate(block.ratings) if not _is_number(text))
        problem = "is not a number"
    else:
        # float() reads 1_0 as ten, as Python does
        odd = [i for i, text in enumerate(block.ratings) if "_" in text]
        finite = np.isfinite(ratings)
        if not odd and finite.all():
            return ratings
        position = odd[0] if odd else int(np.argmin(finite))
        problem = "is not a number" if odd else "is not finite"
    raise ReadError(
        f"{path}:{block.lines[position]}: the rating {block.ratings[position]!r} {problem}; "
        "correct it or delete the line"
    )


def _plain_rows(line: int, text: str, delimiter: str | None) -> Iterator[_Row]:
    for number, content in enumerate(text.split("\n"), line):
        if content and not content.isspace():
            yield number, content.split(delimiter)


def _quoted_rows(pieces: Iterator[_Piece], layout: _Layout) -> Iterator[_Row]:
    first_line, text = next(pieces)
    texts = chain([text], (text for _, text in pieces))
    # StringIO, unlike str.splitlines, ends lines at line feeds only.
    lines = (line for text in texts for line in io.StringIO(text))
    # strict: a quote that is never closed is an error, not a very long field
    reader = csv.reader(lines, delimiter=layout.delimiter or ",", strict=True)
    try:
        for fields in reader:
            if any(fields):
                yield first_line + reader.line_num - 1, fields
    except csv.Error as error:
        raise ReadError(
            f"{layout.path}:{first_line + reader.line_num - 1}: {error}; check that every quoted "
            "field ends in a quote"
        ) from None


def _parse_integers(text: str, layout: _Layout) -> np.ndarray | None:
    """Parse lines whose ids are all integers, or return None.

    Returns
    -------
    structured ndarray with int64 "user" and "item" and float64 "rating", shape (lines,), or None
        None says only that :class:`_Table` must look at every line by itself.
    """
    if _may_hide_text(text):
        return None
    delimiter = layout.delimiter
    if delimiter is not None and len(delimiter) > 1:  # NumPy splits at single characters
        if _UNIT_SEPARATOR in text:
            return None
        text, delimiter = text.replace(delimiter, _UNIT_SEPARATOR), _UNIT_SEPARATOR
    columns = {"user": layout.user, "item": layout.item, "rating": layout.rating}
    used = {name: column for name, column in columns.items() if column is not None}
    types = np.dtype([(name, np.float64 if name == "rating" else np.int64) for name in used])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy 1.26 only warns when it makes 5 of "5.5"
            parsed = np.loadtxt(
                text.split("\n"),
                dtype=types,
                delimiter=delimiter,
                usecols=tuple(used.values()),
                comments=None,
                ndmin=1,
            )
    except (ValueError, Warning):
        return None
    return parsed if "rating" not in used or np.isfinite(parsed["rating"]).all() else None


def _may_hide_text(text: str) -> bool:
    """Tell whether parsing integers could lose a leading zero or a sign."""
    if "+" in text:
        return True
    codes = np.frombuffer(f"\n{text}\n".encode(), np.uint8)
    zeros = np.flatnonzero(codes == ord("0"))
    before, after = codes[zeros - 1], codes[zeros + 1]
    starts = ~(_is_digit(before) | (before == ord(".")))
    goes_on = _is_digit(after)
    negative_zero = (before == ord("-")) & ~goes_on & (after != ord("."))
    return bool((starts & goes_on).any() or negative_zero.any())


def _is_digit(codes: np.ndarray) -> np.ndarray:
    return (codes >= ord("0")) & (codes <= ord("9"))
