"""What to do next with one model, from values alone. Asked twice, it answers the same.

Rules kept here:
- Before the swap a deployment is called off as soon as the fleet wants something else; after the swap
  only the fleet's rollback ends it early, everything else waits for probation.
- What is held beside is called off as early: nobody depends on it. The directive may also take it (it answers
  from then on) or change its share.
- A bundle that this device refused or reverted is taken again from the same rollout only as often as its
  directive allows, after a pause.
- A rollback goes to the bundle that the fleet names: at once when it is in the previous slot, else by
  a deployment, and the rolled-back bundle serves until the swap. Where the fleet names none, or this
  device has refused it, the rollback goes to the previous slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from agent.delivery.fetch import FetchLimits
from agent.health.crashes import CrashLimits
from agent.trust import Decision, Directive, Tries, Verb, may_try
from agent.update.journal import Deployment, Installed, ModelRecord, Slots
from agent.update.memory_policy import MemoryLimits
from agent.update.states import (
    BEFORE_SWAP,
    NOT_SWAPPED,
    ON_RESTART,
    Counter,
    Event,
    Phase,
    next_phase,
)

__all__ = [
    "Action",
    "ActionKind",
    "Refused",
    "UpdateLimits",
    "after_event",
    "choose",
    "kept_slots",
    "leaving",
    "on_restart",
    "slots_after_commit",
    "slots_after_revert",
]

Refused = Mapping[tuple[str, str], Tries]
"""Tries that ended badly, by rollout id and manifest digest."""


@dataclass(frozen=True, slots=True)
class UpdateLimits:
    """Bounds of the updater. Times in seconds."""

    fetch: FetchLimits = field(default_factory=FetchLimits)
    memory: MemoryLimits = field(default_factory=MemoryLimits)
    fetch_deadline_s: float = 14 * 86400.0
    """A deployment whose pieces are not here by then is refused."""
    max_fetch_attempts: int = 4
    """Runs of fetch and verify together that end in damaged bytes, a failed disk or a restart in verify."""
    max_trial_attempts: int = 2
    """Runs of the trial, the first included."""
    max_boots: int = 1
    """Restarts between swap and commit that are forgiven: at the next one, before a third try, the bundle is
    reverted. An orderly stop of the agent is not counted."""
    crashes: CrashLimits = field(default_factory=CrashLimits)
    """When an active bundle has taken the server or the device down often enough."""
    max_load_failures: int = 3
    """Loads of a slot that must work (active, or put back by a revert) before it is given up."""
    max_damaged_slots: int = 2
    """How often a slot found damaged on disk may be installed again by the same rollout."""
    retry_base_s: float = 5.0
    retry_max_s: float = 900.0


class ActionKind(Enum):
    START = "start"
    CANCEL = "cancel"
    WITHDRAW = "withdraw"
    ROLL_BACK = "roll_back"
    TAKE = "take"  # what is held beside is to answer now
    RETARGET = "retarget"  # the deployment goes on, to another end: beside or not, another share of requests
    FORGET_PREVIOUS = "forget_previous"  # what is in the previous slot is never put back
    ADOPT = "adopt"  # a newer rollout directs the bundle that is active: it is that rollout's from now on
    REPORT_REFUSED = "report_refused"  # the directive cannot be obeyed: tell the fleet, do nothing


@dataclass(frozen=True, slots=True)
class Action:
    """One step that the fleet's wish asks for.

    ``start``: the deployment it is about, in phase IDLE; for TAKE and RETARGET the one under way as it is to be.
    """

    kind: ActionKind
    reason_code: str = ""
    reason: str = ""
    start: Deployment | None = None


def choose(
    record: ModelRecord, decision: Decision | None, refused: Refused, now_s: float = 0.0
) -> Action | None:
    """The one thing to do for this model now, or None when it is as the fleet wants it.

    ``decision`` None: no directive names the model (any more). ``now_s``: seconds since the epoch.
    """
    pending = record.deployment
    if pending is not None and pending.phase in (Phase.COMMIT, Phase.REVERT):
        return None  # finish first
    if decision is None:
        return _cancel(pending, "no_directive", "no directive names this model any more")
    if decision.forgets_previous and pending is None and record.slots.previous is not None:
        return Action(ActionKind.FORGET_PREVIOUS, decision.reason.value, decision.text)
    if decision.verb is Verb.REVERT:
        return _revert(record, decision, refused)
    if decision.directive is None or decision.verb is Verb.NONE:
        return _cancel(pending, decision.reason.value, decision.text)
    if decision.verb in (Verb.INSTALL, Verb.BESIDE):
        return _install(record, decision, refused, now_s)
    if decision.verb is Verb.KEEP:
        return _keep(record, decision)
    return _refuse(record, decision)


def _cancel(pending: Deployment | None, code: str, text: str) -> Action | None:
    if pending is None or pending.phase not in NOT_SWAPPED:
        return None
    return Action(ActionKind.CANCEL, code, text)


def _install(
    record: ModelRecord, decision: Decision, refused: Refused, now_s: float
) -> Action | None:
    """Go to the directive's bundle, to answer with it or to hold it beside."""
    directive = decision.directive
    assert directive is not None
    pending, active = record.deployment, record.slots.active
    if pending is not None and _is_of(pending, directive):
        return _go_on(pending, decision)
    if decision.holds:
        return None  # nothing else is begun now, so what is under way need not make room
    if pending is not None:
        return _cancel(pending, "superseded", f"rollout {directive.id} wants {directive.bundle}")
    if not may_try(directive, refused.get((directive.id, directive.sha256)), now_s):
        return None
    if active is not None and active.manifest_sha256 == directive.sha256:
        return _adopt(record, active, decision)
    if decision.verb is Verb.BESIDE and active is None:
        return None  # there is nothing (any more) that it could be held beside
    return Action(ActionKind.START, start=_towards(_seed(record, directive), decision))


