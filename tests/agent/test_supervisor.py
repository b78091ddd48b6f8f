"""The supervisor: windows, probation, inventory and packs, each where it belongs, over ports alone."""

import asyncio
import random
import threading
import tracemalloc
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agent.adapters.inbox import Inbox
from agent.delivery.offload import run_inline
from agent.errors import DeviceError, LinkError
from agent.health.budget import Budget, BudgetLimits
from agent.health.pace import PaceLimits
from agent.health.spool import MemorySpool
from agent.inventory import Machine
from agent.ports import DownlinkMessage, ModelMemory, ResourceUse, ServedWindow, ServerState
from agent.supervisor import Supervisor, SupervisorLimits, SupervisorPorts
from agent.trust import TrustState
from agent.trust.errors import ExpiredError, RollbackError
from agent.trust_keeper import TrustPorts, TrustView
from agent.update.served import ServedBundle
from protos import report_pb2
from tests.support.manual_clock import ManualClock

SHA = "a" * 64
PACE = PaceLimits(window_s=60, cohort_window_s=15, probation_s=1, settle_s=120)
MACHINE = Machine("cam-1", "cam", "x86_64", agent_version="0.1.0")


class Link:
    """Always answers; remembers every report."""

    name = "fake"
    connected = True

    def __init__(self):
        self.inbox = Inbox(1000)
        self.reports = []

    def messages(self):
        return self.inbox.messages()

    async def run(self):
        self.inbox.put(DownlinkMessage(connected=True))
        await asyncio.Event().wait()

    async def send(self, batch):
        self.reports += batch.reports
        ids = [report_pb2.ReportId(boot_id=it.boot_id, seq=it.seq) for it in batch.reports]
        self.inbox.put(DownlinkMessage(ack=report_pb2.ReportAck(ids=ids)))

    def windows(self):
        return [it.window for it in self.reports if it.HasField("window")]

    def inventories(self):
        return [it.inventory for it in self.reports if it.HasField("inventory")]


class Server:
    """A model server whose counters and deaths are scripted."""

    def __init__(self):
        self.state = ServerState(True, 1, 100)
        self.changed = asyncio.Event()
        self.counted = []
        self.drains = 0
        self.broken = False
        self.memory = None

    async def wait_change(self, generation):
        while self.state.running and self.state.generation == generation:
            await self.changed.wait()
        return self.state

    def become(self, state):
        self.state = state
        self.changed.set()
        self.changed = asyncio.Event()

    async def drain(self):
        self.drains += 1
        if self.broken:
            raise DeviceError("the model server is not running")
        counted, self.counted = self.counted, []
        return counted


class FakeUpdater:
    """Remembers what the supervisor tells it."""

    def __init__(self):
        self.bundles = ()
        self.held = ()
        self.going = ()
        self.desired = []
        self.observed = []
        self.states = []
        self.breaches = []
        self.began = []

    def current(self):
        return {}

    def served(self):
        return self.bundles

    def beside(self):
        return self.held

    def deployments(self):
        return self.going

    def desire(self, decisions):
        self.desired.append(decisions)

    def observe(self, windows):
        self.observed += windows

    def server_changed(self, state):
        self.states.append(state)

    def memory_exceeded(self, breach):
        self.breaches.append(breach)

    async def resume(self):
        self.began.append("resume")

    async def run(self):
        self.began.append("run")
        await asyncio.Event().wait()


class Store:
    def load(self):
        return TrustState()

    def save(self, state):
        pass


def bundle(*, on_probation=False, version="1", sha=SHA):
    return ServedBundle("m", version, sha, f"bundles/cam/m-{version}", "r1", on_probation)


class Device:
    def __init__(self, make_spool=MemorySpool):
        self.clock = ManualClock()
        self.link = Link()
        self.server = Server()
        self.updater = FakeUpdater()
        self.packs = []
        self.fail_refresh = False
        self.refuses = None

        async def refresh(state, pack):
            self.packs.append(pack)
            if self.refuses is not None and pack is not None:
                raise self.refuses
            if self.fail_refresh:
                raise LinkError("nobody there")
            return state

        trust = TrustPorts(
            Store(), refresh, lambda state: TrustView((), {}, float("inf")), run_inline, self.clock
        )
        ports = SupervisorPorts(
            clock=self.clock,
            links=(self.link,),
            trust=trust,
            spool=make_spool(),
            server=self.server,
            resources=SimpleNamespace(read=lambda: ResourceUse(50_000_000, 1.0, 10**9, 10**9)),
        )
        limits = SupervisorLimits(pace=PACE)
        self.supervisor = Supervisor(ports, MACHINE, "boot", limits, random.Random(1))


@asynccontextmanager
async def running(device):
    task = asyncio.create_task(device.supervisor.run(device.updater))
    await device.clock.settle()
    try:
        yield device
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


