"""When a ring is looked at, and what is compared."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollout.gate.metrics import METRICS, Kind, metric_of
from fleet.rollout.gate.schedule import FIRST_S, look_minutes, look_number


def test_an_hour_is_looked_at_at_the_minutes_of_the_design() -> None:
    looks = look_minutes(3600.0 + 90.0)
    assert [(at_s - 90.0) / 60 for at_s in looks] == [
        1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60
    ]  # fmt: skip


def test_longer_bakes_go_on_by_a_quarter() -> None:
    looks = look_minutes(30 * 86_400.0)
    later = [at_s - 90.0 for at_s in looks[16:-1]]
    assert later[0] == pytest.approx(75 * 60)
    assert all(b / a == pytest.approx(1.25) for a, b in pairwise(later))
    assert len(looks) == 46


@given(st.floats(0.0, 30 * 86_400.0))
@settings(max_examples=50, deadline=None)
def test_looks_rise_and_the_last_is_the_end_of_the_bake(bake_s: float) -> None:
    looks = look_minutes(bake_s)
    assert looks[-1] == bake_s
    assert all(a < b for a, b in pairwise(looks))
    assert all(at_s >= FIRST_S for at_s in looks[:-1])
    assert look_number(looks, bake_s) == len(looks)


def test_number_of_the_look_that_is_due() -> None:
    looks = look_minutes(600.0)
    assert look_number(looks, 149.0) == 0
    assert look_number(looks, 150.0) == 1
    assert look_number(looks, 1e9) == len(looks)


def test_metrics_have_names_and_kinds() -> None:
    assert metric_of("error_rate") is METRICS["error_rate"]
    assert metric_of("rss").kind is Kind.LEVEL
    counter = metric_of("counter:frames_dropped")
    assert (counter.kind, counter.worse) == (Kind.RATE, "higher")
    assert counter.words == "events counted as frames_dropped"


@pytest.mark.parametrize("name", ["", "errors", "counter:", "counter:a b"])
def test_an_unknown_metric_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(KeyError, match="is not known: it is one of error_rate, "):
        metric_of(name)
