"""Blue-green: both versions in memory, one flips, and flipping back takes no load."""

import pytest

from agent.errors import BundleError


@pytest.fixture
async def flipped(world, bundle_of):
    """Bundle 1 answers after a flip, bundle 0 stands by."""
    blue, green = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(blue)
    world.updater.desire([world.beside(green, "blue-green")])
    await world.run_for(20)
    assert world.server.loaded == {blue.sha256, green.sha256}
    world.server.loads.clear()
    world.updater.desire([world.install(green, mode="blue-green")])
    await world.run_for(100)
    assert world.history("r1")[-1] == "committed"
    assert world.served() == green.sha256
    world.updater.desire([world.keep(green, mode="blue-green")])
    await world.run_for(100)
    return blue, green


async def test_neither_the_flip_nor_the_flip_back_loads_anything(world, flipped):
    blue, green = flipped
    assert world.server.loads == []
    assert world.server.loaded == {blue.sha256, green.sha256}
    world.updater.desire([world.revert(green, to=blue)])
    await world.run_for(100)
    assert world.history("r1")[-1] == "reverted:fleet_rollback"
    assert world.served() == blue.sha256
    assert world.server.loads == []
    assert world.server.loaded == {blue.sha256}


async def test_a_flip_that_fails_its_probation_goes_back_without_a_load(world, bundle_of):
    blue, green = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(blue)
    world.updater.desire([world.beside(green, "blue-green")])
    await world.run_for(20)
    world.server.loads.clear()
    world.updater.desire([world.install(green, mode="blue-green")])
    await world.run_for(5)
    world.window(green, requests=100, failures=100)
    await world.run_for(20)
    assert world.history("r1")[-1] == "reverted:probation_error_rate"
    assert world.served() == blue.sha256
    assert world.server.loads == []


@pytest.mark.parametrize("halt", [False, True])
async def test_the_other_stands_by_while_the_directive_is_in_force(world, flipped, halt):
    blue, green = flipped
    world.updater.desire([world.keep(green, mode="blue-green", halt=halt)])
    await world.run_for(10_000)
    assert blue.sha256 in world.server.loaded
    world.updater.desire([world.keep(green, mode="canary")])
    await world.run_for(1)
    assert world.server.loaded == {green.sha256}
    assert world.history("r1")[-1] == "committed"


async def test_it_goes_when_a_newer_rollout_wants_something_else(world, flipped, bundle_of):
    blue, _ = flipped
    newer = world.fleet.add(bundle_of("2"))
    world.updater.desire([world.install(newer, "r2")])
    await world.run_for(1)
    assert blue.sha256 not in world.server.loaded
    await world.run_for(100)
    assert world.served() == newer.sha256


async def test_after_a_restart_of_the_server_it_stands_by_again(world, flipped):
    blue, green = flipped
    await world.crashed(green)
    assert world.served() == green.sha256
    assert world.server.loaded == {blue.sha256, green.sha256}


async def test_a_device_that_was_off_says_nothing_of_it_before_it_has_heard_the_fleet(
    world, flipped
):
    blue, green = flipped
    await world.off()
    world.boot()
    await world.run_for(10)
    assert world.server.loaded == {green.sha256}
    world.updater.desire([world.keep(green, mode="blue-green")])
    await world.run_for(10)
    assert world.server.loaded == {blue.sha256, green.sha256}


async def test_a_standby_that_does_not_load_is_let_be(world, flipped):
    blue, green = flipped
    world.server.load_errors[blue.sha256] = [BundleError("bad"), BundleError("bad")]
    await world.crashed(green)
    assert world.server.loaded == {green.sha256}
    before = world.server.loads.count(blue.sha256)
    await world.run_for(590)
    assert world.server.loads.count(blue.sha256) == before
    await world.run_for(20)
    assert world.server.loads.count(blue.sha256) == before + 1


async def test_a_standby_that_takes_the_server_down_is_not_loaded_again(world, flipped):
    blue, green = flipped
    world.server.load_errors[blue.sha256] = ["crash", "crash"]
    await world.crashed(green, seconds=5)
    world.updater.server_changed(world.server.state)
    await world.run_for(10_000)
    assert world.served() == green.sha256
    assert world.server.loads.count(blue.sha256) == 1


async def test_a_rollback_loads_the_other_where_it_no_longer_stands_by(world, flipped):
    blue, green = flipped
    world.updater.desire([world.keep(green, mode="canary")])
    await world.run_for(1)
    world.updater.desire([world.revert(green, to=blue)])
    await world.run_for(100)
    assert world.served() == blue.sha256
    assert world.server.loads == [blue.sha256]