async def test_it_resumes_before_it_decides_and_says_what_it_is():
    async with running(Device()) as device:
        assert device.updater.began == ["resume", "run"]
        assert device.supervisor.resumed.is_set()
        [inventory] = device.link.inventories()
        assert (inventory.device_class, inventory.hardware, inventory.agent_version) == (
            "cam",
            "x86_64",
            "0.1.0",
        )
        await device.clock.advance(10)
        assert device.updater.desired == [()]


async def test_an_idle_model_is_a_heartbeat_a_window():
    device = Device()
    device.updater.bundles = (bundle(),)
    async with running(device):
        await device.clock.advance(180)
        windows = device.link.windows()
        assert [(it.model, it.requests, it.rollout_id) for it in windows] == [("m", 0, "r1")] * 3
        spans = [(it.end_unix_ms - it.start_unix_ms) / 1000 for it in windows]
        assert spans == [60, 60, 60]
        assert windows[0].resources.rss_bytes == 50_000_000
        assert [it.seq for it in device.link.reports] == [1, 2, 3, 4]
        assert {it.boot_id for it in device.link.reports} == {"boot"}


async def test_what_is_held_beside_has_windows_but_is_not_what_is_active():
    device = Device()
    device.updater.bundles = (bundle(),)
    shadow = ServedBundle("m", "2", "b" * 64, "bundles/cam/m-2", "r2", role="shadow")
    standby = ServedBundle("n", "2", "c" * 64, "bundles/cam/n-2", "r3", role="standby")
    device.updater.held = (shadow, standby)
    async with running(device):
        await device.clock.advance(60)
        found = {(it.manifest_sha256, it.rollout_id) for it in device.link.windows()}
        assert found == {(SHA, "r1"), ("b" * 64, "r2")}
        [inventory] = device.link.inventories()
        assert [it.manifest_sha256 for it in inventory.active] == [SHA]


async def test_the_inventory_is_told_again_when_the_clocks_change():
    device = Device()
    async with running(device):
        await device.clock.advance(180)
        assert len(device.link.inventories()) == 1
        device.clock.offset_minutes = 120
        await device.clock.advance(60)
        assert [it.utc_offset_minutes for it in device.link.inventories()] == [0, 120]


async def test_what_was_refused_reaches_the_fleet_and_a_flood_of_it_does_not():
    device = Device()
    async with running(device):
        await device.clock.advance(120)
        assert not device.link.inventories()[-1].HasField("trust")
        told = len(device.link.inventories())
        device.refuses = RollbackError("older than what was accepted")
        for number in range(60):
            device.refuses = (RollbackError, ExpiredError)[number % 2](f"no {number}")
            device.supervisor.keeper.offer_pack(b"bad %d" % number)
            await device.clock.advance(5)
        inventories = device.link.inventories()[told:]
        assert inventories[0].trust.refusal_code in {"rollback", "expired"}
        assert inventories[0].trust.refusing
        assert 1 <= len(inventories) <= 300 / 60 + 1


async def test_counters_go_to_the_updater_and_into_the_window():
    device = Device()
    device.updater.bundles = (bundle(),)
    async with running(device):
        device.server.counted = [ServedWindow("m", "1", SHA, requests=7, failures=2)]
        await device.clock.advance(60)
        assert [it.requests for it in device.updater.observed] == [7]
        assert [(it.requests, it.failures) for it in device.link.windows()] == [(7, 2)]


async def test_on_probation_it_looks_every_second_and_reports_faster():
    device = Device()
    device.updater.bundles = (bundle(on_probation=True),)
    device.updater.going = ("a deployment",)
    async with running(device):
        before = device.server.drains
        for _ in range(30):
            device.server.counted = [ServedWindow("m", "1", SHA, requests=1)]
            await device.clock.advance(1)
        assert device.server.drains - before == 30
        assert len(device.updater.observed) == 30
        windows = device.link.windows()
        assert len(windows) == 2
        assert sum(it.requests for it in windows) == 30


async def test_a_deployment_that_begins_is_looked_at_at_once():
    device = Device()
    async with running(device):
        device.updater.bundles = (bundle(on_probation=True),)
        device.updater.going = ("a deployment",)
        event = report_pb2.DeploymentEvent(deployment_id="x", phase=report_pb2.PHASE_PROBATION)
        device.supervisor.deployment_event(event)
        before = device.server.drains
        await device.clock.advance(3)
        assert device.server.drains - before >= 3
        assert [
            it.deployment.deployment_id for it in device.link.reports if it.HasField("deployment")
        ] == ["x"]


async def test_the_end_of_a_deployment_makes_it_decide_again_and_report_what_is_active():
    device = Device()
    async with running(device):
        await device.clock.advance(10)
        decided = len(device.updater.desired)
        device.updater.bundles = (bundle(version="2"),)
        event = report_pb2.DeploymentEvent(outcome=report_pb2.OUTCOME_COMMITTED, reason="well done")
        device.supervisor.deployment_event(event)
        await device.clock.settle()
        assert len(device.updater.desired) == decided + 1
        assert [it.version for it in device.link.inventories()[-1].active] == ["2"]
        # For a while after a deployment the fleet hears more often.
        await device.clock.advance(120)
        assert len(device.link.windows()) >= 7
        await device.clock.advance(600)
        assert len(device.link.windows()) <= 8 + 10


