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
    "DRIFT",
    "LEVELS",
    "MAX_COUNTERS",
    "MAX_OUTPUTS",
    "columns_of",
    "counters_of",
    "levels_of",
    "output_names",
    "outputs_of",
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
DRIFT: Final = "output_drift"
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
_DIGITS: Final = 3  # of the number of a label
_COUNTER: Final = "counter:"
_OUTPUT: Final = "counter:output."


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


def levels_of(names: Sequence[str], columns: FloatArray) -> dict[str, FloatArray]:
    """Each level of a window among ``names``, nan where it is not known.

    ``columns`` are those of ``columns_of``. Drift is none: it takes many windows to tell.
    """
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
    return found


def counters_of(names: Sequence[str], given: Sequence[Mapping[str, int]]) -> dict[str, FloatArray]:
    """The applications' counters that metrics among ``names`` ask for, by their own names."""
    wanted = [name.removeprefix(_COUNTER) for name in names if name.startswith(_COUNTER)]
    return {
        name: np.array([one.get(name, 0) for one in given], dtype=np.float64) for name in wanted
    }


def output_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Names under which the answers of each label are counted, like counters of an application."""
    return tuple(f"{_OUTPUT}{number:0{_DIGITS}d}" for number in range(len(labels)))


def outputs_of(labels: Sequence[str], given: Sequence[Mapping[str, int]]) -> dict[str, IntArray]:
    """How often each label was answered, by the names of ``output_names``; labels not listed are left out."""
    table = np.array([[one.get(label, 0) for label in labels] for one in given], dtype=np.int64)
    table = table.reshape(len(given), len(labels))
    return {name: table[:, number] for number, name in enumerate(output_names(labels))}
