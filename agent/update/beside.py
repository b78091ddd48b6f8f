"""What is held beside the bundle that answers: shadow, arm of an A/B, standby of a blue-green.

Rules kept here:
- It comes after what answers: it is loaded only while the active bundle serves, never in its place, and it goes as
  soon as it takes the server down or breaks its objectives.
- Stored before it is done: an arm counts as having answered from before its first request.
- What takes part is told to the server again whenever it is not as it should be: after a restart of the server, or
  when the fleet changes the share. The fleet hears of it only when the phase begins and when it ends.
- After a blue-green flip the previous bundle stays loaded while its directive stands, so that going back takes no
  load; it is a comfort and never costs anything: what does not fit or does not load is let be.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from agent.delivery import Offload, run_to_end
from agent.errors import AgentError, BundleError, DeviceError
from agent.health.budget import Breach
from agent.ports import Clock, Sharing, SlotStore
from agent.trust import Decision
from agent.update.events import Outcome
from agent.update.journal import Deployment, ModelRecord
from agent.update.ledger import Ledger
from agent.update.policy import UpdateLimits
from agent.update.servables import MemoryShortError, Servables, ServerAwayError, SlotDamagedError
from agent.update.states import Event
from agent.update.timers import Timers
from agent.update.watch import ProbationWatch

__all__ = ["ROLES", "Beside", "BesidePorts", "sharing_of"]

logger = logging.getLogger(__name__)

ROLES: Final = {"shadow": "shadow", "ab": "arm", "blue-green": "standby"}
"""How a bundle held beside takes part, by the directive's mode."""

PLACE, STEADY, STANDBY = "place", "steady", "standby"


def sharing_of(deployment: Deployment) -> Sharing:
    """How the deployment's bundle is to take part."""
    return Sharing(
        manifest_sha256=deployment.manifest_sha256,
        role=ROLES[deployment.mode],
        traffic_bp=deployment.traffic_bp,
        routing_key=deployment.routing_key,
        salt=deployment.rollout_id,
    )


@dataclass(frozen=True, slots=True)
class BesidePorts:
    """What this shares with the updater and its swapper. ``ended``: told of each deployment that is over."""

    ledger: Ledger
    servables: Servables
    slots: SlotStore
    timers: Timers
    clock: Clock
    offload: Offload
    watch: ProbationWatch
    ended: Callable[[Deployment], None]


