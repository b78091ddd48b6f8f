"""From the windows that devices send to the metrics that are compared. Pure.

Rules kept here: every metric is made from fields that can be added up, so windows may arrive in any
order and be merged on the way; one table says what each metric is made of; what a window does not
know is nan, and never zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from fleet.rollout.gate.metrics import Kind, metric_of
from fleet.rollout.gate.ring import FloatArray, IntArray

__all__ = [
    "COUNTED",
    "LEVELS",
    "MAX_COUNTERS",
    "MAX_OUTPUTS",
    "columns_of",
    "counters_of",
    "drift_of",
    "levels_of",
    "rates_of",
]

COUNTED: Final = (
    "requests", "failures", "over_objective", "input_violations", "output_violations", "non_finite",
    "low_confidence", "confidence_count", "feedback_count", "feedback_correct",
    "feedback_abs_error_sum", "shadow_disagreed", "shadow_compared",
)  # fmt: skip
"""Columns of a window that are simply added up."""
LEVELS: Final = {"rss": "rss_bytes", "cpu": "cpu_percent", "temperature": "temperature_c"}
"""Levels and their columns: a mean over time, weighted by the length of the windows."""
MAX_OUTPUTS: Final = 64  # labels of one device that are kept apart
MAX_COUNTERS: Final = 32  # names of counters of one device
_PLACE: Final = {name: number for number, name in enumerate(COUNTED)}
_RATES: Final[Mapping[str, tuple[str, str]]] = {
    "error_rate": ("failures", "requests"),
    "over_latency_rate": ("over_objective", "requests"),
    "input_violation_rate": ("input_violations", "requests"),
    "output_violation_rate": ("output_violations", "requests"),
    "non_finite_rate": ("non_finite", "requests"),
    "low_confidence_rate": ("low_confidence", "confidence_count"),
    "shadow_disagreement_rate": ("shadow_disagreed", "shadow_compared"),
}
_WRONG: Final = "feedback_error_rate"
_ABS_ERROR: Final = "feedback_abs_error"
_COUNTER: Final = "counter:"


def columns_of(rows: Sequence[Mapping[str, Any]]) -> FloatArray:
    """The columns ``COUNTED`` and those of ``LEVELS`` of these windows: shape (windows, columns).

    A level that the device does not know is nan.
    """
    names = (*COUNTED, *LEVELS.values())
    table = np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
    table = table.reshape(len(rows), len(names))
    memory = table[:, len(COUNTED)]
    memory[memory <= 0] = np.nan
    return table


def rates_of(
    names: Sequence[str], sums: FloatArray, counters: Mapping[str, FloatArray]
) -> tuple[dict[str, IntArray], dict[str, IntArray]]:
    """Bad and total events of each rate among ``names``.

    Args:
        sums: columns in the order of ``COUNTED``; more columns may follow.
        counters: of the application, by name: see ``counters_of``.
    """
    bad: dict[str, IntArray] = {}
    total: dict[str, IntArray] = {}
    for name in names:
        if name in _RATES:
            some, whole = (sums[:, _PLACE[column]] for column in _RATES[name])
        elif name == _WRONG:
            whole = sums[:, _PLACE["feedback_count"]]
            some = whole - sums[:, _PLACE["feedback_correct"]]
        elif name.startswith(_COUNTER):
            whole = sums[:, _PLACE["requests"]]
            some = counters.get(name.removeprefix(_COUNTER), np.zeros(len(sums)))
        else:
            continue
        bad[name], total[name] = some.astype(np.int64), whole.astype(np.int64)
    return bad, total


def levels_of(
    names: Sequence[str], columns: FloatArray, drift: FloatArray
) -> dict[str, FloatArray]:
    """Each level among ``names``, nan where it is not known. ``columns`` are those of ``columns_of``."""
    found: dict[str, FloatArray] = {}
    for name in names:
        if metric_of(name).kind is not Kind.LEVEL:
            continue
        if name in LEVELS:
            found[name] = columns[:, len(COUNTED) + list(LEVELS).index(name)]
        elif name == _ABS_ERROR:
            compared = columns[:, _PLACE["feedback_count"]]
            error = columns[:, _PLACE["feedback_abs_error_sum"]]
            nothing = np.full(len(columns), np.nan)
            found[name] = np.divide(error, compared, out=nothing, where=compared > 0)
        else:
            found[name] = drift
    return found


def counters_of(names: Sequence[str], given: Sequence[Mapping[str, int]]) -> dict[str, FloatArray]:
    """The applications' counters that metrics among ``names`` ask for, by their own names."""
    wanted = [name.removeprefix(_COUNTER) for name in names if name.startswith(_COUNTER)]
    return {
        name: np.array([one.get(name, 0) for one in given], dtype=np.float64) for name in wanted
    }


def drift_of(now: FloatArray, before: FloatArray) -> FloatArray:
    """How far what was answered lies from what the same device answered before, beyond chance.

    Both have shape (rows, labels) and hold counts. With p the true shares now and q those before, the
    score estimates sum (p - q)^2 without bias,

        sum [ c(c - 1)/(n(n - 1)) - 2 (c/n)(k/m) + k(k - 1)/(m(m - 1)) ],

    c of n answers now, k of m before (the U-statistic of the squared distance; Chan, Diakonikolas,
    Valiant and Valiant, "Optimal Algorithms for Testing Closeness of Discrete Distributions", SODA
    2014, have it for Poisson counts). The plain distance would be larger the fewer answers there are:
    this one is zero on average when nothing changed, whatever their number, and below zero by chance.
    nan where either side has fewer than two answers. Means of it over windows are unbiased too.
    """
    size_now, size_before = now.sum(axis=1), before.sum(axis=1)
    enough = (size_now >= 2) & (size_before >= 2)
    n, m = np.where(enough, size_now, 2.0), np.where(enough, size_before, 2.0)
    within_now = (now * (now - 1)).sum(axis=1) / (n * (n - 1))
    within_before = (before * (before - 1)).sum(axis=1) / (m * (m - 1))
    between = (now * before).sum(axis=1) / (n * m)
    return np.where(enough, within_now - 2 * between + within_before, np.nan)
