"""Which files can be read, by their names."""

from __future__ import annotations

from pathlib import Path

from gpu_als.errors import ReadError

__all__ = ["format_of"]

_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".data", ".dat")
_SUPPORTED = (
    "supported are .csv, .tsv, .txt, .data, .dat and .mtx, each also with .gz, and .npz; for other "
    "formats read a DataFrame and use Interactions.from_frame"
)


def format_of(path: Path) -> str:
    """Return the lower-case suffix of a file, looking below ``.gz``.

    Raises
    ------
    ReadError
        If files of that name cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
        supported = suffix in (*_TEXT_SUFFIXES, ".mtx")
    else:
        supported = suffix in (*_TEXT_SUFFIXES, ".mtx", ".npz")
    if not supported:
        raise ReadError(f"{path}: cannot read {''.join(path.suffixes) or 'no'} files; {_SUPPORTED}")
    return suffix
