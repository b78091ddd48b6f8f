"""Bets on outcomes a device has once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fleet.rollout.gate.binary import alarm_level, e_process, failure_budget, silence_tail


@given(st.lists(st.booleans(), max_size=40), st.sampled_from([0.01, 0.03, 0.1, 0.3]))
@settings(max_examples=50, deadline=None)
def test_wealth_is_the_mean_of_the_products(outcomes: list[bool], p0: float) -> None:
    rates = {q for q in (1.5 * p0, 2 * p0, 4 * p0, 8 * p0, 0.25, 0.5, 0.9) if p0 < q < 1}
    found = e_process(np.array(outcomes, dtype=np.bool_), p0)
    for number in range(len(outcomes)):
        seen = outcomes[: number + 1]
        products = [
            np.prod([q / p0 if failed else (1 - q) / (1 - p0) for failed in seen]) for q in rates
        ]
        assert found[number] == pytest.approx(np.mean(products))


@pytest.mark.parametrize("p0", [0.01, 0.1, 0.4])
def test_the_bet_is_fair(p0: float) -> None:
    """Summed over all outcomes of six devices, W is expected to be 1 after each."""
    cases = [[bool(code >> bit & 1) for bit in range(6)] for code in range(64)]
    weights = [np.prod([p0 if failed else 1 - p0 for failed in case]) for case in cases]
    wealth = np.array([e_process(np.array(case), p0) for case in cases])
    assert np.dot(weights, wealth) == pytest.approx(np.ones(6))


def test_false_alarms_are_below_their_share() -> None:
    rng = np.random.default_rng(1)
    reached = sum(
        e_process(rng.random(300) < 0.02, 0.02).max() >= alarm_level(0.4) for _ in range(400)
    )
    assert reached <= 400 * 0.1 + 3 * (400 * 0.1 * 0.9) ** 0.5


def test_total_failure_is_found_after_a_few_devices() -> None:
    wealth = e_process(np.ones(10, dtype=np.bool_), 0.01)
    assert int(np.argmax(wealth >= alarm_level(0.01))) + 1 == 2
    assert np.isfinite(e_process(np.ones(5000, dtype=np.bool_), 0.01)).all()


def test_a_budget_that_nothing_breaks_never_alarms() -> None:
    assert e_process(np.ones(50, dtype=np.bool_), 0.9).tolist() == [1.0] * 50
    assert len(e_process(np.array([], dtype=np.bool_), 0.1)) == 0


@pytest.mark.parametrize("p0", [0.0, 1.0, -0.1])
def test_a_budget_that_is_no_rate_is_refused(p0: float) -> None:
    with pytest.raises(ValueError, match="is no rate: write one above 0 and below 1"):
        e_process(np.array([True]), p0)


def test_the_budget_is_what_past_rollouts_make_likely() -> None:
    assert failure_budget(0, 0) == 0.01
    assert failure_budget(0, 10_000) == 0.01
    assert failure_budget(5, 100) == pytest.approx(stats.beta.ppf(0.95, 5.5, 95.5))
    assert failure_budget(3, 3) == 0.9


def test_silence_of_both_arms_blames_nobody() -> None:
    assert silence_tail((10, 90), (20, 180)) > 0.4
    assert silence_tail((10, 2), (20, 180)) < 1e-7
    assert silence_tail((0, 5), (20, 180)) == 1.0
