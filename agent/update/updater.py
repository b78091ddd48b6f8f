"""The updater: brings each model to the bundle that the fleet wants, step by step, over any interruption.

Rules kept here:
- One task (``run``) owns the state. Others only leave what they know (``desire``, ``observe``,
  ``server_changed``) and wake it; it sleeps until then or until something falls due.
- Models take turns: one does the long work (fetch, verify, try) at a time, while any number are on
  probation. A rollback never waits for a download.
- What to do is decided in ``policy`` and ``health.probation``, what is allowed in ``states``, and
  stored by ``ledger`` before it is done.
- A model with an active slot is served whenever the server runs. A slot that cannot be loaded any
  more, or that keeps taking the server or the device down, is left for the previous one.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agent.delivery import FetchPorts, Offload, run_to_end
from agent.errors import AgentError
from agent.health.budget import Breach
from agent.ports import (
    Clock,
    MetadataSource,
    ModelServer,
    PieceSource,
    PieceStore,
    ServedWindow,
    ServerState,
    SlotStore,
    SwapMemory,
    Trial,
)
from agent.trust import CurrentModel, Decision
from agent.update.beside import Beside, BesidePorts
from agent.update.errors import JournalError
from agent.update.events import Outcome
from agent.update.journal import Deployment, Journal, ModelRecord
from agent.update.ledger import Ledger, Report
from agent.update.planner import SwapPlanner
from agent.update.policy import (
    Action,
    ActionKind,
    UpdateLimits,
    choose,
    kept_slots,
    on_restart,
)
from agent.update.servables import Servables
from agent.update.served import ServedBundle, beside_of, served_of
from agent.update.states import BEFORE_SWAP, NOT_SWAPPED, Event, Phase, next_phase
from agent.update.steps import StepPorts, Steps
from agent.update.swapper import SERVER, Swapper, SwapperPorts
from agent.update.timers import Timers
from agent.update.watch import ProbationWatch
from agent.update.worker import Worker, WorkerPorts

__all__ = ["ServedBundle", "Updater", "UpdaterPorts", "unlimited_space"]

logger = logging.getLogger(__name__)

JOURNAL = ("journal", "")
TIDY = ("tidy", "")


def unlimited_space() -> int:
    """Free bytes where nobody measures them."""
    return 1 << 62


@dataclass(frozen=True, slots=True)
class UpdaterPorts:
    """What the updater needs of the world.

    ``offload`` runs blocking work off the loop; ``uniform`` gives numbers from 0 to 1 for jitter;
    ``free_bytes`` is the room on the disk of the slots; ``memory`` None: two versions always fit.
    """

    journal: Journal
    pieces: PieceStore
    slots: SlotStore
    source: PieceSource
    metadata: MetadataSource
    trial: Trial
    server: ModelServer
    clock: Clock
    offload: Offload = asyncio.to_thread
    uniform: Callable[[], float] = random.random
    free_bytes: Callable[[], int] = unlimited_space
    memory: SwapMemory | None = None


class Updater:
    """See the module. All but ``run`` and ``resume`` return at once and are called from the same loop."""

    def __init__(self, ports: UpdaterPorts, limits: UpdateLimits, report: Report) -> None:
        self._ports = ports
        self._limits = limits
        self._ledger = Ledger(ports.journal, ports.clock, report)
        planner = SwapPlanner(ports.memory, ports.slots, ports.offload, limits.memory)
        self._servables = Servables(ports.server, ports.slots, ports.offload, planner)
        self._timers = Timers(ports.clock, limits.retry_base_s, limits.retry_max_s, ports.uniform)
        fetch = FetchPorts(ports.source, ports.pieces, ports.clock, ports.offload, ports.uniform)
        self._steps = Steps(
            StepPorts(fetch, ports.slots, ports.metadata, ports.trial, ports.free_bytes), limits
        )
        self._wake = asyncio.Event()
        self._watch = ProbationWatch()
        self._worker = Worker(
            WorkerPorts(
                self._ledger,
                self._steps,
                ports.slots,
                self._timers,
                ports.clock,
                ports.offload,
                self._ended,
                self._wake.set,
            ),
            limits,
        )
        self._beside = Beside(
            BesidePorts(
                self._ledger,
                self._servables,
                ports.slots,
                self._timers,
                ports.clock,
                ports.offload,
                self._watch,
                self._ended,
            ),
            limits,
        )
        self._swapper = Swapper(
            SwapperPorts(
                self._ledger,
                self._servables,
                ports.slots,
                self._timers,
                ports.clock,
                ports.offload,
                self._watch,
                self._beside,
                self._ended,
            ),
            limits,
        )
        self._wanted: Mapping[str, Decision] | None = None
        self._resumed = False
        self._untidy = True
        self._told: dict[str, tuple[str, str, str]] = {}

    # --- what others leave here -------------------------------------------------------------------

    def desire(self, decisions: Iterable[Decision]) -> None:
        """What the fleet wants of every model it directs. Replaces what was wanted before: a model
        that is not named any more keeps what is active, and loses a deployment not yet swapped."""
        self._wanted = {decision.model: decision for decision in decisions}
        self._wake.set()

    def observe(self, windows: Iterable[ServedWindow]) -> None:
        """What the model server counted since the last drain."""
        if self._watch.observe(windows):
            self._wake.set()

    def server_changed(self, state: ServerState) -> None:
        """The server died or was started anew. Its state is read again when it is acted on."""
        logger.debug("model server: generation %d, running %s", state.generation, state.running)
        self._wake.set()

    def memory_exceeded(self, breach: Breach | None) -> None:
        """Agent and server hold more memory than they may, since then; None: they do not (any more)."""
        if breach != self._swapper.memory_breach:
            self._swapper.memory_breach = self._beside.memory_breach = breach
            self._wake.set()

    def stopped(self) -> None:
        """The agent was stopped in order and ``run`` has ended: what is under way was not interrupted by a crash.

        Raises:
            JournalError: that could not be stored; the next start counts as one after a crash.
        """
        for record in list(self._ledger.records.values()):
            deployment = record.deployment
            if deployment is not None:
                deployment = replace(deployment, stopped=True)
            if deployment is not None or record.loading:
                self._ledger.keep_record(replace(record, deployment=deployment, loading=""))

    # --- what others may ask ----------------------------------------------------------------------

    def current(self) -> dict[str, CurrentModel]:
        """Where each model stands, as ``agent.trust.decide`` asks for it."""
        return {model: self._current(record) for model, record in self._ledger.records.items()}

    def _current(self, record: ModelRecord) -> CurrentModel:
        active, previous, pending = record.slots.active, record.slots.previous, record.deployment
        going = pending if pending is not None and pending.phase is not Phase.REVERT else None
        return CurrentModel(
            model=record.model,
            active_sha256=active.manifest_sha256 if active else None,
            previous_sha256=previous.manifest_sha256 if previous else None,
            pending_sha256=going.manifest_sha256 if going else None,
            pending_rollout_id=going.rollout_id if going else None,
            refused=self._ledger.refused,
        )

    def served(self) -> tuple[ServedBundle, ...]:
        """What answers requests, one a model, for inventory and telemetry."""
        return served_of(self._ledger.records.values())

    def beside(self) -> tuple[ServedBundle, ...]:
        """What is held beside, for telemetry: it answers a share of the requests, gets copies, or waits."""
        return beside_of(self.deployments(), self._servables.shared)

    def deployments(self) -> tuple[Deployment, ...]:
        """The deployments under way."""
        records = self._ledger.records.values()
        return tuple(r.deployment for r in records if r.deployment is not None)

    # --- the task ---------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Read the journal, apply the restart rules, and serve again what was active.

        Raises:
            JournalError: the journal cannot be read or written.
        """
        self._ledger.load()
        self._resumed = True
        self._servables.lost()
        self._swapper.notice_interrupted_loads()
        for deployment in self.deployments():
            event, found = on_restart(deployment, self._limits)
            if next_phase(found.phase, event) is Phase.IDLE:
                outcome = Outcome.REVERTED if found.served else Outcome.REFUSED
                self._ledger.end(found, event, outcome=outcome, remember=True)
            else:
                self._ledger.move(found, event)
        for model in sorted(self._ledger.records):
            while await self._leave_crashing(model):
                pass
            await self._settle(model)

    async def run(self) -> None:
        """Work until cancelled. Calls ``resume`` first where nobody did.

        Raises:
            JournalError: the journal cannot be read at the start.
        """
        if not self._resumed:
            await self.resume()
        try:
            while True:
                self._wake.clear()
                self._timers.expire()
                await self._work_off()
                await self._pause()
        finally:
            await self._worker.stop()

    async def _work_off(self) -> None:
        """Take turns until nothing is left to do now."""
        if not self._timers.due(JOURNAL):
            return
        try:
            while await self._turn():
                pass
        except JournalError as error:
            # Nothing was done that was not stored. The models go on serving; storing is tried again.
            logger.error("%s; trying again", error)
            self._timers.failed(JOURNAL)
        else:
            self._timers.clear(JOURNAL)

    async def _pause(self) -> None:
        """Until somebody wakes the task or the next thing falls due."""
        waits = {asyncio.ensure_future(self._wake.wait())}
        delay_s = self._timers.next_delay_s()
        if delay_s is not None:
            waits.add(asyncio.ensure_future(self._sleep(delay_s)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _sleep(self, delay_s: float) -> Literal[True]:
        await self._ports.clock.sleep(delay_s)
        return True

    async def _turn(self) -> bool:
        """Do one thing. False: there is nothing to do now."""
        if self._swapper.notice_server():
            return True
        if self._worker.done:
            await self._worker.finish()
            return True
        for model in sorted({*self._ledger.records, *(self._wanted or ())}):
            if await self._advance(model):
                return True
        return await self._tidy()

    async def _advance(self, model: str) -> bool:
        """Do one thing for one model."""
        if await self._leave_crashing(model):
            return True
        if self._wanted is not None:
            record = self._ledger.record(model)
            wish, now_s = self._wanted.get(model), self._ports.clock.now_s()
            action = choose(record, wish, self._ledger.refused, now_s)
            if action is not None and await self._act(record, action):
                return True
        return (
            await self._settle(model) or await self._proceed(model) or await self._stand_by(model)
        )

    async def _stand_by(self, model: str) -> bool:
        """Keep or let go what a blue-green's flip left loaded, once the fleet has been heard."""
        if self._wanted is None:
            return False
        return await self._beside.keep_standby(self._ledger.record(model), self._wanted.get(model))

    async def _settle(self, model: str) -> bool:
        """Finish what is past deciding, and serve what should be served."""
        record = self._ledger.record(model)
        deployment = record.deployment
        if deployment is not None and deployment.phase is Phase.COMMIT:
            await self._swapper.commit(deployment)
            return True
        if deployment is not None and deployment.phase is Phase.REVERT:
            if not self._timers.due((SERVER, model)):
                return False
            await self._swapper.revert(deployment)
            return True
        if self._swapper.wants_restore(record):
            await self._swapper.restore(record)
            return True
        return False

    async def _leave_crashing(self, model: str) -> bool:
        """Leave an active bundle that keeps crashing; a deployment under way is called off first, and may begin
        anew afterwards."""
        record = self._ledger.record(model)
        reason, deployment = self._swapper.crash_reason(record), record.deployment
        if reason is None:
            return False
        if deployment is None:
            self._swapper.leave_crashing(record, reason)
            return True
        if deployment.phase not in NOT_SWAPPED:
            return False
        text = f"the active bundle has to go first: {reason}"
        await self._call_off(deployment, "active_crashes", text)
        return True

    async def _call_off(self, deployment: Deployment, code: str, reason: str) -> None:
        """Cancel a deployment that has not been swapped in."""
        if deployment.phase is Phase.BESIDE:
            await self._beside.leave(deployment, Event.CANCELLED, code, reason)
            return
        if self._worker.works_on(deployment):
            await self._worker.stop()
        self._ledger.end(replace(deployment, reason_code=code, reason=reason), Event.CANCELLED)
        self._ended(deployment)

    async def _proceed(self, model: str) -> bool:
        """The next step of the deployment under way."""
        deployment = self._ledger.record(model).deployment
        if deployment is None:
            return False
        if deployment.phase in BEFORE_SWAP:
            if deployment.phase is Phase.TRY and self._wanted is None:
                return False  # found after a restart: what the fleet says now may be a halt
            return self._worker.start(deployment)
        if deployment.phase is Phase.BESIDE:
            return await self._beside.proceed(deployment)
        if deployment.phase is Phase.SWAP and self._timers.due((SERVER, model)):
            await self._swapper.swap(deployment)
            return True
        if deployment.phase is Phase.PROBATION:
            return self._swapper.judge(deployment)
        return False

    # --- what the fleet wants ---------------------------------------------------------------------

    async def _act(self, record: ModelRecord, action: Action) -> bool:
        """Do what the policy chose. False: it was done before."""
        code, reason, deployment = action.reason_code, action.reason, record.deployment
        if action.kind is ActionKind.REPORT_REFUSED:
            return self._tell_refused(action)
        if action.kind is ActionKind.ADOPT:
            assert action.start is not None
            self._ledger.adopt(action.start)
        elif action.kind is ActionKind.CANCEL:
            assert deployment is not None
            await self._call_off(deployment, code, reason)
        elif action.kind is ActionKind.WITHDRAW:
            assert deployment is not None
            if deployment.phase is Phase.BESIDE:
                await self._beside.leave(deployment, Event.WITHDRAWN, code, reason)
            else:
                self._swapper.withdraw(deployment, code, reason)
        elif action.kind is ActionKind.FORGET_PREVIOUS:
            await self._forget_previous(record, reason)
        elif action.kind in (ActionKind.TAKE, ActionKind.RETARGET):
            assert action.start is not None
            if action.kind is ActionKind.TAKE:
                self._beside.take(action.start)
            else:
                self._ledger.keep(action.start)
        else:
            assert action.start is not None
            rolled_back = action.kind is ActionKind.ROLL_BACK
            self._ledger.start(action.start, Event.ROLLED_BACK if rolled_back else Event.STARTED)
        return True

    async def _forget_previous(self, record: ModelRecord, reason: str) -> None:
        """Nothing leads back to what is in the previous slot any more. Raises JournalError."""
        previous = record.slots.previous
        assert previous is not None
        logger.warning("model %s: %s is never put back: %s", record.model, previous.bundle, reason)
        await self._servables.drop(record.model, previous.manifest_sha256)
        self._ledger.keep_record(replace(record, slots=replace(record.slots, previous=None)))
        self._untidy = True

    def _tell_refused(self, action: Action) -> bool:
        seed = action.start
        assert seed is not None
        told = (seed.rollout_id, seed.manifest_sha256, action.reason_code)
        if self._told.get(seed.model) == told:
            return False
        self._told[seed.model] = told
        self._ledger.report_refused(seed)
        return True

    # --- afterwards -------------------------------------------------------------------------------

    def _ended(self, deployment: Deployment) -> None:
        """A deployment is over: forget what was kept in memory for it, and tidy the disk soon."""
        self._worker.forget(deployment)
        self._untidy = True

    async def _tidy(self) -> bool:
        """Remove slots and pieces that no record names, once nothing else is to do."""
        if not self._untidy or self._worker.busy or not self._timers.due(TIDY):
            return False
        self._untidy = False
        kept = kept_slots(self._ledger.records)
        try:
            await run_to_end(self._ports.offload, self._ports.slots.keep_only, kept)
            pieces = await run_to_end(self._ports.offload, self._pieces_of, kept)
            if pieces is not None:
                await run_to_end(self._ports.offload, self._ports.pieces.keep_only, pieces)
        except AgentError as error:
            logger.warning("old bundles could not be removed: %s; trying again", error)
            self._untidy = True
            self._timers.failed(TIDY)
            return False
        self._timers.clear(TIDY)
        return True

    def _pieces_of(self, kept: frozenset[str]) -> frozenset[str] | None:
        """Digests of the pieces of these bundles; None while a manifest is not known yet."""
        pieces: set[str] = set()
        for digest in kept:
            manifest = self._steps.known_manifest(digest) or self._ports.slots.manifest(digest)
            if manifest is None:
                return None  # its deployment will end, and then this is done again
            pieces.update(piece.sha256 for piece in manifest.pieces())
        return frozenset(pieces)
