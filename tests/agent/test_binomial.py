"""The exact binomial tail against fractions, and at its edges."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.binomial import upper_tail


def exact(count: int, trials: int, rate: Fraction) -> Fraction:
    return sum(
        (
            math.comb(trials, i) * rate**i * (1 - rate) ** (trials - i)
            for i in range(max(0, count), trials + 1)
        ),
        Fraction(0),
    )


@given(count=st.integers(-2, 62), trials=st.integers(0, 60), percent=st.integers(0, 100))
def test_it_is_the_sum_of_the_exact_terms(count, trials, percent):
    expected = float(exact(count, trials, Fraction(percent, 100)))
    assert upper_tail(count, trials, percent / 100) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "trials", "rate", "tail"),
    [
        (0, 0, 0.5, 1.0),
        (1, 0, 0.5, 0.0),
        (1, 10, 0.0, 0.0),
        (10, 10, 1.0, 1.0),
        (11, 10, 1.0, 0.0),
        (1, 10, 0.01, 1 - 0.99**10),
        (10, 10, 0.1, 1e-10),
    ],
)
def test_edges(count, trials, rate, tail):
    assert upper_tail(count, trials, rate) == pytest.approx(tail, rel=1e-12)


@pytest.mark.parametrize("trials", [1_000, 1_000_000, 100_000_000])
def test_far_above_the_mean_of_many_trials_it_is_as_good_as_nothing_and_at_the_mean_a_half(trials):
    assert upper_tail(trials // 5, trials, 0.1) < 1e-20
    assert upper_tail(trials // 10, trials, 0.1) == pytest.approx(0.5, abs=0.03)
