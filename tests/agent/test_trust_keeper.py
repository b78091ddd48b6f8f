"""The trust keeper: verified, saved, decided, in this order; nothing a broker sends wears it out."""

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from agent.delivery.offload import run_inline
from agent.errors import DeviceError, LinkError
from agent.trust import (
    CurrentModel,
    DeviceFacts,
    Directive,
    Reason,
    RefusedMetadataError,
    TrustState,
    Verb,
    in_cohort,
    share_now_bp,
)
from agent.trust_keeper import TrustKeeper, TrustKeeperLimits, TrustPorts
from agent.trust_view import RealRefresh, read_view
from tests.support.manual_clock import ManualClock
from tests.support.signed_fleet import DAY_S, START_S, SignedFleet

LIMITS = TrustKeeperLimits(
    refresh_s=3600,
    connect_jitter_s=5,
    decide_s=60,
    retry_first_s=2,
    retry_most_s=300,
    burst=3,
    refill_s=10,
)
FACTS = DeviceFacts("cam-1", "cam", "x86_64", agent_version="0.1.0", onnxruntime_version="1.31.0")


class Store:
    """Keeps what is saved; ``broken`` is a full disk."""

    def __init__(self):
        self.saved = [TrustState()]
        self.broken = False
        self.unreadable = False

    def load(self):
        if self.unreadable:
            raise DeviceError("the disk is gone")
        return self.saved[-1]

    def save(self, state):
        if self.broken:
            raise DeviceError("the disk is full")
        self.saved.append(state)


class Device:
    """A keeper over the real TUF client, a real repository and a clock of our own."""

    def __init__(self, fleet, **limits):
        from agent.trust.refresh import TrustRefresher

        self.fleet = fleet
        self.clock = ManualClock(START_S)
        self.store = Store()
        self.log = []
        self.current = {}
        self.reachable = True
        self.source = fleet.offered()
        self.refreshes = []
        refresh = RealRefresh(TrustRefresher(fleet.root), self, self.clock, run_inline)

        async def noted(state, pack):
            self.refreshes.append(pack)
            result = await refresh(state, pack)
            self.log.append("verified")
            return result

        self.changes = 0
        ports = TrustPorts(
            self.store, noted, read_view, run_inline, self.clock, self.status_changed
        )
        self.keeper = TrustKeeper(
            ports,
            FACTS,
            lambda: self.current,
            self.desire,
            replace(LIMITS, **limits),
            random.Random(1),
        )
        self.desired = []

    def get_metadata(self, name):
        if not self.reachable:
            raise LinkError("no route")
        return self.source.get_metadata(name)

    def get_target(self, path, sha256):
        return self.source.get_target(path, sha256)

    def status_changed(self):
        self.changes += 1

    def desire(self, decisions):
        self.log.append("desired")
        assert self.store.saved[-1].files, "decided before it was saved"
        self.desired.append(decisions)


@pytest.fixture
def fleet(tmp_path):
    return SignedFleet(tmp_path / "fleet")


@asynccontextmanager
async def running(device):
    task = asyncio.create_task(device.keeper.run())
    await device.clock.settle()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


def directive(release, number=1, percent_bp=10_000, **more):
    return Directive(
        id=f"r{number}",
        number=number,
        model=release.model,
        bundle=release.path,
        sha256=release.sha256,
        length=release.length,
        percent_bp=percent_bp,
        **more,
    )


async def test_a_pack_becomes_a_decision_after_it_was_saved(fleet):
    release = fleet.publish()
    device = Device(fleet)
    pack = fleet.direct(directive(release))
    async with running(device):
        device.log.clear()
        device.keeper.offer_pack(pack)
        await device.clock.settle()
        [decision] = device.desired[-1]
        assert decision.verb is Verb.INSTALL
        assert decision.release == release
        assert device.log == ["verified", "desired"]
        assert "rollout.json" in device.store.saved[-1].files


async def test_the_same_pack_again_is_dropped(fleet):
    device = Device(fleet)
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        for _ in range(5):
            device.keeper.offer_pack(pack)
            await device.clock.settle()
        assert device.refreshes.count(pack) == 1
        assert device.keeper.counts.duplicates == 4


