"""A world: many devices in one event loop against one fleet manager. In a test, three lines::

    async with World(parse_scenario("[devices]\\ncount = 30"), find_fleet(FleetAddress(), home=home)) as world:
        await world.until(lambda: world.serving().get("vad 2.0.0") == 30)
        print(world.summary())

Rules: devices start spread over the ramp; one that ends with an error is a finding, counted and
logged, and stops no other; leaving the world ends every device politely and bounded in time.
"""

import asyncio
import gc
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import grpc.aio
import psutil

from agent.adapters.clock import SystemClock
from agent.adapters.grpc_link import GrpcLink
from agent.errors import LinkError
from agent.inventory import agent_version
from simulator.addresses import FleetAccess
from simulator.chance import chance, rng
from simulator.device import Device, Shared, supervisor_limits
from simulator.errors import WorldError
from simulator.library import Library
from simulator.models import Script
from simulator.report import Progress, Summary, Tally
from simulator.scenario import Scenario
from simulator.trust import SharedRefresher, SharedViews
from simulator.wire import NetworkLimits, Wire

__all__ = ["World"]

log = logging.getLogger(__name__)

THREADS: Final = 8  # for calls that block; the devices wait for their turn
STOP_TIMEOUT_S: Final = 20.0
LOOK_EVERY_S: Final = 0.05
MEASURE_EVERY_S: Final = 1.0