def _is_of(pending: Deployment, directive: Directive) -> bool:
    return (pending.rollout_id, pending.manifest_sha256) == (directive.id, directive.sha256)


def _towards(deployment: Deployment, decision: Decision) -> Deployment:
    """With the end that the decision asks for."""
    directive = decision.directive
    assert directive is not None
    return replace(
        deployment,
        mode=directive.mode,
        beside=decision.verb is Verb.BESIDE,
        traffic_bp=directive.traffic_bp,
        routing_key=directive.routing_key,
        closed=decision.holds and deployment.phase is not Phase.BESIDE,
    )


def _go_on(pending: Deployment, decision: Decision) -> Action | None:
    """The deployment under way is the one that is wanted; to what end may have changed."""
    if pending.phase not in NOT_SWAPPED or pending.replaces is not None:
        return None
    wanted = _towards(pending, decision)
    if pending.phase is Phase.BESIDE and not wanted.beside:
        if decision.holds:
            return None
        return Action(ActionKind.TAKE, decision.reason.value, decision.text, wanted)
    if wanted == pending:
        return None
    return Action(ActionKind.RETARGET, decision.reason.value, decision.text, wanted)


def _keep(record: ModelRecord, decision: Decision) -> Action | None:
    directive = decision.directive
    assert directive is not None
    pending, active = record.deployment, record.slots.active
    if pending is not None:
        if pending.manifest_sha256 == directive.sha256 and not directive.halt:
            return None
        code = decision.reason.value if directive.halt else "superseded"
        return _cancel(pending, code, decision.text)
    if active is not None and active.manifest_sha256 == directive.sha256:
        return _adopt(record, active, decision)
    return None


def _adopt(record: ModelRecord, active: Installed, decision: Decision) -> Action | None:
    directive = decision.directive
    assert directive is not None
    if active.rollout_id == directive.id or directive.halt or directive.kind != "deploy":
        return None
    code = "already_active"
    text = f"{directive.bundle} was already active, brought by rollout {active.rollout_id}"
    seed = replace(_seed(record, directive), version=active.version, reason_code=code, reason=text)
    return Action(ActionKind.ADOPT, code, text, seed)


def _revert(record: ModelRecord, decision: Decision, refused: Refused) -> Action | None:
    """Leave a bundle that the fleet rolled back or blocked; a blocked one may be named by no directive any more."""
    directive = decision.directive
    bad = decision.leaves or (directive.sha256 if directive is not None else "")
    pending, active = record.deployment, record.slots.active
    code, text = decision.reason.value, decision.text
    if pending is not None:
        if pending.replaces == bad:
            return None  # on the way already
        if pending.manifest_sha256 == bad and pending.phase not in BEFORE_SWAP:
            return Action(ActionKind.WITHDRAW, code, text)
        return _cancel(pending, code, text)
    if active is None or active.manifest_sha256 != bad:
        return None
    seed = _replacement(record, decision, bad)
    if seed is not None and (seed.rollout_id, seed.manifest_sha256) not in refused:
        return Action(ActionKind.START, code, text, seed)
    if seed is not None and record.slots.previous is None:
        return None  # the only replacement was refused here: the active bundle goes on serving
    rollout_id = active.rollout_id if directive is None else directive.id
    seed = leaving(record.model, active, record.slots.previous, rollout_id=rollout_id)
    seed = replace(seed, reason_code=code, reason=text)
    return Action(ActionKind.ROLL_BACK, code, text, seed)


def _replacement(record: ModelRecord, decision: Decision, bad: str) -> Deployment | None:
    """A deployment of the bundle to go back to; None when it is in the previous slot, or there is none."""
    directive, release = decision.directive, decision.release
    if directive is None or release is None or release.sha256 == bad:
        return None  # a bundle cannot replace itself
    previous = record.slots.previous
    if previous is not None and previous.manifest_sha256 == release.sha256:
        return None
    return replace(
        _seed(record, directive),
        bundle=release.path,
        manifest_sha256=release.sha256,
        length=release.length,
        replaces=bad,
        reason_code=decision.reason.value,
        reason=decision.text,
    )


