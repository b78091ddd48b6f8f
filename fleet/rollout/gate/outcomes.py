"""Outcomes that a device has once, against a failure budget: refused, crashing, gone back, silent.

Rules kept here: devices are taken in the order of their slots, which was fixed before anything was
known of them, and who is not done counts as good so far. (Not in the order in which they finish: a
refusal takes seconds and a commit a whole probation, so the first to finish are mostly failures. A
failure that is still to come only adds to the wealth, so the bet may be looked at at any time.) One
device alone never fails a bundle; silence is also held against the devices without the bundle,
because a network takes down both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agent.trust import slot_of
from fleet.rollout.gate.binary import LEAST_BUDGET, alarm_level, e_process, silence_tail
from fleet.rollout.gate.door import Finding
from fleet.rollout.gate.schedule import look_minutes
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.outcomes import INSTALL, KINDS, SILENCE, WORDS, kind_of_failure
from fleet.rollout.snapshot import Snapshot, Standing

__all__ = ["LEAST_FAILED", "OutcomesGuard"]

LEAST_FAILED: Final = 2  # devices of one kind: one may be broken by itself


@dataclass(frozen=True, slots=True)
class OutcomesGuard:
    """Each kind of failure against its own budget, alpha shared by the four kinds.

    FAIL when the wealth of a bet against the budget has reached 4/alpha (``gate.binary``), or when so
    many more of the cohort than of the others are silent that chance does not explain it.
    """

    name: str = "outcomes"

    def judge(self, snapshot: Snapshot) -> Finding:
        budgets = _budgets(snapshot)
        outcomes = _outcomes(snapshot)
        level = alarm_level(snapshot.rollout.spec.guards.alpha)
        told: dict[str, Any] = {"devices": len(outcomes), "alarm_at": level, "kinds": {}}
        alarms: list[str] = []
        for kind in KINDS:
            failed = np.array([found == kind for found in outcomes], dtype=np.bool_)
            count = int(np.count_nonzero(failed))
            most = float(e_process(failed, budgets[kind]).max(initial=1.0))
            told["kinds"][kind] = {"failed": count, "budget": budgets[kind], "wealth": most}
            if count >= LEAST_FAILED and most >= level:
                alarms.append(
                    f"{count} of {len(outcomes)} canary devices {WORDS[kind]}, more than the "
                    f"{budgets[kind] * 100:.3g} % that may (the odds against it are {most:.3g}, and "
                    f"{level:g} are enough)"
                )
        unequal = _unequal_silence(snapshot, told)
        if unequal:
            alarms.append(unequal)
        if alarms:
            causes = sorted(snapshot.tally().failures.items())
            why = ", ".join(f"{count} {cause}" for cause, count in causes)
            return Finding(self.name, Verdict.FAIL, f"{'; '.join(alarms)}: {why}", told)
        counts = [f"{one['failed']} {WORDS[kind]}" for kind, one in told["kinds"].items()]
        reason = f"of {len(outcomes)} canary devices {', '.join(counts)}"
        return Finding(self.name, Verdict.PASS, reason, told)


def _budgets(snapshot: Snapshot) -> Mapping[str, float]:
    if snapshot.evidence is not None:
        return snapshot.evidence.frozen.budgets
    limit = snapshot.rollout.spec.guards.max_install_failure_rate
    return dict.fromkeys(KINDS, LEAST_BUDGET if limit is None else max(limit, LEAST_BUDGET))


def _outcomes(snapshot: Snapshot) -> list[str]:
    """How each device that can be reached has failed, by slot; "" for one that has not."""
    excused = snapshot.tally().silence_excused
    sha256 = snapshot.rollout.manifest_sha256
    found: list[tuple[int, str, str]] = []
    for device in snapshot.cohort:
        standing = snapshot.standing(device)
        if standing is Standing.OFFLINE:
            continue
        kind = kind_of_failure(device.outcome, device.reason_code) or ""
        if standing is Standing.SILENT and not excused:
            kind = kind or SILENCE
        elif standing is Standing.STUCK:
            kind = INSTALL
        found.append((slot_of(sha256, device.device_id), device.device_id, kind))
    return [kind for _, _, kind in sorted(found)]


def _unequal_silence(snapshot: Snapshot, told: dict[str, Any]) -> str:
    """Why the silence of the cohort is no chance, or nothing."""
    tally, control = snapshot.tally(), snapshot.control
    silent = tally.of(Standing.SILENT)
    heard = (Standing.COMMITTED, Standing.REPORTED, Standing.UNDER_WAY)
    at_risk = silent + tally.of(*heard)
    if silent < LEAST_FAILED or control.active == 0:
        return ""
    rollout = snapshot.rollout
    alpha = rollout.spec.guards.alpha / len(rollout.spec.stages)
    least = alpha / len(look_minutes(rollout.current_stage.bake_s))
    tail = silence_tail((silent, control.silent), (at_risk, control.active))
    told["silence"] = {"p_value": tail, "alarm_at": least}
    if tail > least:
        return ""
    return (
        f"{silent} of {at_risk} canary devices are silent and {control.silent} of "
        f"{control.active} devices without the bundle (p = {tail:.2g})"
    )
