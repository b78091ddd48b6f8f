"""A device that was off for weeks gets what is right when it comes back, when what it was told has long expired.

The fleet manager goes on for weeks as it does: it ticks, decides, and signs anew in time. The device has only what it
had when it left: its trust state, its bundles, its clock. Both sides are the real ones; the network is a function call.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.errors import LinkError
from agent.trust import (
    BundleRelease,
    CurrentModel,
    Decision,
    DeviceFacts,
    Reason,
    TrustState,
    Verb,
    World,
    decide_in,
    slot_of,
)
from agent.trust.errors import ExpiredError
from agent.trust.refresh import TrustRefresher
from agent.trust_view import read_view
from fleet.repository.roles import VALIDITY
from fleet.rollout.snapshot import Standing
from fleet.rollout.states import Event, State
from tests.fleet.rollout.fleet_rows import DEVICES, Lab, asked
from tests.support.signed_fleet import DAY_S

AWAY_S = 21 * DAY_S  # longer than any online signature holds
STEP_S = 2 * DAY_S / 3


class Nobody:
    """A network in which nobody answers."""

    def get_metadata(self, name: str) -> bytes | None:
        raise LinkError(f"nobody answers for {name}")

    def get_target(self, path: str, sha256: str) -> bytes | None:
        raise LinkError(f"nobody answers for {path}")


@dataclass
class Away:
    """A device: what it has on its disk, and nothing else."""

    name: str
    root: bytes
    trust: TrustState = field(default_factory=TrustState)
    model: CurrentModel = field(default_factory=lambda: CurrentModel("digits"))

    def hears(self, lab: Lab) -> Decision:
        """It connects: the retained pack, what it has to ask for, and what follows from that."""
        pack, repository = lab.signed.repository.pack(), lab.signed.offered()
        self.trust = TrustRefresher(self.root, device_class="cam").refresh(
            self.trust, repository, pack, lab.now_s
        )
        return self.decides(lab.now_s)

    def decides(self, now_s: float) -> Decision:
        """What it does by what it knows."""
        view = read_view(self.trust)
        world = World(
            view.releases,
            DeviceFacts(self.name, "cam", "x86_64"),
            self.trust.floors_for("cam"),
            self.trust.trusted_now_s(now_s),
            view.emergency,
            view.expires_s,
        )
        (decision,) = decide_in(world, view.directives, {"digits": self.model})
        return decision

    def installs(self, decision: Decision) -> None:
        assert decision.verb is Verb.INSTALL
        assert decision.release is not None
        self.model = CurrentModel("digits", decision.release.sha256, self.model.active_sha256)


class Fleet:
    """A lab at which 40 devices serve the first bundle, and a few of them go away."""

    def __init__(self, home: Path) -> None:
        self.lab = Lab(home)
        self.lab.register()
        self.first = self.lab.release("1")
        self.releases = {"1": self.first}

    async def begin(self) -> None:
        await self.promote(self.first)

    def release(self, version: str) -> BundleRelease:
        self.releases[version] = self.lab.release(version)
        return self.releases[version]

    def device(self, chosen: Callable[[str], bool]) -> Away:
        """One of the devices, up to date now: the next thing it does is to go away."""
        name = next(name for name in DEVICES if chosen(name))
        device = Away(name, self.lab.signed.root)
        device.installs(device.hears(self.lab))
        assert device.hears(self.lab).verb is Verb.KEEP
        return device

    async def promote(self, release: BundleRelease) -> None:
        started = await self.lab.executor.start(asked(release, 10_000))
        self.lab.installed(release, started.id, DEVICES)
        self.lab.now_s += 11
        self.lab.window(release, started.id, DEVICES)
        await self.lab.executor.tick()
        assert (await self.state(started.id)) is State.PROMOTED

    async def half(self, release: BundleRelease) -> str:
        started = await self.lab.executor.start(asked(release, 5000, 10_000, bake_s=30 * DAY_S))
        return started.id

    async def state(self, rollout_id: str) -> State:
        return (await self.lab.executor.observe(rollout_id)).snapshot.rollout.state

    async def weeks(self, seconds: float = AWAY_S) -> None:
        """Time goes by: everybody else is there, and the fleet manager signs anew what is due."""
        ends_s = self.lab.now_s + seconds
        while self.lab.now_s < ends_s:
            self.lab.now_s += STEP_S
            while self.lab.signed.repository.resign_if_due(self.lab.now_s):
                pass
        self.lab.heard()
        await self.lab.executor.tick()


@pytest.fixture
async def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path)
    await fleet.begin()
    return fleet


def in_half(release: BundleRelease) -> Callable[[str], bool]:
    return lambda name: slot_of(release.sha256, name) < 5000


def in_other_half(release: BundleRelease) -> Callable[[str], bool]:
    return lambda name: slot_of(release.sha256, name) >= 5000


async def test_while_it_is_away_everything_it_was_told_expires_and_it_goes_on_serving(
    fleet: Fleet,
) -> None:
    second = fleet.release("2")
    device = fleet.device(in_half(second))
    await fleet.half(second)
    pack = fleet.lab.signed.repository.pack()
    await fleet.weeks()
    assert max(VALIDITY.timestamp_s, VALIDITY.snapshot_s, VALIDITY.rollout_s) < AWAY_S
    kept = device.decides(fleet.lab.now_s)
    assert kept.verb is Verb.KEEP  # what it serves needs nobody's word
    refresher = TrustRefresher(device.root, device_class="cam")
    with pytest.raises(ExpiredError):  # a pack of the day it left begins nothing
        refresher.refresh(device.trust, Nobody(), pack, fleet.lab.now_s)
    assert device.hears(fleet.lab).verb is Verb.INSTALL


async def test_in_the_middle_of_a_rollout_it_is_where_its_hash_puts_it(fleet: Fleet) -> None:
    second = fleet.release("2")
    inside, outside = fleet.device(in_half(second)), fleet.device(in_other_half(second))
    rollout_id = await fleet.half(second)
    await fleet.weeks()
    decision = inside.hears(fleet.lab)
    assert (decision.verb, decision.release) == (Verb.INSTALL, second)
    assert decision.directive is not None
    assert decision.directive.id == rollout_id
    assert outside.hears(fleet.lab).verb is Verb.KEEP
    inside.installs(decision)
    assert inside.hears(fleet.lab).verb is Verb.KEEP


async def test_it_failed_nothing_while_it_was_away_and_has_its_time_now(fleet: Fleet) -> None:
    """The fleet manager's side of the same: no stage waits for it, and it is not late when it comes."""
    second = fleet.release("2")
    inside = fleet.device(in_half(second))
    rollout_id = await fleet.half(second)
    with fleet.lab.store.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE devices SET last_seen_s = last_seen_s - 999 WHERE id = ?", (inside.name,)
        )

    async def standing() -> Standing:
        snapshot = (await fleet.lab.executor.observe(rollout_id)).snapshot
        (view,) = (one for one in snapshot.cohort if one.device_id == inside.name)
        return snapshot.standing(view)

    assert await standing() is Standing.OFFLINE
    fleet.lab.now_s += AWAY_S
    fleet.lab.heard(set(DEVICES) - {inside.name})
    assert await standing() is Standing.OFFLINE
    fleet.lab.heard([inside.name])
    assert await standing() is Standing.WAITING


