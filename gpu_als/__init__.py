"""Exact alternating least squares on GPU and CPU."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpu_als.version import __version__ as __version__

if TYPE_CHECKING:
    from gpu_als.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Return a name of :mod:`gpu_als.api`, which is imported when the first is asked for.

    ``HAS_CUDA`` says whether a GPU can be used; it is looked for when first asked.
    """
    if name == "HAS_CUDA":
        from gpu_als.backends import cuda_is_usable

        return cuda_is_usable()
    if name == "__all__":
        return __dir__()
    if not name.startswith("_"):
        api = import_module("gpu_als.api")
        globals().update({each: getattr(api, each) for each in api.__all__})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["HAS_CUDA", *import_module("gpu_als.api").__all__])
