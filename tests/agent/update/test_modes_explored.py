"""Every short story of a device: what the fleet says and what breaks, in every order, in every mode.

After each step and at the end: something answers, what is beside is not what answers, and nothing is in memory or
on disk that no record names. Each story ends with a fleet that wants one thing, and the device must get there.
"""

import itertools

import pytest

from agent.trust import Reason, Verb
from agent.update import Phase, UpdateLimits

SAID = {
    "shadow": lambda world, old, new: [world.beside(new, "shadow", traffic_bp=100)],
    "arm": lambda world, old, new: [world.beside(new, "ab", traffic_bp=100)],
    "standby": lambda world, old, new: [world.beside(new, "blue-green")],
    "answer": lambda world, old, new: [world.install(new, mode="blue-green")],
    "stable": lambda world, old, new: [world.keep(old, "r0")],
    "halt": lambda world, old, new: [world.say(Verb.NONE, Reason.HALTED, new)],
    "rollback": lambda world, old, new: [world.revert(new, to=old)],
}
BROKEN = ("cut", "crash new", "crash old", "nobody knows")


async def _do(world, old, new, word):
    if word in SAID:
        world.updater.desire(SAID[word](world, old, new))
        await world.run_for(9)  # the trial is over, the probation is not
    elif word == "cut":
        await world.off()
        world.boot()
        await world.run_for(2)
    else:
        suspects = {"crash new": (new,), "crash old": (old,), "nobody knows": ()}[word]
        if suspects and suspects[0].sha256 not in world.server.loaded:
            return
        held = world.server.shared.get("m")
        await world.crashed(*suspects, seconds=2)
        if held is not None and (word == "crash new" or (not suspects and held.role != "standby")):
            assert held.manifest_sha256 not in world.server.loaded, "it took the server down"


def _check(world, old, new):
    record = world.journal.content.models["m"]
    deployment, digests = record.deployment, record.slots.digests
    assert world.served() in {old.sha256, new.sha256}
    going = set() if deployment is None else {deployment.manifest_sha256}
    assert world.server.loaded <= digests | going
    shared = world.server.shared.get("m")
    assert shared is None or shared.manifest_sha256 != world.served()
    if deployment is None or deployment.phase is not Phase.BESIDE:
        assert shared is None
    else:
        assert record.slots.active.manifest_sha256 == world.served()


STORIES = list(itertools.product((*SAID, *BROKEN), repeat=3))


@pytest.mark.parametrize("first", [*SAID, *BROKEN])
async def test_every_story_of_three_steps_ends_as_the_fleet_wants(new_world, bundle_of, first):
    old, new = bundle_of("0"), bundle_of("1")
    for story in (story for story in STORIES if story[0] == first):
        world = new_world(limits=UpdateLimits(max_boots=9))
        await world.installed(old)
        world.fleet.add(new)
        for word in story:
            await _do(world, old, new, word)
            _check(world, old, new)
        tried = any(it.rollout_id == "r1" for it in world.journal.content.refusals)
        active = world.record().slots.active.manifest_sha256
        wish = world.keep(new) if active == new.sha256 else world.install(new)
        world.updater.desire([wish])
        await world.run_for(300)
        _check(world, old, new)
        assert not world.updater.deployments(), story
        assert world.served() == (old if tried else new).sha256, story
        assert set(world.slots.sealed) == world.record().slots.digests, story
        assert world.server.loaded == {world.served()}, story
        await world.off()