def _refuse(record: ModelRecord, decision: Decision) -> Action | None:
    directive = decision.directive
    assert directive is not None
    cancel = _cancel(record.deployment, decision.reason.value, decision.text)
    if cancel is not None or record.deployment is not None:
        return cancel
    code, text = decision.reason.value, decision.text
    seed = replace(_seed(record, directive), reason_code=code, reason=text)
    return Action(ActionKind.REPORT_REFUSED, code, text, seed)


def _seed(record: ModelRecord, directive: Directive) -> Deployment:
    """A deployment to the directive's bundle, before it has a name."""
    active = record.slots.active
    return Deployment(
        id="",
        rollout_id=directive.id,
        model=record.model,
        bundle=directive.bundle,
        manifest_sha256=directive.sha256,
        length=directive.length,
        started_s=0.0,
        previous_sha256=active.manifest_sha256 if active is not None else None,
    )


def leaving(
    model: str, active: Installed, target: Installed | None, *, rollout_id: str
) -> Deployment:
    """A deployment that leaves the active bundle for ``target`` (None: the model is not served)."""
    return Deployment(
        id="",
        rollout_id=rollout_id,
        model=model,
        bundle=active.bundle,
        manifest_sha256=active.manifest_sha256,
        length=0,
        started_s=0.0,
        previous_sha256=target.manifest_sha256 if target is not None else None,
        version=active.version,
        served=True,
    )


def after_event(deployment: Deployment, event: Event) -> Deployment:
    """The deployment after ``event``: its phase, and ``attempt`` counted.

    Fetch and verify share one count, so that damaged bytes cannot go round for ever.
    """
    phase = next_phase(deployment.phase, event)
    if event is Event.DAMAGED:
        return replace(deployment, phase=phase, attempt=deployment.attempt + 1)
    if event in (Event.FETCHED, Event.RESTARTED):
        return replace(deployment, phase=phase)
    if event is Event.SWAPPED:
        return replace(deployment, phase=phase, attempt=1, served=True)
    if event is Event.TAKEN:
        return replace(deployment, phase=phase, attempt=1, boots=0)
    return replace(deployment, phase=phase, attempt=1)


def on_restart(deployment: Deployment, limits: UpdateLimits) -> tuple[Event, Deployment]:
    """What happens to a deployment found in the journal, with its counter raised.

    A restart after an orderly stop counts nothing. The event is not applied yet. When it is not
    RESTARTED the reason is filled in.
    """
    rule = ON_RESTART[deployment.phase]
    if deployment.stopped:
        return Event.RESTARTED, replace(deployment, stopped=False)
    if rule.counter is Counter.ATTEMPT:
        deployment = replace(deployment, attempt=deployment.attempt + 1)
        count, limit = deployment.attempt, attempts_allowed(deployment.phase, limits)
    elif rule.counter is Counter.BOOTS:
        deployment = replace(deployment, boots=deployment.boots + 1)
        count, limit = deployment.boots, limits.max_boots
    else:
        return Event.RESTARTED, deployment
    if count <= limit:
        return Event.RESTARTED, deployment
    assert rule.over is not None
    text = (
        f"the agent went down {count} times in phase {deployment.phase.value} of {deployment.bundle} without "
        f"having been stopped; look for a crash or power cuts in the device's log"
    )
    return rule.over, replace(deployment, reason_code=rule.reason_code, reason=text)


def attempts_allowed(phase: Phase, limits: UpdateLimits) -> int:
    """How often the work of a phase before the swap may run."""
    return limits.max_trial_attempts if phase is Phase.TRY else limits.max_fetch_attempts


def slots_after_commit(slots: Slots, deployment: Deployment) -> Slots:
    """The new bundle active; the old one previous, unless the fleet rolled it back."""
    previous = slots.active if deployment.replaces is None else None
    if previous is not None and previous.manifest_sha256 == deployment.manifest_sha256:
        previous = slots.previous
    return Slots(deployment.installed, previous)


def slots_after_revert(slots: Slots, deployment: Deployment, target: str | None) -> Slots:
    """``target`` is what is served now (None: nothing). The bundle that was left is in no slot any more."""
    if slots.active is None or slots.active.manifest_sha256 != deployment.manifest_sha256:
        return slots  # a candidate was given up: the slots never changed
    previous = slots.previous
    if previous is not None and previous.manifest_sha256 == target:
        return Slots(previous, None)
    return Slots(None, None)


def kept_slots(records: Sequence[ModelRecord] | Mapping[str, ModelRecord]) -> frozenset[str]:
    """Digests of the slots that must stay on disk."""
    kept: set[str] = set()
    for record in records.values() if isinstance(records, Mapping) else records:
        kept |= record.slots.digests
        if record.deployment is not None:
            kept.add(record.deployment.manifest_sha256)
            if record.deployment.previous_sha256 is not None:
                kept.add(record.deployment.previous_sha256)
    return frozenset(kept)
