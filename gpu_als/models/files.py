"""Models in npz files: the arrays and parameters of each kind, and their names there.

A file of ratings names itself under ``kind`` and writes ``param_`` before its parameters. The
others are those of ``implicit``, which reads and writes them under the names that are there.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import check_csr
from gpu_als.data.model_file import check_names, read_arrays, to_factors, write_arrays
from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError, ModelFileError
from gpu_als.models.about import read_about
from gpu_als.models.fitted import Fitted, Side

__all__ = ["EXPLICIT", "IMPLICIT", "Format", "load", "save"]

File = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True)
class Format:
    """How one kind of model is stored.

    Attributes
    ----------
    title : str
        The class, in messages.
    kind : str or None
        What the file says it is.
    prefix : str
        Comes before the names of parameters.
    besides : tuple of str
        Attributes to store besides the parameters of the constructor.
    of_machine : tuple of str
        Parameters that say where to work, and are not stored.
    needed : tuple of str
        Those without which a file is refused.
    biases : bool
        There are biases and a mean, and ``bias`` says whether they were learnt.
    """

    title: str
    kind: str | None
    prefix: str
    besides: tuple[str, ...]
    of_machine: tuple[str, ...]
    needed: tuple[str, ...]
    biases: bool

    def names(self, model: type) -> list[str]:
        """Return what is stored of a class of models; what is None is left out.

        Parameters that a user's subclass adds are not.
        """
        ours: Any = next(each for each in model.__mro__ if "_file" in vars(each))
        return [
            *(each for each in ours._parameters() if each not in self.of_machine),
            *self.besides,
        ]


IMPLICIT = Format(
    "AlternatingLeastSquares", None, "",
    ("cg_steps",), ("use_gpu", "precision"),
    ("factors", "regularization", "iterations"),
    False,
)  # fmt: skip
EXPLICIT = Format(
    "ExplicitALS", "gpu_als.ExplicitALS", "param_",
    (), ("backend", "num_threads", "precision"),
    ("factors", "regularization", "bias", "iterations", "dtype"),
    True,
)  # fmt: skip
_PAST = "item_counts", "seen_indptr", "seen_indices", "about"
"""What the constructor and the factors do not say; 0.1.0 and ``implicit`` do not write it."""
_ELSEWHERE = "backend", "num_threads", "precision"
"""Parameters of a machine, which files of ratings may hold but do not."""


def save(file: File, form: Format, model: Any, fitted: Fitted) -> None:
    """Write a model, atomically; one without factors without them.

    Raises
    ------
    InputError
        The factors hold NaN or inf, or do not fit together.
    """
    values = {name: getattr(model, name) for name in form.names(type(model))}
    arrays: dict[str, Any] = {}
    if fitted.users.matrix is not None or fitted.items.matrix is not None:
        fitted.checked()
        for name, side in (("user", fitted.users), ("item", fitted.items)):
            found = {"factors": side.factors, "biases": side.biases if form.biases else None}
            for what, array in found.items():
                if array is not None and not np.isfinite(np.asarray(array)).all():
                    raise InputError(
                        f"{name}_{what} hold NaN or inf; such a model is not worth keeping"
                    )
                arrays[f"{name}_{what}"] = None if array is None else np.asarray(array)
            arrays[f"{name}_ids"] = side.ids
        values["factors"] = fitted.users.factors.shape[1]  # set_params may have changed it since
        if form.biases:
            arrays["global_mean"], values["bias"] = fitted.mean, fitted.users.bias
        arrays["item_counts"] = fitted.item_counts
        if fitted.seen is not None:
            arrays |= {"seen_indptr": fitted.seen.indptr, "seen_indices": fitted.seen.indices}
        if fitted.about is not None:
            arrays["about"] = json.dumps(fitted.about)
    values["random_state"] = _stored_seed(values["random_state"])
    values["dtype"] = model.dtype.name
    if not isinstance(values.get("solver"), str | None):
        values["solver"] = None  # an option object; the model is complete without it
    stored = {"kind": form.kind, **arrays}
    stored |= {f"{form.prefix}{name}": value for name, value in values.items()}
    write_arrays(file, {name: value for name, value in stored.items() if value is not None})


def load(
    file: File, classes: tuple[Any, ...], *, mmap_mode: Literal["r"] | None = None
) -> tuple[Any, Fitted]:
    """Read what :func:`save` or ``implicit`` wrote.

    Parameters
    ----------
    classes : tuple of classes of models
        One of which the file must hold. Its ``_from_stored`` gets the stored parameters.
    mmap_mode : {"r"}, optional
        Leave large arrays in the file, and their values unchecked.

    Raises
    ------
    ModelFileError
        The file is damaged or holds something else.
    """
    stored = read_arrays(file, mmap_mode=mmap_mode)
    kind = stored.pop("kind", None)
    make = _class_of(None if kind is None else str(kind), stored, classes, file)
    form: Format = make._file
    kinds = ("factors", "biases", "ids") if form.biases else ("factors", "ids")
    sides = [
        {what: stored.pop(f"{name}_{what}", None) for what in kinds} for name in ("user", "item")
    ]
    mean = stored.pop("global_mean", None) if form.biases else None
    past = {name: stored.pop(name, None) for name in _PAST}
    values = {name.removeprefix(form.prefix): array for name, array in stored.items()}
    check_names(values, needed=form.needed, known=(*form.names(make), *_ELSEWHERE), where=str(file))
    try:
        model = _with_parameters(make, values)
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{file}: a stored parameter cannot be used: {error}") from error
    arrays = *(array for side in sides for array in side.values()), mean, *past.values()
    if all(array is None for array in arrays):
        return model, Fitted(Side(bias=model.bias), Side(bias=model.bias))
    users, items = (
        _side(side, name, model, form, file, trusted=mmap_mode is not None)
        for name, side in zip(("user", "item"), sides, strict=True)
    )
    level = _mean(mean, model.dtype, file) if form.biases else 0.0
    seen = _seen(past["seen_indptr"], past["seen_indices"], (len(users), len(items)), file)
    counts, text = past["item_counts"], past["about"]
    if counts is not None and (counts.dtype.kind != "i" or counts.shape != (len(items),)):
        raise ModelFileError(f"{file}: item_counts do not fit item_factors; save the model again")
    about = None
    if text is not None:
        about, model.report_ = read_about(text, file)
    return model, Fitted(users, items, level, seen, counts, about)


def _class_of(kind: str | None, stored: Any, classes: tuple[Any, ...], file: Any) -> Any:
    """Return the class whose model a file holds."""
    for make in classes:
        form = make._file
        if form.kind == kind and any(f"{form.prefix}{name}" in stored for name in form.needed):
            return make
    wanted = " or ".join(make._file.title for make in classes)
    found = {form.kind: form.title for form in (EXPLICIT, IMPLICIT)}.get(kind)
    other = found is not None and found not in wanted and "user_factors" in stored
    remedy = f" but one of {found}; load it with that class or with gpu_als.load" if other else ""
    raise ModelFileError(f"{file}: holds no {wanted} model{remedy}")


def _with_parameters(make: Any, arrays: dict[str, np.ndarray]) -> Any:
    values = {name: array.tolist() for name, array in arrays.items()}
    values["random_state"] = _read_seed(values.get("random_state"))
    check_random_state(values["random_state"])
    return make._from_stored(values)


def _side(
    arrays: dict[str, np.ndarray | None],
    name: str,
    model: Any,
    form: Format,
    file: Any,
    *,
    trusted: bool,
) -> Side:
    """Return one side after checking that its arrays fit together and the parameters."""
    factors, biases, ids = arrays["factors"], arrays.get("biases"), arrays["ids"]
    if factors is None or factors.ndim != 2 or factors.dtype.kind != "f":
        raise ModelFileError(
            f"{file}: {name}_factors is missing or no matrix of floats; save the model again"
        )
    if factors.shape[1] != model.factors:
        raise ModelFileError(
            f"{file}: {name}_factors of shape {factors.shape} do not fit factors={model.factors}"
        )
    if trusted and factors.dtype == model.dtype and factors.flags.c_contiguous:
        matrix = np.asarray(factors)
    else:
        matrix = to_factors(factors, model.dtype, f"{file}: {name}_factors")
    if form.biases:
        if biases is None or biases.shape != factors.shape[:1] or biases.dtype.kind != "f":
            raise ModelFileError(f"{file}: {name}_biases are missing or do not fit {name}_factors")
        biases = to_factors(biases, model.dtype, f"{file}: {name}_biases")
        if model.bias:
            matrix = np.column_stack([matrix, biases])
    if ids is not None and (ids.shape != (len(matrix),) or ids.dtype.kind not in "iuU"):
        raise ModelFileError(
            f"{file}: {name}_ids must hold one integer or string for each of the {len(matrix)} "
            f"{name}s, not {ids.dtype} of shape {ids.shape}"
        )
    return Side(matrix, model.bias, ids)


def _seen(
    indptr: np.ndarray | None, indices: np.ndarray | None, shape: tuple[int, int], file: Any
) -> sp.csr_matrix | None:
    """Return the entries that a user has seen, after checking that they are places of a matrix."""
    if indptr is None or indices is None:
        return None
    try:
        seen = sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
        check_csr(seen, name="seen items")
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{file}: seen items do not fit the factors: {error}") from error
    return seen.astype(np.bool_)


def _mean(mean: np.ndarray | None, dtype: np.dtype, file: Any) -> float:
    if (
        mean is None
        or mean.shape != ()
        or mean.dtype.kind != "f"
        or not abs(mean) < np.finfo(dtype).max
    ):
        raise ModelFileError(f"{file}: global_mean is missing or no number")
    return float(mean)


def _stored_seed(random_state: Any) -> int | str | None:
    """Return what a file keeps: text of integers that no array of numbers holds.

    The state of a generator is not kept.
    """
    if not isinstance(random_state, int | np.integer):
        return None
    seed = int(random_state)
    return seed if seed < 2**64 else str(seed)


def _read_seed(stored: Any) -> Any:
    """Return the seed that :func:`_stored_seed` made of one."""
    return int(stored) if isinstance(stored, str) and stored.isdecimal() else stored
