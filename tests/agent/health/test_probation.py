"""Probation: fails early and with few requests, passes only in time, never passes what is not a number."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import Objectives
from agent.health.probation import (
    EARLY_REQUESTS,
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
WANTS_30 = replace(OBJECTIVES, probation_min_requests=30)
PASS, FAIL, WAIT = ProbationVerdict.PASS, ProbationVerdict.FAIL, ProbationVerdict.WAIT


@pytest.mark.parametrize(
    ("objectives", "totals", "elapsed_s", "verdict", "code"),
    [
        (OBJECTIVES, ProbationTotals(), 0, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(), 59.9, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(), 60, PASS, "probation_passed"),
        (OBJECTIVES, ProbationTotals(requests=100, failures=10), 60, PASS, "probation_passed"),
        (OBJECTIVES, ProbationTotals(requests=100, failures=11), 1, FAIL, "probation_error_rate"),
        (OBJECTIVES, ProbationTotals(requests=9, failures=9), 1, WAIT, "probation_running"),
        (OBJECTIVES, ProbationTotals(requests=10, failures=2), 1, FAIL, "probation_error_rate"),
        (OBJECTIVES, ProbationTotals(requests=1, failures=1), 60, FAIL, "probation_error_rate"),
        (OBJECTIVES, ProbationTotals(requests=10, over_objective=3), 1, FAIL, "probation_latency"),
        (
            OBJECTIVES,
            ProbationTotals(requests=10, output_violations=1),
            1,
            FAIL,
            "probation_output_violations",
        ),
        (OBJECTIVES, ProbationTotals(requests=10, non_finite=1), 1, FAIL, "probation_non_finite"),
        (
            OBJECTIVES,
            ProbationTotals(requests=10, input_violations=10),
            60,
            PASS,
            "probation_passed",
        ),
        (OBJECTIVES, ProbationTotals(failures=1), 60, FAIL, "probation_error_rate"),
        (WANTS_30, ProbationTotals(requests=29, failures=29), 1, WAIT, "probation_running"),
        (WANTS_30, ProbationTotals(requests=30, failures=4), 1, FAIL, "probation_error_rate"),
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
    broken = requests > 0 and (
        totals.failures / requests > 0.1
        or totals.over_objective / requests > 0.2
        or totals.output_violations / requests > 0.05
        or totals.non_finite / requests > 0.05
    )
    if verdict is PASS:
        assert elapsed_s >= 60
        assert not broken
    if verdict is FAIL:
        assert broken
    if broken and requests >= max(minimum, EARLY_REQUESTS):
        assert verdict is FAIL
    if elapsed_s >= 60 * PATIENCE:
        assert verdict is not WAIT
