"""Whether a ring may end: the rule of promotion. Pure.

Rules kept here: only with no alarm, the bake over, four fifths of the cohort reported, every metric
there, and the change that was asked about small enough to be seen; anything else is HOLD and says
what would help. Missing data is never a pass and never a rollback.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fleet.rollout.gate.look import NO_CONTROL
from fleet.rollout.gate.metrics import Kind
from fleet.rollout.gate.result import LookResult, MetricResult
from fleet.rollout.gate.ring import Ring
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.gate.words import factor

__all__ = ["NEEDED_SHARE", "Conclusion", "conclude"]

NEEDED_SHARE: Final = 0.8  # of the cohort must have reported


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What the statistics say of a ring now. ``reason`` is a clause without a full stop."""

    verdict: Verdict
    reason: str


def conclude(ring: Ring, result: LookResult | None, now_s: float) -> Conclusion:
    """PASS when the ring may end, FAIL on an alarm, HOLD otherwise.

    ``result`` is the newest look, taken of all data so far; None before the first. A ring that has
    no control device passes when its bake is over, and says that nothing was compared.
    """
    if result is not None and result.verdict is Verdict.FAIL:
        return Conclusion(Verdict.FAIL, result.reason)
    over = now_s >= ring.started_s + ring.bake_s
    if over and result is not None and result.reason == NO_CONTROL:
        return Conclusion(Verdict.PASS, NO_CONTROL)
    causes = list(_causes(ring, result, over))
    if not causes and result is not None:
        apart = (
            f"; without the stopped strata {', '.join(result.stopped)}" if result.stopped else ""
        )
        return Conclusion(Verdict.PASS, f"{result.reason}; {_seen(result)}{apart}")
    return Conclusion(Verdict.HOLD, f"holding: {'; '.join(causes)}")


def _causes(ring: Ring, result: LookResult | None, over: bool) -> Iterator[str]:
    """Everything that is in the way, the most telling first."""
    ends = _when(ring.started_s + ring.bake_s)
    if result is None:
        yield "the first look at this stage is still to come"
        if not over:
            yield f"it bakes until {ends}"
        return
    if result.verdict is Verdict.HOLD:
        yield result.reason
    if result.reported < NEEDED_SHARE * ring.canaries:
        yield (
            f"{result.reported} of {ring.canaries} canary devices reported, "
            f"{math.ceil(NEEDED_SHARE * ring.canaries)} are needed"
        )
    yield from (
        f"no data on {metric.name} from {_silent_arm(metric)}"
        for metric in result.metrics
        if _is_missing(ring, metric)
    )
    coarse = [
        cause
        for metric in result.metrics
        if not _is_missing(ring, metric) and (cause := _too_coarse(metric)) is not None
    ]
    yield from coarse
    if not over:
        yield f"widen the stage or wait until {ends}" if coarse else f"it bakes until {ends}"
        return
    if coarse:
        yield "widen the stage, or ask for a larger tolerance"
    if result.look < result.looks:
        yield f"look {result.look} of {result.looks} was the newest: the last one is due"


def _is_missing(ring: Ring, metric: MetricResult) -> bool:
    """No device of an arm has enough data, of a metric that was reported before or is asked about."""
    wanted = metric.tolerance is not None or ring.baseline[metric.name].known > 0
    return wanted and 0 in (metric.cohort.devices, metric.control.devices)


def _silent_arm(metric: MetricResult) -> str:
    if metric.cohort.devices == metric.control.devices == 0:
        return "any device"
    return "the canary devices" if metric.cohort.devices == 0 else "the devices without the bundle"


def _too_coarse(metric: MetricResult) -> str | None:
    """Why the tolerance cannot be told from nothing, or None when it can.

    A rate of which neither arm has a single event has no factor to be seen, and needs none.
    """
    if metric.tolerance is None:
        return None
    clean = metric.kind is Kind.RATE and metric.cohort.bad == metric.control.bad == 0
    if clean or (metric.smallest is not None and metric.smallest <= metric.tolerance):
        return None
    seen = (
        f"only a {factor(metric.smallest)} change"
        if metric.smallest is not None
        else "no change however large"
    )
    return (
        f"at this size {seen} of {metric.name} can be seen and you asked for "
        f"{factor(metric.tolerance)}"
    )


def _seen(result: LookResult) -> str:
    told = [
        f"{metric.name} {factor(metric.smallest)}"
        for metric in result.metrics
        if metric.smallest is not None and metric.kind is Kind.RATE
    ]
    if not told:
        return f"{result.reported} of {result.canaries} canary devices reported"
    return (
        f"{result.reported} of {result.canaries} canary devices reported, and a change as large as "
        f"this would have been seen: {', '.join(told)}"
    )


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
