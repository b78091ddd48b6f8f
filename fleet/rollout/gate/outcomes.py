"""Outcomes that a device has once, against a failure budget: refused, crashing, gone back, silent.

Rules kept here: devices are taken in the order in which they finished, and the bet on them may be
looked at after each; one device alone never fails a bundle; silence is also held against the devices
without the bundle, because a network takes down both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fleet.rollout.gate.binary import LEAST_BUDGET, alarm_level, e_process, silence_tail
from fleet.rollout.gate.door import Finding
from fleet.rollout.gate.schedule import look_minutes
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.outcomes import INSTALL, KINDS, SILENCE, WORDS, kind_of_failure
from fleet.rollout.snapshot import DeviceView, Snapshot, Standing

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
        finished = sorted(_finished(snapshot))
        level = alarm_level(snapshot.rollout.spec.guards.alpha)
        told: dict[str, Any] = {"finished": len(finished), "alarm_at": level, "kinds": {}}
        alarms: list[str] = []
        for kind in KINDS:
            failed = [found == kind for _, _, found in finished]
            wealth = e_process(np.array(failed, dtype=np.bool_), budgets[kind])
            most = float(wealth.max()) if len(wealth) else 1.0
            told["kinds"][kind] = {"failed": sum(failed), "budget": budgets[kind], "wealth": most}
            if sum(failed) >= LEAST_FAILED and most >= level:
                alarms.append(
                    f"{sum(failed)} of {len(finished)} canary devices {WORDS[kind]}, more than the "
                    f"{budgets[kind] * 100:.3g} % that may (the odds against it are {most:.3g}, and "
                    f"{level:g} are enough)"
                )
        unequal = _unequal_silence(snapshot, told)
        if unequal:
            alarms.append(unequal)
        if alarms:
            return Finding(self.name, Verdict.FAIL, "; ".join(alarms), told)
        counts = [f"{one['failed']} {WORDS[kind]}" for kind, one in told["kinds"].items()]
        reason = f"of {len(finished)} canary devices that finished {', '.join(counts)}"
        return Finding(self.name, Verdict.PASS, reason, told)


def _budgets(snapshot: Snapshot) -> Mapping[str, float]:
    if snapshot.evidence is not None:
        return snapshot.evidence.frozen.budgets
    limit = snapshot.rollout.spec.guards.max_install_failure_rate
    return dict.fromkeys(KINDS, LEAST_BUDGET if limit is None else max(limit, LEAST_BUDGET))


def _finished(snapshot: Snapshot) -> Iterator[tuple[float, str, str]]:
    """When each device was done, its id, and how it failed ("": it did not)."""
    excused = snapshot.tally().silence_excused
    deadline_s = snapshot.rollout.stage_started_s + snapshot.rollout.spec.install_deadline_s
    for device in snapshot.cohort:
        standing = snapshot.standing(device)
        kind = kind_of_failure(device.outcome, device.reason_code)
        if kind is not None:
            yield _done_s(device), device.device_id, kind
        elif standing is Standing.SILENT and not excused:
            yield _done_s(device), device.device_id, SILENCE
        elif standing is Standing.STUCK:
            yield deadline_s, device.device_id, INSTALL
        elif standing in (Standing.COMMITTED, Standing.REPORTED):
            yield _done_s(device), device.device_id, ""


def _done_s(device: DeviceView) -> float:
    times = (device.finished_s, device.committed_s, device.last_heard_s)
    return next(at_s for at_s in times if at_s is not None)


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
