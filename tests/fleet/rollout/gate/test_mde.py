"""The smallest effect a ring can find, and the effects it reports."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.gate_mde import power, predicted
from fleet.rollout.gate.mde import (
    MOST,
    level_effect,
    rate_effect,
    smallest_effect,
    smallest_level_effect,
)
from fleet.rollout.gate.ring import Counts
from fleet.rollout.gate.tails import normal_quantile
from fleet.rollout.gate.telling import planned_effects
from tests.support.rings import Setting, population

V = np.random.default_rng(1).gamma(20, 0.05, 500)


@given(st.integers(2, 498), st.sampled_from([0.01, 0.0033, 1e-4]))
@settings(max_examples=30, deadline=None)
def test_it_solves_its_equation(canaries: int, alpha: float) -> None:
    factor = smallest_effect(V, canaries, 500, alpha)
    rise = np.log1p(factor * V).mean() - np.log1p(V).mean()
    deviation = np.log1p(V).std(ddof=1)
    reach = normal_quantile(1 - alpha / 8) + normal_quantile(0.9)
    wanted = reach * deviation * math.sqrt(1 / (canaries * (1 - canaries / 500)))
    assert rise == pytest.approx(wanted, rel=1e-6)


def test_larger_cohorts_see_smaller_effects() -> None:
    factors = [smallest_effect(V, canaries, 2000, 0.003) for canaries in (20, 100, 500)]
    assert factors[0] > factors[1] > factors[2] > 1


@pytest.mark.parametrize(
    ("v", "canaries", "size"),
    [
        (V, 0, 500),
        (V, 500, 500),
        (V[:1], 5, 500),
        (np.zeros(100), 5, 100),
        (np.array([]), 5, 100),
        (np.r_[np.zeros(90), np.ones(10)], 1, 2),
    ],
)
def test_what_cannot_be_said_is_infinite(v: np.ndarray, canaries: int, size: int) -> None:
    assert smallest_effect(v, canaries, size, 0.003) == math.inf


def test_power_at_the_predicted_effect() -> None:
    """Short form of benchmarks/gate_mde.py, where it is measured at 20, 100 and 500 of 2,000."""
    setting = Setting(size=300, canaries=40, alpha=0.01 / 3, bake_s=1890.0)
    factor = predicted(setting, 5, rings=3)
    assert 1.2 < factor < 1.8
    assert 0.75 <= power(setting, factor, 5, 40).share <= 1.0
    assert power(setting, 1 + (factor - 1) / 3, 5, 20).share < 0.5


def test_the_effect_of_a_multiple_is_that_multiple() -> None:
    effect, low, high = rate_effect(1.7 * V, V)
    assert effect == pytest.approx(1.7, rel=1e-6)
    assert low < 1.7 < high
    assert rate_effect(V * 0.5, V)[0] == pytest.approx(0.5, rel=1e-6)


def test_effects_at_their_ends() -> None:
    assert math.isnan(rate_effect(V[:1], V)[0])
    assert rate_effect(V, np.zeros(50))[0] == math.inf
    assert math.isnan(rate_effect(np.zeros(50), np.zeros(50))[0])
    assert rate_effect(np.zeros(50), V)[0] == 0.0
    assert rate_effect(V * 1e9, V)[0] == math.inf  # beyond MOST
    assert MOST == 1000.0


def test_the_effect_of_levels_is_against_what_was_to_be_expected() -> None:
    past = np.full(50, 100.0)
    wobble = np.linspace(-1, 1, 50)
    effect, low, high = level_effect((past + 32 + wobble, past), (past + 10 + wobble, past))
    assert effect == pytest.approx(132 / 110)
    assert low < effect < high
    assert math.isnan(level_effect((past - 200, past), (past - 200, past))[0])


def test_the_smallest_effect_of_a_level_moves_its_ranks() -> None:
    rng = np.random.default_rng(2)
    past = rng.normal(100.0, 10.0, 400)
    level = past + rng.normal(0.0, 2.0, 400)
    factor = smallest_level_effect(level, past, (40, 440), 0.003)
    # About reach * 2 / sqrt(40) of 100: 1.5 %.
    assert 1.008 < factor < 1.025
    assert smallest_level_effect(-level, -past, (40, 440), 0.003) == math.inf


def test_effects_are_planned_from_the_past() -> None:
    setting = Setting(size=300, canaries=30, metrics=("error_rate", "rss"))
    drawn = population(np.random.default_rng(1), setting)
    total = np.full(300, 1800)
    bad = np.random.default_rng(2).binomial(total, drawn.rates[0])
    planned = planned_effects(drawn.ring, Counts({"error_rate": bad}, {"error_rate": total}))
    assert planned.keys() == {"error_rate"}  # nothing is known of rss, and it is no rate
    assert planned["error_rate"] is not None
    assert 1.1 < planned["error_rate"] < 1.7
