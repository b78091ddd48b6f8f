"""What an event makes of a rollout. Pure: a rollout and who asks for what in, a change out.

Rules kept here: the table of states decides what is possible; an operator may go on where the gate
holds, with a reason, and never where it fails, nor past the second person where one is asked for; what
is asked for twice is as once (None: it is so already).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fleet.errors import ConflictError, NotFoundError, RefusedError, RequestError
from fleet.rollout.controller import Action, Step
from fleet.rollout.gate import Verdict
from fleet.rollout.planned import Plan
from fleet.rollout.record import Rollout
from fleet.rollout.states import Event, State, next_state

__all__ = [
    "CONTROLLER",
    "OPERATOR",
    "OPERATOR_EVENTS",
    "Asked",
    "Change",
    "asked_for",
    "changed",
    "created",
    "decided",
    "overridden",
    "stratum_stopped",
    "superseded",
]

CONTROLLER: Final = "controller"
OPERATOR: Final = "operator"
OPERATOR_EVENTS: Final = (
    Event.PAUSE,
    Event.RESUME,
    Event.APPROVE,
    Event.ADVANCE,
    Event.ABORT,
    Event.ROLLBACK,
    Event.STOP_STRATUM,
)
_DONE: Final = {
    Event.PAUSE: "paused",
    Event.RESUME: "resumed",
    Event.APPROVE: "approved",
    Event.ABORT: "aborted",
    Event.ROLLBACK: "rolled back",
}
_STRATUM: Final = re.compile(r"[a-z0-9-]{1,40}/[a-z0-9-]{1,40}")


@dataclass(frozen=True, slots=True)
class Change:
    """An event that happens to a rollout, and why. ``details`` replaces keys of the rollout's."""

    event: Event
    actor: str
    reason: str
    at_s: float
    verdict: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for something, when and why. ``second_above_bp``: what reaches more of the fleet needs a
    second person; None: nothing does. It counts for what is started now, for as long as that lasts."""

    at_s: float
    by: str = ""
    reason: str = ""
    second_above_bp: int | None = None

    def said(self, what: str) -> str:
        """``paused by an operator: REASON``."""
        return f"{what} by an operator" + (f": {self.reason}" if self.reason else "")


def created(planned: Plan, number: int, at_s: float, asked: Asked | None = None) -> Rollout:
    """A new rollout; it waits where its first stage needs approval."""
    spec = planned.spec
    rollout = Rollout(
        id=f"r{number}",
        number=number,
        model=spec.model,
        bundle=spec.bundle,
        manifest_sha256=planned.manifest_sha256,
        previous_bundle=planned.previous_bundle,
        spec=spec,
        state=State.RUNNING,
        stage=0,
        stage_started_s=at_s,
        reason=f"started at {spec.stages[0].words}",
        created_s=at_s,
        updated_s=at_s,
        details=_second_person(asked),
    )
    if not rollout.needs_approval(0):
        return rollout
    needed = f"{spec.stages[0].words} needs {rollout.approver_words(0)}"
    reason = f"created; {needed}: `fleet rollout approve r{number}`"
    return replace(rollout, state=State.WAITING, reason=reason)


def _second_person(asked: Asked | None) -> dict[str, Any]:
    if asked is None or asked.second_above_bp is None:
        return {}
    return {"second_above_bp": asked.second_above_bp, "moved_by": [asked.by]}


def changed(rollout: Rollout, change: Change) -> Rollout:
    """The rollout after ``change``.

    Raises:
        ConflictError: the event is not possible in its state, or there is no next stage.
    """
    state = next_state(rollout.state, change.event, rollout.id)
    advanced = change.event is Event.ADVANCE
    if advanced and rollout.is_last_stage:
        raise ConflictError(f"rollout {rollout.id} is in its last stage: there is no next one")
    # A pause tells nothing about the bundle, so a stage that is resumed bakes from the beginning.
    begins = rollout.state is State.WAITING and state is State.RUNNING
    restarted = advanced or begins or change.event is Event.RESUME
    return replace(
        rollout,
        state=state,
        stage=rollout.stage + advanced,
        stage_started_s=change.at_s if restarted else rollout.stage_started_s,
        reason=change.reason,
        updated_s=change.at_s,
        details={**rollout.details, **change.details},
    )


def decided(rollout: Rollout, action: Action, at_s: float) -> Change | None:
    """What the controller has decided; None for a hold, which changes nothing."""
    event = action.step.event
    if event is None:
        return None
    stopped = {"stopped": [*rollout.stopped, *action.strata]}
    return Change(
        event=event,
        actor=CONTROLLER,
        reason=action.reason,
        at_s=at_s,
        verdict=str(action.verdict),
        evidence=action.evidence,
        details=stopped if event is Event.STOP_STRATUM else {},
    )


def asked_for(rollout: Rollout, event: Event, asked: Asked) -> Change | None:
    """Pause, resume, approve, abort or roll back.

    Raises:
        RequestError: the event is none of those.
        ConflictError: an approval that nothing waits for.
    """
    if event not in _DONE:
        raise RequestError(f"{event} is the controller's decision, not an operator's")
    if event is Event.APPROVE:
        return _approved(rollout, asked)
    return _by_operator(event, asked.said(_DONE[event]), asked)


def _approved(rollout: Rollout, asked: Asked) -> Change | None:
    """The first stage of one that waits, else the next stage."""
    next_state(rollout.state, Event.APPROVE, rollout.id)
    stage = 0 if rollout.state is State.WAITING else rollout.stage + 1
    stages = rollout.spec.stages
    if stage == len(stages) or not rollout.needs_approval(stage):
        raise ConflictError(
            f"rollout {rollout.id} is in {rollout.stage_name()}, and no approval is needed to go on"
        )
    _require_second(rollout, stage, asked)
    already = asked.by in rollout.approved_by(stage) or not rollout.needs_second(stage)
    if stage > 0 and rollout.is_approved(stage) and already:
        return None
    approved = sorted({*rollout.details.get("approved", ()), stage})
    details: dict[str, Any] = {"approved": approved}
    if asked.by:
        names = sorted({*rollout.approved_by(stage), asked.by})
        details["approved_by"] = {**rollout.details.get("approved_by", {}), str(stage): names}
    said = asked.said(f"{rollout.stage_name(stage)} approved")
    return _by_operator(Event.APPROVE, said, asked, details=details)


def _require_second(rollout: Rollout, stage: int, asked: Asked) -> None:
    """Raises RefusedError: who approves is no second person."""
    if rollout.needs_second(stage) and asked.by in ("", *rollout.moved_by):
        raise RefusedError(
            f"{rollout.stage_name(stage)} of rollout {rollout.id} reaches more than "
            f"{rollout.details['second_above_bp'] / 100:g} % of the fleet: it needs {rollout.approver_words(stage)}, "
            f"and {asked.by or 'who asks'} is no other. Ask somebody with a token of their own to approve it"
        )


def _require_approved(rollout: Rollout, stage: int, asked: Asked) -> None:
    """Raises RefusedError: nobody but who moves it has approved the stage."""
    if not asked.by or not rollout.is_approved(stage, mover=asked.by):
        raise RefusedError(
            f"rollout {rollout.id} cannot go on to {rollout.stage_name(stage)}: it needs "
            f"{rollout.approver_words(stage)}, and not by {asked.by or 'who asks'} either, who would let it go on: "
            f"`fleet rollout approve {rollout.id}`"
        )


def overridden(rollout: Rollout, action: Action | None, asked: Asked) -> Change:
    """Going on although the gate holds; ``action`` is what it would do now.

    Raises:
        RequestError: no reason is given.
        RefusedError: the gate fails the stage, or a stratum of it, or a second person is missing.
    """
    if not asked.reason.strip():
        raise RequestError(
            f"going on with rollout {rollout.id} although the gate holds needs a reason: say it "
            "with --reason"
        )
    if action is not None and action.verdict is Verdict.FAIL:
        raise RefusedError(
            f"rollout {rollout.id} cannot go on: the gate does not hold, it fails: {action.reason}"
        )
    last = rollout.is_last_stage
    following = rollout.stage + 1
    if not last and rollout.needs_second(following):
        _require_approved(rollout, following, asked)
    said = "promoted" if last else f"advanced to {rollout.stage_name(rollout.stage + 1)}"
    # Where the controller was about to do the same, nothing is overridden.
    held = action.reason if action is not None and action.step is Step.HOLD else ""
    evidence = {} if action is None else dict(action.evidence)
    evidence |= {"override": bool(held), "gate_said": held}
    moved = {"moved_by": sorted({*rollout.moved_by, asked.by})}
    return _by_operator(
        Event.PROMOTE if last else Event.ADVANCE,
        asked.said(said) + (f" (the gate was {held})" if held else ""),
        asked,
        verdict="" if action is None else str(action.verdict),
        evidence=evidence,
        details=moved if "second_above_bp" in rollout.details else {},
    )


def stratum_stopped(
    rollout: Rollout, stratum: str, strata: Sequence[str], asked: Asked
) -> Change | None:
    """One stratum leaves the bundle, and the others go on; ``strata`` are all there are.

    Raises:
        NotFoundError: no device is of that stratum. RequestError: it is no stratum.
        ConflictError: no other stratum is left.
    """
    if not _STRATUM.fullmatch(stratum):
        raise RequestError(
            f"stratum {stratum!r:.80} is not understood: write CLASS/PROVIDER, like edge/cpu"
        )
    next_state(rollout.state, Event.STOP_STRATUM, rollout.id)
    if stratum in rollout.stopped:
        return None
    if stratum not in strata:
        known = ", ".join(strata) or "none"
        raise NotFoundError(f"no device of rollout {rollout.id} is in {stratum}: there is {known}")
    stopped = [*rollout.stopped, stratum]
    if set(strata) <= set(stopped):
        raise ConflictError(
            f"{stratum} is the last stratum of rollout {rollout.id} that goes on: use "
            f"`fleet rollout rollback {rollout.id}`"
        )
    said = asked.said(f"{stratum} stopped")
    return _by_operator(Event.STOP_STRATUM, said, asked, details={"stopped": stopped})


def superseded(newer: Rollout, asked: Asked) -> Change:
    """The end of a rollout that ``newer`` takes the place of."""
    said = asked.said(f"halted: superseded with {newer.id} of {newer.bundle}")
    return _by_operator(Event.SUPERSEDE, said, asked, details={"superseded_by": newer.id})


def _by_operator(event: Event, said: str, asked: Asked, **more: Any) -> Change:
    """The event as an operator's; ``more`` are fields of the change."""
    evidence = {**more.pop("evidence", {}), "by": asked.by}
    return Change(event, OPERATOR, said, asked.at_s, evidence=evidence, **more)