class World:
    """Devices by scenario against a fleet manager. An async context manager; use it once."""

    def __init__(
        self, scenario: Scenario, access: FleetAccess, limits: NetworkLimits | None = None
    ) -> None:
        self.scenario = scenario
        self.devices: dict[str, Device] = {}
        self.failures: dict[str, BaseException] = {}
        self._access = access
        self._limits = limits or NetworkLimits()
        self._shared: Shared | None = None
        self._threads = ThreadPoolExecutor(THREADS, "world")
        self._tasks: set[asyncio.Task[None]] = set()
        self._process = psutil.Process()
        self._began_s = self._cpu_before_s = 0.0
        self._rss_before = self._rss = self._rss_peak = 0
        self._final: Summary | None = None

    # --- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Find the fleet manager, then start every device.

        Raises:
            WorldError: the device service does not answer.
        """
        fleet = await self._hello()
        self._shared = self._share(fleet)
        gc.collect()
        gc.freeze()  # what is here by now stays: no collection has to look at it again
        self._rss_before = self._rss = self._rss_peak = int(self._process.memory_info().rss)
        self._cpu_before_s = self._cpu_now_s()
        self._began_s = time.monotonic()
        for device_id in self.scenario.devices.ids():
            self._start(self._live(device_id), device_id)
        self._start(self._measure(), "measure")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._final = self.summary()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=STOP_TIMEOUT_S)
            if pending:
                log.error("%d devices did not end within %.0f s", len(pending), STOP_TIMEOUT_S)
        self._threads.shutdown(wait=False, cancel_futures=True)
        gc.unfreeze()

    def _share(self, fleet: str) -> Shared:
        scenario = self.scenario
        library = Library()
        supervisor, update, spool = supervisor_limits(scenario)
        return Shared(
            scenario=scenario,
            wire=Wire(fleet, self._access.mqtt, self._access.grpc, scenario, self._limits),
            library=library,
            script=Script(scenario, library),
            tally=Tally(),
            refresher=SharedRefresher(self._access.root),
            views=SharedViews(),
            limits=supervisor,
            update_limits=update,
            spool_limits=spool,
            clock=SystemClock(),
            jitter=rng(scenario.devices.seed, "jitter"),
            threads=self._threads,
        )

    async def _hello(self) -> str:
        """The fleet's name as the device service says it; it must be the one that is expected."""
        address, said = str(self._access.grpc), self._access.name
        options = [("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            link = GrpcLink(channel, address, self.scenario.devices.ids()[0])
            try:
                reply = await link.hello(agent_version())
            except LinkError as error:
                raise WorldError(
                    f"{error}. Is `fleet serve` running, and is {address} its device service?"
                ) from error
        if said and reply.fleet != said:
            raise WorldError(
                f"the fleet manager at {address} is of fleet {reply.fleet!r}, not {said!r}: "
                "check the addresses."
            )
        return str(reply.fleet)

    def _start(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, device_id: str) -> None:
        seed, ramp_s = self.scenario.devices.seed, self.scenario.devices.ramp_s
        await asyncio.sleep(ramp_s * chance(seed, device_id, "ramp"))
        boot_id = f"{random.getrandbits(64):016x}"
        device = self.devices[device_id] = Device(self._running, device_id, boot_id)
        try:
            await device.run()
        except Exception as error:
            self.failures[device_id] = error
            log.error("device %s ended with an error", device_id, exc_info=error)

    @property
    def _running(self) -> Shared:
        if self._shared is None:
            raise WorldError("this world has not been entered yet: use `async with World(...)`.")
        return self._shared

    # --- looking ----------------------------------------------------------------------------------

    def serving(self) -> Counter[str]:
        """How many devices answer with which ``model version`` now."""
        library = self._running.library
        found: Counter[str] = Counter()
        for device in self.devices.values():
            for digest in device.server.active():
                manifest = library.manifest(digest)
                found[f"{manifest.model} {manifest.version}"] += 1
        return found

    async def until(self, holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait until ``holds()``.

        Raises:
            WorldError: it does not within ``timeout_s``; the message says how far the world is.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():  # noqa: ASYNC110 (any condition over any of the devices)
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError as error:
            raise WorldError(
                f"not after {timeout_s:g} s, seed {self.scenario.devices.seed}: {self.progress().line()}"
            ) from error

    def progress(self) -> Progress:
        """A look at the world as it is."""
        shared = self._running
        return Progress(
            elapsed_s=time.monotonic() - self._began_s,
            devices=self.scenario.devices.count,
            connected=shared.wire.traffic.connected,
            serving=dict(self.serving()),
            phases={phase: count for phase, count in shared.tally.phases.items() if count},
            outcomes=dict(shared.tally.outcomes),
            reports_sent=shared.wire.traffic.reports_sent,
            unacknowledged=self._waiting(),
        )

    def summary(self) -> Summary:
        """What has come of it; of a world that has been left, as it was then."""
        if self._final is not None:
            return self._final
        shared = self._running
        traffic, tally = shared.wire.traffic, shared.tally
        self._note_memory()
        return Summary(
            devices=self.scenario.devices.count,
            seed=self.scenario.devices.seed,
            elapsed_s=round(time.monotonic() - self._began_s, 2),
            connected_peak=traffic.connected_peak,
            connects=traffic.connects,
            cuts=traffic.cuts,
            reports_made=tally.reports,
            reports_sent=traffic.reports_sent,
            reports_acknowledged=sum(device.acknowledged for device in self.devices.values()),
            reports_unacknowledged=self._waiting(),
            reports_lost=traffic.reports_lost,
            reports_silenced=traffic.reports_silenced,
            deployments=dict(tally.outcomes),
            under_way={phase: count for phase, count in tally.phases.items() if count},
            reasons=dict(tally.reasons),
            serving=dict(self.serving()),
            bytes_fetched=traffic.bytes_fetched,
            grpc_calls=traffic.calls,
            trust_refreshes=shared.refresher.asked,
            trust_verifications=shared.refresher.verified,
            failed_devices=len(self.failures),
            cpu_s=round(self._cpu_now_s() - self._cpu_before_s, 2),
            rss_bytes=self._rss,
            device_rss_bytes=self._per_device(self._rss),
            device_rss_peak_bytes=self._per_device(self._rss_peak),
        )

    def _waiting(self) -> int:
        return sum(device.spool.stats().reports for device in self.devices.values())

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_EVERY_S)
            self._note_memory()

    def _note_memory(self) -> None:
        self._rss = int(self._process.memory_info().rss)
        self._rss_peak = max(self._rss_peak, self._rss)

    def _per_device(self, rss: int) -> int:
        return max(rss - self._rss_before, 0) // self.scenario.devices.count

    def _cpu_now_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
