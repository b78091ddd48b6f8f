"""The life of a rollout: every state, every event, every transition, in one table.

Rules kept here: a pair that is not in the table raises and says what is possible instead; the
diagram in the documentation is generated from the table.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from fleet.errors import ConflictError

__all__ = [
    "ACTIVE",
    "FINAL",
    "HALTED",
    "TRANSITIONS",
    "Event",
    "State",
    "allowed",
    "next_state",
    "to_mermaid",
]


class State(StrEnum):
    """``running`` is in a stage; its number is kept beside the state."""

    WAITING = "waiting"  # its first stage needs approval: nothing is said to the devices
    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"  # ended by a newer rollout of the same devices


class Event(StrEnum):
    """What can happen to a rollout.

    The controller asks for the first four, an operator for all but ``promote``; ``supersede`` comes
    with the start of another rollout.
    """

    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    STOP_STRATUM = "stop_stratum"
    PAUSE = "pause"
    RESUME = "resume"
    APPROVE = "approve"
    ABORT = "abort"
    SUPERSEDE = "supersede"


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.WAITING, Event.APPROVE): State.RUNNING,
    (State.WAITING, Event.ABORT): State.ABORTED,
    (State.WAITING, Event.SUPERSEDE): State.SUPERSEDED,
    (State.RUNNING, Event.ADVANCE): State.RUNNING,
    (State.RUNNING, Event.PROMOTE): State.PROMOTED,
    (State.RUNNING, Event.ROLLBACK): State.ROLLED_BACK,
    (State.RUNNING, Event.STOP_STRATUM): State.RUNNING,
    (State.RUNNING, Event.APPROVE): State.RUNNING,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.RUNNING, Event.ABORT): State.ABORTED,
    (State.RUNNING, Event.SUPERSEDE): State.SUPERSEDED,
    (State.PAUSED, Event.RESUME): State.RUNNING,
    (State.PAUSED, Event.ROLLBACK): State.ROLLED_BACK,
    (State.PAUSED, Event.STOP_STRATUM): State.PAUSED,
    (State.PAUSED, Event.APPROVE): State.PAUSED,
    (State.PAUSED, Event.ABORT): State.ABORTED,
    (State.PAUSED, Event.SUPERSEDE): State.SUPERSEDED,
    # What was kept after an end, or promoted, can still be taken back by an operator.
    (State.PROMOTED, Event.ROLLBACK): State.ROLLED_BACK,
    (State.PROMOTED, Event.STOP_STRATUM): State.PROMOTED,
    (State.ABORTED, Event.ROLLBACK): State.ROLLED_BACK,
    (State.SUPERSEDED, Event.ROLLBACK): State.ROLLED_BACK,
}

ACTIVE: Final = frozenset({State.WAITING, State.RUNNING, State.PAUSED})
FINAL: Final = frozenset({State.PROMOTED, State.ROLLED_BACK, State.ABORTED, State.SUPERSEDED})
HALTED: Final = frozenset({State.PAUSED, State.ABORTED, State.SUPERSEDED})
"""Whoever has the bundle keeps it, and nobody begins to install it."""

_WORDS: Final[Mapping[State, str]] = {
    State.WAITING: "waiting for approval of its first stage",
    State.RUNNING: "running",
    State.PAUSED: "paused",
    State.PROMOTED: "promoted",
    State.ROLLED_BACK: "rolled back",
    State.ABORTED: "aborted",
    State.SUPERSEDED: "superseded",
}


def allowed(state: State) -> tuple[Event, ...]:
    """What can happen in ``state``, in the order of the table."""
    return tuple(event for (at, event) in TRANSITIONS if at is state)


def next_state(state: State, event: Event, rollout_id: str) -> State:
    """The state after ``event``.

    Raises:
        ConflictError: the event is not possible in this state; the message says what is.
    """
    after = TRANSITIONS.get((state, event))
    if after is None:
        possible = ", ".join(allowed(state)) or "nothing more"
        raise ConflictError(
            f"rollout {rollout_id} is {_WORDS[state]}: {event} is not possible then "
            f"(possible: {possible})"
        )
    return after


def to_mermaid() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {first}: start" for first in (State.RUNNING, State.WAITING)]
    lines += [f"    {at} --> {after}: {event}" for (at, event), after in TRANSITIONS.items()]
    lines += [f"    {state} --> [*]" for state in State if state in FINAL]
    return "\n".join(lines) + "\n"
