"""What metrics are made of."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fleet.rollout.gate.metrics import METRICS, Kind
from fleet.rollout.sources import columns_of, counters_of, drift_of, levels_of, rates_of
from tests.support.evidence_fleet import window_row

ALL = tuple(METRICS)


def row(**fields: Any) -> Mapping[str, Any]:
    return window_row("d1", 100.0, **fields)


def test_every_metric_is_made_of_something() -> None:
    columns = columns_of([row()])
    bad, total = rates_of(ALL, columns, {})
    levels = levels_of(ALL, columns, np.array([0.5]))
    rates = {name for name, metric in METRICS.items() if metric.kind is Kind.RATE}
    assert set(bad) == set(total) == rates
    assert set(levels) == set(METRICS) - rates


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("error_rate", {"requests": 30, "failures": 3}, (3, 30)),
        ("over_latency_rate", {"requests": 30, "over_objective": 4}, (4, 30)),
        ("input_violation_rate", {"requests": 30, "input_violations": 5}, (5, 30)),
        ("output_violation_rate", {"requests": 30, "output_violations": 6}, (6, 30)),
        ("non_finite_rate", {"requests": 30, "non_finite": 7}, (7, 30)),
        ("low_confidence_rate", {"confidence_count": 20, "low_confidence": 8}, (8, 20)),
        ("feedback_error_rate", {"feedback_count": 10, "feedback_correct": 7}, (3, 10)),
        ("shadow_disagreement_rate", {"shadow_compared": 9, "shadow_disagreed": 2}, (2, 9)),
    ],
)
def test_rates(name: str, fields: dict[str, int], expected: tuple[int, int]) -> None:
    bad, total = rates_of([name], columns_of([row(**fields)]), {})
    assert (bad[name].tolist(), total[name].tolist()) == ([expected[0]], [expected[1]])


def test_a_counter_of_the_application_is_a_rate_of_requests() -> None:
    rows = [row(counters={"misses": 4}), row(counters={})]
    counters = counters_of(["counter:misses", "error_rate"], [one["counters"] for one in rows])
    assert list(counters) == ["misses"]
    bad, total = rates_of(["counter:misses"], columns_of(rows), counters)
    assert bad["counter:misses"].tolist() == [4, 0]
    assert total["counter:misses"].tolist() == [30, 30]


def test_what_a_window_does_not_know_is_not_zero() -> None:
    columns = columns_of([row(rss_bytes=0), row(rss_bytes=5, temperature_c=41.5)])
    names = ("rss", "temperature", "feedback_abs_error", "cpu")
    levels = levels_of(names, columns, np.array([math.nan, math.nan]))
    assert np.isnan(levels["rss"]).tolist() == [True, False]
    assert np.isnan(levels["temperature"]).tolist() == [True, False]
    assert np.isnan(levels["feedback_abs_error"]).all()
    assert levels["cpu"].tolist() == [10.0, 10.0]
    errors = columns_of([row(feedback_count=4, feedback_abs_error_sum=2.0)])
    found = levels_of(["feedback_abs_error"], errors, np.array([math.nan]))
    assert found["feedback_abs_error"].tolist() == [0.5]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_drift_is_zero_on_average_however_few_answers_there_are(size: int) -> None:
    """Every sample of ``size`` answers now and of 4 before, weighted by its probability."""
    p = np.array([0.5, 0.3, 0.2])
    mean = 0.0
    for now in itertools.product(range(3), repeat=size):
        for before in itertools.product(range(3), repeat=4):
            weight = float(np.prod(p[list(now)]) * np.prod(p[list(before)]))
            counts = [np.bincount(one, minlength=3)[None].astype(float) for one in (now, before)]
            mean += weight * float(drift_of(*counts)[0])
    assert abs(mean) < 1e-12


def test_drift_grows_with_the_distance_and_needs_two_answers() -> None:
    before = np.array([[500.0, 500.0]] * 3)
    drift = drift_of(np.array([[50.0, 50.0], [90.0, 10.0], [1.0, 0.0]]), before)
    assert abs(drift[0]) < 0.02
    assert drift[1] == pytest.approx(2 * 0.4**2, abs=0.01)
    assert math.isnan(drift[2])
