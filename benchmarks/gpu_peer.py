"""``implicit`` on the GPU, in a process of its own: it may fail or hang without harm to the rest.

It does three steps of conjugate gradients for each row. Its alpha is multiplied into the data
beforehand, since its GPU code does not apply it. It keeps its matrices in managed memory, which the
first iteration moves to the device: that one is not counted. Its extension needs CUDA's libraries,
but does not look for them where pip puts them, so they are loaded first.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
from gpu_shapes import Matrix, Shape

LIBRARIES = ("cudart", "cublasLt", "cublas", "curand")  # each after what it needs
ITERATIONS = 4
RANKINGS = 5


class PeerError(Exception):
    """The other process has failed, or not answered in time."""


class Peer:
    """Asks another process, one thing at a time.

    Attributes
    ----------
    usable : bool
    words : str
        The version, or why there is nothing to compare with.
    """

    def __init__(self) -> None:
        self._process: Any = None
        try:
            self.usable, self.words = self.ask(60, look)
        except PeerError as error:
            self.usable, self.words = False, f"NOT USABLE: {error}"

    def ask(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what ``function`` returns there.

        Raises
        ------
        PeerError
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, end = context.Pipe()
            self._process = context.Process(target=_serve, args=(end,), daemon=True)
            self._process.start()
            end.close()
        error = f"no answer within {seconds:.0f} s"
        try:
            self._pipe.send((function, arguments))
            if self._pipe.poll(seconds):
                answer, error = self._pipe.recv()
                if error is None:
                    return answer
        except (EOFError, OSError):
            error = "its process has ended"
        finally:
            if error is not None:  # also where the section's time is up
                self.close()  # after an error a CUDA context may be of no use
        raise PeerError(error)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.join(5)
            self._pipe.close()
            self._process = None


# What runs in that process.


def _serve(pipe: Any) -> None:
    """Answer every question with ``(result, None)`` or ``(None, error)``, until nobody asks."""
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                answer = function(*arguments), None
            except Exception as error:
                answer = None, f"{type(error).__name__}: {error}"
            pipe.send(answer)


def look() -> tuple[bool, str]:
    """Return whether ``implicit`` can use this GPU, and its version or why not."""
    reasons = []
    try:
        load = importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib
        for library in LIBRARIES:
            load(library)
    except Exception as error:  # they may be where the loader finds them
        reasons.append(f"{type(error).__name__}: {error}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            gpu = importlib.import_module("implicit.gpu")
        except ImportError as error:
            return False, f"NOT USABLE: {error}"
    if gpu.HAS_CUDA:
        return True, f"{metadata.version('implicit')}, usable on this GPU"
    if not gpu.HAS_RMM:
        reasons.append("it needs the package rmm")
    return False, f"NOT USABLE: {'; '.join([*reasons, *(str(one.message) for one in said)])}"


def iteration_ms(shape: Shape, k: int, regularization: float, alpha: float) -> float:
    """Return its time for an iteration by its own clock, which waits for the device."""
    look()
    seconds: list[float] = []
    model = _als()(factors=k, regularization=regularization, iterations=ITERATIONS, random_state=k)
    model.fit(
        _matrix(shape).csr(alpha),
        show_progress=False,
        callback=lambda iteration, elapsed, loss: seconds.append(elapsed),
    )
    return 1e3 * float(np.median(seconds[1:]))


def ranking_ms(shape: Shape, factors: tuple[Any, Any], n_best: int, *, filtered: bool) -> float:
    """Return its time for the best items of the first users, all of ``factors[0]``."""
    look()
    users, items = factors
    model = _als()(factors=users.shape[1])
    matrix = importlib.import_module("implicit.gpu").Matrix
    model.user_factors, model.item_factors = matrix(users), matrix(items)
    numbers = np.arange(len(users), dtype=np.int32)
    liked = _matrix(shape).csr()[: len(users)] if filtered else None
    return host_ms(
        lambda: model.recommend(numbers, liked, n_best, filter_already_liked_items=filtered)
    )


def host_ms(call: Callable[[], Any]) -> float:
    """Return the median time of a call that waits for its results, after one that warms up."""
    seconds = []
    for _ in range(1 + RANKINGS):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(seconds[1:]))


def _als() -> Any:
    return importlib.import_module("implicit.gpu.als").AlternatingLeastSquares


@cache
def _matrix(shape: Shape) -> Matrix:
    return shape.draw()
