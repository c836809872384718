"""What a model knows of its past: the data and the fit that it comes from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from gpu_als.errors import ModelFileError
from gpu_als.train.report import FitReport
from gpu_als.train.training_data import Summary, TrainingData
from gpu_als.version import __version__

__all__ = ["about", "card", "read_about"]

_FORMAT = 2
"""Of the files of models; those of 0.1.0 had no number."""


def about(data: TrainingData, summary: Summary, report: FitReport) -> dict[str, Any]:
    """Return the provenance of a model that is fitted now, as JSON holds it."""
    return {
        "format": _FORMAT,
        "gpu_als": __version__,
        "fitted": datetime.now(UTC).isoformat(timespec="seconds"),
        "users": data.shape[0],
        "items": data.shape[1],
        "interactions": summary.entries,
        "values": None if summary.entries == 0 else list(summary.values),
        "fingerprint": summary.fingerprint,
        "report": report.to_dict(),
    }


def read_about(text: Any, file: Any) -> tuple[dict[str, Any], FitReport]:
    """Return what a file says of its model, and the report of the fit.

    Raises
    ------
    ModelFileError
        It is damaged, or of a later format.
    """
    try:
        found = dict(json.loads(str(text)))
        later = found["format"] > _FORMAT
        report = FitReport("") if later else FitReport.from_dict(found["report"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{file}: 'about' cannot be read; save the model again") from error
    if later:
        raise ModelFileError(
            f"{file}: written by gpu_als {found.get('gpu_als')} in a later format; update gpu_als"
        )
    return found, report


def card(model: Any) -> str:
    """Return in a few lines what a model is, what it was fitted on and how that went."""
    fitted, report = model._fitted, model.report_
    lines = [repr(model)]
    if fitted.users.matrix is None or fitted.items.matrix is None:
        return f"{lines[0]}\nnot fitted"
    past = fitted.about
    sides = [
        f"{len(side):,} {name}" + ("" if side.ids is None else " with ids")
        for name, side in (("users", fitted.users), ("items", fitted.items))
    ]
    lines.append(f"{fitted.users.factors.shape[1]} factors of {' and '.join(sides)}")
    if past:
        values = ""
        if past["values"]:
            least, most, mean = past["values"]
            values = (
                f", all {least:g}" if least == most else f", {least:g} to {most:g}, mean {mean:.3g}"
            )
        lines.append(f"{past['interactions']:,} interactions{values}; data {past['fingerprint']}")
        lines.append(f"fitted {past['fitted']} by gpu_als {past['gpu_als']}")
    if fitted.seen is not None:
        lines.append(f"{fitted.seen.nnz:,} seen items, which recommend leaves out")
    return "\n".join([*lines, *([] if report is None else [str(report)])])
