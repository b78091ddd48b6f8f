"""What metrics are made of."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fleet.rollout.gate.metrics import METRICS, Kind, metric_of
from fleet.rollout.sources import (
    DRIFT,
    columns_of,
    counters_of,
    levels_of,
    output_names,
    outputs_of,
    rates_of,
)
from tests.support.evidence_fleet import window_row

ALL = tuple(METRICS)


def row(**fields: Any) -> Mapping[str, Any]:
    return window_row("d1", 100.0, **fields)


def test_every_metric_is_made_of_something() -> None:
    columns = columns_of([row()])
    bad, total = rates_of(ALL, columns, {})
    levels = levels_of(ALL, columns)
    rates = {name for name, metric in METRICS.items() if metric.kind is Kind.RATE}
    assert set(bad) == set(total) == rates
    assert set(levels) == set(METRICS) - rates - {DRIFT}


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
    levels = levels_of(names, columns)
    assert np.isnan(levels["rss"]).tolist() == [True, False]
    assert np.isnan(levels["temperature"]).tolist() == [True, False]
    assert np.isnan(levels["feedback_abs_error"]).all()
    assert levels["cpu"].tolist() == [10.0, 10.0]
    errors = columns_of([row(feedback_count=4, feedback_abs_error_sum=2.0)])
    found = levels_of(["feedback_abs_error"], errors)
    assert found["feedback_abs_error"].tolist() == [0.5]


def test_answers_are_counted_by_label() -> None:
    found = outputs_of(("cat", "dog"), [{"cat": 3, "cow": 9}, {}])
    assert {name: values.tolist() for name, values in found.items()} == {
        "counter:output.000": [3, 0],
        "counter:output.001": [0, 0],
    }
    assert outputs_of((), [{"cat": 3}]) == {}
    assert [metric_of(name).kind for name in output_names(("a", "b"))] == [Kind.RATE, Kind.RATE]
