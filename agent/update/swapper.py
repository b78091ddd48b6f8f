"""What touches the running model server: swap, probation, commit, revert, and serving again after a crash.

Rules kept here:
- The previous bundle stays loaded until the commit, so a revert is one change of the map.
- A server that is away says nothing about a bundle: wait for it. A server that dies while it loads a
  bundle, or while one is on probation, does.
- A crash counts against the bundles that ran or were being loaded when it happened, in the journal; so does a load
  during which the device went down. An active bundle that did it too often is left for the previous one.
- A revert always ends: when the slot to go back to cannot be loaded, the failed bundle still goes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.delivery import Offload, run_to_end
from agent.errors import AgentError, BundleError, DeviceError
from agent.health.budget import Breach
from agent.health.crashes import Crash, crash_loop, with_crash
from agent.health.probation import ProbationVerdict
from agent.ports import Clock, SlotStore
from agent.update.beside import ROLES, Beside
from agent.update.events import Facts, Outcome
from agent.update.journal import Deployment, Installed, ModelRecord
from agent.update.ledger import Ledger
from agent.update.policy import UpdateLimits, leaving, slots_after_commit, slots_after_revert
from agent.update.servables import (
    CrashLoopError,
    MemoryShortError,
    Servables,
    ServerAwayError,
    SlotDamagedError,
)
from agent.update.states import Event, Phase
from agent.update.timers import Timers
from agent.update.watch import ProbationWatch

__all__ = ["Swapper", "SwapperPorts"]

logger = logging.getLogger(__name__)

RESTORE, SERVER, LOOK = "restore", "server", "look"


@dataclass(frozen=True, slots=True)
class SwapperPorts:
    """What the swapper shares with the updater. ``ended``: told of each deployment that is over."""

    ledger: Ledger
    servables: Servables
    slots: SlotStore
    timers: Timers
    clock: Clock
    offload: Offload
    watch: ProbationWatch
    beside: Beside
    ended: Callable[[Deployment], None]


class Swapper:
    """Each method does one step of one model and stores what it means."""

    def __init__(self, ports: SwapperPorts, limits: UpdateLimits) -> None:
        self._ports = ports
        self._ledger = ports.ledger
        self._servables = ports.servables
        self._timers = ports.timers
        self._limits = limits
        self._watch = ports.watch
        self._beside = ports.beside
        self.memory_breach: Breach | None = None
        """Set while agent and server hold more memory than they may."""
        self._crash_noted = 0
        self._load_failures: dict[tuple[str, str], int] = {}
        self._damaged: dict[tuple[str, str], int] = {}

    # --- the server -------------------------------------------------------------------------------

    def notice_server(self) -> bool:
        """Act on a server that died or came back. True when something changed."""
        if not self._servables.lost():
            return False
        self._note_crash()
        for model, record in list(self._ledger.records.items()):
            for what in (RESTORE, SERVER):
                self._timers.release((what, model))
            deployment = record.deployment
            if deployment is not None and deployment.phase is Phase.BESIDE:
                last_exit = self._servables.last_exit or "no exit status"
                self._beside.server_died(deployment, last_exit)
            if deployment is not None and deployment.phase is Phase.PROBATION:
                if self._others_did_it(record):
                    self._off_probation(model)
                    self._ledger.move(deployment, Event.RESTARTED)
                    continue
                self._fail(
                    deployment,
                    Event.FAILED,
                    "server_crashed",
                    f"the model server died while {deployment.bundle} was on probation "
                    f"({self._servables.last_exit or 'no exit status'})",
                )
        return True

    def _note_crash(self) -> None:
        """Count the death of a server process, once, against the installed bundles that may have caused it."""
        died, suspects = self._servables.died, self._servables.suspects
        if died <= self._crash_noted:
            return
        self._crash_noted = died
        for record in list(self._ledger.records.values()):
            for digest in sorted(record.slots.digests.intersection(suspects)):
                how = f"the model server ended ({self._servables.last_exit or 'no exit status'})"
                logger.error("model %s: %s… was running when %s", record.model, digest[:12], how)
                self._count(record.model, digest, how, 1 / len(suspects))

    def _count(self, model: str, digest: str, how: str, share: float = 1.0) -> None:
        record = self._ledger.record(model)
        crash = Crash(digest, self._ports.clock.now_s(), how, share)
        self._ledger.keep_record(
            replace(record, crashes=with_crash(record.crashes, crash), loading="")
        )

    def _others_did_it(self, record: ModelRecord) -> bool:
        """Whether the server is known to have died of another model."""
        own = set(record.slots.digests)
        if record.deployment is not None:
            own.add(record.deployment.manifest_sha256)
        suspects = self._servables.suspects
        return bool(suspects) and own.isdisjoint(suspects)

    def notice_interrupted_loads(self) -> None:
        """At the start: a load that never ended took the device down, or the agent with it. Raises JournalError."""
        for record in list(self._ledger.records.values()):
            if record.loading:
                how = "the agent or the device went down while the bundle was being loaded"
                logger.error("model %s: %s… %s", record.model, record.loading[:12], how)
                self._count(record.model, record.loading, how)

    def crash_reason(self, record: ModelRecord) -> str | None:
        """Why the active bundle must go: it has taken the server or the device down too often."""
        active = record.slots.active
        if active is None or not record.crashes:
            return None
        alone = record.slots.previous is None
        return self._loop(record, active.manifest_sha256, alone=alone)

    def _loop(self, record: ModelRecord, digest: str, *, alone: bool) -> str | None:
        now_s = self._ports.clock.now_s()
        return crash_loop(record.crashes, digest, now_s, self._limits.crashes, alone=alone)

    # --- what is active ---------------------------------------------------------------------------

    def wants_restore(self, record: ModelRecord) -> bool:
        """Whether the active slot should answer requests and does not."""
        active, deployment = record.slots.active, record.deployment
        if active is None or not self._timers.due((RESTORE, record.model)):
            return False
        if deployment is not None and deployment.phase in (
            Phase.PROBATION,
            Phase.COMMIT,
            Phase.REVERT,
        ):
            return False
        if self.crash_reason(record) is not None:
            return False
        return self._servables.active(record.model) != active.manifest_sha256

    async def restore(self, record: ModelRecord) -> None:
        """Serve the active slot; after too many failures leave it for the previous one."""
        active = record.slots.active
        assert active is not None
        error = await self._serve(record.model, active.manifest_sha256, RESTORE)
        if error is None or isinstance(error, ServerAwayError):
            return
        failures = self._failures(record.model, active.manifest_sha256)
        logger.warning(
            "model %s: %s cannot be served (%d of %d): %s",
            record.model,
            active.bundle,
            failures,
            self._limits.max_load_failures,
            error,
        )
        deployment = record.deployment
        is_beside = deployment is not None and deployment.phase is Phase.BESIDE
        if failures < self._limits.max_load_failures or not (deployment is None or is_beside):
            return
        damaged = isinstance(error, SlotDamagedError)
        if record.slots.previous is not None or damaged:
            # Else: nothing to lose by trying again and again.
            code = "slot_damaged" if damaged else "active_unloadable"
            text = f"{active.bundle} cannot be served any more: {error}"
            if deployment is not None:
                await self._beside.leave(deployment, Event.CANCELLED, code, text)
            self._leave(record, active, code, text)

    def leave_crashing(self, record: ModelRecord, reason: str) -> None:
        """Leave the active bundle for the previous one, or for nothing where there is none. Raises JournalError."""
        active = record.slots.active
        assert active is not None
        text = f"{active.bundle} keeps taking the model server down: {reason}"
        self._leave(record, active, "active_crashes", text)

    def _leave(self, record: ModelRecord, active: Installed, code: str, text: str) -> None:
        seed = leaving(record.model, active, record.slots.previous, rollout_id=active.rollout_id)
        self._ledger.start(replace(seed, reason_code=code, reason=text), Event.ROLLED_BACK)

    async def _serve(self, model: str, digest: str, timer: str) -> AgentError | None:
        """Serve a slot; on failure set the timer, count it unless the server is away, return it.

        A load is noted in the journal before it begins, so that one that takes the device down is counted.
        Raises JournalError.
        """
        if self._servables.running and not self._servables.holds(model, digest):
            self._ledger.keep_record(replace(self._ledger.record(model), loading=digest))
        try:
            await self._servables.serve(model, digest)
        except (BundleError, DeviceError) as error:
            self._loaded(model)
            self._timers.failed((timer, model))
            if not isinstance(error, ServerAwayError):
                key = (model, digest)
                self._load_failures[key] = self._load_failures.get(key, 0) + 1
            return error
        self._loaded(model)
        self._timers.clear((timer, model))
        self._load_failures.pop((model, digest), None)
        return None

    def _loaded(self, model: str) -> None:
        """A load has ended, well or not, and the agent is still there."""
        record = self._ledger.record(model)
        if record.loading:
            self._ledger.keep_record(replace(record, loading=""))

    def _failures(self, model: str, digest: str) -> int:
        return self._load_failures.get((model, digest), 0)

    # --- swap and probation -----------------------------------------------------------------------

    async def swap(self, deployment: Deployment) -> None:
        """Load the bundle beside what runs, or in place of it where memory is short, and let requests go to it."""
        model, digest = deployment.model, deployment.manifest_sha256
        generation = self._servables.generation
        try:
            manifest = await run_to_end(self._ports.offload, self._ports.slots.manifest, digest)
            if manifest is None:
                raise SlotDamagedError(f"slot {digest[:12]}… of {deployment.bundle} is gone")
            await self._servables.serve(
                model, digest, may_refuse=True, beside_only=deployment.mode in ROLES
            )
        except ServerAwayError as error:
            logger.warning("model %s: swap waits: %s", model, error)
            self._timers.failed((SERVER, model))
            return
        except SlotDamagedError as error:
            self._fail(deployment, Event.SWAP_FAILED, "slot_damaged", str(error))
            return
        except MemoryShortError as error:
            self._fail(deployment, Event.SWAP_FAILED, "memory_short", str(error))
            return
        except BundleError as error:
            self._fail(deployment, Event.SWAP_FAILED, "load_failed", str(error))
            return
        except DeviceError as error:
            died = not self._servables.running or self._servables.generation != generation
            code = "server_crashed" if died else "swap_failed"
            self._fail(deployment, Event.SWAP_FAILED, code, str(error))
            return
        self._timers.clear((SERVER, model))
        self._watch.begin(model, digest, manifest.objectives, self._ports.clock.monotonic_s())
        facts = Facts(measures=self._servables.plan_measures(model))
        self._ledger.move(deployment, Event.SWAPPED, facts)

    def judge(self, deployment: Deployment) -> bool:
        """Look at a bundle on probation. True when that ended it."""
        now_s = self._ports.clock.monotonic_s()
        breach = self.memory_breach
        if breach is not None and breach.since_s >= self._watch.began_s(deployment.model):
            self._fail(deployment, Event.FAILED, "probation_memory", breach.text)
            return True
        judgement, look_s = self._watch.judge(deployment.model, now_s)
        if judgement.verdict is ProbationVerdict.WAIT:
            if look_s is not None:
                # A little late rather than a hair early, which would look again at the same moment.
                self._timers.set((LOOK, deployment.model), look_s + 0.001)
            return False
        if judgement.verdict is ProbationVerdict.FAIL:
            self._fail(deployment, Event.FAILED, judgement.reason_code, judgement.reason)
            return True
        passed = deployment
        if deployment.replaces is None:  # else the reason stays the fleet's rollback
            passed = replace(deployment, reason_code=judgement.reason_code, reason=judgement.reason)
        self._ledger.move(passed, Event.PASSED)
        self._off_probation(deployment.model)
        return True

    def withdraw(self, deployment: Deployment, code: str, reason: str) -> None:
        """The fleet rolls back a bundle that was swapped in."""
        self._fail(deployment, Event.WITHDRAWN, code, reason)

    def _fail(self, deployment: Deployment, event: Event, code: str, reason: str) -> None:
        facts = None
        if event is Event.SWAP_FAILED:
            facts = Facts(measures=self._servables.plan_measures(deployment.model))
        self._ledger.move(replace(deployment, reason_code=code, reason=reason), event, facts)
        self._off_probation(deployment.model)

    def _off_probation(self, model: str) -> None:
        self._watch.end(model)
        self._timers.clear((LOOK, model))
        self._timers.clear((SERVER, model))

    # --- the two ways out -------------------------------------------------------------------------

    async def commit(self, deployment: Deployment) -> None:
        """Let the old bundle go (of a blue-green it stands by) and make the new one the active slot."""
        record = self._ledger.record(deployment.model)
        old = record.slots.active
        stays = old is None or old.manifest_sha256 == deployment.manifest_sha256
        if old is not None and not stays and deployment.mode != "blue-green":
            await self._servables.drop(deployment.model, old.manifest_sha256)
        outcome = Outcome.COMMITTED if deployment.replaces is None else Outcome.REVERTED
        self._ledger.end(
            deployment,
            Event.COMMITTED,
            slots_after_commit(record.slots, deployment),
            outcome=outcome,
        )
        self._ports.ended(deployment)

    async def revert(self, deployment: Deployment) -> None:
        """Put back what served before, or nothing where there is nothing, and let the bundle go."""
        model, target = deployment.model, deployment.previous_sha256
        if target is not None:
            error = await self._put_back(model, target)
            if isinstance(error, ServerAwayError):
                return
            if isinstance(error, CrashLoopError):
                logger.error("model %s: revert to %s…: %s", model, target[:12], error)
                target = None
            elif error is not None:
                failures = self._failures(model, target)
                logger.error("model %s: revert to %s…: %s", model, target[:12], error)
                if failures < self._limits.max_load_failures:
                    return
                target = None
        await self._servables.drop(model, deployment.manifest_sha256)
        record = self._ledger.record(model)
        served = deployment.served or deployment.boots > 0
        self._ledger.end(
            deployment,
            Event.REVERTED,
            slots_after_revert(record.slots, deployment, target),
            outcome=Outcome.REVERTED if served else Outcome.REFUSED,
            remember=self._to_remember(deployment),
        )
        self._timers.clear((SERVER, model))
        self._load_failures.pop((model, deployment.manifest_sha256), None)
        self._ports.ended(deployment)

    async def _put_back(self, model: str, target: str) -> AgentError | None:
        reason = self._loop(self._ledger.record(model), target, alone=True)
        if reason is not None:
            return CrashLoopError(f"{target[:12]}… is not loaded again: {reason}")
        return await self._serve(model, target, SERVER)

    def _to_remember(self, deployment: Deployment) -> bool:
        """A damaged slot is the disk's fault: the same rollout may bring the bundle again, a few times."""
        if deployment.reason_code != "slot_damaged":
            return True
        key = (deployment.rollout_id, deployment.manifest_sha256)
        self._damaged[key] = self._damaged.get(key, 0) + 1
        return self._damaged[key] > self._limits.max_damaged_slots
