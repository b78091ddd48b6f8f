"""Bundles that take the server or the device down: counted in the journal, left before the third crash."""

import pytest

from agent.errors import BundleError
from agent.health.budget import Breach, Budget
from agent.health.crashes import CrashLimits
from agent.trust import Reason, Verb
from agent.update import Phase, UpdateLimits


async def crash(world, *bundles, seconds=1.0):
    world.server.crash(suspects=tuple(bundle.sha256 for bundle in bundles))
    world.updater.server_changed(world.server.state)
    await world.run_for(seconds)


@pytest.fixture
async def two(world, bundle_of):
    """A committed bundle with a predecessor."""
    old, new = bundle_of("1"), bundle_of("2")
    await world.installed(old, "r1")
    await world.installed(new, "r2")
    return old, new


async def test_the_second_crash_of_an_active_bundle_leaves_it(world, two):
    old, new = two
    await crash(world, new)
    assert world.served() == new.sha256
    await crash(world, new)
    assert world.served() == old.sha256
    assert world.history("r2")[-2:] == ["revert", "reverted:active_crashes"]
    reason = world.events[-1].reason
    assert new.path in reason
    assert "2 crashes within 600 s; the last: the model server ended (SIGSEGV)" in reason
    assert world.record().crashes == ()


async def test_the_same_rollout_does_not_bring_it_back(world, two):
    _, new = two
    for _ in range(2):
        await crash(world, new)
    world.updater.desire([world.install(new, "r2")])
    await world.run_for(300)
    assert world.served() != new.sha256
    world.updater.desire([world.install(new, "r3")])
    await world.run_for(300)
    assert world.served() == new.sha256


async def test_crashes_far_apart_are_forgiven(world, two):
    _, new = two
    for _ in range(6):
        await crash(world, new, seconds=601)
    assert world.served() == new.sha256


async def test_a_crash_of_nobody_or_of_another_counts_nothing(world, two, bundle_of):
    _, new = two
    other = bundle_of("9", model="other")
    for _ in range(8):
        await crash(world)
        await crash(world, other)
    assert world.served() == new.sha256
    assert world.record().crashes == ()


async def test_a_crash_seen_down_and_up_again_counts_once(world, two):
    _, new = two
    world.server.crash(back=False, suspects=(new.sha256,))
    world.updater.server_changed(world.server.state)
    await world.run_for(5)
    assert world.served() is None
    world.server.come_back()
    world.updater.server_changed(world.server.state)
    await world.run_for(5)
    assert world.served() == new.sha256
    assert len(world.record().crashes) == 1


async def test_the_count_survives_a_power_cut(world, two):
    old, new = two
    await crash(world, new)
    await world.off()
    world.boot()
    await world.run_for(1)
    assert world.served() == new.sha256
    await crash(world, new)
    assert world.served() == old.sha256


async def test_a_shared_crash_counts_by_its_share(world, two, bundle_of):
    old, new = two
    other = bundle_of("1", model="other")
    await world.installed(other, "r5")
    for _ in range(3):
        await crash(world, new, other)
    assert world.served() == new.sha256
    await crash(world, new, other)
    assert world.served() == old.sha256
    # The other one has nothing to go back to, and is given more time.
    assert world.served("other") == other.sha256


async def test_a_bundle_without_predecessor_is_kept_longer_and_then_dropped(world, bundle_of):
    only = bundle_of("1")
    await world.installed(only)
    for _ in range(4):
        await crash(world, only)
        assert world.served() == only.sha256
    await crash(world, only)
    assert world.served() is None
    assert world.history("r0")[-1] == "reverted:active_crashes"


async def test_a_deployment_under_way_is_called_off_and_begins_anew(world, two, bundle_of):
    old, new = two
    third = world.fleet.add(bundle_of("3"))
    world.fleet.offline = True
    world.updater.desire([world.install(third, "r3")])
    await world.run_for(1)
    for _ in range(2):
        await crash(world, new)
    assert world.served() == old.sha256
    assert "cancelled:active_crashes" in world.history("r3")
    assert world.history("r2")[-1] == "reverted:active_crashes"
    world.fleet.offline = False
    await world.run_for(1000)
    assert world.served() == third.sha256
    assert world.history("r3")[-1] == "committed"


async def test_crashing_during_the_load_is_a_crash(world, two):
    old, new = two
    world.server.load_errors[new.sha256] = ["crash"] * 9
    await crash(world, seconds=60)
    assert world.served() == old.sha256
    assert world.history("r2")[-1] == "reverted:active_crashes"
    assert len(world.server.load_errors[new.sha256]) == 7


async def test_a_load_that_takes_the_device_down_is_not_tried_a_third_time(world, two, power_cut):
    old, new = two
    world.server.load_errors[new.sha256] = ["power"] * 9
    await world.off()
    for _ in range(2):
        world.boot()
        with pytest.raises(power_cut):
            await world.run_for(1)
        assert world.record().loading == new.sha256
    world.boot()
    await world.run_for(1)
    assert world.served() == old.sha256
    assert world.history("r2")[-1] == "reverted:active_crashes"
    assert "went down while the bundle was being loaded" in world.events[-1].reason
    assert len(world.server.load_errors[new.sha256]) == 7