async def test_after_promotions_it_goes_to_the_newest_and_to_none_between(fleet: Fleet) -> None:
    device = fleet.device(lambda _name: True)
    for version in "23":
        await fleet.weeks(AWAY_S / 2)
        await fleet.promote(fleet.release(version))
    await fleet.weeks(DAY_S)
    decision = device.hears(fleet.lab)
    assert (decision.verb, decision.release) == (Verb.INSTALL, fleet.releases["3"])


async def test_after_a_rollback_it_goes_back_if_it_had_it_and_stays_if_not(fleet: Fleet) -> None:
    second = fleet.release("2")
    had = fleet.device(in_half(second))
    never = fleet.device(lambda name: name != had.name and in_half(second)(name))
    rollout_id = await fleet.half(second)
    had.installs(had.hears(fleet.lab))  # and leaves with it
    await fleet.weeks(AWAY_S / 2)
    await fleet.lab.executor.change(rollout_id, Event.ROLLBACK)
    await fleet.weeks(AWAY_S / 2)
    decision = had.hears(fleet.lab)
    assert (decision.verb, decision.release) == (Verb.REVERT, fleet.first)
    assert never.hears(fleet.lab).verb is Verb.KEEP
    assert never.model.active_sha256 == fleet.first.sha256


async def test_after_a_rollback_and_a_better_one_it_goes_there_at_once(fleet: Fleet) -> None:
    second = fleet.release("2")
    had = fleet.device(in_half(second))
    rollout_id = await fleet.half(second)
    had.installs(had.hears(fleet.lab))
    await fleet.lab.executor.change(rollout_id, Event.ROLLBACK)
    await fleet.weeks()
    await fleet.promote(fleet.release("3"))
    decision = had.hears(fleet.lab)
    assert (decision.verb, decision.release) == (Verb.INSTALL, fleet.releases["3"])