async def test_a_bad_pack_is_counted_and_the_next_one_is_obeyed(fleet):
    device = Device(fleet)
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        device.keeper.offer_pack(b"rubbish")
        await device.clock.settle()
        assert device.keeper.counts.refused == 1
        device.keeper.offer_pack(b"rubbish")
        await device.clock.settle()
        assert device.keeper.counts.refused == 1
        device.keeper.offer_pack(pack)
        await device.clock.settle()
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_a_flood_of_packs_is_rationed(fleet):
    device = Device(fleet)
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        for number in range(100):
            device.keeper.offer_pack(b"rubbish %d" % number)
            await device.clock.advance(0.1)
        assert len(device.refreshes) <= LIMITS.burst + 1
        device.keeper.offer_pack(pack)
        await device.clock.advance(LIMITS.refill_s)
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_a_full_disk_means_no_action_until_it_can_be_saved(fleet):
    device = Device(fleet)
    device.store.broken = True
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.advance(30)
        assert device.desired == []
        device.store.broken = False
        await device.clock.advance(300)
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_without_the_fleet_manager_a_pack_waits_and_is_tried_again(fleet):
    device = Device(fleet)
    device.reachable = False
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.advance(600)
        assert device.desired == []
        assert device.keeper.counts.unreachable >= 3
        device.reachable = True
        await device.clock.advance(300)
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_a_connect_brings_a_refresh_that_needs_no_pack(fleet):
    device = Device(fleet)
    async with running(device):
        await device.clock.advance(20)
        assert device.desired[-1] == ()
        fleet.direct(directive(fleet.publish()))
        device.source = fleet.offered()
        device.keeper.ask_refresh()
        await device.clock.advance(LIMITS.connect_jitter_s)
        assert device.refreshes == [None, None]
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_a_broker_that_withholds_a_halt_is_caught_by_the_periodic_refresh(fleet):
    device = Device(fleet)
    release = fleet.publish()
    pack = fleet.direct(directive(release))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.settle()
        device.current = {
            "m": CurrentModel("m", pending_sha256=release.sha256, pending_rollout_id="r1")
        }
        fleet.direct(directive(release, halt=True))
        device.source = fleet.offered()
        await device.clock.advance(LIMITS.refresh_s * 1.2)
        assert device.desired[-1][0].verb is Verb.NONE


async def test_a_limit_that_opens_with_time_is_noticed(fleet):
    device = Device(fleet)
    release = fleet.publish()
    pack = fleet.direct(directive(release, not_before_s=int(START_S) + 1000))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.advance(940)
        assert device.desired[-1][0].verb is Verb.NONE
        await device.clock.advance(120)
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_nothing_is_begun_on_expired_metadata(fleet):
    device = Device(fleet)
    release = fleet.publish()
    pack = fleet.direct(directive(release, not_before_s=int(START_S + 1.5 * DAY_S)))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.advance(60)
        device.reachable = False
        await device.clock.advance(DAY_S)
        await device.clock.advance(DAY_S)
        decision = device.desired[-1][0]
        assert (decision.verb, decision.reason) == (Verb.NONE, Reason.STALE_METADATA)
        assert device.keeper.status.notices == (
            "expired: nothing is begun by this metadata any more",
        )


async def test_what_is_under_way_is_held_at_the_moment_the_metadata_expires(fleet):
    device = Device(fleet, decide_s=7 * DAY_S)
    release = fleet.publish()
    pack = fleet.direct(directive(release))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.settle()
        device.current = {
            "m": CurrentModel("m", pending_sha256=release.sha256, pending_rollout_id="r1")
        }
        device.reachable = False
        await device.clock.advance(DAY_S - 1)
        assert not device.desired[-1][0].holds
        await device.clock.advance(1)
        decision = device.desired[-1][0]
        assert (decision.verb, decision.reason) == (Verb.INSTALL, Reason.STALE_METADATA)


