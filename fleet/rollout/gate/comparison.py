"""The comparison of both arms as a guard like any other: what the newest look says about the stage.

Rules kept here: an alarm fails the stage, or names the stratum that is to stop; a stage is held only
to the metrics it was expected to be able to see, decided when it began; where nothing can be
compared the reason says so, and the absolute guards decide alone; missing data of a metric that can
hold the stage is a HOLD, never a pass and never a rollback.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from fleet.rollout.frozen import Evidence
from fleet.rollout.gate.conclude import conclude
from fleet.rollout.gate.door import Finding
from fleet.rollout.gate.evidence import as_json
from fleet.rollout.gate.look import NO_CONTROL
from fleet.rollout.gate.result import LookResult, MetricResult
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.spec import Statistics

__all__ = ["PATIENCE", "ComparisonGuard"]

PATIENCE: Final = (
    2.0  # bakes: after so long, ``auto`` no longer waits for a smaller change to be seen
)


@dataclass(frozen=True, slots=True)
class ComparisonGuard:
    """PASS: no difference, and one that matters would have been seen, as far as the stage can see."""

    name: str = "comparison"

    def judge(self, snapshot: Snapshot) -> Finding:
        evidence = snapshot.evidence
        if evidence is None:
            reason = "the comparison with the devices without the bundle has not begun"
            return Finding(self.name, Verdict.HOLD, reason, {})
        verdict, reason = _judge(evidence, snapshot.now_s)
        if verdict is not Verdict.FAIL and evidence.result is not None:
            alarmed = sorted(set(evidence.result.stopped) - set(snapshot.rollout.stopped))
            if alarmed:
                words = f"an alarm in {', '.join(alarmed)}"
                reason = evidence.result.reason if evidence.result.newly_stopped else words
        return Finding(self.name, verdict, reason, _told(evidence, verdict))


def _judge(evidence: Evidence, now_s: float) -> tuple[Verdict, str]:
    result, frozen = evidence.result, evidence.frozen
    if result is not None and result.verdict is Verdict.FAIL:
        return Verdict.FAIL, result.reason
    if frozen.statistics is Statistics.ON:
        held = _narrowed(result, frozen.held)
        conclusion = conclude(frozen.ring, held, now_s)
        return conclusion.verdict, conclusion.reason.removeprefix("holding: ")
    if not frozen.held:
        return Verdict.PASS, _alone(evidence, now_s)
    held = _narrowed(result, frozen.held)
    conclusion = conclude(frozen.ring, held, now_s)
    if conclusion.verdict is Verdict.HOLD and _is_coarse_only(evidence, held, now_s):
        return Verdict.PASS, f"{_seen_words(held)}, so the absolute limits decide alone"
    return conclusion.verdict, conclusion.reason.removeprefix("holding: ")


def _narrowed(result: LookResult | None, held: tuple[str, ...]) -> LookResult | None:
    """The look, told of the metrics that can hold the stage alone."""
    if result is None:
        return None
    return replace(result, metrics=tuple(one for one in result.metrics if one.name in held))


def _alone(evidence: Evidence, now_s: float) -> str:
    """Why the absolute guards decide alone, in a stage that was not expected to see anything."""
    ring = evidence.frozen.ring
    cause = "this stage is too small or too short to see the changes that were asked about"
    if ring.canaries == ring.size and evidence.frozen.arm is None:
        cause = NO_CONTROL.partition(":")[0]
    elif all(one.known == 0 for one in ring.baseline.values()):
        cause = "nothing is known of these devices from before the rollout"
    elif ring.canaries == 0:
        cause = "no device of this stage can be compared"
    told = f"statistics cannot hold this stage ({cause}), so the absolute limits decide alone"
    result = evidence.result
    if result is None or result.verdict is not Verdict.PASS:
        return told
    return f"{told}; {result.reason}"


def _is_coarse_only(evidence: Evidence, held: LookResult | None, now_s: float) -> bool:
    """Whether all that is in the way is that the stage sees less than it was expected to.

    After twice the bake waiting longer is not worth it: the looks are spent, and nothing is missing.
    """
    ring = evidence.frozen.ring
    if held is None or held.verdict is not Verdict.PASS or held.look < held.looks:
        return False
    if now_s < ring.started_s + PATIENCE * ring.bake_s:
        return False
    seen_all = replace(
        held, metrics=tuple(replace(one, smallest=1.0) for one in held.metrics if _has_data(one))
    )
    complete = len(seen_all.metrics) == len(held.metrics)
    return complete and conclude(ring, seen_all, now_s).verdict is Verdict.PASS


def _has_data(metric: MetricResult) -> bool:
    return 0 not in (metric.cohort.devices, metric.control.devices)


def _seen_words(held: LookResult | None) -> str:
    told = [
        f"{one.name} {one.smallest:.3g}x" for one in (held.metrics if held else ()) if one.smallest
    ]
    return f"the smallest changes that could be seen are {', '.join(told)}, more than asked for"


def _told(evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    """For people and programs; ``stop_strata`` names what should stop, and ``strata`` all there are."""
    frozen, result = evidence.frozen, evidence.result
    ring = frozen.ring
    told: dict[str, Any] = {
        "ring_id": evidence.ring_id,
        "canaries": ring.canaries,
        "devices": ring.size,
        "statistics": str(frozen.statistics),
        "paired": frozen.arm is not None,
        "metrics": list(ring.metrics),
        "held": list(frozen.held),
        "expected": dict(frozen.expected),
        "looks": len(ring.looks_s),
        "next_look_s": evidence.next_look_s,
        "strata": list(ring.stratum_names),
    }
    if result is None:
        return told
    told |= {"look_number": evidence.number, "look": as_json(result)}
    if verdict is not Verdict.FAIL and result.stopped:
        told["stop_strata"] = list(result.stopped)
    return told
