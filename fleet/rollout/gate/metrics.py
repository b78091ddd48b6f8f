"""What is compared between the arms: the names, their kinds, and which direction is worse.

Rules kept here: one table; a rate is bad events of all events of one device, a level is a number a
device has; a counter of an application becomes a rate of requests when it is first named.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

__all__ = ["METRICS", "Kind", "Metric", "metric_of"]

_COUNTER: Final = re.compile(r"counter:[A-Za-z0-9_.-]{1,80}")


class Kind(StrEnum):
    """How a metric is scored: ``ln(1 + y/p)`` for a rate, the normal score of a rank for a level."""

    RATE = "rate"
    LEVEL = "level"


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing both arms have. ``words`` completes "the canary devices have more ...".

    A device counts once it has ``min_events`` events (a rate) or any value (a level).
    """

    name: str
    words: str
    kind: Kind
    worse: Literal["higher", "lower"] = "higher"
    min_events: int = 20


def _rate(name: str, words: str) -> Metric:
    return Metric(name, words, Kind.RATE)


def _level(name: str, words: str) -> Metric:
    return Metric(name, words, Kind.LEVEL)


METRICS: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for metric in (
        _rate("error_rate", "failed requests"),
        _rate("over_latency_rate", "requests over the latency objective"),
        _rate("input_violation_rate", "inputs outside the contract"),
        _rate("output_violation_rate", "outputs outside the contract"),
        _rate("non_finite_rate", "outputs that are not finite"),
        _rate("low_confidence_rate", "answers of low confidence"),
        _level("output_drift", "drift of the outputs"),
        _level("rss", "memory of the model server"),
        _level("cpu", "processor time of the model server"),
        _level("temperature", "heat of the device"),
        _rate("feedback_error_rate", "answers that feedback calls wrong"),
        _level("feedback_abs_error", "error against feedback"),
        _rate("shadow_disagreement_rate", "answers that differ from the running bundle's"),
    )
}


def metric_of(name: str) -> Metric:
    """The metric of this name; ``counter:NAME`` is made on demand.

    Raises:
        KeyError: no such metric; the message lists what there is.
    """
    found = METRICS.get(name)
    if found is not None:
        return found
    if _COUNTER.fullmatch(name):
        return _rate(name, f"events counted as {name.partition(':')[2]}")
    raise KeyError(
        f"metric {name!r} is not known: it is one of {', '.join(METRICS)}, or counter:NAME"
    )
