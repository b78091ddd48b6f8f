"""The records of all models in memory, in step with the journal, and the reports of what happens to them.

Rules kept here:
- Saved, then in memory, then reported: nothing acts on a phase that a power cut could undo.
- An outcome is reported before the deployment leaves the journal: a power cut in between reports it
  twice, never not at all. Reports are idempotent.
- Every change of phase goes through the table of states.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from agent.ports import Clock
from agent.trust import Tries
from agent.update.events import Facts, Outcome, deployment_event
from agent.update.journal import Deployment, Journal, ModelRecord, Refusal, Slots
from agent.update.policy import Refused, after_event
from agent.update.states import Event, next_phase
from protos import report_pb2

__all__ = ["Ledger", "Report"]

logger = logging.getLogger(__name__)

Report = Callable[[report_pb2.DeploymentEvent], None]
"""Takes a report for the fleet manager; returns once it is kept."""

_ENDS: Final[Mapping[Event, Outcome]] = {
    Event.REFUSED: Outcome.REFUSED,
    Event.CANCELLED: Outcome.CANCELLED,
    Event.COMMITTED: Outcome.COMMITTED,
    Event.REVERTED: Outcome.REVERTED,
}


class Ledger:
    """All that the updater knows and must not lose."""

    def __init__(self, journal: Journal, clock: Clock, report: Report) -> None:
        self._journal = journal
        self._clock = clock
        self._report = report
        self._records: dict[str, ModelRecord] = {}
        self._refused: dict[tuple[str, str], Tries] = {}

    def load(self) -> None:
        """Raises JournalError when the journal cannot be read."""
        content = self._journal.load()
        self._records = dict(content.models)
        self._refused = {
            (it.rollout_id, it.manifest_sha256): Tries(it.count, it.at_s) for it in content.refusals
        }

    @property
    def records(self) -> Mapping[str, ModelRecord]:
        return self._records

    @property
    def refused(self) -> Refused:
        return self._refused

    def record(self, model: str) -> ModelRecord:
        return self._records.get(model) or ModelRecord(model)

    def start(self, seed: Deployment, event: Event) -> None:
        """Begin a deployment: name it, store it, report its first phase."""
        self.move(self._named(seed), event)

    def move(
        self,
        deployment: Deployment,
        event: Event,
        facts: Facts | None = None,
    ) -> None:
        """Apply ``event``: the phase it leads to is stored, then reported.

        Raises:
            TransitionError: the event must not happen now. JournalError: nothing was stored.
        """
        moved = after_event(deployment, event)
        self.keep(moved)
        logger.info(
            "model %s: %s: %s -> %s%s",
            moved.model,
            moved.bundle,
            deployment.phase.value,
            moved.phase.value,
            f" ({moved.reason})" if moved.reason else "",
            extra=_ids(moved),
        )
        self._report(deployment_event(moved, facts=facts))

    def keep(self, deployment: Deployment) -> None:
        """Store a deployment as it is, without an event. Raises JournalError."""
        self._save(self.record(deployment.model).with_deployment(deployment))

    def keep_record(self, record: ModelRecord) -> None:
        """Store crashes and loads of a model. Raises JournalError."""
        self._save(record)

    def note(self, deployment: Deployment, code: str, reason: str) -> None:
        """Report why a phase does not get on; nothing is stored."""
        logger.warning("model %s: %s", deployment.model, reason, extra=_ids(deployment))
        self._report(deployment_event(replace(deployment, reason_code=code, reason=reason)))

    def end(
        self,
        deployment: Deployment,
        event: Event,
        slots: Slots | None = None,
        *,
        outcome: Outcome | None = None,
        remember: bool = False,
        facts: Facts | None = None,
    ) -> None:
        """The deployment is over: report the outcome, then store it with the slots as they are now.

        ``outcome`` where it is not the one of the event; ``remember``: as a try of this rollout that ended
        badly, see ``agent.trust.may_try``.
        """
        next_phase(deployment.phase, event)
        outcome = outcome or _ENDS[event]
        logger.info(
            "model %s: %s %s in phase %s: %s",
            deployment.model,
            deployment.bundle,
            outcome.value,
            deployment.phase.value,
            deployment.reason or "done",
            extra=_ids(deployment),
        )
        self._report(deployment_event(deployment, outcome, facts))
        record = self.record(deployment.model)
        slots = slots or record.slots
        crashes = tuple(it for it in record.crashes if it.manifest_sha256 in slots.digests)
        record = replace(record, deployment=None, slots=slots, crashes=crashes)
        refusal = None
        if remember:
            before = self._refused.get((deployment.rollout_id, deployment.manifest_sha256))
            refusal = Refusal(
                deployment.rollout_id,
                deployment.manifest_sha256,
                deployment.reason_code,
                deployment.reason,
                count=1 if before is None else before.count + 1,
                at_s=self._clock.now_s(),
            )
        self._save(record, refusal)

    def adopt(self, seed: Deployment) -> None:
        """The active bundle is another rollout's from now on; tell that rollout it is committed here."""
        record = self.record(seed.model)
        named = self._named(seed)
        self._report(deployment_event(named, Outcome.COMMITTED))
        self._save(replace(record, slots=replace(record.slots, active=named.installed)))

    def report_refused(self, seed: Deployment) -> None:
        """A directive that cannot be obeyed: nothing to store, the fleet is told."""
        named = self._named(seed)
        logger.warning("model %s: refused: %s", seed.model, seed.reason, extra=_ids(named))
        self._report(deployment_event(named, Outcome.REFUSED))

    def _named(self, seed: Deployment) -> Deployment:
        """With an id that this device has not used: bundle and time of start."""
        now_s = self._clock.now_s()
        name = f"{seed.manifest_sha256[:16]}-{int(now_s * 1000)}"
        return replace(seed, id=name, started_s=now_s)

    def _save(self, record: ModelRecord, refusal: Refusal | None = None) -> None:
        self._journal.save(record, refusal)
        self._records[record.model] = record
        if refusal is not None:
            key = (refusal.rollout_id, refusal.manifest_sha256)
            self._refused = {**self._refused, key: Tries(refusal.count, refusal.at_s)}


def _ids(deployment: Deployment) -> dict[str, str]:
    return {
        "model": deployment.model,
        "bundle": deployment.bundle,
        "rollout": deployment.rollout_id,
        "reason_code": deployment.reason_code,
    }
