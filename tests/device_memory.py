"""Counts the bytes of arrays on the stand-in for a GPU: those there, and the most ever there."""

from __future__ import annotations

import weakref

import fake_cupy
import numpy as np


class DeviceMemory:
    """Bytes of device arrays since this was made.

    Parameters
    ----------
    monkeypatch : pytest.MonkeyPatch
    cupy : module
        The stand-in.

    Attributes
    ----------
    held, peak : int
    """

    def __init__(self, monkeypatch, cupy) -> None:
        self.held = self.peak = 0
        self._owners: set[int] = set()
        track = fake_cupy.DeviceArray.__array_finalize__

        def finalize(array: np.ndarray, other: object) -> None:
            track(array, other)
            owner = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            if id(owner) not in self._owners:
                self._add(owner)

        def asarray(source: object, *more: object) -> np.ndarray:
            if isinstance(source, fake_cupy.DeviceArray):
                return source
            return np.array(source, *more).view(fake_cupy.DeviceArray)  # a copy, as CuPy's is

        monkeypatch.setattr(fake_cupy.DeviceArray, "__array_finalize__", finalize)
        monkeypatch.setattr(cupy, "asarray", asarray)

    def _add(self, owner: np.ndarray) -> None:
        size, key = owner.nbytes, id(owner)
        self._owners.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)

        def forget() -> None:
            self._owners.discard(key)
            self.held -= size

        weakref.finalize(owner, forget)
