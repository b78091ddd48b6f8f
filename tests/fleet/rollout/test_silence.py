"""Silence counts against a bundle only when the rest of the fleet is not silent alike."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.rollout.silence import BLAME_P, is_excused, tail_probability


@pytest.mark.parametrize(
    ("at_risk", "silent", "control", "control_silent", "excused"),
    [
        (10, 0, 90, 0, False),  # nothing to excuse
        (10, 1, 90, 0, False),  # nobody else is silent
        (1, 1, 9, 0, False),
        (10, 10, 90, 90, True),  # the whole fleet is
        (10, 10, 90, 89, True),  # one came back first
        (10, 10, 90, 45, False),  # half of the others against all of these
        (10, 5, 90, 45, True),
        (10, 10, 0, 0, True),  # everyone has the bundle, and nobody is heard
        (10, 9, 0, 0, False),  # everyone has it, and one is heard
    ],
)
def test_cases(at_risk: int, silent: int, control: int, control_silent: int, excused: bool) -> None:
    assert is_excused(at_risk, silent, control, control_silent) is excused


def test_the_tail_is_fishers() -> None:
    # 3 of 5 silent here, 1 of 5 there: (C(4,3) C(6,2) + C(4,4) C(6,1)) / C(10,5)
    expected = (4 * 15 + 1 * 6) / 252
    assert math.isclose(tail_probability(5, 3, 5, 1), expected, rel_tol=1e-9)
    assert math.isclose(tail_probability(5, 0, 5, 3), 1.0, rel_tol=1e-9)


@given(st.data())
def test_more_silence_is_never_excused_more(data: st.DataObject) -> None:
    at_risk = data.draw(st.integers(1, 200))
    silent = data.draw(st.integers(1, at_risk))
    control = data.draw(st.integers(1, 200))
    control_silent = data.draw(st.integers(0, control))
    if silent < at_risk and not is_excused(at_risk, silent, control, control_silent):
        assert not is_excused(at_risk, silent + 1, control, control_silent)


def test_false_blame_is_rare_when_the_arms_are_alike() -> None:
    """Over every way 20 silent devices can fall on 10 canaries and 90 others."""
    pool, canaries, marked = 100, 10, 20
    blamed = sum(
        math.comb(marked, hits) * math.comb(pool - marked, canaries - hits)
        for hits in range(1, canaries + 1)
        if not is_excused(canaries, hits, pool - canaries, marked - hits)
    )
    assert blamed / math.comb(pool, canaries) <= BLAME_P