class Beside:
    """Each method does one step of one model and stores what it means."""

    def __init__(self, ports: BesidePorts, limits: UpdateLimits) -> None:
        self._ports = ports
        self._ledger = ports.ledger
        self._servables = ports.servables
        self._timers = ports.timers
        self._limits = limits
        self._placed_s: dict[str, float] = {}
        self.memory_breach: Breach | None = None
        """Set while agent and server hold more memory than they may."""

    # --- taking part ------------------------------------------------------------------------------

    async def proceed(self, deployment: Deployment) -> bool:
        """Bring the bundle in beside, or look at how it does. False: there is nothing to do now."""
        model, wanted = deployment.model, sharing_of(deployment)
        if self._servables.active(model) is None or not self._timers.due((PLACE, model)):
            return False
        if self._servables.shared(model) == wanted:
            return await self._look(deployment)
        if wanted.role == "arm" and wanted.traffic_bp > 0 and not deployment.served:
            self._ledger.keep(replace(deployment, served=True))
            return True
        await self._place(deployment, wanted)
        return True

    async def _place(self, deployment: Deployment, wanted: Sharing) -> None:
        """Load the bundle where it is not loaded, and tell the server how it takes part."""
        generation = self._servables.generation
        try:
            await self._bring_in(deployment, wanted)
        except ServerAwayError as error:
            self._wait(deployment, error)
        except SlotDamagedError as error:
            # The disk's fault, not the bundle's; the rollout may bring it once more.
            await self.leave(deployment, Event.REFUSED, "slot_damaged", str(error))
        except MemoryShortError as error:
            await self.leave(deployment, Event.REFUSED, "memory_short", str(error))
        except BundleError as error:
            await self.leave(deployment, Event.REFUSED, "load_failed", str(error))
        except DeviceError as error:
            died = not self._servables.running or self._servables.generation != generation
            if died and self._others_did_it(deployment.manifest_sha256):
                self._wait(deployment, error)
                return
            code = "server_crashed" if died else "beside_failed"
            await self.leave(deployment, Event.FAILED, code, str(error))

    def _wait(self, deployment: Deployment, error: AgentError) -> None:
        logger.warning("model %s: %s waits: %s", deployment.model, deployment.bundle, error)
        self._timers.failed((PLACE, deployment.model))

    async def _bring_in(self, deployment: Deployment, wanted: Sharing) -> None:
        model, digest = deployment.model, deployment.manifest_sha256
        before, now_s = self._servables.shared(model), self._ports.clock.monotonic_s()
        manifest = await run_to_end(self._ports.offload, self._ports.slots.manifest, digest)
        if manifest is None:
            raise SlotDamagedError(f"slot {digest[:12]}… of {deployment.bundle} is gone")
        self._placed_s.setdefault(model, now_s)
        await self._servables.hold(model, digest)
        await self._servables.share(model, wanted)
        self._timers.clear((PLACE, model))
        what = (model, deployment.bundle, wanted.role, wanted.traffic_bp)
        logger.info("model %s: %s takes part as %s, %d of 10000 requests", *what)
        if wanted.role != "arm":
            self._ports.watch.end(model)
        elif before is None or before.role != "arm":
            self._ports.watch.begin(model, digest, manifest.objectives, now_s, "arm")
        if deployment.boots:
            self._timers.set((STEADY, model), self._limits.crashes.window_s)

    async def _look(self, deployment: Deployment) -> bool:
        """Whether it takes too much memory, an arm keeps its objectives, and restarts are forgotten by now."""
        breach = self.memory_breach
        if breach is not None and breach.since_s >= self._placed_s[deployment.model]:
            await self.leave(deployment, Event.FAILED, "beside_memory", breach.text)
            return True
        judgement = self._ports.watch.judge_arm(deployment.model)
        if judgement is not None:
            code, reason = judgement.reason_code.replace("probation", "arm", 1), judgement.reason
            await self.leave(deployment, Event.FAILED, code, reason)
            return True
        if deployment.boots and self._timers.due((STEADY, deployment.model)):
            self._ledger.keep(replace(deployment, boots=0))
            return True
        return False

    def _others_did_it(self, digest: str) -> bool:
        """Whether the server is known to have died of something else than this bundle."""
        suspects = self._servables.suspects
        return bool(suspects) and digest not in suspects

    def _may_have_done_it(self, deployment: Deployment) -> bool:
        """Whether the server's death counts against what was held beside: it ran, or nobody knows what did."""
        if self._servables.suspects:
            return deployment.manifest_sha256 in self._servables.suspects
        return (
            sharing_of(deployment).role != "standby"
        )  # that one answers nothing and copies nothing

    # --- the ways out -----------------------------------------------------------------------------

    def take(self, wanted: Deployment) -> None:
        """The bundle is to answer: on to its swap. Raises JournalError."""
        self._ledger.move(replace(wanted, reason_code="", reason=""), Event.TAKEN)
        self._forget(wanted.model)

    async def leave(self, deployment: Deployment, event: Event, code: str, reason: str) -> None:
        """Let the bundle go; what answers goes on. Raises JournalError."""
        model, digest = deployment.model, deployment.manifest_sha256
        await self._servables.drop(model, digest)
        called_off = event in (Event.CANCELLED, Event.WITHDRAWN)
        otherwise = Outcome.CANCELLED if called_off else Outcome.REFUSED
        self._ledger.end(
            replace(deployment, reason_code=code, reason=reason),
            event,
            outcome=Outcome.REVERTED if deployment.served else otherwise,
            remember=event is not Event.CANCELLED and code != "slot_damaged",
        )
        self._forget(model)
        self._ports.ended(deployment)

    def server_died(self, deployment: Deployment, how: str) -> None:
        """Out with it when the server may have died of it, else it is loaded again. Raises JournalError."""
        self._timers.release((PLACE, deployment.model))
        self._ports.watch.end(deployment.model)
        if not self._may_have_done_it(deployment):
            return
        reason = f"the model server died while {deployment.bundle} was held beside ({how})"
        found = replace(deployment, reason_code="server_crashed", reason=reason)
        outcome = Outcome.REVERTED if deployment.served else Outcome.REFUSED
        self._ledger.end(found, Event.FAILED, outcome=outcome, remember=True)
        self._forget(deployment.model)
        self._ports.ended(deployment)

    def _forget(self, model: str) -> None:
        self._placed_s.pop(model, None)
        self._ports.watch.end(model)
        self._timers.clear((PLACE, model))
        self._timers.clear((STEADY, model))

    # --- after a flip -----------------------------------------------------------------------------

    async def keep_standby(self, record: ModelRecord, decision: Decision | None) -> bool:
        """Hold the previous bundle loaded while a blue-green stands, and no longer. True when something changed."""
        model, previous = record.model, record.slots.previous
        if previous is None or self._needed(record, previous.manifest_sha256):
            return False
        digest, wanted = previous.manifest_sha256, _flipped(record, decision)
        if self._servables.holds(model, digest):
            if wanted:
                return False
            await self._servables.drop(model, digest)
            return True
        if not wanted or not self._may_load(record, digest):
            return False
        try:
            await self._servables.hold(model, digest)
        except AgentError as error:
            logger.warning("model %s: %s is no standby: %s", model, previous.bundle, error)
            self._timers.set((STANDBY, model), self._limits.crashes.window_s)
        return True

    def _needed(self, record: ModelRecord, digest: str) -> bool:
        """Whether a deployment goes to this bundle or back to it."""
        going = record.deployment
        return going is not None and digest in (going.manifest_sha256, going.previous_sha256)

    def _may_load(self, record: ModelRecord, digest: str) -> bool:
        if record.deployment is not None or self._servables.active(record.model) is None:
            return False
        if any(crash.manifest_sha256 == digest for crash in record.crashes):
            return False  # it has taken the server down before: not for a comfort
        return self._servables.running and self._timers.due((STANDBY, record.model))


def _flipped(record: ModelRecord, decision: Decision | None) -> bool:
    """Whether the active bundle is what a blue-green directive wants, so that the previous one stands by."""
    directive = decision.directive if decision is not None else None
    active = record.slots.active
    if directive is None or active is None or directive.kind != "deploy":
        return False
    return directive.mode == "blue-green" and directive.sha256 == active.manifest_sha256
