"""The values that deciding takes and gives: the device, what it has, what it is to do and why.

Verbs and reasons are closed lists. The text is for people; the reason's value is the code in
reports and logs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from agent.trust.directive import Directive
from agent.trust.release import BundleRelease

__all__ = ["HOLDS", "CurrentModel", "Decision", "DeviceFacts", "Reason", "Tries", "Verb"]


class Verb(Enum):
    """What is to be done about one model."""

    INSTALL = "install"  # answer with the directive's bundle, or go on going there
    BESIDE = "beside"  # hold the directive's bundle beside the one that answers
    KEEP = "keep"  # what is active stays active
    REVERT = "revert"  # leave the directive's bundle for the release's, or else the previous slot
    NONE = "none"  # nothing is wanted; a deployment that has not swapped yet is called off
    REFUSE = "refuse"  # the directive is meant for this device and cannot be obeyed


class Reason(Enum):
    """Why; the value is the code in reports."""

    IN_COHORT = "in_cohort"
    ALREADY_ACTIVE = "already_active"
    FLEET_ROLLBACK = "fleet_rollback"
    NOTHING_TO_REVERT_TO = "nothing_to_revert_to"
    NO_DIRECTIVE = "no_directive"
    NOT_SELECTED = "not_selected"
    OTHER_CLASS = "other_class"
    NOT_IN_COHORT = "not_in_cohort"
    SPEED_LIMIT = "speed_limit"
    TOO_EARLY = "too_early"
    HALTED = "halted"
    BESIDE = "beside"
    EXCLUDED = "excluded"
    CLOSED = "closed"
    STRATUM_STOPPED = "stratum_stopped"
    NOTHING_ACTIVE = "nothing_active"
    WITHDRAWN = "withdrawn"
    REFUSED_BEFORE = "refused_before"
    NOT_RELEASED = "not_released"
    BOTH_DISAGREE = "both_disagree"
    WRONG_HARDWARE = "wrong_hardware"
    AGENT_VERSION = "agent_version"
    ONNXRUNTIME_VERSION = "onnxruntime_version"
    BELOW_FLOOR = "below_floor"
    BLOCKED = "blocked"
    OLDER_RELEASE = "older_release"
    STALE_METADATA = "stale_metadata"


HOLDS: Final = frozenset({Reason.CLOSED, Reason.STALE_METADATA})
"""With INSTALL or BESIDE: go on with what is under way, but begin, try and swap nothing."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device knows about itself.

    ``hardware`` is what ``uname -m`` says, ``execution_provider`` what models run on (``cpu``),
    ``utc_offset_minutes`` what its local time is ahead of UTC now.
    """

    device_id: str
    device_class: str
    hardware: str
    labels: Mapping[str, str] = field(default_factory=dict)
    agent_version: str = ""
    onnxruntime_version: str = ""
    execution_provider: str = ""
    utc_offset_minutes: int = 0


@dataclass(frozen=True, slots=True)
class Tries:
    """How often one rollout's bundle was refused or reverted here, and when last, in seconds since the epoch."""

    count: int = 1
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CurrentModel:
    """Where a device stands with one model.

    Attributes:
        model: name of the model.
        active_sha256: manifest of the bundle that serves; None when none does.
        previous_sha256: manifest of the bundle in the previous slot.
        pending_sha256: manifest of the bundle that a deployment under way is going to.
        pending_rollout_id: the rollout of that deployment.
        refused: by rollout id and manifest, the tries of this device that ended badly; whether there
            may be one more follows from the directive's ``retries``.
    """

    model: str
    active_sha256: str | None = None
    previous_sha256: str | None = None
    pending_sha256: str | None = None
    pending_rollout_id: str | None = None
    refused: Mapping[tuple[str, str], Tries] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done about one model, and why.

    Attributes:
        model: name of the model.
        verb: what to do.
        reason: why, as a code. One of ``HOLDS`` with INSTALL or BESIDE: go on with what is under way, but
            try and swap nothing for now.
        text: why, for people.
        release: INSTALL: the bundle to go to. REVERT: the bundle to go back to, None for the
            previous slot.
        directive: the directive that decided; None when there is none.
        leaves: REVERT: manifest of the bundle to be left; None is the directive's.
        forgets_previous: the bundle in the previous slot must never be put back.
    """

    model: str
    verb: Verb
    reason: Reason
    text: str
    release: BundleRelease | None = None
    directive: Directive | None = None
    leaves: str | None = None
    forgets_previous: bool = False

    @property
    def holds(self) -> bool:
        """Whether nothing is to be begun, tried or swapped in for now."""
        return self.reason in HOLDS
