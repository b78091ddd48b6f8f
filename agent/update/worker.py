"""The one long step (fetch, verify or try) that may be under way, and what follows from its result.

Rules kept here:
- One step at a time over all models, in a child task that can be stopped and leaves what it brought.
- A step that decided nothing is run again after a growing pause. The network may fail until the
  deadline; everything else has a limit of attempts.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.delivery import Offload, run_to_end
from agent.errors import AgentError
from agent.ports import Clock, SlotStore
from agent.update.events import Facts
from agent.update.journal import Deployment
from agent.update.ledger import Ledger
from agent.update.policy import UpdateLimits, attempts_allowed, kept_slots
from agent.update.states import Event, Phase
from agent.update.steps import StepResult, Steps
from agent.update.timers import Timers

__all__ = ["Worker", "WorkerPorts"]

logger = logging.getLogger(__name__)

STEP = "step"


@dataclass(frozen=True, slots=True)
class WorkerPorts:
    """What the worker shares with the updater. ``wake``: a step is done."""

    ledger: Ledger
    steps: Steps
    slots: SlotStore
    timers: Timers
    clock: Clock
    offload: Offload
    ended: Callable[[Deployment], None]
    wake: Callable[[], None]


class Worker:
    """Starts, stops and finishes steps."""

    def __init__(self, ports: WorkerPorts, limits: UpdateLimits) -> None:
        self._ports = ports
        self._ledger = ports.ledger
        self._timers = ports.timers
        self._limits = limits
        self._deployment: Deployment | None = None
        self._task: asyncio.Task[StepResult] | None = None
        self._noted: dict[str, str] = {}

    @property
    def busy(self) -> bool:
        return self._task is not None

    @property
    def done(self) -> bool:
        return self._task is not None and self._task.done()

    def works_on(self, deployment: Deployment) -> bool:
        return self._deployment is not None and self._deployment.id == deployment.id

    def start(self, deployment: Deployment) -> bool:
        """Begin the step of the deployment's phase; False when another runs, it is not due or hours are closed."""
        if deployment.closed and deployment.phase is Phase.TRY:
            return False
        if self.busy or not self._timers.due((STEP, deployment.model)):
            return False
        self._deployment = deployment
        self._task = asyncio.create_task(self._ports.steps.run(deployment))
        self._task.add_done_callback(lambda _: self._ports.wake())
        return True

    async def stop(self) -> None:
        """Cancel the step under way and wait for its end; what it brought stays."""
        task, self._task, self._deployment = self._task, None, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a step that was stopped had failed: %s", error)

    async def finish(self) -> None:
        """Store what the step that is done means.

        Raises:
            JournalError: nothing was stored; the step will run again.
        """
        task, deployment = self._task, self._deployment
        assert task is not None
        assert deployment is not None
        self._task = self._deployment = None
        now = self._ledger.record(deployment.model).deployment
        if now is not None and now.id == deployment.id:
            deployment = now  # to what end it goes may have changed meanwhile
        try:
            result = task.result()
        except AgentError as error:
            result = StepResult(None, "step_failed", str(error), counts=True)
        key = (STEP, deployment.model)
        if result.event is None:
            self._timers.failed(key)
            self._retry_or_refuse(deployment, result)
            return
        self._timers.clear(key)
        if result.event is Event.REFUSED:
            self._refuse(deployment, result)
        elif result.event is Event.DAMAGED:
            await self._fetch_again(deployment, result)
        elif result.event is Event.TRIED and deployment.closed:
            logger.info(
                "model %s: %s waits for its open hours", deployment.model, deployment.bundle
            )
        else:
            event = result.event
            if event is Event.TRIED and deployment.beside:
                event = Event.PLACED
            moved = replace(deployment, version=result.version or deployment.version)
            if moved.replaces is None:  # else the reason stays the fleet's rollback
                moved = replace(moved, reason_code="", reason="")
            self._ledger.move(moved, event, self._facts(deployment, result))

    def forget(self, deployment: Deployment) -> None:
        """The deployment is over."""
        self._noted.pop(deployment.id, None)
        self._timers.clear((STEP, deployment.model))
        self._ports.steps.forget(deployment.manifest_sha256)

    def _retry_or_refuse(self, deployment: Deployment, result: StepResult) -> None:
        """Nothing came of the step: again after a pause, unless a limit is reached."""
        if result.counts:
            deployment = replace(deployment, attempt=deployment.attempt + 1)
            if deployment.attempt > attempts_allowed(deployment.phase, self._limits):
                self._refuse(replace(deployment, attempt=deployment.attempt - 1), result)
                return
            self._ledger.keep(deployment)
        elif self._ports.clock.now_s() - deployment.started_s > self._limits.fetch_deadline_s:
            days = self._limits.fetch_deadline_s / 86400
            late = f"not here after {days:g} days, the last error was: {result.reason}"
            self._refuse(deployment, replace(result, reason_code="fetch_deadline", reason=late))
            return
        if self._noted.get(deployment.id) != result.reason_code:
            self._noted[deployment.id] = result.reason_code
            self._ledger.note(deployment, result.reason_code, result.reason)

    async def _fetch_again(self, deployment: Deployment, result: StepResult) -> None:
        """Pieces or slot are damaged on the disk: throw the slot away and fetch what is missing."""
        if deployment.attempt >= self._limits.max_fetch_attempts:
            self._refuse(deployment, result)
            return
        kept = kept_slots(self._ledger.records) - {deployment.manifest_sha256}
        try:
            await run_to_end(self._ports.offload, self._ports.slots.keep_only, kept)
        except AgentError as error:
            logger.warning("a damaged slot could not be removed: %s", error)
        damaged = replace(deployment, reason_code=result.reason_code, reason=result.reason)
        self._ledger.move(damaged, Event.DAMAGED)

    def _refuse(self, deployment: Deployment, result: StepResult) -> None:
        refused = replace(deployment, reason_code=result.reason_code, reason=result.reason)
        self._ledger.end(
            refused, Event.REFUSED, remember=True, facts=self._facts(deployment, result)
        )
        self._ports.ended(deployment)

    def _facts(self, deployment: Deployment, result: StepResult) -> Facts:
        fetched = self._ports.steps.bytes_fetched(deployment.manifest_sha256)
        return Facts(fetched, result.measures)