async def test_after_a_rollout_was_superseded_it_goes_to_the_newer_or_keeps_what_it_has(
    fleet: Fleet,
) -> None:
    second, third = fleet.release("2"), fleet.release("3")
    had = fleet.device(lambda name: in_half(second)(name) and in_half(third)(name))
    kept = fleet.device(lambda name: in_half(second)(name) and in_other_half(third)(name))
    never = fleet.device(lambda name: in_other_half(third)(name) and in_half(second)(name))
    await fleet.half(second)
    for device in (had, kept):
        device.installs(device.hears(fleet.lab))
    await fleet.weeks(AWAY_S / 2)
    newer = await fleet.lab.executor.start(
        asked(third, 5000, 10_000, bake_s=30 * DAY_S), supersede=True
    )
    await fleet.weeks(AWAY_S / 2)
    assert await fleet.state("r2") is State.SUPERSEDED
    decision = had.hears(fleet.lab)
    assert (decision.verb, decision.release) == (Verb.INSTALL, third)
    assert decision.directive is not None
    assert decision.directive.id == newer.id
    assert kept.hears(fleet.lab).verb is Verb.KEEP
    assert kept.model.active_sha256 == second.sha256
    # Who had not begun with the superseded one does not begin with it now.
    assert never.hears(fleet.lab).verb is Verb.KEEP
    assert never.model.active_sha256 == fleet.first.sha256


async def test_half_done_when_it_left_it_does_not_finish_what_was_taken_back(fleet: Fleet) -> None:
    second = fleet.release("2")
    device = fleet.device(in_half(second))
    rollout_id = await fleet.half(second)
    begun = device.hears(fleet.lab)
    device.model = CurrentModel(
        "digits", fleet.first.sha256, pending_sha256=second.sha256, pending_rollout_id=rollout_id
    )
    assert begun.verb is Verb.INSTALL
    await fleet.weeks(DAY_S)
    alone = device.decides(fleet.lab.now_s)  # it is on again, and hears nobody yet
    assert (alone.verb, alone.reason) == (Verb.INSTALL, Reason.STALE_METADATA)  # tries nothing
    await fleet.lab.executor.change(rollout_id, Event.ROLLBACK)
    await fleet.weeks()
    decision = device.hears(fleet.lab)
    assert (decision.verb, decision.release) == (Verb.REVERT, fleet.first)


async def test_a_new_device_joins_where_it_hashes_and_both_sides_agree(fleet: Fleet) -> None:
    """It was never there: it has a root and nothing else."""
    second = fleet.release("2")
    rollout_id = await fleet.half(second)
    names = [f"new-{number}" for number in range(20)]
    fleet.lab.register(names)
    cohort = {
        view.device_id
        for view in (await fleet.lab.executor.observe(rollout_id)).snapshot.cohort
        if view.device_id in names
    }
    assert 0 < len(cohort) < len(names)
    for name in names:
        device = Away(name, fleet.lab.signed.root)
        decision = device.hears(fleet.lab)
        assert decision.verb is Verb.INSTALL
        assert decision.release == (second if name in cohort else fleet.first), name


async def test_the_hold_back_and_who_is_excluded_stay_and_follow_when_they_should(
    fleet: Fleet,
) -> None:
    second = fleet.release("2")
    held = fleet.device(lambda name: slot_of(second.sha256, name) >= 8000)
    excluded = fleet.device(in_half(second))
    spec = asked(second, 10_000, hold_back="20%", exclude=[f"id={excluded.name}"])
    rollout_id = (await fleet.lab.executor.start(spec)).id
    for device in (held, excluded):
        assert device.hears(fleet.lab).verb is Verb.KEEP
        assert device.model.active_sha256 == fleet.first.sha256
    reached = [name for name in DEVICES if name not in (held.name, excluded.name)]
    fleet.lab.installed(second, rollout_id, reached)
    fleet.lab.now_s += 11
    fleet.lab.window(second, rollout_id, reached)
    await fleet.lab.executor.tick()
    assert await fleet.state(rollout_id) is State.PROMOTED
    decision = held.hears(fleet.lab)
    assert (decision.verb, decision.release) == (Verb.INSTALL, second)
    assert excluded.hears(fleet.lab).verb is Verb.KEEP
    assert excluded.model.active_sha256 == fleet.first.sha256
