"""Metrics for the library `evaluate` that come with the package, loaded by path and without a network."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np


METRICS = ("accuracy", "nats_per_token", "bits_per_pixel")
_FOLDER = Path(__file__).with_name("metric_modules")


def metric_path(name: str) -> str:
    """
    Path of a metric script: `evaluate.load(metric_path("nats_per_token"))`, and
    `evaluate.combine([metric_path(name) for name in METRICS])` for all of them.

    Raises:
        ValueError: no metric of that name.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}, only {', '.join(METRICS)}.")
    return str(_FOLDER / name / f"{name}.py")


def total(name: str, values: Sequence[float]) -> float:
    """
    Sum of a column in float64, rounded once.

    Raises:
        ValueError: an empty column, or a value that isn't finite; names its row. A mean over the rest would be wrong
            in silence.
    """
    return math.fsum(_finite(name, values))


def whole_numbers(name: str, values: Sequence[float], low: int = 0) -> np.ndarray:
    """
    A column as int64.

    Raises:
        ValueError: an empty column, or a value that isn't a whole number of at least `low`; names its row.
    """
    column = _finite(name, values)
    wrong = np.flatnonzero((column != np.rint(column)) | (column < low))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"`{name}` must be whole numbers of at least {low}, got {column[row]:g} in row {row}.")
    return column.astype(np.int64)


def _finite(name: str, values: Sequence[float]) -> np.ndarray:
    column = np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)
    if not len(column):
        raise ValueError(f"`{name}` is empty: add at least one image before computing the metric.")
    wrong = np.flatnonzero(~np.isfinite(column))
    if len(wrong):
        raise ValueError(f"`{name}` must be finite, got {column[wrong[0]]} in row {int(wrong[0])}.")
    return column
