"""The machine of one deployment: one device going to one bundle.

Everything about it is in this file: the phases, the events, which event leads where, and what is done
with a phase that is found in the journal after a restart. A pair that is not in the table is a bug and
raises. The diagram in the documentation is generated from the table by ``to_mermaid``.

- Up to and including ``try`` the bundle has never answered a request: it can be refused or cancelled.
- In ``beside`` it is loaded next to the bundle that answers, which nothing but a swap changes: letting it go
  takes nothing away, so it ends at once, whatever the reason.
- From ``swap`` on it may have answered: the only ways out are ``commit`` and ``revert``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from agent.update.errors import TransitionError

__all__ = [
    "BEFORE_SWAP",
    "NOT_SWAPPED",
    "ON_RESTART",
    "TRANSITIONS",
    "Counter",
    "Event",
    "Phase",
    "RestartRule",
    "next_phase",
    "to_mermaid",
]


class Phase(Enum):
    """What a deployment is doing. ``idle``: it is over (or has not begun)."""

    IDLE = "idle"
    FETCH = "fetch"
    VERIFY = "verify"
    TRY = "try"
    BESIDE = "beside"
    SWAP = "swap"
    PROBATION = "probation"
    COMMIT = "commit"
    REVERT = "revert"


class Event(Enum):
    """What can happen to a deployment."""

    STARTED = "started"  # the fleet wants a bundle that is not active
    ROLLED_BACK = (
        "rolled_back"  # an active bundle has to go: the fleet says so, or it cannot be loaded
    )
    FETCHED = "fetched"  # every piece is on the device
    DAMAGED = "damaged"  # pieces do not make up the bundle any more: fetch again
    VERIFIED = "verified"  # the slot is sealed and every file has its digest
    TRIED = "tried"  # the trial passed, and it is to answer
    PLACED = "placed"  # the trial passed, and it is to be held beside the one that answers
    TAKEN = "taken"  # what was held beside is to answer now
    REFUSED = "refused"  # never served: the bundle or this device says no
    CANCELLED = "cancelled"  # the fleet does not want it any more, and it was not swapped in
    SWAPPED = "swapped"  # requests go to the new bundle
    SWAP_FAILED = "swap_failed"  # it could not be loaded or activated
    PASSED = "passed"  # probation is over and every objective was kept
    FAILED = "failed"  # it broke its objectives or the server, on probation or beside
    WITHDRAWN = "withdrawn"  # the fleet rolls back while the bundle is on probation or beside
    COMMITTED = "committed"
    REVERTED = "reverted"
    RESTARTED = "restarted"  # found in the journal after a restart of the agent


TRANSITIONS: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (Phase.IDLE, Event.STARTED): Phase.FETCH,
    (Phase.IDLE, Event.ROLLED_BACK): Phase.REVERT,
    (Phase.FETCH, Event.FETCHED): Phase.VERIFY,
    (Phase.FETCH, Event.REFUSED): Phase.IDLE,
    (Phase.FETCH, Event.CANCELLED): Phase.IDLE,
    (Phase.FETCH, Event.RESTARTED): Phase.FETCH,
    (Phase.VERIFY, Event.VERIFIED): Phase.TRY,
    (Phase.VERIFY, Event.DAMAGED): Phase.FETCH,
    (Phase.VERIFY, Event.REFUSED): Phase.IDLE,
    (Phase.VERIFY, Event.CANCELLED): Phase.IDLE,
    (Phase.VERIFY, Event.RESTARTED): Phase.VERIFY,
    (Phase.TRY, Event.TRIED): Phase.SWAP,
    (Phase.TRY, Event.PLACED): Phase.BESIDE,
    (Phase.TRY, Event.REFUSED): Phase.IDLE,
    (Phase.TRY, Event.CANCELLED): Phase.IDLE,
    # The slot is hashed again after a restart, before the trial opens it.
    (Phase.TRY, Event.RESTARTED): Phase.TRY,
    (Phase.TRY, Event.DAMAGED): Phase.FETCH,
    # No fetch and no trial again: it is loaded, or its slot is hashed before it is.
    (Phase.BESIDE, Event.TAKEN): Phase.SWAP,
    (Phase.BESIDE, Event.REFUSED): Phase.IDLE,
    (Phase.BESIDE, Event.FAILED): Phase.IDLE,
    (Phase.BESIDE, Event.CANCELLED): Phase.IDLE,
    (Phase.BESIDE, Event.WITHDRAWN): Phase.IDLE,
    (Phase.BESIDE, Event.RESTARTED): Phase.BESIDE,
    (Phase.SWAP, Event.SWAPPED): Phase.PROBATION,
    (Phase.SWAP, Event.SWAP_FAILED): Phase.REVERT,
    (Phase.SWAP, Event.WITHDRAWN): Phase.REVERT,
    (Phase.SWAP, Event.RESTARTED): Phase.SWAP,
    (Phase.PROBATION, Event.PASSED): Phase.COMMIT,
    (Phase.PROBATION, Event.FAILED): Phase.REVERT,
    (Phase.PROBATION, Event.WITHDRAWN): Phase.REVERT,
    # The server lost what it had loaded, so the bundle is loaded and put on probation anew.
    (Phase.PROBATION, Event.RESTARTED): Phase.SWAP,
    (Phase.COMMIT, Event.COMMITTED): Phase.IDLE,
    (Phase.COMMIT, Event.RESTARTED): Phase.COMMIT,
    (Phase.REVERT, Event.REVERTED): Phase.IDLE,
    (Phase.REVERT, Event.RESTARTED): Phase.REVERT,
}

BEFORE_SWAP: Final = frozenset({Phase.FETCH, Phase.VERIFY, Phase.TRY})
"""Phases in which the bundle has never answered a request."""
NOT_SWAPPED: Final = BEFORE_SWAP | {Phase.BESIDE}
"""Phases that are called off without touching what answers."""


class Counter(Enum):
    """Which count of a deployment a restart raises."""

    NONE = "none"
    ATTEMPT = "attempt"
    BOOTS = "boots"


@dataclass(frozen=True, slots=True)
class RestartRule:
    """What to do with a phase that is found in the journal at start.

    ``counter`` goes up by one; where it exceeds its limit, ``over`` happens instead of RESTARTED, with
    ``reason_code``.
    """

    what: str
    counter: Counter = Counter.NONE
    over: Event | None = None
    reason_code: str = ""


ON_RESTART: Final[Mapping[Phase, RestartRule]] = {
    Phase.FETCH: RestartRule("go on fetching what is missing"),
    Phase.VERIFY: RestartRule(
        "verify again", Counter.ATTEMPT, Event.REFUSED, "verify_crashed_device"
    ),
    Phase.TRY: RestartRule("try again", Counter.ATTEMPT, Event.REFUSED, "trial_crashed_device"),
    Phase.BESIDE: RestartRule(
        "serve the active bundle, then load it beside again", Counter.BOOTS, Event.FAILED, "beside_restarts"
    ),
    Phase.SWAP: RestartRule(
        "serve the previous bundle, then load again", Counter.BOOTS, Event.SWAP_FAILED, "swap_restarts"
    ),
    Phase.PROBATION: RestartRule(
        "serve the previous bundle, then load again", Counter.BOOTS, Event.FAILED, "probation_restarts"
    ),
    Phase.COMMIT: RestartRule("finish the commit"),
    Phase.REVERT: RestartRule("finish the revert"),
}  # fmt: skip


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase that follows.

    Raises:
        TransitionError: the pair is not in the table.
    """
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise TransitionError(phase.value, event.value) from None


def to_mermaid() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    lines += [
        f"    {phase.value} --> {after.value}: {event.value}"
        for (phase, event), after in TRANSITIONS.items()
    ]
    return "\n".join(lines) + "\n"
