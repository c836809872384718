"""How much memory a conversion may take, and what for."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_als.errors import InputError

__all__ = ["Budget"]

_MIB = 1 << 20
_PROCESS = 100 * _MIB
"""Python, NumPy, SciPy and what they leave unused between their allocations."""
_LEAST = 28 * _MIB
_SORT_BYTES = 72
"""What an entry takes while it is sorted and written."""


@dataclass(frozen=True)
class Budget:
    """A number of bytes, shared out.

    Parameters
    ----------
    total : int
        What the process may take, Python itself included.
    extra : int
        What libraries for the files at hand take besides.

    Raises
    ------
    InputError
        If it is too little for anything.
    """

    total: int
    extra: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.total, int) and not isinstance(self.total, bool)
        if not whole or self.left < _LEAST:
            least = -(-(_PROCESS + self.extra + _LEAST) // _MIB)
            raise InputError(f"memory: found {self.total!r} bytes; pass at least {least} MiB")

    @property
    def left(self) -> int:
        """What is left besides the process itself."""
        return self.total - _PROCESS - self.extra

    @property
    def block_bytes(self) -> int:
        """What a block of the input may take while it is read."""
        return self.left // 2

    def check_ids(self, id_bytes: int) -> None:
        """Refuse ids that leave too little.

        Raises
        ------
        InputError
            If they take more than half of what is left besides the process.
        """
        if 2 * id_bytes > self.left:
            needed = -(-(_PROCESS + self.extra + 2 * id_bytes) // _MIB)
            raise InputError(
                f"memory: found {self.total} bytes, too little for the ids, which have to fit; "
                f"pass at least {needed} MiB for those met so far"
            )

    def entries_at_once(self, id_bytes: int) -> int:
        """Return how many entries can be sorted at once besides ids that take so much."""
        return (self.left - id_bytes) // _SORT_BYTES
