"""The agent's core on one device: links, trust, update and telemetry, each owned by one task.

Rules kept here:
- Everything comes in through ports, so that a thousand of these run in one process in the simulator: no thread, no
  file and no wall clock of its own.
- This task alone drains the model server's counters: into the updater's probation, then into report windows.
- A failing port is logged and waited out; a bug ends the whole supervisor, for the service manager to start it anew.
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.alarm import Alarm
from agent.errors import AgentError
from agent.health.budget import Breach, Budget, BudgetLimits, BudgetWatch
from agent.health.pace import Pace, PaceLimits, in_comparison
from agent.health.reporter import Reporter
from agent.health.spool import Spool
from agent.health.telemetry import ServedModel, WindowAccumulator
from agent.inventory import Machine
from agent.ports import (
    Clock,
    Link,
    ModelServer,
    ResourceProbe,
    ResourceUse,
    ServedWindow,
    ServerState,
)
from agent.trust import CurrentModel, Decision
from agent.trust.status import TrustStatus
from agent.trust_keeper import TrustKeeper, TrustKeeperLimits, TrustPorts
from agent.update.journal import Deployment
from agent.update.served import ServedBundle
from agent.uplink import Uplink, UplinkLimits
from protos import report_pb2

__all__ = ["Supervisor", "SupervisorLimits", "SupervisorPorts", "UpdaterPort"]

log = logging.getLogger(__name__)

STANDBY = "standby"
"""Role of what waits beside: it gets no requests, so there are no windows of it."""


class UpdaterPort(Protocol):
    """What the supervisor asks of the updater (agent.update.updater.Updater)."""

    def current(self) -> Mapping[str, CurrentModel]:
        """Where each model stands, by name."""
        ...

    def served(self) -> Sequence[ServedBundle]:
        """What answers requests, one a model."""
        ...

    def beside(self) -> Sequence[ServedBundle]:
        """What is held beside what answers."""
        ...

    def deployments(self) -> Sequence[Deployment]:
        """The deployments under way."""
        ...

    def desire(self, decisions: Sequence[Decision], /) -> None: ...

    def observe(self, windows: Sequence[ServedWindow], /) -> None: ...

    def server_changed(self, state: ServerState, /) -> None: ...

    def memory_exceeded(self, breach: Breach | None, /) -> None: ...

    async def resume(self) -> None: ...

    async def run(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SupervisorPorts:
    """What one device consists of. ``links``: the preferred one first."""

    clock: Clock
    links: Sequence[Link]
    trust: TrustPorts
    spool: Spool
    server: ModelServer
    resources: ResourceProbe


@dataclass(frozen=True, slots=True)
class SupervisorLimits:
    """``inventory_s``: how often the inventory is reported even without a change. ``trust_news_s``: how often at most
    because of what was refused, so that a flood of bad metadata is no flood of reports."""

    pace: PaceLimits = field(default_factory=PaceLimits)
    uplink: UplinkLimits = field(default_factory=UplinkLimits)
    trust: TrustKeeperLimits = field(default_factory=TrustKeeperLimits)
    budget: BudgetLimits = field(default_factory=BudgetLimits)
    inventory_s: float = 24 * 3600.0
    trust_news_s: float = 60.0


class Supervisor:
    """One device. Make the updater with ``report=supervisor.deployment_event`` and give it to ``run``."""

    def __init__(
        self,
        ports: SupervisorPorts,
        machine: Machine,
        boot_id: str,
        limits: SupervisorLimits | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        self._ports = ports
        self._clock = ports.clock
        self._machine = machine
        self._limits = limits or SupervisorLimits()
        self._random = randomness or random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._uplink = Uplink(
            ports.links, ports.spool, ports.clock, self._limits.uplink, self._random
        )
        self._reporter = Reporter(machine.device_id, boot_id, ports.clock, self._uplink.put)
        self._tick = Alarm(ports.clock)
        self._pace = Pace(self._limits.pace, ports.clock.monotonic_s())
        self._windows = WindowAccumulator(self._now_ms())
        self._budget = BudgetWatch(self._limits.budget)
        self._told: tuple[tuple[ServedModel, ...], int, bool] | None = None
        self._trust_told = TrustStatus().news
        self._use: ResourceUse | None = None
        self._told_s = 0.0
        self._updater: UpdaterPort | None = None
        self._keeper: TrustKeeper | None = None
        self.resumed = asyncio.Event()
        """Set once what was served before the start is served again."""

    @property
    def uplink(self) -> Uplink:
        return self._uplink

    @property
    def keeper(self) -> TrustKeeper | None:
        """The owner of the trust state; None before ``run``."""
        return self._keeper

    def deployment_event(self, event: report_pb2.DeploymentEvent) -> None:
        """The updater's ``report``: keep it for the fleet, and look at what it changes here."""
        self._reporter.deployment(event)
        if event.outcome != report_pb2.OUTCOME_UNSPECIFIED:
            self._pace.ended(self._clock.monotonic_s())
            if self._keeper is not None:
                self._keeper.reconsider()
        self._tick.set()

    async def run(self, updater: UpdaterPort) -> None:
        """Run the device until cancelled.

        Raises:
            ExceptionGroup: a part of the agent failed for good; start the process anew.
        """
        self._updater = updater
        keeper = TrustKeeper(
            replace(self._ports.trust, changed=self._tick.set),
            self._machine.facts(),
            updater.current,
            updater.desire,
            self._limits.trust,
            self._random,
        )
        self._keeper = keeper
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._uplink.run(keeper.offer_pack, keeper.ask_refresh))
            await updater.resume()
            self.resumed.set()
            tasks.create_task(updater.run())
            tasks.create_task(keeper.run())
            tasks.create_task(self._watch_server(updater))
            tasks.create_task(self._measure(updater))

    # --- model server -----------------------------------------------------------------------------

    async def _watch_server(self, updater: UpdaterPort) -> None:
        server = self._ports.server
        known = server.state
        while True:
            state = await server.wait_change(known.generation)
            if state == known:
                # Down and not started anew yet: the port returns at once until it is.
                await self._clock.sleep(self._limits.pace.probation_s)
                continue
            known = state
            if not state.running:
                log.error("the model server died: %s", state.last_exit or "no reason known")
            updater.server_changed(state)
            self._tick.set()

    # --- telemetry --------------------------------------------------------------------------------

    async def _measure(self, updater: UpdaterPort) -> None:
        while True:
            served = updater.served()
            self._tell_inventory(served)
            now = self._clock.monotonic_s()
            busy = bool(updater.deployments()) or self._compared()
            self._pace.set(busy=busy, now_s=now)
            wait_s = self._pace.until_window_s(now)
            if any(bundle.on_probation for bundle in served):
                wait_s = min(wait_s, self._limits.pace.probation_s)
            if self._limits.budget.any or self._ports.server.memory is not None:
                wait_s = min(wait_s, self._limits.budget.sample_s)
            if self._trust_status().news != self._trust_told:
                wait_s = min(wait_s, self._told_s + self._limits.trust_news_s - now)
            await self._tick.wait(wait_s)
            await self._drain(updater)
            self._watch_budget(updater)
            now = self._clock.monotonic_s()
            if self._pace.until_window_s(now) <= 0:
                self._pace.took_window(now)
                self._flush(updater)

    def _watch_budget(self, updater: UpdaterPort) -> None:
        """Compare what is used with what may be, log what changed, and tell the updater about memory."""
        models = self._ports.server.memory
        if not self._limits.budget.any and models is None and not self._budget.breaches:
            return
        use = self._read_use()
        if use is None:
            return
        before = {breach.budget for breach in self._budget.breaches}
        breaches = self._budget.observe(use, self._clock.monotonic_s(), models)
        for breach in breaches:
            if breach.budget not in before:
                log.warning("%s: %s", breach.budget, breach.text)
        for budget in before - {breach.budget for breach in breaches}:
            log.info("%s: within its limit again", budget)
        memory = [it for it in breaches if it.budget in (Budget.MEMORY, Budget.MODELS)]
        updater.memory_exceeded(memory[0] if memory else None)

    def _read_use(self) -> ResourceUse | None:
        try:
            self._use = self._ports.resources.read()
        except AgentError as error:
            log.debug("no resource use: %s", error)
            return None
        return self._use

    async def last_window(self) -> None:
        """Close the present window before a clean stop: what was counted goes into the spool. Never raises."""
        if self._updater is not None:
            await self._drain(self._updater)
            self._flush(self._updater)

    async def _drain(self, updater: UpdaterPort) -> None:
        try:
            windows = await self._ports.server.drain()
        except AgentError as error:
            # The server is being started anew; a window without requests still says that this device lives.
            log.debug("no counters from the model server: %s", error)
            return
        if windows:
            updater.observe(windows)
            self._windows.add(windows)

    def _flush(self, updater: UpdaterPort) -> None:
        beside = [bundle for bundle in updater.beside() if bundle.role != STANDBY]
        models = [_served_model(bundle) for bundle in (*updater.served(), *beside)]
        notices = [f"{it.budget}: {it.text}" for it in self._budget.breaches]
        for window in self._windows.flush(self._now_ms(), models, self._read_use(), notices):
            self._reporter.window(window)

    def _compared(self) -> bool:
        """Whether some rollout under way compares this device with others."""
        view = self._keeper.view if self._keeper is not None else None
        if view is None:
            return False
        facts = self._machine.facts()
        return any(in_comparison(directive, facts) for directive in view.directives)

    def _tell_inventory(self, served: Sequence[ServedBundle]) -> None:
        active = tuple(_served_model(bundle) for bundle in served)
        now, offset = self._clock.monotonic_s(), self._clock.utc_offset_minutes()
        on_battery = self._use is not None and self._use.on_battery
        told, trust = (active, offset, on_battery), self._trust_status()
        since_s = now - self._told_s
        has_news = trust.news != self._trust_told and since_s >= self._limits.trust_news_s
        if told == self._told and since_s < self._limits.inventory_s and not has_news:
            return
        use = self._read_use()
        self._told = (active, offset, use is not None and use.on_battery)
        self._told_s, self._trust_told = now, trust.news
        self._reporter.inventory(self._machine.report(active, use, offset, trust))

    def _trust_status(self) -> TrustStatus:
        return self._keeper.status if self._keeper is not None else TrustStatus()

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)


def _served_model(bundle: ServedBundle) -> ServedModel:
    return ServedModel(
        bundle.model, bundle.version, bundle.manifest_sha256, bundle.rollout_id, bundle.role
    )
