"""The canary devices as the bets against failure budgets see them. Pure.

Rules kept here: devices are taken in the order of their slots, which was fixed before anything was
known of them, and who is not done counts as good so far. (Not in the order in which they finish: a
refusal takes seconds and a commit a whole probation, so the first to finish are mostly failures. A
failure that is still to come only adds to the wealth, so the bet may be looked at at any time.) One
device alone never fails a bundle.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from agent.trust import slot_of
from fleet.rollout.gate.binary import LEAST_BUDGET, e_process, silence_tail
from fleet.rollout.gate.schedule import look_minutes
from fleet.rollout.outcomes import INSTALL, KINDS, SILENCE, kind_of_failure
from fleet.rollout.snapshot import Snapshot, Standing

__all__ = [
    "LEAST_FAILED",
    "Bet",
    "Seen",
    "Unequal",
    "bets_of",
    "budgets_of",
    "causes_of",
    "seen_of",
    "unequal_silence",
]

LEAST_FAILED: Final = 2  # devices of one kind: one may be broken by itself
_HEARD: Final = frozenset({Standing.COMMITTED, Standing.REPORTED, Standing.UNDER_WAY})


@dataclass(frozen=True, slots=True)
class Seen:
    """A canary device that can be reached. ``kind`` is how it has failed; "" for not. ``cause`` says it
    in the words of the device."""

    stratum: str
    standing: Standing
    kind: str
    cause: str


@dataclass(frozen=True, slots=True)
class Bet:
    """One kind of failure: how many devices, the share that may, the most the bet was ever worth."""

    failed: int
    budget: float
    wealth: float

    def alarms(self, level: float) -> bool:
        """Whether the bet has won: at ``level`` times what was put in."""
        return self.failed >= LEAST_FAILED and self.wealth >= level


@dataclass(frozen=True, slots=True)
class Unequal:
    """Silence of the cohort that may be more than that of control. An alarm at ``least`` or below."""

    silent: int
    at_risk: int
    p_value: float
    least: float

    @property
    def alarms(self) -> bool:
        return self.p_value <= self.least


def budgets_of(snapshot: Snapshot) -> Mapping[str, float]:
    """By kind of failure, the share of devices that may fail that way."""
    if snapshot.evidence is not None:
        return snapshot.evidence.frozen.budgets
    limit = snapshot.rollout.spec.guards.max_install_failure_rate
    return dict.fromkeys(KINDS, LEAST_BUDGET if limit is None else max(limit, LEAST_BUDGET))


def seen_of(snapshot: Snapshot) -> tuple[Seen, ...]:
    """The devices of the cohort that can be reached, by slot."""
    excused = snapshot.tally().silence_excused
    sha256 = snapshot.rollout.manifest_sha256
    found: list[tuple[int, str, Seen]] = []
    for device in snapshot.cohort:
        standing = snapshot.standing(device)
        if standing is Standing.OFFLINE:
            continue
        kind, cause = "", str(standing)
        if standing in (Standing.REFUSED, Standing.REVERTED):
            kind = kind_of_failure(device.outcome, device.reason_code) or ""
            cause = f"{standing} ({device.reason_code or 'no reason given'})"
        elif standing is Standing.SILENT and not excused:
            kind = SILENCE
        elif standing is Standing.STUCK:
            kind = INSTALL
        seen = Seen(device.stratum, standing, kind, cause)
        found.append((slot_of(sha256, device.device_id), device.device_id, seen))
    return tuple(seen for _, _, seen in sorted(found, key=lambda one: one[:2]))


def bets_of(seen: Sequence[Seen], budgets: Mapping[str, float]) -> dict[str, Bet]:
    """The bet of each kind over these devices, which are in the order of their slots."""
    bets: dict[str, Bet] = {}
    for kind in KINDS:
        failed = np.array([device.kind == kind for device in seen], dtype=np.bool_)
        count = int(np.count_nonzero(failed))
        # Without a failure a bet only loses.
        wealth = float(e_process(failed, budgets[kind]).max(initial=1.0)) if count else 1.0
        bets[kind] = Bet(count, budgets[kind], wealth)
    return bets


def unequal_silence(seen: Sequence[Seen], snapshot: Snapshot) -> Unequal | None:
    """The silence of these devices against that of control; None where it cannot be compared."""
    control, rollout = snapshot.control, snapshot.rollout
    silent = sum(device.standing is Standing.SILENT for device in seen)
    at_risk = silent + sum(device.standing in _HEARD for device in seen)
    if silent < LEAST_FAILED or control.active == 0:
        return None
    alpha = rollout.spec.guards.alpha / len(rollout.spec.stages)
    least = alpha / len(look_minutes(rollout.current_stage.bake_s))
    p_value = silence_tail((silent, control.silent), (at_risk, control.active))
    return Unequal(silent, at_risk, p_value, least)


def causes_of(seen: Sequence[Seen]) -> str:
    """What the devices that failed said: "9 reverted (server_crashed)"."""
    causes = Counter(device.cause for device in seen if device.kind)
    return ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items()))
