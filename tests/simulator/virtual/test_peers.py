"""The rules of other tools on series whose answer can be worked out by hand, or with another program."""

import math

import numpy as np
import pytest

from simulator.virtual import Candidate, Setting, VirtualWorld
from simulator.virtual.peers import (
    ArgoAnalysis,
    FixedThreshold,
    FlaggerChecks,
    KayentaJudge,
    Minutes,
    MixtureSprt,
    Rollback,
    peers,
    strict_peers,
    tally_minutes,
)


def ring(
    canary: list[int], control: list[int] | None = None, requests: int = 1000, scale: int = 100
) -> Minutes:
    """Minutes with so many failures of ``requests`` on the canary, and ``scale`` times the requests beside it."""
    beside = control if control is not None else [20] * len(canary)
    return Minutes(
        np.array(canary),
        np.full(len(canary), requests),
        np.array(beside) * scale,
        np.full(len(canary), requests * scale),
    )


RULES = (*peers(0.02), *strict_peers(0.02))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
class TestEveryRule:
    def test_lets_equal_arms_through(self, rule):
        assert rule.judge([ring([20] * 60)] * 3) is None

    def test_finds_a_total_failure_in_the_first_ring(self, rule):
        found = rule.judge([ring([1000] * 60)] * 3)
        assert found is not None
        assert (found.ring, found.minute <= 20) == (0, True)

    def test_finds_in_a_later_ring_what_only_shows_there(self, rule):
        found = rule.judge([ring([20] * 60), ring([200] * 60)])
        assert found is not None
        assert found.ring == 1

    def test_says_nothing_without_data(self, rule):
        nothing = np.zeros(60, np.int64)
        assert rule.judge([Minutes(nothing, nothing, nothing, nothing)]) is None
        assert rule.judge([]) is None

    def test_does_not_mind_a_better_canary(self, rule):
        assert rule.judge([ring([1] * 60)]) is None


def test_a_threshold_is_on_everything_since_the_ring_began():
    rule = FixedThreshold(factor=1.5, warm_up_min=3)
    # 40, 60, 91 of 20, 40, 60: above 1.5 times only in the third minute, and early ones do not count.
    assert rule.judge([ring([40, 20, 31, 0])]) == Rollback(0, 3)
    assert rule.judge([ring([40, 20, 30, 0])]) is None


def test_flagger_counts_failed_checks_over_the_whole_canary():
    rule = FlaggerChecks(min_success=0.97, threshold=3)
    assert rule.judge([ring([31, 20, 31, 20]), ring([20, 31])]) == Rollback(1, 2)
    assert rule.judge([ring([30, 30, 31, 31])]) is None


def test_argo_allows_as_many_failed_measurements_as_its_limit():
    rule = ArgoAnalysis(min_success=0.97, interval_min=2, failure_limit=1)
    assert rule.judge([ring([20, 41, 41, 21, 20, 20])]) == Rollback(0, 4)
    assert rule.judge([ring([20, 41, 20, 20, 20, 20])]) is None
    assert rule.judge([ring([41, 41, 41])]) is None  # an interval that is not over is not measured


def test_kayenta_by_hand():
    judge = KayentaJudge(interval_min=4)
    # Every difference is positive and at least half of the middle one: high.
    assert judge.judge([ring([30, 31, 32, 33], [20, 20, 20, 20])]) == Rollback(0, 4)
    # The arms overlap: the lowest difference is below zero.
    assert judge.judge([ring([19, 31, 32, 33], [20, 20, 20, 20])]) is None
    # All positive, and the lowest less than a quarter of the middle one.
    assert judge.judge([ring([21, 31, 32, 33], [20, 20, 20, 20])]) is None


def test_kayenta_lets_a_small_increase_pass_where_it_is_told_to():
    minutes = [ring([30, 31, 32, 33], [20, 20, 20, 20])]
    assert KayentaJudge(interval_min=4, allowed_increase=1.6).judge(minutes) is None
    assert KayentaJudge(interval_min=4, allowed_increase=1.5).judge(minutes) == Rollback(0, 4)


@pytest.mark.parametrize(("low", "high"), [(5, True), (6, False)])
def test_the_interval_of_kayenta_is_that_of_the_mann_whitney_test(low, high):
    # Of 20 against 20 minutes the 98 % interval begins at the 115th smallest of 400 differences
    # (R: qwilcox(0.01, 20, 20) is 115), which all-equal controls make the 6th smallest canary minute.
    judge = KayentaJudge(interval_min=20)
    found = judge.judge([ring([20] * low + [40] * (20 - low), [20] * 20)])
    assert (found is not None) == high


def test_the_mixture_of_one_minute_by_hand():
    rule = MixtureSprt(tau=0.01, alpha=0.01)
    bad, total, other_bad, other_total = 60, 1000, 2000, 100_000
    rate = (bad + other_bad) / (total + other_total)
    variance = rate * (1 - rate) * (1 / total + 1 / other_total)
    worse = bad / total - other_bad / other_total
    log_ratio = 0.5 * math.log(variance / (variance + 1e-4)) + worse**2 * 1e-4 / (
        2 * variance * (variance + 1e-4)
    )
    assert log_ratio > math.log(100)
    assert rule.judge([ring([60])]) == Rollback(0, 1)
    least = next(n for n in range(20, 60) if MixtureSprt(tau=0.01).judge([ring([n])]))
    assert 30 < least < 60
    # Two rings share the alpha: twice the evidence is needed.
    assert MixtureSprt(tau=0.01).judge([ring([least]), ring([0])]) is None


def test_minutes_of_a_world_have_every_request_once():
    world = VirtualWorld(Setting(candidate=Candidate(error_factor=3.0, install_s=1.0)), 200, 1)
    canary = np.arange(200) < 50
    world.deploy(np.flatnonzero(canary))
    windows, _ = world.advance(600.0)
    minutes = tally_minutes(windows, canary, 0.0, 10)
    assert minutes.control_total.sum() == windows.requests[~canary[windows.device]].sum()
    assert minutes.canary_total.sum() == windows.requests[windows.candidate].sum()
    assert minutes.canary_bad.sum() == windows.failures[windows.candidate].sum()
    assert len(minutes) == 10
    assert tally_minutes(windows, canary, 0.0, 5).control_total.sum() < 0.6 * 600 * 150
