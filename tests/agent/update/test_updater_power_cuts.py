"""The plug is pulled at every write of the journal and at every step in between; the device converges."""

import asyncio
from dataclasses import dataclass

import pytest

from agent.ports import TrialResult
from agent.update import Phase, UpdateLimits


@dataclass
class Scenario:
    """What the fleet says, what goes wrong, and where that must end whatever the power does."""

    name: str
    ends: str
    serves: str  # "old" or "new"
    trial_refuses: bool = False
    fails_probation: bool = False
    fleet_rollback: bool = False
    mode: str = ""
    """The bundle is first held beside, and then taken; "" goes straight to the swap."""
    stays_beside: bool = False


SCENARIOS = [
    Scenario("commit", "committed", "new"),
    Scenario("trial refuses", "refused:trial_golden_failed", "old", trial_refuses=True),
    Scenario("probation fails", "reverted:probation_error_rate", "old", fails_probation=True),
    Scenario("fleet rolls back", "reverted:fleet_rollback", "old", fleet_rollback=True),
    Scenario("shadow, then taken", "committed", "new", mode="shadow"),
    Scenario("arm, then taken", "committed", "new", mode="ab"),
    Scenario("standby, flip", "committed", "new", mode="blue-green"),
    Scenario("standby, flip and flip back", "reverted:fleet_rollback", "old", fleet_rollback=True, mode="blue-green"),
    Scenario("arm, taken back", "reverted:no_directive", "old", mode="ab", stays_beside=True),
    Scenario("shadow, taken back", "cancelled:no_directive", "old", mode="shadow", stays_beside=True),
]  # fmt: skip


async def _prepare(world, bundle_of, scenario):
    old, new = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(new)
    if scenario.trial_refuses:
        no = TrialResult(False, "trial_golden_failed", "case c")
        world.trial.results[new.sha256] = [no] * 9
    return old, new


async def _play(world, old, new, scenario):
    """Everything the fleet and the applications do, from any state of the device."""
    if scenario.fleet_rollback and world.journal.content.models["m"].slots.active is not None:
        active = world.journal.content.models["m"].slots.active.manifest_sha256
        if active == new.sha256 or "committed" in world.history("r1"):
            world.updater.desire([world.revert(new, "r1")])
            await world.run_for(100)
            return
    ended = {scenario.ends, "committed"}.intersection(world.history("r1"))
    if scenario.mode and not ended:
        world.updater.desire([world.beside(new, scenario.mode, traffic_bp=100)])
        await world.run_for(20)
    if scenario.stays_beside:
        world.updater.desire([])
        await world.run_for(100)
        return
    world.updater.desire([world.install(new, "r1", mode=scenario.mode or "canary")])
    await world.run_for(20)
    if scenario.fails_probation:
        world.window(new, requests=100, failures=100)
    await world.run_for(200)
    if scenario.fleet_rollback:
        world.updater.desire([world.revert(new, "r1")])
        await world.run_for(100)


def _check(world, old, new, scenario):
    assert world.served() == (new if scenario.serves == "new" else old).sha256
    assert not world.updater.deployments()
    assert world.history("r1")[-1] == scenario.ends
    record = world.record()
    assert record.slots.active.manifest_sha256 == world.served()
    assert set(world.slots.sealed) == record.slots.digests
    assert not world.server.shared
    stands_by = scenario.mode == "blue-green" and scenario.serves == "new"
    assert world.server.loaded == (record.slots.digests if stands_by else {world.served()})


async def _until_cut(world, old, new, scenario, power_cut):
    """Play, and over again with each new life of the agent. Returns the number of lives."""
    for life in range(1, 6):
        try:
            await _play(world, old, new, scenario)
            return life
        except power_cut:
            world.boot()
    raise AssertionError("it never comes to rest")


async def _saves(new_world, bundle_of, scenario) -> tuple[int, int]:
    world = new_world()
    old, new = await _prepare(world, bundle_of, scenario)
    before = world.journal.saves
    await _play(world, old, new, scenario)
    await world.off()
    _check(world, old, new, scenario)
    return before, world.journal.saves


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
async def test_a_cut_at_every_write(new_world, bundle_of, power_cut, scenario, after):
    first, last = await _saves(new_world, bundle_of, scenario)
    assert last - first >= 3
    for at in range(first + 1, last + 1):
        world = new_world()
        old, new = await _prepare(world, bundle_of, scenario)
        world.journal.cut_at, world.journal.cut_after = at, after
        lives = await _until_cut(world, old, new, scenario, power_cut)
        await world.off()
        assert lives == 2, f"write {at} was not reached"
        _check(world, old, new, scenario)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
