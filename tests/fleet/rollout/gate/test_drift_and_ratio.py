"""Drift beyond chance, and the size of the cohort."""

import numpy as np
import pytest
from scipy import stats

from fleet.rollout.gate.drift import drift_scores
from fleet.rollout.gate.sample_ratio import IMPLAUSIBLE, sample_ratio_p

SHARES = np.array([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("outputs", [30, 300, 3000])
def test_nothing_has_moved_scores_nothing_whatever_the_number(outputs: int) -> None:
    rng = np.random.default_rng(1)
    now = rng.multinomial(outputs, SHARES, 2000)
    past = rng.multinomial(100_000, SHARES, 2000)
    found = drift_scores(now, past)
    assert found.mean() == pytest.approx(0.0, abs=5 * found.std() / 2000**0.5)


def test_a_move_scores_its_size_whatever_the_number() -> None:
    rng = np.random.default_rng(2)
    moved = np.array([0.4, 0.3, 0.2, 0.1])
    size = float(((moved - SHARES) ** 2 / SHARES).sum())
    for outputs in (1000, 5000):
        now = rng.multinomial(outputs, moved, 2000)
        found = drift_scores(now, (SHARES * 1e6).astype(np.int64))
        assert found.mean() == pytest.approx(size, rel=0.05)


def test_too_few_outputs_have_no_score() -> None:
    found = drift_scores(np.array([[10, 9], [10, 10]]), np.array([50, 50]))
    assert np.isnan(found).tolist() == [True, False]


@pytest.mark.parametrize(("canaries", "devices"), [(8, 100), (20, 100), (0, 50), (100, 100)])
def test_the_ratio_is_the_binomial_tail_doubled(canaries: int, devices: int) -> None:
    tails = stats.binom(devices, 0.1)
    wanted = min(1.0, 2 * min(tails.cdf(canaries), tails.sf(canaries - 1)))
    assert sample_ratio_p(canaries, devices, 1000) == pytest.approx(wanted, rel=1e-6, abs=1e-15)


def test_cohorts_of_the_right_size_are_plausible() -> None:
    assert sample_ratio_p(20, 2000, 100) > 0.9
    assert sample_ratio_p(2000, 2000, 10_000) == 1.0
    assert sample_ratio_p(60, 2000, 100) < IMPLAUSIBLE
