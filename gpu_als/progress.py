"""Progress bars, drawn by tqdm and only where they are shown."""

from typing import Any, Self

from tqdm import tqdm


class ProgressBar:
    """A bar of tqdm, or nothing where it is not to be shown; a context that closes it.

    A disabled bar of tqdm would still start a thread and take a lock that all forked processes
    share: one that is killed while it holds the lock stops the others forever.

    Parameters
    ----------
    show : bool
        Whether there is a bar.
    **options
        What tqdm takes: total, desc, unit and so on.
    """

    def __init__(self, *, show: bool, **options: Any) -> None:
        self._bar = tqdm(**options) if show else None

    def update(self, n: int = 1) -> None:
        """Count n more units as done."""
        if self._bar is not None:
            self._bar.update(n)

    def set_postfix(self, values: dict[str, str]) -> None:
        """Show values beside the bar when it is next drawn."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