async def test_what_was_refused_is_told_and_so_is_that_it_is_over(fleet):
    device = Device(fleet)
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        device.keeper.offer_pack(b"rubbish")
        await device.clock.settle()
        status = device.keeper.status
        assert (status.code, status.refusing, status.refused) == ("pack_malformed", True, 1)
        assert status.refused_s == device.clock.now_s()
        assert device.changes == 1
        device.keeper.offer_pack(b"more rubbish")
        await device.clock.advance(20)
        assert (device.keeper.status.refused, device.changes) == (2, 1)
        device.keeper.offer_pack(pack)
        await device.clock.advance(20)
        assert not device.keeper.status.refusing
        assert device.keeper.status.code == "pack_malformed"


async def test_a_store_that_cannot_be_read_directs_nothing_until_it_can(fleet):
    device = Device(fleet)
    device.store.unreadable = True
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.advance(30)
        assert device.desired == []
        assert device.keeper.status.code == "trust_store"
        device.store.unreadable = False
        await device.clock.advance(LIMITS.retry_most_s)
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_after_damage_a_pack_waits_for_the_fleet_manager_itself(fleet):
    """A pack alone could be an old one: what would show that is what was lost."""
    device = Device(fleet)
    device.store.saved = [TrustState(damage="cut short")]
    device.reachable = False
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.advance(600)
        assert pack not in device.refreshes
        assert (device.keeper.status.code, device.keeper.status.text) == (
            "trust_store",
            "cut short",
        )
        device.reachable = True
        await device.clock.advance(300)
        assert device.desired[-1][0].verb is Verb.INSTALL
        assert device.store.saved[-1].damage == ""
        assert pack in device.refreshes


async def test_what_was_verified_before_a_refusal_is_saved(fleet):
    device = Device(fleet)
    progress = TrustState(floor_s=5.0)

    async def refuse(state, pack):
        error = RefusedMetadataError("a file is missing")
        error.progress = progress
        raise error

    ports = TrustPorts(device.store, refuse, read_view, run_inline, device.clock)
    device.keeper = TrustKeeper(ports, FACTS, dict, device.desire, LIMITS)
    async with running(device):
        assert device.store.saved[-1] is progress
        assert device.desired == []


async def test_the_clock_set_back_revives_nothing(fleet):
    device = Device(fleet)
    pack = fleet.direct(directive(fleet.publish()))
    async with running(device):
        device.keeper.offer_pack(pack)
        await device.clock.settle()
        floor_s = device.store.saved[-1].floor_s
        device.clock.set_wall(START_S - 30 * DAY_S)
        await device.clock.advance(60)
        assert device.store.saved[-1].floor_s >= floor_s
        assert device.desired[-1][0].verb is Verb.INSTALL


async def test_open_hours_are_the_devices_own_and_come_of_themselves(fleet):
    release = fleet.publish()
    fleet.direct(directive(release, open_hours=("09:00-10:00",)))  # it is 08:00 UTC
    device = Device(fleet)
    async with running(device):
        await device.clock.advance(10)
        assert [it.reason for it in device.desired[-1]] == [Reason.CLOSED]
        device.clock.offset_minutes = 60
        await device.clock.advance(60)
        assert [it.verb for it in device.desired[-1]] == [Verb.INSTALL]
        device.clock.offset_minutes = 0
        await device.clock.advance(3600)
        assert [it.verb for it in device.desired[-1]] == [Verb.INSTALL]


async def test_a_ramp_lets_the_device_in_when_its_turn_has_come(fleet):
    release = fleet.publish()
    ramp = directive(release, ramp_s=600, stage_started_s=int(START_S))
    fleet.direct(ramp)
    device = Device(fleet)
    came_s = next(
        s for s in range(601) if in_cohort(release.sha256, "cam-1", share_now_bp(ramp, START_S + s))
    )
    async with running(device):
        await device.clock.advance(10)
        for _ in range(11):
            (decision,) = device.desired[-1]
            gone_s = device.clock.now_s() - START_S
            if decision.verb is Verb.INSTALL:
                assert gone_s >= came_s
            elif gone_s >= came_s + LIMITS.decide_s:
                raise AssertionError("its turn was missed")
            await device.clock.advance(60)
        assert [it.verb for it in device.desired[-1]] == [Verb.INSTALL]
