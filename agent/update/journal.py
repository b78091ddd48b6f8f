"""What the updater remembers over a power cut, and the Protocol it is stored through.

Rules kept here:
- One record a model holds the slots and the deployment under way, and is saved as a whole: slots and
  deployment can never disagree.
- A deployment that ended badly leaves a ``Refusal`` for (rollout, bundle), saved with the record, so
  the same rollout brings the same bundle again only as often as its directive allows. A new rollout may.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.health.crashes import Crash
from agent.update.states import Phase

__all__ = [
    "Deployment",
    "Installed",
    "Journal",
    "JournalContent",
    "ModelRecord",
    "Refusal",
    "Slots",
]


@dataclass(frozen=True, slots=True)
class Installed:
    """A bundle in a slot, and which rollout brought it."""

    manifest_sha256: str
    version: str
    bundle: str
    rollout_id: str


@dataclass(frozen=True, slots=True)
class Slots:
    """What a model is served from, and what can be put back without a download."""

    active: Installed | None = None
    previous: Installed | None = None

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(s.manifest_sha256 for s in (self.active, self.previous) if s is not None)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One device going to one bundle (``manifest_sha256``), or leaving it (phase REVERT).

    ``attempt`` counts the runs of the phase, ``boots`` the restarts found between swap and commit.
    ``previous_sha256`` is what a revert puts back; None: the model is then not served.
    ``replaces`` names an active bundle the fleet rolled back, when this deployment brings what
    replaces it. ``served``: the bundle has answered requests. ``reason`` says why it is reverting.
    ``stopped``: the agent was stopped in order since, so the restart that finds it is no crash.
    ``mode``: the directive's; ``beside``: it is to be held beside what answers (else to answer), with the
    directive's ``traffic_bp`` and ``routing_key``, which a restart needs before it has heard the fleet.
    ``closed``: it waits before its trial for the open hours, until the fleet is heard to say otherwise.
    """

    id: str
    rollout_id: str
    model: str
    bundle: str
    manifest_sha256: str
    length: int
    started_s: float
    phase: Phase = Phase.IDLE
    attempt: int = 1
    boots: int = 0
    previous_sha256: str | None = None
    reason_code: str = ""
    reason: str = ""
    version: str = ""
    replaces: str | None = None
    served: bool = False
    stopped: bool = False
    mode: str = "canary"
    beside: bool = False
    traffic_bp: int = 0
    routing_key: str = ""
    closed: bool = False

    @property
    def installed(self) -> Installed:
        """What it becomes once it is committed."""
        return Installed(self.manifest_sha256, self.version, self.bundle, self.rollout_id)


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Everything about one model on this device.

    ``crashes`` counts against the bundles in its slots. ``loading``: digest of the slot whose load has begun and
    not ended; found after a restart, that load took the device down.
    """

    model: str
    slots: Slots = Slots()
    deployment: Deployment | None = None
    crashes: tuple[Crash, ...] = ()
    loading: str = ""

    def with_deployment(self, deployment: Deployment | None) -> "ModelRecord":
        return replace(self, deployment=deployment)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bundle that a rollout brought and that did not stay: why the last time, how often, and when last."""

    rollout_id: str
    manifest_sha256: str
    reason_code: str
    reason: str
    count: int = 1
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JournalContent:
    """All that is stored."""

    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()


class Journal(Protocol):
    """Durable storage of records. ``save`` returns only once a power cut cannot undo it."""

    def load(self) -> JournalContent:
        """Raises JournalError when what is stored cannot be read."""
        ...

    def save(self, record: ModelRecord, refusal: Refusal | None = None) -> None:
        """Store the record, and the refusal with it, in one transaction.

        Raises:
            JournalError: nothing was stored.
        """
        ...
