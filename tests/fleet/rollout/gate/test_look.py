"""One look and whole rings: what alarms, what holds, and what must make no difference."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from fleet.rollout.gate.evidence import as_json
from fleet.rollout.gate.look import NO_CONTROL, look
from fleet.rollout.gate.opening import FIXED_ABOVE
from fleet.rollout.gate.ring import POOLED, Counts, Ring, State
from fleet.rollout.gate.verdict import Verdict
from tests.support.rings import (
    Population,
    Setting,
    cohort_factor,
    counts_of,
    play,
    population,
    swapped,
)

FLEET = Setting(size=300, canaries=30, alpha=0.01 / 3)


@pytest.fixture(scope="module")
def drawn() -> Population:
    return population(np.random.default_rng(1), FLEET)


def minutes(drawn: Population, factor: object = 1.0, length: float = 60.0, seed: int = 9) -> Counts:
    """What every device has counted after so many minutes."""
    rng = np.random.default_rng(seed)
    rates = np.clip(drawn.rates * np.asarray(factor), 0, 1)
    total = rng.poisson(drawn.setting.per_minute * length, drawn.ring.size)
    return counts_of(drawn.ring.metrics, rng.binomial(total, rates), total)


def test_nothing_changed_passes_every_look(drawn: Population) -> None:
    results = [result for result, _, _ in play(np.random.default_rng(2), drawn)]
    assert len(results) == len(drawn.ring.looks_s)
    assert {result.verdict for result in results} == {Verdict.PASS}
    last = results[-1]
    assert last.reason.startswith("no difference between the arms at look 16 of 16; the nearest")
    assert (last.reported, last.canaries) == (30, 30)


def test_twice_the_errors_are_found(drawn: Population) -> None:
    factor = cohort_factor(drawn.ring, 2.0)
    *_, (result, state, _) = play(np.random.default_rng(2), drawn, factor)
    assert result.verdict is Verdict.FAIL
    assert result.look <= 8
    assert result.driver == "error_rate"
    metric = result.metrics[0]
    # Found when it happens to look large: the estimate at an alarm is higher than the truth.
    assert metric.low is not None
    assert metric.low > 1.0
    assert result.reason.startswith("the canary devices have worse error_rate, failed requests: ")
    assert f"of {drawn.ring.virtual} random groups of as many devices were as bad" in result.reason
    assert state.looks == result.look


def test_everything_fails_at_the_first_look(drawn: Population) -> None:
    factor = np.where(drawn.ring.cohort, 1e6, 1.0)
    (first, *_) = play(np.random.default_rng(3), drawn, factor)
    result = first[0]
    assert (result.look, result.verdict) == (1, Verdict.FAIL)
    assert result.p_value == 1 / (drawn.ring.virtual + 1)


def test_the_bundle_is_not_blamed_for_being_better(drawn: Population) -> None:
    *_, (result, _, _) = play(np.random.default_rng(4), drawn, cohort_factor(drawn.ring, 0.3))
    assert result.verdict is Verdict.PASS
    assert result.p_value > 0.99


def test_arms_swapped(drawn: Population) -> None:
    """What is worse for the one is better for the other, by as many deviations."""
    counts = minutes(drawn, cohort_factor(drawn.ring, 1.5))
    one, _ = look(drawn.ring, State(), counts, 16)
    other, _ = look(swapped(drawn.ring), State(), counts, 16)
    assert one.verdict is Verdict.FAIL
    assert other.verdict is Verdict.PASS
    assert one.t_real is not None
    assert other.t_real is not None
    assert other.t_real == pytest.approx(-one.t_real, rel=0.05)
    assert one.metrics[0].cohort == other.metrics[0].control


def test_order_of_devices_makes_no_difference(drawn: Population) -> None:
    """The identity of devices is nothing but a place: moved with their data, results are the same."""
    ring, counts = drawn.ring, minutes(drawn, cohort_factor(drawn.ring, 1.2))
    order = np.random.default_rng(5).permutation(ring.size)
    base = ring.baseline["error_rate"]
    moved = replace(
        ring, cohort=ring.cohort[order], baseline={"error_rate": replace(base, p=base.p[order])}
    )
    shuffled = counts_of(
        ring.metrics, counts.bad["error_rate"][order][None], counts.total["error_rate"][order]
    )
    one, other = look(ring, State(), counts, 1)[0], look(moved, State(), shuffled, 1)[0]
    assert other.metrics[0].cohort == one.metrics[0].cohort
    assert other.metrics[0].smallest == pytest.approx(one.metrics[0].smallest)
    # The virtual cohorts now hold other devices: equal but for the chance of the draw.
    assert other.p_value == pytest.approx(one.p_value, abs=0.03)


def test_ranks_are_uniform_by_enumeration() -> None:
    """Every cohort of 3 of 9 devices as the real one, in the same data: ranks are at most as often
    small as they say, for correlated metrics and ties."""
    setting = Setting(size=9, canaries=3, metrics=("error_rate", "over_latency_rate"), icc=0.2)
    drawn = population(np.random.default_rng(6), setting)
    counts = minutes(drawn, length=3.0)
    ranks = []
    for chosen in combinations(range(9), 3):
        cohort = np.isin(np.arange(9), chosen)
        ranks.append(look(replace(drawn.ring, cohort=cohort), State(), counts, 1)[0].p_value)
    found = np.array(ranks)
    for alpha in (0.05, 0.1, 0.25, 0.5, 0.9):
        assert np.mean(found <= alpha) <= alpha + 0.02  # 4,999 draws of 84 subsets
    assert np.mean(found <= 0.5) > 0.4  # and not by never being small


def test_false_alarms_of_whole_rings_are_alpha() -> None:
    """Looked at nine times, at an alpha that forty rings can show."""
    setting = Setting(size=100, canaries=20, alpha=0.2, bake_s=810.0)
    failed = 0
    for number in range(40):
        rng = np.random.default_rng([7, number])
        *_, (result, _, _) = play(rng, population(rng, replace(setting, rollout_id=f"r{number}")))
        failed += result.verdict is Verdict.FAIL
    assert 1 <= failed <= 16  # 8 expected, deviation 2.5


def test_an_incident_of_the_whole_fleet_blames_nobody(drawn: Population) -> None:
    """Every device fails ten times as often."""
    for seed in (1, 2, 3):
        result, _ = look(drawn.ring, State(), minutes(drawn, 10.0, seed=seed), 16)
        assert result.verdict is Verdict.PASS


def test_broken_devices_blame_nobody() -> None:
    """Two in a hundred fail always, in both arms, and did before."""
    failed = 0
    for number in range(12):
        rng = np.random.default_rng([8, number])
        setting = replace(FLEET, alpha=0.05, rollout_id=f"r{number}")
        drawn = population(rng, setting)
        broken = rng.random(drawn.ring.size) < 0.02
        rates = np.where(broken, 1.0, drawn.rates)
        *_, (result, _, _) = play(rng, replace(drawn, rates=rates))
        failed += result.verdict is Verdict.FAIL
    assert failed <= 3


def test_an_outage_of_the_metric_holds_and_spends_nothing(drawn: Population) -> None:
    before = look(drawn.ring, State(), minutes(drawn, length=1.0), 1)[1]
    silent = counts_of(
        drawn.ring.metrics, np.zeros((1, 300), dtype=np.int64), np.zeros(300, dtype=np.int64)
    )
    for counts in (Counts(), silent):
        result, after = look(drawn.ring, before, counts, 2)
        assert result.verdict is Verdict.HOLD
        assert result.reason == "no device has reported enough to be compared"
        assert after == before


def test_silence_of_the_cohort_is_no_alarm(drawn: Population) -> None:
    """Its windows are missing: what control says condemns nobody."""
    counts = minutes(drawn)
    mask = ~drawn.ring.cohort
    gone = counts_of(
        drawn.ring.metrics, counts.bad["error_rate"][None] * mask, counts.total["error_rate"] * mask
    )
    result, _ = look(drawn.ring, State(), gone, 16)
    assert result.verdict is Verdict.PASS
    assert (result.reported, result.t_real) == (0, None)
    assert result.reason.endswith("no canary device has reported enough yet")


def test_a_fleet_manager_killed_between_two_looks_goes_on_as_if_not(drawn: Population) -> None:
    factor = cohort_factor(drawn.ring, 1.3)
    straight = [
        (result, state) for result, state, _ in play(np.random.default_rng(5), drawn, factor)
    ]
    ring, state = Ring.from_bytes(drawn.ring.to_bytes()), State()
    for number, (_, _, counts) in enumerate(play(np.random.default_rng(5), drawn, factor), 1):
        result, state = look(ring, State.from_bytes(state.to_bytes()), counts, number)
        assert as_json(result) == as_json(straight[number - 1][0])
    assert state.to_bytes() == straight[-1][1].to_bytes()
    assert state.tests[POOLED].removed == 16


def test_missed_looks_are_spent_with_the_next(drawn: Population) -> None:
    _, state = look(drawn.ring, State(), minutes(drawn), 5)
    assert (state.looks, state.tests[POOLED].removed) == (5, 5)
    again, same = look(drawn.ring, state, minutes(drawn), 5)
    assert same == state
    assert again.pooled.allowed == 0


@pytest.mark.parametrize("number", [0, 17])
def test_a_look_that_is_none_is_refused(drawn: Population, number: int) -> None:
    with pytest.raises(ValueError, match="it has looks 1 to 16"):
        look(drawn.ring, State(), Counts(), number)


def test_a_cohort_of_the_wrong_size_holds(drawn: Population) -> None:
    ring = replace(drawn.ring, percent_bp=2500)  # 75 were to be expected
    counts = minutes(drawn, cohort_factor(ring, 5.0))
    result, state = look(ring, State(), counts, 16)
    assert result.verdict is Verdict.HOLD
    assert "30 of 300 devices are in the cohort and 25 % were asked for" in result.reason
    assert state == State()


def test_without_control_statistics_cannot_judge(drawn: Population) -> None:
    everyone = replace(drawn.ring, cohort=np.ones(300, dtype=np.bool_), percent_bp=10_000)
    result, _ = look(everyone, State(), minutes(drawn, 50.0), 16)
    assert (result.verdict, result.reason) == (Verdict.HOLD, NO_CONTROL)
    nobody = replace(drawn.ring, cohort=np.zeros(300, dtype=np.bool_))
    assert look(nobody, State(), Counts(), 1)[0].reason.startswith("no device is in the cohort")


def test_one_bad_metric_among_many_drives_the_alarm() -> None:
    metrics = ("error_rate", "over_latency_rate", "output_violation_rate", "rss")
    drawn = population(np.random.default_rng(1), replace(FLEET, metrics=metrics))
    rng = np.random.default_rng(2)
    factor = np.ones((4, 300))
    factor[1, drawn.ring.cohort] = 2.0
    counts = minutes(drawn, factor)
    counts = Counts(counts.bad, counts.total, {"rss": rng.normal(1e8, 1e6, 300)})
    result, _ = look(drawn.ring, State(), counts, 16)
    assert (result.verdict, result.driver) == (Verdict.FAIL, "over_latency_rate")
    assert [m.name for m in result.metrics] == list(metrics)
    leak = Counts(
        minutes(drawn).bad,
        minutes(drawn).total,
        {"rss": rng.normal(1e8, 1e6, 300) + 2e6 * drawn.ring.cohort},
    )
    result, _ = look(drawn.ring, State(), leak, 16)
    assert (result.verdict, result.driver) == (Verdict.FAIL, "rss")


def test_silence_of_one_metric_hides_no_other() -> None:
    metrics = ("error_rate", "over_latency_rate")
    drawn = population(np.random.default_rng(1), replace(FLEET, metrics=metrics))
    counts = minutes(drawn, cohort_factor(drawn.ring, 3.0))
    mute = np.where(drawn.ring.cohort, 0, counts.total["over_latency_rate"])
    counts = Counts(counts.bad, {**counts.total, "over_latency_rate": mute})
    result, _ = look(drawn.ring, State(), counts, 16)
    assert (result.verdict, result.driver) == (Verdict.FAIL, "error_rate")
    assert result.metrics[1].z is None


def test_a_cohort_too_large_for_virtual_ones_is_judged_by_the_formula() -> None:
    ring_of = Setting(size=2 * FIXED_ABOVE + 20, canaries=FIXED_ABOVE + 10)
    drawn = population(np.random.default_rng(1), ring_of)
    assert drawn.ring.virtual == 0
    calm, state = look(drawn.ring, State(), minutes(drawn), 8)
    assert calm.verdict is Verdict.PASS
    assert state.looks == 8
    bad = minutes(drawn, cohort_factor(drawn.ring, 1.1))
    worse, _ = look(drawn.ring, state, bad, 16)
    assert worse.verdict is Verdict.FAIL
    assert worse.p_value < 1e-6
    assert look(drawn.ring, replace(state, looks=16), bad, 16)[0].verdict is Verdict.PASS


@pytest.fixture(scope="module")
def two() -> Population:
    setting = Setting(size=400, canaries=100, strata=("edge/cpu", "edge/gpu"), alpha=0.01 / 3)
    return population(np.random.default_rng(1), setting)


class TestStrata:
    """Two classes of devices, of which one cannot stand the bundle."""

    def only_gpu(self, two: Population, factor: float) -> np.ndarray:
        gpu = two.ring.strata == two.ring.stratum_names.index("edge/gpu")
        return np.where(two.ring.cohort & gpu, factor, 1.0)

    def test_the_stratum_is_stopped_and_the_others_go_on(self, two: Population) -> None:
        rng = np.random.default_rng(3)
        seen = list(play(rng, two, self.only_gpu(two, 1.45)))
        stops = [result for result, _, _ in seen if result.newly_stopped]
        assert [result.newly_stopped for result in stops] == [("edge/gpu",)]
        assert (
            "; stratum edge/gpu is stopped: the canary devices of edge/gpu have" in stops[0].reason
        )
        result, state, _ = seen[-1]
        assert (result.verdict, result.look) == (Verdict.PASS, 16)
        assert state.stopped == result.stopped == ("edge/gpu",)
        assert [one.name for one in result.strata] == ["edge/cpu"]
        spending = state.tests[POOLED]
        assert spending.since == stops[0].look
        # Before and after, no more than the budget of the test over all devices.
        budget = two.ring.tests[POOLED] * (two.ring.virtual + 1)
        assert spending.before + spending.removed <= budget + 1e-9

    def test_total_failure_of_one_stops_it_and_nothing_else(self, two: Population) -> None:
        """Both tests alarm at the first look, and without the stratum nothing is wrong."""
        seen = list(play(np.random.default_rng(3), two, self.only_gpu(two, 1e6)))
        assert seen[0][0].newly_stopped == ("edge/gpu",)
        assert seen[0][0].verdict is Verdict.PASS
        assert (seen[-1][0].verdict, seen[-1][0].look) == (Verdict.PASS, 16)
        spending = seen[0][1].tests[POOLED]
        assert (spending.since, spending.before) == (1, seen[0][0].pooled.allowed)

    def test_total_failure_of_both_fails_the_ring(self, two: Population) -> None:
        (first, *_) = play(np.random.default_rng(3), two, np.where(two.ring.cohort, 1e6, 1.0))
        assert (first[0].verdict, first[0].look) == (Verdict.FAIL, 1)

    def test_nothing_is_left_when_every_stratum_is_stopped(self, two: Population) -> None:
        state = replace(State(), stopped=("edge/cpu", "edge/gpu"))
        result, _ = look(two.ring, state, minutes(two), 16)
        assert result.verdict is Verdict.FAIL
        assert result.reason == "every stratum with canary devices is stopped: edge/cpu, edge/gpu"

    def test_false_alarms_of_strata_and_of_all_together_are_within_alpha(self) -> None:
        setting = Setting(size=100, canaries=40, alpha=0.2, bake_s=510.0, strata=("a", "b"))
        alarms = 0
        for number in range(40):
            rng = np.random.default_rng([11, number])
            drawn = population(rng, replace(setting, rollout_id=f"r{number}"))
            *_, (result, state, _) = play(rng, drawn)
            alarms += result.verdict is Verdict.FAIL or bool(state.stopped)
        assert 1 <= alarms <= 16  # at most 8 expected, deviation 2.5

    def test_very_large_strata_are_judged_by_the_formula(self) -> None:
        size = 2 * FIXED_ABOVE + 20
        setting = Setting(size=size, canaries=size // 2, strata=("edge/cpu", "edge/gpu"))
        drawn = population(np.random.default_rng(1), setting)
        assert drawn.ring.virtual == 0
        counts = minutes(drawn, self.only_gpu(drawn, 1.5))
        result, state = look(drawn.ring, State(), counts, 8)
        assert (result.verdict, result.newly_stopped) == (Verdict.PASS, ("edge/gpu",))
        after, _ = look(drawn.ring, state, counts, 9)
        assert (after.verdict, [one.name for one in after.strata]) == (Verdict.PASS, ["edge/cpu"])
        both = replace(state, stopped=("edge/cpu", "edge/gpu"))
        assert look(drawn.ring, both, counts, 9)[0].verdict is Verdict.FAIL
