"""A deployment as the report that the fleet manager gets: one for each phase entered and each outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from agent.update.journal import Deployment
from agent.update.states import Phase
from protos import report_pb2

__all__ = ["Facts", "Outcome", "deployment_event"]

MAX_REASON_CHARS: Final = 1000
"""A reason is for people; what is longer is cut, so that a report always fits into a message."""


class Outcome(Enum):
    """How a deployment ended."""

    COMMITTED = "committed"
    REFUSED = "refused"
    REVERTED = "reverted"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a step found out: bytes that came over the network, measures of the trial."""

    bytes_fetched: int = 0
    measures: Mapping[str, float] = field(default_factory=dict)


_PHASES: Final[Mapping[Phase, report_pb2.Phase]] = {
    Phase.IDLE: report_pb2.PHASE_IDLE,
    Phase.FETCH: report_pb2.PHASE_FETCH,
    Phase.VERIFY: report_pb2.PHASE_VERIFY,
    Phase.TRY: report_pb2.PHASE_TRY,
    Phase.BESIDE: report_pb2.PHASE_BESIDE,
    Phase.SWAP: report_pb2.PHASE_SWAP,
    Phase.PROBATION: report_pb2.PHASE_PROBATION,
    Phase.COMMIT: report_pb2.PHASE_COMMIT,
    Phase.REVERT: report_pb2.PHASE_REVERT,
}
_OUTCOMES: Final[Mapping[Outcome | None, report_pb2.Outcome]] = {
    None: report_pb2.OUTCOME_UNSPECIFIED,
    Outcome.COMMITTED: report_pb2.OUTCOME_COMMITTED,
    Outcome.REFUSED: report_pb2.OUTCOME_REFUSED,
    Outcome.REVERTED: report_pb2.OUTCOME_REVERTED,
    Outcome.CANCELLED: report_pb2.OUTCOME_CANCELLED,
}


def deployment_event(
    deployment: Deployment, outcome: Outcome | None = None, facts: Facts | None = None
) -> report_pb2.DeploymentEvent:
    """The report of where ``deployment`` stands; its phase is the one in which an outcome was reached."""
    facts = facts or Facts()
    return report_pb2.DeploymentEvent(
        deployment_id=deployment.id,
        rollout_id=deployment.rollout_id,
        model=deployment.model,
        bundle=deployment.bundle,
        manifest_sha256=deployment.manifest_sha256,
        phase=_PHASES[deployment.phase],
        outcome=_OUTCOMES[outcome],
        reason_code=deployment.reason_code,
        reason=deployment.reason[:MAX_REASON_CHARS],
        attempt=deployment.attempt,
        bytes_fetched=facts.bytes_fetched,
        measures=dict(facts.measures),
        previous_manifest_sha256=deployment.previous_sha256 or "",
    )
