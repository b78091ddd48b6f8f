"""What the newest look says about a stage."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleet.rollout.frozen import Evidence, FrozenRing
from fleet.rollout.gate.comparison import ComparisonGuard
from fleet.rollout.gate.door import Finding
from fleet.rollout.gate.look import look
from fleet.rollout.gate.opening import Pool, RingPlan, open_ring
from fleet.rollout.gate.ring import Counts, State
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.spec import StageKind, Statistics
from tests.fleet.rollout.rollout_builders import good, rollout, snapshot

SIZE, CANARIES, BAKE_S = 200, 60, 600.0
RNG = np.random.default_rng(5)
RATES = RNG.beta(2, 98, SIZE)
TOTAL = np.full(SIZE, 3000, dtype=np.int64)
PAST = Counts({"error_rate": RNG.binomial(TOTAL, RATES)}, {"error_rate": TOTAL})


def frozen(
    statistics: Statistics = Statistics.AUTO,
    held: tuple[str, ...] = ("error_rate",),
    canaries: int = CANARIES,
    tolerance: float = 2.0,
    past: Counts = PAST,
) -> FrozenRing:
    ids = [f"d{number:03d}" for number in range(SIZE)]
    plan = RingPlan(
        "r2",
        0,
        1,
        0.0,
        BAKE_S,
        10_000 * canaries // SIZE,
        ("error_rate",),
        {"error_rate": tolerance},
    )
    cohort = [number < canaries for number in range(SIZE)]
    ring = open_ring(plan, Pool(ids, ["cam/cpu"] * SIZE, cohort), past)
    nothing = np.zeros((SIZE, 0), dtype=np.int64)
    return FrozenRing(ring, StageKind.CANARY, statistics, held, {}, (), nothing, {})


def seen(factor: float = 1.0, silent: str = "") -> Counts:
    """What came in until now; ``silent`` names an arm that sent nothing."""
    rates = RATES.copy()
    rates[:CANARIES] *= factor
    total = np.full(SIZE, 300, dtype=np.int64)
    if silent == "canary":
        total[:CANARIES] = 0
    elif silent == "control":
        total[CANARIES:] = 0
    bad = np.random.default_rng(6).binomial(total, np.minimum(rates, 1.0))
    return Counts({"error_rate": bad}, {"error_rate": total}, {}, total > 0)


def judged(
    of: FrozenRing, counts: Counts | None, *, now_s: float = BAKE_S, k: int = 8, stopped: Any = ()
) -> Finding:
    result = None if counts is None else look(of.ring, State(), counts, k)[0]
    evidence = Evidence(1, of, 0 if counts is None else 1, result, next_look_s=0.0)
    details = {"stopped": list(stopped)}
    seen_now = snapshot([good(1)], rollout=rollout(details=details), now_s=now_s)
    return ComparisonGuard().judge(replace(seen_now, evidence=evidence))


def test_nothing_passes_before_the_stage_has_begun() -> None:
    finding = ComparisonGuard().judge(snapshot([good(1)]))
    assert finding.verdict is Verdict.HOLD
    assert "has not begun" in finding.reason


def test_no_difference_and_one_would_have_been_seen() -> None:
    finding = judged(frozen(), seen())
    assert finding.verdict is Verdict.PASS
    assert "no difference between the arms at look 8 of 8" in finding.reason
    assert "a change as large as this would have been seen: error_rate" in finding.reason


def test_an_alarm_fails_whatever_can_hold_the_stage() -> None:
    for of in (frozen(), frozen(held=()), frozen(Statistics.ON)):
        finding = judged(of, seen(4.0), now_s=300.0, k=3)
        assert finding.verdict is Verdict.FAIL
        assert "the canary devices have worse error_rate" in finding.reason
        assert "stop_strata" not in finding.evidence


def test_an_outage_of_a_metric_holds() -> None:
    for silent in ("canary", "control"):
        finding = judged(frozen(), seen(silent=silent), now_s=10 * BAKE_S)
        assert finding.verdict is Verdict.HOLD, "also after a long time"
    assert judged(frozen(), Counts()).verdict is Verdict.HOLD
    assert judged(frozen(), None).verdict is Verdict.HOLD


def test_a_stage_that_sees_too_little_says_what_would_help() -> None:
    finding = judged(frozen(Statistics.ON, tolerance=1.05), seen(), now_s=300.0)
    assert finding.verdict is Verdict.HOLD
    assert "change of error_rate can be seen and you asked for 1.05x" in finding.reason
    assert "widen the stage or wait until 00:10" in finding.reason.replace("1970-01-01 ", "")


def test_auto_does_not_wait_for_ever_for_a_smaller_change_to_be_seen() -> None:
    of = frozen(tolerance=1.05)
    assert judged(of, seen(), now_s=1.9 * BAKE_S).verdict is Verdict.HOLD
    finding = judged(of, seen(), now_s=2 * BAKE_S)
    assert finding.verdict is Verdict.PASS
    assert "the smallest changes that could be seen are error_rate" in finding.reason
    assert judged(frozen(Statistics.ON, tolerance=1.05), seen(), now_s=9e9).verdict is Verdict.HOLD


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (frozen(held=()), "too small or too short to see"),
        (frozen(held=(), canaries=SIZE), "every device has the bundle"),
        (frozen(held=(), past=Counts()), "nothing is known of these devices"),
    ],
)
def test_where_statistics_cannot_hold_a_stage_it_says_why(of: FrozenRing, says: str) -> None:
    finding = judged(of, None, now_s=5.0)
    assert finding.verdict is Verdict.PASS
    assert says in finding.reason
    assert "so the absolute limits decide alone" in finding.reason


def test_an_alarm_of_a_stratum_stops_it_and_not_the_others() -> None:
    of = frozen()
    result = look(of.ring, State(), seen(), 3)[0]
    stopped = {"stopped": ("cam/cuda",), "newly_stopped": ("cam/cuda",)}
    result = replace(result, **stopped, reason="stratum cam/cuda is stopped")  # type: ignore[arg-type]
    base = replace(snapshot([good(1)], now_s=300.0), evidence=Evidence(1, of, 1, result, 0.0))
    finding = ComparisonGuard().judge(base)
    assert finding.verdict is Verdict.HOLD
    assert finding.evidence["stop_strata"] == ["cam/cuda"]
    assert "cam/cuda is stopped" in finding.reason
    done = replace(base, rollout=rollout(details={"stopped": ["cam/cuda"]}))
    assert "it bakes until" in ComparisonGuard().judge(done).reason
    failed = replace(base, evidence=Evidence(1, of, 1, replace(result, verdict=Verdict.FAIL), 0.0))
    finding = ComparisonGuard().judge(failed)
    assert finding.verdict is Verdict.FAIL
    assert "stop_strata" not in finding.evidence, "all go back, not that stratum alone"
