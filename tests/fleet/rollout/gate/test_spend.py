"""What a test spends: exact for any data, shown by letting every cohort be the real one in turn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollout.gate.ring import fresh
from fleet.rollout.gate.spend import allowed, spend


def alarms(table: np.ndarray, alpha: float, looks: list[int], total_looks: int) -> int:
    """How many of the cohorts (rows) would alarm at some look (columns) were they the real one."""
    virtual = len(table) - 1
    count = 0
    for real in range(len(table)):
        order = [real, *(row for row in range(len(table)) if row != real)]
        state = fresh(virtual)
        for column, look in enumerate(looks):
            may_drop = allowed(state, alpha, look, total_looks, virtual)
            outcome = spend(state, may_drop, table[order, column])
            state = outcome.spending
            if outcome.alarm:
                count += 1
                break
    return count


values = st.one_of(st.integers(-3, 3).map(float), st.just(-np.inf), st.floats(-5, 5))


@given(
    st.lists(st.lists(values, min_size=4, max_size=4), min_size=20, max_size=20),
    st.sampled_from([0.05, 0.1, 0.25, 0.5]),
    st.sampled_from([[1, 2, 3, 4], [2, 4], [4], [1, 1, 4]]),
)
@settings(max_examples=50, deadline=None)
def test_at_most_alpha_of_all_cohorts_can_alarm(
    rows: list[list[float]], alpha: float, looks: list[int]
) -> None:
    """Whatever the data and however they depend on each other: the false alarms are at most alpha."""
    assert alarms(np.array(rows), alpha, looks, 4) <= alpha * len(rows) + 1e-9


@pytest.mark.parametrize("looks", [[1, 2, 3, 4], [2, 4], [4]])
def test_without_ties_alpha_is_spent_to_the_last(looks: list[int]) -> None:
    table = np.random.default_rng(1).normal(size=(40, len(looks)))
    assert alarms(table, 0.2, looks, 4) == 8


def test_a_look_that_was_missed_is_spent_with_the_next() -> None:
    assert [allowed(fresh(99), 0.04, look, 4, 99) for look in (1, 2, 3, 4)] == [1, 2, 3, 4]
    after = spend(fresh(99), 3, np.r_[-1.0, np.arange(99.0)]).spending
    assert after.removed == 3
    assert np.flatnonzero(~after.alive(99)).tolist() == [96, 97, 98]
    assert allowed(after, 0.04, 3, 4, 99) == 0
    assert allowed(after, 0.04, 4, 4, 99) == 1


def test_no_rounding_eats_a_cohort() -> None:
    for looks in (16, 30, 46):
        for rings in (1, 3, 7):
            alpha = 0.01 / rings
            virtual = int(np.ceil(looks / alpha - 1e-9)) - 1
            assert allowed(fresh(virtual), alpha, 1, looks, virtual) == 1


def test_ties_are_no_alarm() -> None:
    assert not spend(fresh(9), 1, np.zeros(10)).alarm
    assert spend(fresh(9), 1, np.r_[1.0, np.zeros(9)]).alarm
    assert spend(fresh(9), 1, np.r_[1.0, np.zeros(9)]).p_value == 0.1


def test_no_data_is_no_alarm() -> None:
    assert not spend(fresh(9), 10, np.full(10, -np.inf)).alarm


def test_a_test_begun_anew_has_what_was_left() -> None:
    anew = fresh(99, since=2, before=2)
    assert [allowed(anew, 0.04, look, 4, 99) for look in (1, 2, 3, 4)] == [0, 0, 1, 2]
