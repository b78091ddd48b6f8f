"""Both arms on each device: a device is its own control."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from fleet.rollout.gate.opening import FIXED_ABOVE
from fleet.rollout.gate.paired import ArmCounts, look_paired
from fleet.rollout.gate.ring import POOLED, Counts, Ring, State
from fleet.rollout.gate.verdict import Verdict
from tests.support.rings import Population, Setting, counts_of, population

SETTING = Setting(size=60, canaries=60, alpha=0.01)


@pytest.fixture(scope="module")
def drawn() -> Population:
    return population(np.random.default_rng(1), SETTING)


def arms(drawn: Population, factor: float, seed: int = 3, shared: float = 1.0) -> ArmCounts:
    """An hour of both arms, a tenth of the requests to the new one."""
    rng = np.random.default_rng(seed)
    made = []
    for per_minute, times in ((3.0, factor), (27.0, 1.0)):
        total = rng.poisson(per_minute * 60, drawn.ring.size)
        rates = np.clip(drawn.rates * times * shared, 0, 1)
        made.append(counts_of(drawn.ring.metrics, rng.binomial(total, rates), total))
    return ArmCounts(*made)


def even(drawn: Population, seed: int) -> ArmCounts:
    """Two arms that are alike, also in their number of requests."""
    rng = np.random.default_rng(seed)
    total = rng.poisson(600, (2, drawn.ring.size))
    made = [
        counts_of(drawn.ring.metrics, rng.binomial(total[arm], drawn.rates), total[arm])
        for arm in (0, 1)
    ]
    return ArmCounts(*made)


def test_a_worse_bundle_fails(drawn: Population) -> None:
    result, state = look_paired(drawn.ring, State(), arms(drawn, 3.0), 16)
    assert result.verdict is Verdict.FAIL
    assert result.reason.startswith("the canary devices have worse error_rate")
    assert (result.reported, result.canaries, state.looks) == (60, 60, 16)


def test_arms_that_are_alike_are_as_good_either_way(drawn: Population) -> None:
    """Swapping the names of the arms turns the statistic around, and nothing else."""
    given = even(drawn, 7)
    one, after = look_paired(drawn.ring, State(), given, 8)
    other, _ = look_paired(drawn.ring, State(), ArmCounts(given.stable, given.new), 8)
    assert one.verdict is other.verdict is Verdict.PASS
    assert one.t_real == pytest.approx(-other.t_real)  # type: ignore[operator]
    assert after.tests[POOLED].removed == 25
    # The sum over devices is nearly normal: its deviations and its rank say the same.
    assert one.t_real == pytest.approx(-NormalDist().inv_cdf(one.p_value), abs=0.15)


def test_ranks_of_arms_that_are_alike_are_uniform(drawn: Population) -> None:
    found = np.array(
        [look_paired(drawn.ring, State(), even(drawn, seed), 1)[0].p_value for seed in range(120)]
    )
    assert found.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / 120) ** 0.5)
    assert np.mean(found <= 0.1) <= 0.1 + 4 * (0.09 / 120) ** 0.5


def test_trouble_of_a_device_is_in_both_arms(drawn: Population) -> None:
    rng = np.random.default_rng(6)
    sick = replace(drawn, rates=np.where(rng.random(60) < 0.2, 0.9, drawn.rates))
    total = np.full(60, 500)
    both = [counts_of(("error_rate",), rng.binomial(total, sick.rates), total) for _ in range(2)]
    assert look_paired(drawn.ring, State(), ArmCounts(*both), 16)[0].verdict is Verdict.PASS


def test_no_data_in_an_arm_holds(drawn: Population) -> None:
    full = even(drawn, 1).new
    result, state = look_paired(drawn.ring, State(), ArmCounts(Counts(), full), 3)
    assert result.verdict is Verdict.HOLD
    assert result.reason == "no device has reported enough in both arms to be compared"
    assert state == State()


def test_a_very_large_ring_is_judged_by_the_formula() -> None:
    setting = Setting(size=FIXED_ABOVE + 50, canaries=FIXED_ABOVE + 50)
    big = population(np.random.default_rng(1), setting)
    calm, state = look_paired(big.ring, State(), even(big, 2), 4)
    assert (big.ring.virtual, calm.verdict, state.looks) == (0, Verdict.PASS, 4)
    assert look_paired(big.ring, state, arms(big, 1.5), 5)[0].verdict is Verdict.FAIL


def test_rings_with_control_and_looks_that_are_none_are_refused(drawn: Population) -> None:
    half: Ring = replace(drawn.ring, cohort=np.arange(60) < 30)
    with pytest.raises(ValueError, match=r"has control devices: compare them with look\(\)"):
        look_paired(half, State(), even(drawn, 1), 1)
    with pytest.raises(ValueError, match="it has looks 1 to 16"):
        look_paired(drawn.ring, State(), even(drawn, 1), 17)