async def test_a_dead_model_server_is_told_and_the_heartbeat_goes_on():
    device = Device()
    device.updater.bundles = (bundle(),)
    async with running(device):
        device.server.broken = True
        device.server.become(ServerState(False, 1, None, "killed by SIGSEGV"))
        await device.clock.advance(60)
        assert [it.running for it in device.updater.states] == [False]
        assert len(device.link.windows()) == 1
        device.server.broken = False
        device.server.become(ServerState(True, 2, 101, "killed by SIGSEGV"))
        await device.clock.advance(2)
        assert [(it.running, it.generation) for it in device.updater.states] == [
            (False, 1),
            (True, 2),
        ]


async def test_a_broken_budget_is_told_to_the_updater_and_in_the_windows():
    device = Device()
    device.updater.bundles = (bundle(),)
    limits = SupervisorLimits(
        pace=PACE, budget=BudgetLimits(max_rss_bytes=60_000_000, sustained_s=20, sample_s=5)
    )
    used = [50_000_000]
    resources = SimpleNamespace(read=lambda: ResourceUse(used[0], 1.0, 10**9, 10**9))
    ports = replace(device.supervisor._ports, resources=resources)
    device.supervisor = Supervisor(ports, MACHINE, "boot", limits, random.Random(1))
    async with running(device):
        await device.clock.advance(60)
        assert set(device.updater.breaches) == {None}
        used[0] = 70_000_000
        for _ in range(12):
            await device.clock.advance(5)
        breach = device.updater.breaches[-1]
        assert breach.budget is Budget.MEMORY
        used[0] = 50_000_000
        for _ in range(12):
            await device.clock.advance(5)
        assert device.updater.breaches[-1] is None
        first, second, third = device.link.windows()
        assert list(first.notices) == []
        [notice] = second.notices
        assert notice.startswith(
            "budget_memory: agent and model server hold 67 MiB, allowed are 57"
        )
        assert list(third.notices) == []


async def test_memory_beyond_what_bundles_state_is_told_without_any_limit_of_the_device():
    device = Device()
    device.updater.bundles = (bundle(),)
    async with running(device):
        device.server.memory = ModelMemory(90 << 20, 80 << 20, ("bundles/edge/m-1 8 MiB",))
        for _ in range(30):
            await device.clock.advance(5)
        breach = device.updater.breaches[-1]
        assert breach is not None
        assert breach.budget is Budget.MODELS
        device.server.memory = None  # it was started anew, and holds nothing yet
        for _ in range(30):
            await device.clock.advance(5)
        assert device.updater.breaches[-1] is None


async def test_packs_reach_the_trust_keeper():
    async with running(Device()) as device:
        device.link.inbox.put(DownlinkMessage(pack=b"pack"))
        await device.clock.settle()
        assert b"pack" in device.packs


async def test_the_last_window_is_kept_at_a_clean_stop():
    device = Device()
    device.updater.bundles = (bundle(),)
    async with running(device):
        device.server.counted = [ServedWindow("m", "1", SHA, requests=9)]
        await device.clock.advance(5)
        await device.supervisor.last_window()
        await device.clock.settle()
        assert [it.requests for it in device.link.windows()] == [9]


async def test_a_spool_that_fails_costs_a_report_and_nothing_else():
    class Broken(MemorySpool):
        def put(self, report):
            if report.HasField("window"):
                raise DeviceError("the disk is full")
            super().put(report)

    device = Device(Broken)
    device.updater.bundles = (bundle(),)
    async with running(device):
        await device.clock.advance(180)
        assert device.link.windows() == []
        assert len(device.link.inventories()) == 1


async def test_a_bug_ends_the_supervisor():
    device = Device()

    async def broken():
        raise RuntimeError("a bug")

    device.updater.run = broken
    with pytest.raises(ExceptionGroup):
        await device.supervisor.run(device.updater)


async def test_a_device_costs_kilobytes_and_no_thread():
    threads = threading.active_count()
    tracemalloc.start()
    devices = [Device() for _ in range(200)]
    tasks = [asyncio.create_task(it.supervisor.run(it.updater)) for it in devices]
    for _ in range(60):
        await asyncio.sleep(0)
    each_bytes = tracemalloc.get_traced_memory()[0] / 200
    tracemalloc.stop()
    each_tasks = len(asyncio.all_tasks()) / 200
    assert sum(len(it.link.inventories()) for it in devices) == 200
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert threading.active_count() == threads
    assert each_tasks < 12
    assert each_bytes < 40_000
