"""Probation: fails early on what chance cannot explain, passes only in time, never passes what is not a number."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.binomial import upper_tail
from agent.bundle import Objectives
from agent.health.probation import (
    EARLY_CHANCE,
    EARLY_REQUESTS,
    LAST_CHANCE,
    PATIENCE,
    ProbationTotals,
    ProbationVerdict,
    judge,
)

OBJECTIVES = Objectives(
    latency_ms=50,
    max_error_rate=0.1,
    max_over_latency_rate=0.2,
    max_output_violation_rate=0.05,
    probation_s=60,
    probation_min_requests=0,
)
SHORT = replace(OBJECTIVES, max_error_rate=0.01, probation_s=1)
WANTS_30 = replace(OBJECTIVES, probation_min_requests=30)
PASS, FAIL, WAIT = ProbationVerdict.PASS, ProbationVerdict.FAIL, ProbationVerdict.WAIT


@pytest.mark.parametrize(
    ("objectives", "totals", "elapsed_s", "verdict", "code"),
    [
        (OBJECTIVES, ProbationTotals(), 0, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(), 59.9, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(), 60, PASS, "probation_passed"),
        (OBJECTIVES, ProbationTotals(requests=100, failures=10), 60, PASS, "probation_passed"),
        # P(X >= 20 | 100, 10 %) = 0.002, P(X >= 21) = 0.0008
        (OBJECTIVES, ProbationTotals(requests=100, failures=20), 1, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(requests=100, failures=21), 1, FAIL, "probation_error_rate"),
        # P(X >= 15 | 100, 10 %) = 0.073, P(X >= 16) = 0.040
        (OBJECTIVES, ProbationTotals(requests=100, failures=15), 60, PASS, "probation_passed"),
        (OBJECTIVES, ProbationTotals(requests=100, failures=16), 60, FAIL, "probation_error_rate"),
        (OBJECTIVES, ProbationTotals(requests=9, failures=9), 1, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(requests=10, failures=5), 1, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(requests=10, failures=6), 1, FAIL, "probation_error_rate"),
        (OBJECTIVES, ProbationTotals(requests=1, failures=1), 60, PASS, "probation_passed"),
        (OBJECTIVES, ProbationTotals(requests=2, failures=2), 60, FAIL, "probation_error_rate"),
        (OBJECTIVES, ProbationTotals(requests=10, over_objective=7), 1, FAIL, "probation_latency"),
        (
            OBJECTIVES,
            ProbationTotals(requests=10, output_violations=5),
            1,
            FAIL,
            "probation_output_violations",
        ),
        (OBJECTIVES, ProbationTotals(requests=10, non_finite=5), 1, FAIL, "probation_non_finite"),
        (
            OBJECTIVES,
            ProbationTotals(requests=10, input_violations=10),
            60,
            PASS,
            "probation_passed",
        ),
        (OBJECTIVES, ProbationTotals(failures=1), 60, FAIL, "probation_error_rate"),
        (OBJECTIVES, ProbationTotals(stuck=1), 59, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(stuck=1), 60, WAIT, "probation_stuck"),
        (OBJECTIVES, ProbationTotals(requests=99, stuck=1), 599, WAIT, "probation_stuck"),
        (OBJECTIVES, ProbationTotals(requests=99, stuck=1), 600, FAIL, "probation_stuck"),
        (
            OBJECTIVES,
            ProbationTotals(requests=10, failures=6, stuck=1),
            1,
            FAIL,
            "probation_error_rate",
        ),
        (SHORT, ProbationTotals(stuck=1), 119, WAIT, "probation_stuck"),
        (SHORT, ProbationTotals(stuck=1), 120, FAIL, "probation_stuck"),
        (SHORT, ProbationTotals(requests=1), 1, PASS, "probation_passed"),
        (SHORT, ProbationTotals(requests=1, failures=1), 1, FAIL, "probation_error_rate"),
        (WANTS_30, ProbationTotals(requests=29, failures=29), 1, WAIT, "probation_running"),
        (WANTS_30, ProbationTotals(requests=30, failures=10), 1, FAIL, "probation_error_rate"),
        (WANTS_30, ProbationTotals(requests=29), 60, WAIT, "probation_few_requests"),
        (WANTS_30, ProbationTotals(requests=30), 60, PASS, "probation_passed"),
        (WANTS_30, ProbationTotals(requests=29), 600, PASS, "probation_passed_few_requests"),
        (WANTS_30, ProbationTotals(), 600, PASS, "probation_passed_few_requests"),
        (WANTS_30, ProbationTotals(requests=29, failures=29), 600, FAIL, "probation_error_rate"),
        (WANTS_30, ProbationTotals(requests=29, failures=29), 599, WAIT, "probation_few_requests"),
    ],
)
def test_judgement(objectives, totals, elapsed_s, verdict, code):
    judgement = judge(objectives, totals, elapsed_s)
    assert (judgement.verdict, judgement.reason_code) == (verdict, code)
    assert judgement.reason


def test_the_reason_names_counts_and_limit():
    judgement = judge(OBJECTIVES, ProbationTotals(requests=200, failures=50), 5)
    assert judgement.reason == "50 of 200 requests failed: 25.00%, at most 10.00% allowed"


@pytest.mark.parametrize(
    "field", ["max_error_rate", "max_over_latency_rate", "max_output_violation_rate"]
)
def test_a_limit_that_is_not_a_number_is_never_kept(field):
    objectives = replace(OBJECTIVES, **{field: math.nan})
    assert judge(objectives, ProbationTotals(requests=50), 60).verdict is FAIL


def test_a_limit_that_is_not_a_number_passes_nothing_not_even_without_requests():
    objectives = replace(OBJECTIVES, max_error_rate=math.nan)
    assert judge(objectives, ProbationTotals(), 60).verdict is FAIL


def test_a_rate_above_its_limit_that_may_be_chance_is_told():
    judgement = judge(OBJECTIVES, ProbationTotals(requests=100, failures=12), 60)
    assert judgement.verdict is PASS
    assert judgement.reason == (
        "100 requests in 60 s; 12 of 100 requests failed: 12.00%, at most 10.00% allowed: may be chance"
    )


def test_one_failure_among_ten_is_no_reason_under_a_limit_of_one_percent():
    objectives = replace(OBJECTIVES, max_error_rate=0.01)
    one_of_ten = ProbationTotals(requests=10, failures=1)  # P(X >= 1 | 10, 1 %) = 0.096
    assert judge(objectives, one_of_ten, 1).verdict is WAIT
    assert judge(objectives, one_of_ten, 60).verdict is PASS


def test_a_limit_of_nothing_allows_nothing():
    objectives = replace(OBJECTIVES, max_error_rate=0.0)
    assert judge(objectives, ProbationTotals(requests=1000, failures=1), 1).verdict is FAIL


counts = st.integers(0, 200)


@given(
    requests=counts,
    bad=st.lists(counts, min_size=4, max_size=4),
    minimum=st.integers(0, 50),
    elapsed_s=st.floats(0, 5000),
)
def test_every_judgement_keeps_the_rules(requests, bad, minimum, elapsed_s):
    objectives = replace(OBJECTIVES, probation_min_requests=minimum)
    totals = ProbationTotals(requests, *(min(count, requests) for count in bad))
    verdict = judge(objectives, totals, elapsed_s).verdict
    checks = (
        (totals.failures, 0.1),
        (totals.over_objective, 0.2),
        (totals.output_violations, 0.05),
        (totals.non_finite, 0.05),
    )
    above = [check for check in checks if check[0] > check[1] * requests]
    chance = min((upper_tail(count, requests, limit) for count, limit in above), default=1.0)
    if verdict is PASS:
        assert elapsed_s >= 60
        assert chance > LAST_CHANCE
    if verdict is FAIL:
        assert above
        assert chance <= LAST_CHANCE
    if chance <= EARLY_CHANCE and requests >= max(minimum, EARLY_REQUESTS):
        assert verdict is FAIL
    if elapsed_s >= 60 * PATIENCE:
        assert verdict is not WAIT


SEEDS = 2000


def end_of(failure_rate: float, seed: int, *, limit: float, per_s: int) -> tuple[bool, int]:
    """One probation of 60 s with a look each second: whether it failed, and at which second."""
    objectives = replace(OBJECTIVES, max_error_rate=limit)
    chance = random.Random(seed)
    failures = 0
    for second in range(1, 61):
        failures += sum(chance.random() < failure_rate for _ in range(per_s))
        totals = ProbationTotals(requests=second * per_s, failures=failures)
        verdict = judge(objectives, totals, second).verdict
        if verdict is not WAIT:
            return verdict is FAIL, second
    raise AssertionError("60 s are the whole probation")


def test_a_rate_equal_to_the_limit_is_seldom_taken_for_a_worse_one():
    """Bonferroni over 59 early looks and the last: at most 59 * 0.001 + 0.05 = 10.9 % of all seeds."""
    failed = sum(end_of(0.02, seed, limit=0.02, per_s=5)[0] for seed in range(SEEDS))
    assert failed <= (59 * EARLY_CHANCE + LAST_CHANCE) * SEEDS


def test_half_the_limit_is_hardly_ever_taken_back():
    """P(X >= 11 | 300, 1 %) = 0.0003 at the last look, and the early looks need rarer counts still."""
    failed = sum(end_of(0.01, seed, limit=0.02, per_s=5)[0] for seed in range(SEEDS))
    assert failed <= 0.01 * SEEDS


def test_ten_times_the_limit_is_caught_within_seconds():
    ends = [end_of(0.2, seed, limit=0.02, per_s=5) for seed in range(SEEDS)]
    assert all(failed for failed, _second in ends)
    assert sorted(second for _failed, second in ends)[SEEDS // 2] <= 5
    assert sum(second <= 15 for _failed, second in ends) >= 0.99 * SEEDS
