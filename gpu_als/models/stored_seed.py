"""``random_state`` in model files."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["read_seed", "stored_seed"]


def stored_seed(random_state: Any) -> int | str | None:
    """Return what a file keeps: text of integers that no array of numbers holds.

    The state of a generator is not kept.
    """
    if not isinstance(random_state, int | np.integer):
        return None
    seed = int(random_state)
    return seed if seed < 2**64 else str(seed)


def read_seed(stored: Any) -> Any:
    """Return the seed that :func:`stored_seed` made of one."""
    return int(stored) if isinstance(stored, str) and stored.isdecimal() else stored
