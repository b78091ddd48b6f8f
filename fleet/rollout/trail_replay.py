"""The audit trail walked again: whether its decisions follow one from another, and lead to where the rollout is.

Rules kept here: pure; the table of states says what may follow what; a stage begins by a decision and by nothing else;
what cannot change in a rollout's life is the same in everything that was kept of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.rollout.audit import CONTROLLER, Entry
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.states import TRANSITIONS, Event, State

__all__ = ["Walked", "foreign", "walk"]

_LASTING: Final = (
    "id", "number", "model", "bundle", "manifest_sha256", "previous_bundle", "spec", "created_s",
)  # fmt: skip
_GROWING: Final = ("stopped", "approved")
_FIRST: Final = "start"
_HOLD: Final = "hold"


@dataclass(slots=True)
class Walked:
    """Where a trail leads. ``begun``: stages and when each was begun, also anew; ``differences`` in words."""

    state: str = ""
    stage: int = 0
    started_s: float = 0.0
    begun: set[tuple[int, float]] = field(default_factory=set)
    differences: list[str] = field(default_factory=list)


def walk(entries: Sequence[Entry], rollout: Rollout) -> Walked:
    """Follow the trail of a rollout, the oldest entry first, to where it is now."""
    walked = Walked()
    for entry in entries:
        walked.differences += _broken(entry, walked)
        _follow(entry, walked)
    now = (str(rollout.state), rollout.stage, rollout.stage_started_s)
    if now != (walked.state, walked.stage, walked.started_s):
        walked.differences.append(
            f"the trail leads to {_place(walked.state, walked.stage, walked.started_s)}, and the rollout is "
            f"{_place(*now)}"
        )
    return walked


def _broken(entry: Entry, before: Walked) -> Iterator[str]:
    """Why an entry cannot come after what was before it."""
    where = f"decision {entry.id} ({entry.action})"
    if entry.from_state != before.state:
        yield (
            f"{where} begins {entry.from_state or 'with nothing'}, and what is before it left the rollout "
            f"{before.state or 'unmade'}"
        )
    stage = before.stage + (entry.action == Event.ADVANCE)
    if entry.stage != stage:
        yield f"{where} is told of stage {entry.stage + 1}, and stage {stage + 1} follows"
    if entry.action == _HOLD and entry.actor != CONTROLLER:
        yield f"{where} is told of {entry.actor}, and only the controller holds"
    if entry.to_state not in _possible(entry):
        yield f"{where} cannot make {entry.to_state} of {entry.from_state or 'nothing'}"


def _possible(entry: Entry) -> set[str]:
    """The states that the table lets an entry lead to; none for what is no action."""
    if entry.action == _FIRST:
        return set() if entry.from_state else {State.RUNNING, State.WAITING}
    if entry.action == _HOLD:
        return {entry.from_state} & {State.RUNNING}
    return {
        str(after)
        for (state, event), after in TRANSITIONS.items()
        if (state, event) == (entry.from_state, entry.action)
    }


def _follow(entry: Entry, walked: Walked) -> None:
    """Go where the entry says."""
    begins = entry.action in (_FIRST, Event.ADVANCE, Event.RESUME) or (
        entry.from_state == State.WAITING and entry.to_state == State.RUNNING
    )
    walked.state, walked.stage = entry.to_state, entry.stage
    if begins:
        walked.started_s = entry.at_s
        walked.begun.add((entry.stage, entry.at_s))


def _place(state: str, stage: int, started_s: float) -> str:
    return f"{state or 'nowhere'} in stage {stage + 1}, begun at {started_s:.3f}"


def foreign(snapshot: Snapshot, entry: Entry, rollout: Rollout, walked: Walked) -> list[str]:
    """What a kept snapshot has that was never this rollout's, in words."""
    then = snapshot.rollout
    found = [
        f"snapshot {name}: not that of the rollout"
        for name in _LASTING
        if getattr(then, name) != getattr(rollout, name)
    ]
    found += [
        f"snapshot {name}: the rollout has never had all of it"
        for name in _GROWING
        if not set(then.details.get(name, ())) <= set(rollout.details.get(name, ()))
    ]
    stage = entry.stage - (entry.action == Event.ADVANCE)
    if (str(then.state), then.stage) != (entry.from_state, stage):
        found.append(
            f"snapshot: {then.state} in stage {then.stage + 1} is not what was decided about"
        )
    if (then.stage, then.stage_started_s) not in walked.begun:
        found.append(f"snapshot: no decision began stage {then.stage + 1} then")
    ring = None if snapshot.evidence is None else snapshot.evidence.frozen.ring
    place = (then.id, then.stage, then.stage_started_s)
    if ring is not None and (ring.rollout_id, ring.stage, ring.started_s) != place:
        found.append("snapshot: its comparison is of another stage")
    return found
