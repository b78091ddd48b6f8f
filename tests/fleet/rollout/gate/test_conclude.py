"""When a ring may end, and what is said when it may not."""

from dataclasses import replace

import numpy as np
import pytest

from fleet.rollout.gate.conclude import conclude
from fleet.rollout.gate.look import NO_CONTROL, look
from fleet.rollout.gate.result import Arm, LookResult
from fleet.rollout.gate.ring import Counts, Ring, State
from fleet.rollout.gate.verdict import Verdict
from tests.support.rings import Setting, cohort_factor, counts_of, population

SETTING = Setting(size=300, canaries=30, tolerances={"error_rate": 3.0})
DRAWN = population(np.random.default_rng(1), SETTING)
OVER_S = DRAWN.ring.bake_s


def hour(factor: object = 1.0) -> Counts:
    rng = np.random.default_rng(2)
    total = rng.poisson(1800, 300)
    return counts_of(("error_rate",), rng.binomial(total, DRAWN.rates * np.asarray(factor)), total)


def judged(counts: Counts, ring: Ring = DRAWN.ring, k: int = 16) -> LookResult:
    return look(ring, State(), counts, k)[0]


def test_a_ring_without_alarm_and_with_everything_it_needs_passes() -> None:
    found = conclude(DRAWN.ring, judged(hour()), OVER_S)
    assert found.verdict is Verdict.PASS
    assert (
        "30 of 30 canary devices reported, and a change as large as this would have been seen: "
        in (found.reason)
    )


def test_an_alarm_fails_before_the_bake_is_over() -> None:
    result = judged(hour(cohort_factor(DRAWN.ring, 3.0)))
    found = conclude(DRAWN.ring, result, 200.0)
    assert (found.verdict, found.reason) == (Verdict.FAIL, result.reason)


def test_the_bake_is_not_over() -> None:
    found = conclude(DRAWN.ring, judged(hour()), OVER_S - 1)
    assert found.verdict is Verdict.HOLD
    assert found.reason == "holding: it bakes until 1970-01-01 01:00 UTC"


def test_before_the_first_look() -> None:
    found = conclude(DRAWN.ring, None, 10.0)
    assert found.verdict is Verdict.HOLD
    assert found.reason.startswith(
        "holding: the first look at this stage is still to come; it bakes"
    )
    assert conclude(DRAWN.ring, None, OVER_S).verdict is Verdict.HOLD


def test_too_few_reported_and_too_coarse_to_see() -> None:
    mask = ~DRAWN.ring.cohort | (np.cumsum(DRAWN.ring.cohort) <= 23)
    counts = hour()
    fewer = counts_of(
        ("error_rate",), counts.bad["error_rate"][None] * mask, counts.total["error_rate"] * mask
    )
    ring = replace(DRAWN.ring, tolerances={"error_rate": 1.05})
    found = conclude(ring, judged(fewer, ring), OVER_S - 60)
    assert found.verdict is Verdict.HOLD
    assert found.reason.startswith(
        "holding: 23 of 30 canary devices reported, 24 are needed; at this size only a 1."
    )
    assert found.reason.endswith(
        "x change of error_rate can be seen and you asked for 1.05x; widen the stage or wait until "
        "1970-01-01 01:00 UTC"
    )
    over = conclude(ring, judged(fewer, ring), OVER_S)
    assert over.reason.endswith("; widen the stage, or ask for a larger tolerance")


@pytest.mark.parametrize("arm", ["cohort", "control"])
def test_a_metric_that_fell_silent_in_an_arm_holds(arm: str) -> None:
    result = judged(hour())
    (metric,) = result.metrics
    silent = replace(metric, **{arm: Arm(0, 0, 0, None)})
    found = conclude(DRAWN.ring, replace(result, metrics=(silent,)), OVER_S)
    assert found.verdict is Verdict.HOLD
    who = "the canary devices" if arm == "cohort" else "the devices without the bundle"
    assert found.reason == f"holding: no data on error_rate from {who}"


def test_an_outage_holds_and_never_passes_or_fails() -> None:
    found = conclude(DRAWN.ring, judged(Counts()), OVER_S)
    assert found.verdict is Verdict.HOLD
    assert "no data on error_rate from any device" in found.reason


def test_a_metric_that_was_never_reported_is_not_waited_for() -> None:
    ring = replace(DRAWN.ring, tolerances={})
    base = replace(ring.baseline["error_rate"], known=0)
    with_heat = replace(
        ring,
        metrics=("error_rate", "temperature"),
        baseline={**ring.baseline, "temperature": base},
    )
    assert conclude(with_heat, judged(hour(), with_heat), OVER_S).verdict is Verdict.PASS
    asked = replace(with_heat, tolerances={"temperature": 1.1})
    assert conclude(asked, judged(hour(), asked), OVER_S).verdict is Verdict.HOLD


def test_a_rate_without_a_single_event_needs_no_factor() -> None:
    total = np.full(300, 1000)
    clean = counts_of(("error_rate",), np.zeros((1, 300), dtype=np.int64), total)
    result = judged(clean)
    assert result.metrics[0].smallest is None
    assert result.verdict is Verdict.PASS  # compared, and the same: nothing in either arm
    assert conclude(DRAWN.ring, result, OVER_S).verdict is Verdict.PASS
    some = replace(result.metrics[0], cohort=replace(result.metrics[0].cohort, bad=1))
    found = conclude(DRAWN.ring, replace(result, metrics=(some,)), OVER_S)
    assert found.verdict is Verdict.HOLD
    assert "no change however large of error_rate can be seen" in found.reason


def test_the_last_look_is_due() -> None:
    found = conclude(DRAWN.ring, judged(hour(), k=15), OVER_S)
    assert found.reason == "holding: look 15 of 16 was the newest: the last one is due"


def test_without_control_only_the_absolute_guards_judge() -> None:
    ring = replace(DRAWN.ring, cohort=np.ones(300, dtype=np.bool_), percent_bp=10_000)
    result = judged(hour(), ring)
    assert conclude(ring, result, OVER_S) == conclude(ring, result, OVER_S + 1)
    assert conclude(ring, result, OVER_S).verdict is Verdict.PASS
    assert conclude(ring, result, OVER_S).reason == NO_CONTROL
    assert conclude(ring, result, OVER_S - 1).verdict is Verdict.HOLD


def test_a_stopped_stratum_is_named() -> None:
    found = conclude(DRAWN.ring, replace(judged(hour()), stopped=("edge/gpu",)), OVER_S)
    assert found.verdict is Verdict.PASS
    assert found.reason.endswith("; without the stopped strata edge/gpu")