async def test_a_load_that_fails_in_order_is_no_crash(world, two):
    _, new = two
    world.server.load_errors[new.sha256] = [BundleError("busy")]
    await crash(world, seconds=60)
    assert world.served() == new.sha256
    assert (world.record().loading, world.record().crashes) == ("", ())


async def test_a_revert_to_a_bundle_that_crashes_ends(world, two, power_cut):
    """Back from a bundle that crashes to one that takes the device down at every load."""
    old, new = two
    world.server.load_errors[old.sha256] = ["power"] * 99
    await crash(world, new)
    with pytest.raises(power_cut):
        await crash(world, new)
    for _ in range(world.limits.crashes.max_crashes_alone - 1):
        world.boot()
        with pytest.raises(power_cut):
            await world.run_for(1)
    world.boot()
    await world.run_for(1)
    assert world.served() is None
    assert world.record().slots.digests == frozenset()


# --- an orderly stop ------------------------------------------------------------------------------


async def stop(world):
    await world.off()
    world.updater.stopped()
    world.boot()


@pytest.mark.usefixtures("two")
async def test_orderly_restarts_in_probation_do_not_count(world, bundle_of):
    third = world.fleet.add(bundle_of("3"))
    for _ in range(6):
        world.updater.desire([world.install(third, "r3")])
        await world.run_for(20)
        assert world.record().deployment.phase is Phase.PROBATION
        await stop(world)
        assert world.record().deployment.stopped
    world.updater.desire([world.install(third, "r3")])
    await world.run_for(100)
    assert world.history("r3")[-1] == "committed"
    assert world.record().deployment is None


async def test_a_crash_after_an_orderly_restart_counts(world, two, bundle_of):
    _, new = two
    third = world.fleet.add(bundle_of("3"))
    world.updater.desire([world.install(third, "r3")])
    await world.run_for(20)
    await stop(world)
    for _ in range(2):
        world.updater.desire([world.install(third, "r3")])
        await world.run_for(20)
        await world.off()
        world.boot()
    world.updater.desire([world.install(third, "r3")])
    await world.run_for(20)
    assert world.history("r3")[-1] == "reverted:probation_restarts"
    assert "went down 2 times in phase probation" in world.events[-1].reason
    assert world.served() == new.sha256


# --- probation ------------------------------------------------------------------------------------


async def on_probation(world, bundle_of):
    old, new = bundle_of("1"), world.fleet.add(bundle_of("2"))
    await world.installed(old, "r1")
    world.updater.desire([world.install(new, "r2")])
    await world.run_for(20)
    return old, new


async def test_another_models_crash_does_not_fail_a_probation(world, bundle_of):
    other = bundle_of("1", model="other")
    await world.installed(other, "r5")
    _, new = await on_probation(world, bundle_of)
    await crash(world, other)
    assert world.served() == new.sha256
    await world.run_for(61)
    assert world.history("r2")[-1] == "committed"


@pytest.mark.parametrize("suspects", ["nobody", "itself", "its predecessor"])
async def test_any_other_crash_fails_it(world, bundle_of, suspects):
    old, new = await on_probation(world, bundle_of)
    await crash(world, *{"nobody": [], "itself": [new], "its predecessor": [old]}[suspects])
    assert world.served() == old.sha256
    assert world.history("r2")[-1] == "reverted:server_crashed"


async def test_memory_beyond_its_budget_reverts_what_is_on_probation(world, bundle_of):
    old, _ = await on_probation(world, bundle_of)
    breach = Breach(Budget.MEMORY, world.clock.monotonic_s() - 1, "too much")
    world.updater.memory_exceeded(breach)
    await world.run_for(1)
    assert world.served() == old.sha256
    assert world.history("r2")[-1] == "reverted:probation_memory"
    assert world.events[-1].reason == "too much"


async def test_memory_that_was_short_before_the_swap_is_not_its_fault(world, bundle_of):
    breach = Breach(Budget.MEMORY, world.clock.monotonic_s() - 1, "too much")
    world.updater.memory_exceeded(breach)
    _, new = await on_probation(world, bundle_of)
    await world.run_for(60)
    assert world.served() == new.sha256
    assert world.history("r2")[-1] == "committed"


async def test_the_limits_are_the_configurations(new_world, bundle_of):
    world = new_world(limits=UpdateLimits(crashes=CrashLimits(window_s=10, max_crashes=1)))
    old, new = bundle_of("1"), bundle_of("2")
    await world.installed(old, "r1")
    await world.installed(new, "r2")
    await crash(world, new)
    assert world.served() == old.sha256
    world.updater.desire([world.say(Verb.KEEP, Reason.HALTED, new, "r2")])
    await world.run_for(10)
    assert world.served() == old.sha256
