"""The updater over the real stores, the real journal and real threads; only the model is pretended."""

import asyncio
import time
from pathlib import Path

import pytest

from agent.adapters.journal import SqliteJournal
from agent.adapters.piece_store import FilePieceStore
from agent.adapters.slot_store import FolderSlotStore
from agent.bundle import Objectives
from agent.bundle.folder import verify_folder
from agent.ports import ServerState, TrialResult
from agent.update import Phase, UpdateLimits, Updater, UpdaterPorts

AT_ONCE = Objectives(probation_s=0.0)


class WallClock:
    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def utc_offset_minutes(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class HashingTrial:
    async def run(self, slot_path: str, manifest) -> TrialResult:
        verify_folder(slot_path)
        return TrialResult(True)


class PretendedServer:
    def __init__(self) -> None:
        self.state = ServerState(True, 1, 1)
        self.active: dict[str, str] = {}

    async def load(self, slot_path: str, manifest_sha256: str) -> None:
        verify_folder(slot_path, expected_sha256=manifest_sha256)

    async def activate(self, model: str, manifest_sha256: str) -> None:
        self.active[model] = manifest_sha256

    async def share(self, model: str, sharing) -> None:
        pass

    async def unload(self, model: str, manifest_sha256: str) -> None:
        pass


class Device:
    def __init__(self, root: Path, fleet) -> None:
        self.events = []
        self.changed = asyncio.Event()
        self.server = PretendedServer()
        self.journal = SqliteJournal(root / "journal.db")
        self.pieces = FilePieceStore(root / "pieces")
        self.slots = FolderSlotStore(root / "slots")
        ports = UpdaterPorts(
            journal=self.journal,
            pieces=self.pieces,
            slots=self.slots,
            source=fleet,
            metadata=fleet,
            trial=HashingTrial(),
            server=self.server,
            clock=WallClock(),
            free_bytes=self.slots.free_bytes,
        )
        self.updater = Updater(ports, UpdateLimits(), self._report)
        self.task = asyncio.create_task(self.updater.run())

    def _report(self, event) -> None:
        self.events.append(event)
        self.changed.set()

    async def outcomes(self, count: int) -> None:
        async with asyncio.timeout(30):
            while sum(bool(event.outcome) for event in self.events) < count:
                self.changed.clear()
                await self.changed.wait()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        self.journal.close()


@pytest.mark.filterwarnings("error")
async def test_two_bundles_a_restart_and_a_rollback(tmp_path, world, bundle_of):
    fleet = world.fleet
    one = fleet.add(bundle_of("1", objectives=AT_ONCE))
    two = fleet.add(bundle_of("2", objectives=AT_ONCE))
    device = Device(tmp_path, fleet)
    for n, bundle in enumerate((one, two), 1):
        device.updater.desire([world.install(bundle, f"r{n}")])
        await device.outcomes(n)
    assert device.server.active["m"] == two.sha256
    await device.stop()

    device = Device(tmp_path, fleet)
    fleet.offline = True
    device.updater.desire([world.revert(two, "r2", to=one)])
    await device.outcomes(1)
    assert device.server.active["m"] == one.sha256
    assert device.events[0].phase == 8
    served = device.updater.served()
    assert [(it.version, it.rollout_id) for it in served] == [("1", "r1")]
    await device.stop()
    assert {path.name for path in (tmp_path / "slots").iterdir()} >= {one.sha256}


async def test_a_stop_in_the_middle_of_a_fetch_keeps_what_arrived(tmp_path, world, bundle_of):
    bundle = world.fleet.add(bundle_of("1", objectives=AT_ONCE))
    half_way, go_on = asyncio.Event(), asyncio.Event()
    faithful = world.fleet.fetch

    async def fetch(ranges):
        sent = 0
        async for chunk in faithful(ranges):
            yield chunk
            sent += 1
            if sent == 8:
                half_way.set()
                await go_on.wait()

    world.fleet.fetch = fetch
    device = Device(tmp_path, world.fleet)
    device.updater.desire([world.install(bundle)])
    async with asyncio.timeout(30):
        await half_way.wait()
    await device.stop()
    held = sum(path.stat().st_size for path in (tmp_path / "pieces").iterdir())
    assert held == world.fleet.sent > 0

    go_on.set()
    device = Device(tmp_path, world.fleet)
    async with asyncio.timeout(30):
        while not device.updater.deployments():
            await asyncio.sleep(0)
    assert device.updater.deployments()[0].phase is Phase.FETCH
    device.updater.desire([world.install(bundle)])
    await device.outcomes(1)
    assert device.server.active["m"] == bundle.sha256
    assert world.fleet.sent == sum(len(data) for data in bundle.pieces.values())
    await device.stop()
