"""A bundle that the fleet blocked leaves the device, and stale metadata brings none in."""

from dataclasses import replace

from agent.trust import Decision, Reason, Verb
from agent.update import Phase


def block(bundle, **changes) -> Decision:
    """As ``decide`` says it when no directive names the bundle any more."""
    text = f"{bundle.path} is on the fleet's block list"
    return Decision("m", Verb.REVERT, Reason.BLOCKED, text, leaves=bundle.sha256, **changes)


async def test_a_blocked_active_bundle_is_left_for_the_previous_one_and_never_put_back(
    world, bundle_of
):
    old, new = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    await world.installed(new, "r1")
    world.updater.desire([block(new)])
    await world.run_for(30)
    assert world.served() == old.sha256
    assert world.history("r1")[-1] == "reverted:blocked"
    assert world.record().slots.previous is None
    assert world.slots.sealed.keys() == {old.sha256}


async def test_a_blocked_bundle_on_probation_is_taken_back(world, bundle_of):
    old, new = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(new)
    world.updater.desire([world.install(new, "r1")])
    await world.run_for(5)
    assert world.record().deployment.phase is Phase.PROBATION
    world.updater.desire([block(new)])
    await world.run_for(30)
    assert (world.served(), world.history("r1")[-1]) == (old.sha256, "reverted:blocked")


async def test_a_blocked_previous_bundle_leaves_the_disk(world, bundle_of):
    old, new = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    await world.installed(new, "r1")
    assert world.record().slots.previous is not None
    world.updater.desire([replace(world.keep(new, "r1"), forgets_previous=True)])
    await world.run_for(30)
    assert world.served() == new.sha256
    assert world.record().slots.previous is None
    assert world.slots.sealed.keys() == {new.sha256}
    assert world.server.loaded == {new.sha256}


async def held_before_its_trial(world, old, new) -> Decision:
    """Begun by fresh metadata, fetched while it went stale. Returns the fresh decision."""
    await world.installed(old)
    world.fleet.add(new)
    fresh = world.install(new, "r1")
    world.fleet.offline = True
    world.updater.desire([fresh])
    await world.run_for(1)
    world.updater.desire([replace(fresh, reason=Reason.STALE_METADATA)])
    await world.run_for(1)
    world.fleet.offline = False
    await world.run_for(1000)
    assert (world.record().deployment.phase, world.served()) == (Phase.TRY, old.sha256)
    return fresh


async def test_stale_metadata_begins_nothing(world, bundle_of):
    old, new = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(new)
    world.updater.desire([replace(world.install(new, "r1"), reason=Reason.STALE_METADATA)])
    await world.run_for(60)
    assert world.history("r1") == []


async def test_what_is_under_way_waits_before_its_trial_until_the_metadata_is_fresh_again(
    world, bundle_of
):
    old, new = bundle_of("0"), bundle_of("1")
    fresh = await held_before_its_trial(world, old, new)
    world.updater.desire([fresh])
    await world.run_for(120)
    assert world.served() == new.sha256


async def test_after_a_restart_nothing_is_tried_before_the_fleet_was_heard(world, bundle_of):
    """What it says now may be a halt."""
    old, new = bundle_of("0"), bundle_of("1")
    await held_before_its_trial(world, old, new)
    await world.off()
    found = world.record()
    world.journal.save(replace(found, deployment=replace(found.deployment, closed=False)))
    world.boot()
    await world.run_for(120)
    assert (world.record().deployment.phase, world.served()) == (Phase.TRY, old.sha256)
    world.updater.desire([world.say(Verb.NONE, Reason.HALTED, new)])
    await world.run_for(30)
    assert world.history("r1")[-1] == "cancelled:halted"
