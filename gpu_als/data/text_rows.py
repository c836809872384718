"""From lines of delimited text to users, items and ratings.

NumPy's text parser takes the chunks in which both ids are plain integers. Every other chunk is
split in Python, which also handles strings and quotes and knows the number of the line it cannot
use.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from gpu_als.data.columns import Triples
from gpu_als.data.text_layout import Layout, is_number
from gpu_als.data.text_stream import Chunk
from gpu_als.errors import ReadError

__all__ = ["triples_in_lines"]

_Row = tuple[int, list[str]]  # the number of its line, and its fields

_ROWS_AT_ONCE = 1 << 16
_BYTES_OF_A_ROW = 20
"""Bytes of text that, as lines of it, take as much memory as a row of single fields."""
_UNIT_SEPARATOR = "\x1f"


def triples_in_lines(
    layout: Layout, chunks: Iterator[Chunk], chunk_bytes: int
) -> Iterator[Triples]:
    """Yield what chunks of whole lines, of about so many bytes, hold where the layout says.

    Users and items are int64 where all of a block are integers, otherwise str objects; ratings
    are float64.

    Raises
    ------
    ReadError
        For the first line that cannot be used.
    """
    rows_at_once = min(_ROWS_AT_ONCE, max(1, chunk_bytes // _BYTES_OF_A_ROW))
    for line, text in chunks:
        if layout.quotes and '"' in text:
            # Quoted fields may contain line ends, and so run from one chunk into the next.
            rows = _quoted_rows(chain([(line, text)], chunks), layout)
        elif (parsed := _parse_integers(text, layout)) is not None:
            yield parsed
            continue
        else:
            rows = _plain_rows(line, text, layout.delimiter)
        while block := _parse_rows(islice(rows, rows_at_once), layout):
            yield block


def _parse_rows(rows: Iterable[_Row], layout: Layout) -> Triples | None:
    """Return what rows hold, or None if there are none."""
    user, item, rating, n_needed = layout.user, layout.item, layout.rating, layout.n_needed
    # Four lists of what lives long, which the collector of garbage does not have to look at.
    lines: list[int] = []
    users: list[str] = []
    items: list[str] = []
    ratings: list[str] = []
    for line, fields in rows:
        if len(fields) < n_needed:
            raise ReadError(
                f"{layout.path}:{line}: found {len(fields)} column(s) where {n_needed} are "
                f"needed; complete the line, or pass another delimiter than "
                f"{layout.delimiter or 'blanks'!r}"
            )
        lines.append(line)
        users.append(fields[user].strip())
        items.append(fields[item].strip())
        if rating is not None:
            ratings.append(fields[rating])
    if not lines:
        return None
    for which, texts in (("user", users), ("item", items)):
        if "" in texts:
            line = lines[texts.index("")]
            raise ReadError(
                f"{layout.path}:{line}: the {which} id is empty; fill it in or delete the line"
            )
    values = None if rating is None else _parse_ratings(ratings, lines, layout.path)
    return Triples(_parse_ids(users), _parse_ids(items), values)


def _parse_ids(texts: list[str]) -> np.ndarray:
    """Return int64 if that loses nothing, as it does the zeros of "007"; otherwise the texts."""
    try:
        integers = np.array(list(map(int, texts)), dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array(texts, dtype=object)
    return integers if list(map(str, integers.tolist())) == texts else np.array(texts, dtype=object)


def _parse_ratings(texts: list[str], lines: list[int], path: Path) -> np.ndarray:
    try:
        ratings = np.array(list(map(float, texts)), dtype=np.float64)
    except ValueError:
        position = next(i for i, text in enumerate(texts) if not is_number(text))
        problem = "is not a number"
    else:
        # float() reads 1_0 as ten, as Python does
        odd = [i for i, text in enumerate(texts) if "_" in text]
        finite = np.isfinite(ratings)
        if not odd and finite.all():
            return ratings
        position = odd[0] if odd else int(np.argmin(finite))
        problem = "is not a number" if odd else "is not finite"
    raise ReadError(
        f"{path}:{lines[position]}: the rating {texts[position]!r} {problem}; correct it or delete "
        "the line"
    )


def _plain_rows(line: int, text: str, delimiter: str | None) -> Iterator[_Row]:
    for number, content in enumerate(text.split("\n"), line):
        if content and not content.isspace():
            yield number, content.split(delimiter)


def _quoted_rows(chunks: Iterator[Chunk], layout: Layout) -> Iterator[_Row]:
    first_line, text = next(chunks)
    texts = chain([text], (text for _, text in chunks))
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


def _parse_integers(text: str, layout: Layout) -> Triples | None:
    """Parse lines whose ids are all integers.

    Returns None where every line must be looked at by itself.
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
    # Copies, because a field of a structured array keeps all of it alive.
    users, items = parsed["user"].copy(), parsed["item"].copy()
    ratings = parsed["rating"].copy() if "rating" in used else None
    if ratings is not None and not np.isfinite(ratings).all():
        return None
    return Triples(users, items, ratings)


def _may_hide_text(text: str) -> bool:
    """Return whether parsing integers could lose a leading zero or a sign."""
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
