"""Models that are read while other threads train them, and what is worked out from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

__all__ = ["HasSnapshots", "of_one_moment"]

T = TypeVar("T")
P = ParamSpec("P")


class HasSnapshots:
    """Mixin: a model that other threads may train while it is read.

    Its arrays are replaced and never changed in place, and those that belong together are replaced
    at one blow. So a method that begins with a snapshot sees one model from beginning to end.

    What is worked out from an array (norms, Grams, maps of ids) is kept with it, shared by all
    snapshots that have the array, and let go together with it.
    """

    _derived: dict[str, tuple[Any, object, Any]]

    def _forget(self) -> None:
        self._derived = {}

    def _snapshot(self) -> Self:
        """Return this model as it is now: a shallow copy."""
        frozen = object.__new__(type(self))
        vars(frozen).update(vars(self))
        return frozen

    def _publish(self, **attributes: Any) -> None:
        """Replace attributes at one blow."""
        held = {**vars(self), **attributes}
        sources = [*held.values(), *held.get("_factors", ())]
        kept = {
            name: known
            for name, known in self._derived.copy().items()
            if any(known[0] is source for source in sources)
        }
        # One call into C, so no other thread runs between two of them; likewise in a snapshot.
        vars(self).update(attributes, _derived=kept)

    def _derive(
        self, name: str, source: Any, compute: Callable[[Any], T], given: object = None
    ) -> T:
        """Return ``compute(source)``, from the last time if that was with the same object.

        ``given`` is what else the result depends on.
        """
        known = self._derived.get(name)
        if known is None or known[0] is not source or known[1] != given:
            known = self._derived[name] = source, given, compute(source)
        found: T = known[2]
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Return what to pickle or copy: nothing that can be derived."""
        state = vars(self).copy()
        del state["_derived"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


def of_one_moment(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method that only reads on a snapshot of its model."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        model: Any = args[0]
        return method(model._snapshot(), *args[1:], **kwargs)  # type: ignore[arg-type]

    return run
