"""One look at a ring: the same frozen ring, state and counts always give the same result. Pure.

Rules kept here: a device is where the hash put it, whatever it did since; missing data spend nothing
and are HOLD, never an alarm and never a pass; a stratum that alarms is stopped alone, an alarm over
all devices fails the ring; what a look spends is in the state it returns, so a fleet manager that is
killed between two looks goes on as if it had not been.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from fleet.rollout.gate.cohorts import block_sums
from fleet.rollout.gate.judged import Judged, Test, by_formula, by_rank
from fleet.rollout.gate.metrics import metric_of
from fleet.rollout.gate.result import LookResult, MetricResult, StratumResult
from fleet.rollout.gate.ring import POOLED, BoolArray, Counts, Ring, Spending, State, fresh
from fleet.rollout.gate.sample_ratio import IMPLAUSIBLE, sample_ratio_p
from fleet.rollout.gate.scores import Scored, scored
from fleet.rollout.gate.statistic import statistic
from fleet.rollout.gate.telling import View
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.gate.words import alarm_words, calm_words

__all__ = ["NO_CONTROL", "look", "present", "scores_of"]

NO_CONTROL = (
    "every device has the bundle, so none is left to compare with: statistics cannot judge this "
    "stage, only the absolute guards do"
)


def look(ring: Ring, state: State, counts: Counts, k: int) -> tuple[LookResult, State]:
    """Compare the arms at look ``k`` (from 1), and what that leaves for the next look.

    Looks that were missed are spent with this one. A look at a ``k`` that has been spent already
    tells what the arms look like now and does not alarm, unless a test found no data then.

    Raises:
        ValueError: ``k`` is no look of the ring.
    """
    if not 1 <= k <= len(ring.looks_s):
        raise ValueError(f"look {k} of ring {ring.stage}: it has looks 1 to {len(ring.looks_s)}")
    found = scores_of(ring, counts)
    view = View(ring, counts, found, _members(ring, POOLED))
    trouble = _trouble(ring, found)
    if trouble:
        spending = state.tests.get(POOLED) or fresh(ring.virtual)
        nothing = Judged(False, 1.0, "", None, 0, ring.virtual - spending.removed, spending)
        return present(view, {POOLED: nothing}, state, k, trouble), state
    judged = _judge_all(ring, state, found, k)
    after = _after(ring, state, judged, k)
    return present(view, judged, after, k), after


def scores_of(ring: Ring, counts: Counts) -> dict[str, Scored]:
    """The scores of every metric that anybody reported."""
    scores = {name: scored(metric_of(name), ring.baseline[name], counts) for name in ring.metrics}
    return {name: one for name, one in scores.items() if one is not None}


def _trouble(ring: Ring, found: Mapping[str, Scored]) -> str:
    """Why nothing can be compared, or nothing."""
    if ring.canaries == 0:
        return "no device is in the cohort: there is nothing to compare"
    if ring.canaries == ring.size:
        return NO_CONTROL
    p_value = sample_ratio_p(ring.canaries, ring.drawn_from, ring.percent_bp)
    if p_value < IMPLAUSIBLE:
        return (
            f"{ring.canaries} of {ring.drawn_from} devices are in the cohort and "
            f"{ring.percent_bp / 100:g} % were asked for: that is no chance (p = {p_value:.2g}), "
            "so the arms cannot be compared; look for devices that are missing from one of them"
        )
    if not found:
        return "no device has reported enough to be compared"
    return ""


def _judge_all(ring: Ring, state: State, found: Mapping[str, Scored], k: int) -> dict[str, Judged]:
    """Every test that still runs, by name.

    An alarm over all devices in the look in which strata alarm too stands only if the other strata
    alarm without them: else those strata are stopped alone. An alarm taken back is spent all the same.
    """
    judge = _judge_of(ring, state, found)
    going = [name for name in ring.tests if name not in state.stopped]
    judged = {name: judge(Test(name, _blocks(ring, state.stopped, name), k)) for name in going}
    pooled = judged[POOLED]
    stopping = tuple(name for name in going if name != POOLED and judged[name].alarm)
    rest = _blocks(ring, (*state.stopped, *stopping), POOLED)
    if pooled.alarm and stopping and any(ring.blocks[index].canaries for index in rest):
        without = judge(Test(POOLED, rest, k), anew=True)
        if not without.alarm:
            spent = pooled.spending
            spent = replace(spent, removed=spent.removed + pooled.may_drop)
            judged[POOLED] = replace(pooled, alarm=False, spending=spent)
    return judged


class _Judge(Protocol):
    def __call__(self, test: Test, *, anew: bool = False) -> Judged: ...


def _judge_of(ring: Ring, state: State, found: Mapping[str, Scored]) -> _Judge:
    """How a test is judged in this ring; ``anew`` lets every virtual cohort live."""
    if ring.virtual == 0:
        return lambda test, anew=False: by_formula(ring, state, found, test)
    values = block_sums(ring, [(one.score, one.has) for one in found.values()])
    sums = dict(zip(found, values, strict=True))

    def judge(test: Test, *, anew: bool = False) -> Judged:
        return by_rank(ring, state, statistic(sums, test.blocks), test, anew=anew)

    return judge


def _blocks(ring: Ring, stopped: tuple[str, ...], name: str) -> tuple[int, ...]:
    """The blocks of a test: its own, or all that are not stopped."""
    return tuple(
        index
        for index, block in enumerate(ring.blocks)
        if (block.name == name if name != POOLED else block.name not in stopped)
    )


def _after(ring: Ring, state: State, judged: Mapping[str, Judged], k: int) -> State:
    """The state to keep. A new stop begins the test over all devices anew, without that stratum."""
    stopped = tuple(name for name, one in judged.items() if name != POOLED and one.alarm)
    tests: dict[str, Spending] = dict(state.tests)
    tests.update({name: one.spending for name, one in judged.items()})
    if stopped:
        spent = tests[POOLED]
        tests[POOLED] = fresh(ring.virtual, k, spent.before + spent.removed)
    return State(max(k, state.looks), tests, (*state.stopped, *stopped))


def present(
    view: View, judged: Mapping[str, Judged], after: State, k: int, trouble: str = ""
) -> LookResult:
    """The result of a look from what each test found. With ``trouble`` it is a HOLD."""
    ring, pooled = view.ring, judged[POOLED]
    metrics = view.metrics(pooled)
    stopped = tuple(name for name, one in judged.items() if name != POOLED and one.alarm)
    verdict, reason = Verdict.HOLD, trouble
    if not trouble:
        verdict, reason = _verdict(view, pooled, metrics, after)
    for name in stopped:
        reason += f"; stratum {name} is stopped: {_stratum_words(view, name, judged[name])}"
    return LookResult(
        look=k,
        looks=len(ring.looks_s),
        verdict=verdict,
        reason=reason,
        p_value=pooled.p_value,
        driver=pooled.driver,
        t_real=pooled.t_real,
        removed=pooled.spending.before + pooled.spending.removed,
        living=ring.virtual - pooled.spending.removed,
        canaries=ring.canaries,
        reported=_reported(view),
        pooled=_told(ring, POOLED, pooled),
        strata=tuple(_told(ring, name, one) for name, one in judged.items() if name != POOLED),
        metrics=metrics,
        stopped=after.stopped,
        newly_stopped=stopped,
    )


def _verdict(
    view: View, pooled: Judged, metrics: tuple[MetricResult, ...], after: State
) -> tuple[Verdict, str]:
    ring = view.ring
    if pooled.alarm:
        return Verdict.FAIL, alarm_words(pooled, metrics, ring.virtual, "")
    going = [block for block in ring.blocks if block.name not in after.stopped]
    if not any(block.canaries for block in going):
        stopped = ", ".join(after.stopped)
        return Verdict.FAIL, f"every stratum with canary devices is stopped: {stopped}"
    return Verdict.PASS, calm_words(pooled, metrics, (after.looks, len(ring.looks_s)))


def _stratum_words(view: View, name: str, judged: Judged) -> str:
    within = _members(view.ring, name)
    narrow = View(view.ring, view.counts, view.found, within)
    return alarm_words(judged, narrow.metrics(judged), view.ring.virtual, name)


def _members(ring: Ring, name: str) -> BoolArray:
    within = np.zeros(ring.size, dtype=np.bool_)
    for block in ring.blocks:
        if name in (POOLED, block.name):
            within[block.members] = True
    return within


def _told(ring: Ring, name: str, judged: Judged) -> StratumResult:
    within = _members(ring, name)
    return StratumResult(
        name=name,
        canaries=int(np.count_nonzero(within & ring.cohort)),
        devices=int(np.count_nonzero(within)),
        t_real=judged.t_real,
        p_value=judged.p_value,
        driver=judged.driver,
        allowed=judged.may_drop,
        removed=judged.spending.before + judged.spending.removed,
        living=ring.virtual - judged.spending.removed,
        alarm=judged.alarm,
    )


def _reported(view: View) -> int:
    """Canary devices that have reported anything since the ring started."""
    reported = view.counts.reported
    if reported is None:
        reported = np.zeros(view.ring.size, dtype=np.bool_)
        for total in view.counts.total.values():
            reported = reported | (total > 0)
        for level in view.counts.level.values():
            reported = reported | ~np.isnan(level)
    return int(np.count_nonzero(reported & view.ring.cohort))
