"""What devices were like lately, by the hour."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from fleet.monitor.baselines import (
    BASELINE_HOURS,
    KEPT_HOURS,
    add_to_baselines,
    baselines,
    past_of,
    prune_hours,
)
from fleet.monitor.record import record
from fleet.monitor.reports import parse_report
from fleet.rollout.sources import MAX_OUTPUTS
from fleet.store import Store, open_store
from fleet.store.tables import baseline_hours
from tests.support.evidence_fleet import window_row
from tests.support.reports import window

NOW_S = 500_000 * 3600.0 + 100.0
HOUR_S = 3600.0


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = open_store(tmp_path_factory.mktemp("baselines") / "fleet.db")
    yield store
    store.close()


@pytest.fixture
def store(opened: Store) -> Store:
    with opened.begin() as connection:
        connection.execute(baseline_hours.delete())
    return opened


def add(store: Store, *rows: dict[str, Any], now_s: float = NOW_S) -> None:
    with store.begin() as connection:
        add_to_baselines(connection, rows, now_s)


def test_windows_add_up(store: Store) -> None:
    add(store, window_row("d1", 60, failures=1), window_row("d1", 120, failures=2))
    add(store, window_row("d1", 180, failures=3), window_row("d2", 180))
    with store.read() as connection:
        counts = baselines(connection, "digits", ["d2", "new", "d1"], NOW_S)
        rows = connection.scalar(select(func.count()).select_from(baseline_hours))
    assert counts.bad["error_rate"].tolist() == [0, 0, 6]
    assert counts.total["error_rate"].tolist() == [30, 0, 90]
    assert counts.level["rss"][[0, 2]].tolist() == [1000.0, 1000.0]
    assert np.isnan(counts.level["rss"][1])
    assert np.isnan(counts.level["temperature"]).all()
    assert rows == 2, "a row for each device and hour, whatever it sent"


def test_only_the_last_day_counts(store: Store) -> None:
    add(store, window_row("d1", 60), now_s=NOW_S - (BASELINE_HOURS + 1) * HOUR_S)
    add(store, window_row("d1", 120), now_s=NOW_S - BASELINE_HOURS * HOUR_S)
    with store.read() as connection:
        past = past_of(connection, "digits", ["d1"], NOW_S)
    assert past.counts(["error_rate"]).total["error_rate"].tolist() == [30]
    assert past.seconds.tolist() == [60.0]


def test_other_models_and_what_answers_nobody_are_no_past(store: Store) -> None:
    rows = [window_row("d1", 60, role=role) for role in ("arm", "shadow")]
    add(store, *rows, window_row("d1", 60, model="other"))
    with store.read() as connection:
        assert baselines(connection, "digits", ["d1"], NOW_S).total["error_rate"].tolist() == [0]


def test_answers_and_counters_are_kept_apart_as_far_as_they_are_bounded(store: Store) -> None:
    many = {f"label-{number:03d}": 1 for number in range(MAX_OUTPUTS + 10)}
    add(store, window_row("d1", 60, output_counts=many, counters={"misses": 3}))
    add(store, window_row("d1", 120, output_counts={"label-000": 4, "label-999": 5}))
    with store.read() as connection:
        past = past_of(connection, "digits", ["d1"], NOW_S)
    [outputs] = past.outputs
    assert outputs["label-000"] == 5
    assert outputs["(others)"] == 15
    assert len(outputs) == MAX_OUTPUTS + 1
    counts = past.counts(["counter:misses", "output_drift"])
    assert counts.bad["counter:misses"].tolist() == [3]
    assert counts.level["output_drift"].tolist() == [0.0]


def test_a_repeated_report_is_no_second_past(store: Store) -> None:
    report = parse_report(window("d9", 7), "d9")
    for _ in range(2):
        with store.begin() as connection:
            record(connection, [report, report], NOW_S)
    with store.read() as connection:
        assert baselines(connection, "digits", ["d9"], NOW_S).total["error_rate"].tolist() == [100]


def test_hours_that_no_baseline_reads_go(store: Store) -> None:
    for age in (0, KEPT_HOURS, KEPT_HOURS + 1):
        add(store, window_row("d1", 60), now_s=NOW_S - age * HOUR_S)
    with store.begin() as connection:
        assert prune_hours(connection, NOW_S) == 1
        assert prune_hours(connection, NOW_S) == 0


def test_an_unknown_metric_is_refused(store: Store) -> None:
    with store.read() as connection, pytest.raises(KeyError, match="happiness"):
        baselines(connection, "digits", ["d1"], NOW_S, ("happiness",))
