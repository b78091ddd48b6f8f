"""Own baselines: shrinkage, floors, and what stands in for no history."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollout.gate.baseline import UNKNOWN_RATE, level_baseline, rate_baseline


def test_a_rate_is_between_the_devices_own_and_the_pools() -> None:
    rng = np.random.default_rng(1)
    total = np.full(500, 1000)
    bad = rng.binomial(total, rng.beta(2, 98, 500))
    found = rate_baseline(bad, total)
    own = bad / total
    low, high = np.minimum(own, found.mu), np.maximum(own, found.mu)
    assert np.all((found.p >= low - 1e-12) & (found.p <= high + 1e-12))
    # Beta(2, 98) has an intra-class correlation of 1/101: kappa 100.
    assert found.kappa == pytest.approx(100, rel=0.3)
    assert found.known == 500


def test_devices_that_are_alike_are_shrunk_to_the_pool() -> None:
    rng = np.random.default_rng(2)
    total = np.full(300, 200)
    found = rate_baseline(rng.binomial(total, 0.05), total)
    assert found.kappa > 1000
    assert found.p.std() < 0.005


def test_no_history_is_the_pools_rate() -> None:
    found = rate_baseline(np.array([5, 0, 3]), np.array([100, 0, 100]))
    assert found.p[1] == pytest.approx(found.mu) == pytest.approx(0.04)
    assert found.known == 2


def test_nobody_has_a_history() -> None:
    nothing = np.zeros(3, dtype=np.int64)
    found = rate_baseline(nothing, nothing)
    assert found.p.tolist() == [UNKNOWN_RATE] * 3
    assert found.known == 0


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1)), min_size=1, max_size=30),
)
@settings(max_examples=50, deadline=None)
def test_no_rate_is_ever_zero_or_above_one(devices: list[tuple[int, float]]) -> None:
    total = np.array([number for number, _ in devices])
    bad = np.array([int(number * share) for number, share in devices])
    found = rate_baseline(bad, total)
    assert np.all(found.p > 0)
    assert np.all(found.p <= 1 + 1e-12)
    if total.sum():
        assert np.all(found.p >= 1 / (2 * (total + found.kappa)) - 1e-15)


def test_levels_take_the_pools_mean_where_there_is_none() -> None:
    found = level_baseline(np.array([10.0, np.nan, 20.0]))
    assert found.p.tolist() == [10.0, 15.0, 20.0]
    assert (found.mu, found.known) == (15.0, 2)
    assert level_baseline(np.array([np.nan])).known == 0