async def test_two_cuts_at_every_pair_of_writes(new_world, bundle_of, power_cut, scenario):
    first, last = await _saves(new_world, bundle_of, scenario)
    for at in range(first + 1, last + 1):
        for again in range(1, 6):
            # Enough that two cuts in one phase are not yet too many: what is tested is that all is kept.
            world = new_world(limits=UpdateLimits(max_trial_attempts=5, max_boots=5))
            old, new = await _prepare(world, bundle_of, scenario)
            world.journal.cut_at, world.journal.cut_after = at, True
            with pytest.raises(power_cut):
                await _play(world, old, new, scenario)
            world.boot()
            world.journal.cut_at = at + again
            await _until_cut(world, old, new, scenario, power_cut)
            await world.off()
            _check(world, old, new, scenario)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
async def test_a_kill_at_every_step_of_the_event_loop(new_world, bundle_of, scenario):
    """Not at a write but in the middle of a fetch, a trial, a load: the task is dropped where it stands."""
    for steps in range(0, 160, 8 if scenario.mode else 3):
        world = new_world()
        old, new = await _prepare(world, bundle_of, scenario)
        wish = world.install(new)
        if scenario.mode:
            wish = world.beside(new, scenario.mode, traffic_bp=100)
        world.updater.desire([wish])
        for _ in range(steps):
            await asyncio.sleep(0)
        await world.off()
        world.boot()
        await _play(world, old, new, scenario)
        await world.off()
        _check(world, old, new, scenario)


@pytest.mark.parametrize(
    ("cuts", "end"),
    [(1, "committed"), (2, "refused:trial_crashed_device")],
)
async def test_a_trial_that_takes_the_device_down(world, bundle_of, power_cut, cuts, end):
    new = world.fleet.add(bundle_of("1"))
    world.trial.results[new.sha256] = [power_cut] * cuts
    for _ in range(cuts):
        world.updater.desire([world.install(new, "r1")])
        with pytest.raises(power_cut):
            await world.run_for(100)
        world.boot()
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(100)
    assert world.history("r1")[-1] == end
    assert len(world.trial.runs) == 2


@pytest.mark.parametrize(("boots", "end"), [(1, "committed"), (2, "reverted:probation_restarts")])
async def test_restarts_in_probation_are_bounded(world, bundle_of, boots, end):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    for _ in range(boots):
        world.updater.desire([world.install(new, "r1")])
        await world.run_for(20)
        assert world.served() == new.sha256
        await world.off()
        world.boot()
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(100)
    assert world.history("r1")[-1] == end
    assert world.served() == (new if end == "committed" else old).sha256


async def test_after_a_restart_the_previous_bundle_serves_before_the_candidate(world, bundle_of):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.updater.desire([world.install(new)])
    await world.run_for(20)
    await world.off()
    world.boot()
    await world.updater.resume()
    assert world.served() == old.sha256
    assert world.updater.deployments()[0].phase is Phase.SWAP


async def test_a_slot_that_rotted_over_the_restart_is_not_tried(world, bundle_of, power_cut):
    new = world.fleet.add(bundle_of("1"))
    world.trial.results[new.sha256] = [power_cut]
    world.updater.desire([world.install(new)])
    with pytest.raises(power_cut):
        await world.run_for(100)
    world.boot()
    world.slots.damaged.add(new.sha256)
    world.updater.desire([world.install(new)])
    await world.run_for(200)
    assert world.history()[-1] == "committed"
    assert world.history().count("fetch") == 2


async def test_a_verification_that_takes_the_device_down_is_bounded(
    new_world, bundle_of, power_cut
):
    limits = UpdateLimits(max_fetch_attempts=3)
    world = new_world(limits=limits)
    new = world.fleet.add(bundle_of("1"))
    world.updater.desire([world.install(new)])
    for _ in range(limits.max_fetch_attempts):
        world.slots.stage_error = power_cut()
        with pytest.raises(power_cut):
            await world.run_for(100)
        world.boot()
        world.updater.desire([world.install(new)])
    await world.run_for(100)
    await world.off()
    assert world.history()[-1] == "refused:verify_crashed_device"
