"""Tails and quantiles against scipy's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from fleet.rollout.gate.tails import (
    beta_quantile,
    hypergeometric_tail,
    incomplete_beta,
    normal_quantile,
    pearson3_tail,
    upper_gamma,
)

shapes = st.floats(0.5, 3000.0)


@given(st.floats(1e-9, 1 - 1e-9))
@settings(max_examples=30, deadline=None)
def test_normal_quantile(probability: float) -> None:
    assert normal_quantile(probability) == pytest.approx(stats.norm.ppf(probability), abs=1e-9)


@given(st.floats(0.0, 1.0), shapes, shapes)
@settings(max_examples=50, deadline=None)
def test_incomplete_beta(x: float, a: float, b: float) -> None:
    assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), rel=1e-8, abs=1e-14)


@given(st.floats(0.001, 0.999), shapes, shapes)
@settings(max_examples=15, deadline=None)
def test_beta_quantile(probability: float, a: float, b: float) -> None:
    assert beta_quantile(probability, a, b) == pytest.approx(
        stats.beta.ppf(probability, a, b), rel=1e-7, abs=1e-12
    )


@given(st.floats(0.01, 50_000.0), st.floats(-5.0, 8.0))
@settings(max_examples=50, deadline=None)
def test_upper_gamma(a: float, deviations: float) -> None:
    x = max(0.0, a + deviations * a**0.5)
    assert upper_gamma(a, x) == pytest.approx(special.gammaincc(a, x), rel=1e-7, abs=1e-13)


@given(st.floats(-4.0, 6.0), st.one_of(st.floats(0.02, 3.0), st.floats(-3.0, -0.02)))
@settings(max_examples=50, deadline=None)
def test_pearson3(z: float, skewness: float) -> None:
    assert pearson3_tail(z, skewness) == pytest.approx(
        stats.pearson3.sf(z, skewness), rel=1e-6, abs=1e-12
    )


def test_pearson3_without_skewness_is_normal() -> None:
    assert pearson3_tail(3.0, 0.0) == pytest.approx(stats.norm.sf(3.0))
    assert pearson3_tail(3.0, 1e-3) == pytest.approx(pearson3_tail(3.0, 9.9e-4), rel=0.01)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 400), st.integers(-2, 60))
@settings(max_examples=50, deadline=None)
def test_hypergeometric_tail(marked: int, drawn: int, size: int, count: int) -> None:
    marked, drawn = min(marked, size), min(drawn, size)
    assert hypergeometric_tail(count, marked, drawn, size) == pytest.approx(
        stats.hypergeom.sf(count - 1, size, marked, drawn), rel=1e-7, abs=1e-13
    )


def test_tails_at_their_ends() -> None:
    assert incomplete_beta(0.0, 2, 3) == 0.0
    assert incomplete_beta(1.0, 2, 3) == 1.0
    assert upper_gamma(3.0, 0.0) == 1.0
    assert hypergeometric_tail(0, 5, 5, 10) == 1.0
    assert hypergeometric_tail(6, 5, 5, 10) == 0.0
