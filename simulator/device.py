"""One simulated device: the agent's real Supervisor and Updater over ports that cost nothing.

Rules: nothing of the agent is copied or patched; what differs from a real device is behind
``agent.ports`` (memory instead of disk, a script instead of a model, the small MQTT client), and
what devices agree on (limits, labels, clock, views of the trust state) is one object for all.
"""

import asyncio
import functools
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from agent.adapters.clock import SystemClock
from agent.delivery import FetchLimits, Offload
from agent.health.pace import PaceLimits
from agent.health.spool import SpoolLimits
from agent.inventory import Machine, agent_version
from agent.ports import ResourceUse
from agent.supervisor import Supervisor, SupervisorLimits, SupervisorPorts
from agent.trust_keeper import TrustKeeperLimits, TrustPorts
from agent.trust_view import RealRefresh
from agent.update.policy import UpdateLimits
from agent.update.updater import Updater, UpdaterPorts
from simulator.calls import DeviceMetadataSource, DevicePieceSource
from simulator.chance import chance, one_of
from simulator.library import Library
from simulator.models import Script, ScriptedServer, ScriptedTrial
from simulator.network import DeviceLink, Silence
from simulator.report import ObservedSpool, Tally
from simulator.scenario import Scenario
from simulator.stores import MemoryJournal, MemoryPieces, MemorySlots, MemoryTrustStore
from simulator.trust import SharedRefresher, SharedViews
from simulator.wire import Wire

__all__ = ["Device", "Shared", "supervisor_limits"]

P = ParamSpec("P")
T = TypeVar("T")

GIBIBYTE: Final = 1024**3
MEMORY_BYTES: Final = 2 * GIBIBYTE
FREE_BYTES: Final = 8 * GIBIBYTE


@dataclass(frozen=True, slots=True)
class Shared:
    """What all devices of a world have in common."""

    scenario: Scenario
    wire: Wire
    library: Library
    script: Script
    tally: Tally
    refresher: SharedRefresher
    views: SharedViews
    limits: SupervisorLimits
    update_limits: UpdateLimits
    spool_limits: SpoolLimits
    clock: SystemClock
    jitter: random.Random
    threads: Executor

    async def offload(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work of a device: calls in a thread of the world's own, memory at once."""
        if not isinstance(getattr(work, "__self__", None), DeviceMetadataSource | SharedRefresher):
            return work(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, functools.partial(work, *args, **kwargs))


def supervisor_limits(scenario: Scenario) -> tuple[SupervisorLimits, UpdateLimits, SpoolLimits]:
    """The agent's own limits, with the scenario's times and no more memory than a thousandth needs."""
    run = scenario.run
    pace = PaceLimits(
        window_s=run.window_s,
        cohort_window_s=min(run.cohort_window_s, run.window_s),
        settle_s=10 * run.window_s,
    )
    supervisor = SupervisorLimits(
        pace=pace,
        trust=TrustKeeperLimits(connect_jitter_s=max(2.0, scenario.devices.ramp_s)),
    )
    update = UpdateLimits(fetch=FetchLimits(reserve_bytes=0))
    spool = SpoolLimits(max_reports=200, max_bytes=256 * 1024)
    return supervisor, update, spool


class _Resources:
    """``agent.ports.ResourceProbe`` of a device that uses what small devices use."""

    __slots__ = ("_device_id", "_seed")

    def __init__(self, seed: int, device_id: str) -> None:
        self._seed = seed
        self._device_id = device_id

    def read(self) -> ResourceUse:
        share = chance(self._seed, self._device_id, "resources")
        return ResourceUse(
            rss_bytes=int((90 + 30 * share) * 1024**2),
            cpu_percent=round(3 + 5 * share, 2),
            disk_free_bytes=FREE_BYTES,
            memory_available_bytes=MEMORY_BYTES // 2,
            temperature_c=round(40 + 15 * share, 1),
        )


def machine_of(scenario: Scenario, device_id: str) -> Machine:
    """What a device says it is: always the same for its id and the seed."""
    devices = scenario.devices
    labels: Mapping[str, str] = {
        label: one_of(values, devices.seed, device_id, "label", label)
        for label, values in devices.labels.items()
    }
    return Machine(
        device_id=device_id,
        device_class=devices.device_class,
        hardware=devices.hardware,
        labels=labels,
        agent_version=scenario.run.agent_version or agent_version(),
        onnxruntime_version=scenario.run.onnxruntime_version,
        memory_bytes=MEMORY_BYTES,
        cpu_count=2,
        operating_system="simulated",
        execution_provider=devices.provider(device_id),
    )


class Device:
    """One device from power-on to power-off. ``run`` it once."""

    __slots__ = ("_shared", "_supervisor", "_updater", "id", "server", "spool")

    def __init__(self, shared: Shared, device_id: str, boot_id: str) -> None:
        self.id = device_id
        self._shared = shared
        scenario = shared.scenario
        self.server = ScriptedServer(shared.script, device_id)
        self.spool = ObservedSpool(shared.spool_limits, shared.tally)
        offload: Offload = shared.offload
        silence = Silence(shared.script, self.server, device_id)
        source = DeviceMetadataSource(shared.wire)
        trust = TrustPorts(
            store=MemoryTrustStore(),
            refresh=RealRefresh(shared.refresher, source, shared.clock, offload),
            read=shared.views,
            offload=offload,
            clock=shared.clock,
        )
        ports = SupervisorPorts(
            clock=shared.clock,
            links=(DeviceLink(shared.wire, device_id, boot_id, silence),),
            trust=trust,
            spool=self.spool,
            server=self.server,
            resources=_Resources(scenario.devices.seed, device_id),
        )
        self._supervisor = Supervisor(
            ports, machine_of(scenario, device_id), boot_id, shared.limits, shared.jitter
        )
        self._updater = Updater(
            UpdaterPorts(
                journal=MemoryJournal(),
                pieces=MemoryPieces(),
                slots=MemorySlots(shared.library),
                source=DevicePieceSource(shared.wire, device_id),
                metadata=source,
                trial=ScriptedTrial(shared.script, device_id),
                server=self.server,
                clock=shared.clock,
                offload=offload,
                uniform=shared.jitter.random,
                free_bytes=lambda: FREE_BYTES,
            ),
            shared.update_limits,
            self._supervisor.deployment_event,
        )

    @property
    def acknowledged(self) -> int:
        """Reports that the fleet manager has taken."""
        return self._supervisor.uplink.acknowledged

    async def run(self) -> None:
        """Be on until cancelled. Raises ExceptionGroup when a part of the agent failed for good."""
        try:
            await self._supervisor.run(self._updater)
        finally:
            self.server.close()
