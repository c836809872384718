"""The devices that the contract holds on, and the model it is the contract of."""

import contextlib

import fake_cupy
import ptx
import pytest

from contract.common import DEVICES, make, with_defaults
from gpu_als import backends


@pytest.fixture(params=DEVICES)
def use_gpu(request, monkeypatch):
    """Return the parameter ``use_gpu``, and make a GPU of the stand-in where it is asked for."""
    where = request.param
    if where == "stand-in" and ptx.missing():
        pytest.skip(ptx.missing())
    with fake_cupy.installed() if where == "stand-in" else contextlib.nullcontext():
        if where == "stand-in":
            from gpu_als.backends.cupy.backend import CupyBackend

            made = {}

            def backend(precision="float32"):
                if precision not in made:
                    made[precision] = CupyBackend(precision)
                    made[precision].batch_elements = 20_000  # several batches on small data
                return made[precision]

            monkeypatch.setattr(backends, "_cupy_backend", backend)
        yield where != "numpy"


@pytest.fixture(scope="package")
def their_class():
    """Return the class of ``implicit``'s model on the CPU."""
    return pytest.importorskip("implicit.cpu.als").AlternatingLeastSquares


@pytest.fixture(scope="package")
def theirs(their_class):
    """Return a function that fits ``implicit``'s model; ``losses`` are those of its iterations."""

    def run(user_items, **params):
        always = {"num_threads": 1, "calculate_training_loss": True}
        model = their_class(**with_defaults(params) | always)
        model.losses = []
        model.fit(
            user_items,
            show_progress=False,
            callback=lambda iteration, seconds, loss: model.losses.append(loss),
        )
        return model

    return run


@pytest.fixture(scope="package")
def twins(theirs):
    """Return a function that fits ``implicit``'s model and gives its factors to one of ours."""

    def run(user_items, *, use_gpu=False, **params):
        other, model = theirs(user_items, **params), make(**params)
        model.user_factors = other.user_factors.copy()
        model.item_factors = other.item_factors.copy()
        return (model.to_gpu() if use_gpu else model), other

    return run
