"""A bundle held beside the one that answers: how it comes in, changes, and goes."""

import itertools
from dataclasses import dataclass, replace

import pytest

from agent.errors import BundleError, DeviceError
from agent.health.budget import Breach, Budget
from agent.ports import Sharing, TrialResult
from agent.trust import Reason, Verb
from agent.update import Phase, UpdateLimits

CAME_IN = ["fetch", "verify", "try", "beside"]


@pytest.fixture
async def held(world, bundle_of):
    """Bundle 0 answers, bundle 1 is its shadow."""
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.updater.desire([world.beside(new, "shadow", traffic_bp=500)])
    await world.run_for(20)
    return old, new


@pytest.mark.parametrize(
    ("mode", "role", "share", "key"),
    [("shadow", "shadow", 500, ""), ("ab", "arm", 2000, "user"), ("blue-green", "standby", 0, "")],
)
async def test_it_comes_in_beside_and_what_answers_goes_on(
    world, bundle_of, mode, role, share, key
):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.updater.desire([world.beside(new, mode, traffic_bp=share, routing_key=key)])
    await world.run_for(1000)
    assert world.history("r1") == CAME_IN
    assert world.served() == old.sha256
    assert world.server.shared == {"m": Sharing(new.sha256, role, share, key, "r1")}
    [bundle] = world.updater.beside()
    assert (bundle.manifest_sha256, bundle.rollout_id, bundle.role) == (new.sha256, "r1", role)
    assert [it.manifest_sha256 for it in world.updater.served()] == [old.sha256]
    assert world.server.loads.count(new.sha256) == 1
    assert world.updater.current()["m"].pending_sha256 == new.sha256


async def test_nothing_is_held_beside_nothing(world, bundle_of):
    new = world.fleet.add(bundle_of("1"))
    world.updater.desire([world.beside(new, "shadow")])
    await world.run_for(100)
    assert world.events == []


async def test_a_change_of_the_share_is_told_to_the_server_and_to_nobody_else(world, held):
    _, new = held
    writes = world.journal.saves
    for _ in range(3):
        world.updater.desire([world.beside(new, "shadow", traffic_bp=900)])
        await world.run_for(10)
    assert world.server.shared["m"].traffic_bp == 900
    assert [sharing.traffic_bp for _, sharing in world.server.shares] == [500, 900]
    assert world.history("r1") == CAME_IN
    assert world.journal.saves == writes + 1


async def test_a_shadow_becomes_an_arm_and_then_answers_without_a_fetch_or_a_load(world, held):
    old, new = held
    world.updater.desire([world.beside(new, "ab", traffic_bp=5000, routing_key="user")])
    await world.run_for(10)
    assert world.server.shared["m"] == Sharing(new.sha256, "arm", 5000, "user", "r1")
    world.updater.desire([world.install(new, mode="ab")])
    await world.run_for(100)
    assert world.history("r1") == [*CAME_IN, "swap", "probation", "commit", "committed"]
    assert world.server.loads.count(new.sha256) == 1
    assert world.trial.runs.count(new.sha256) == 1
    assert world.server.shared == {}
    assert world.server.loaded == {new.sha256}
    assert old.sha256 in world.server.unloaded


async def test_promoted_before_it_is_beside_it_goes_straight_to_the_swap(world, bundle_of):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.updater.desire([world.beside(new, "shadow")])
    await world.updater.resume()
    world.fleet.offline = True
    await world.run_for(1)
    assert world.history("r1")[0] == "fetch"
    world.updater.desire([world.install(new)])
    world.fleet.offline = False
    await world.run_for(300)
    assert "beside" not in world.history("r1")
    assert world.history("r1")[-1] == "committed"


async def test_taken_back_to_beside_while_the_trial_runs(world, bundle_of):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.fleet.offline = True
    world.updater.desire([world.install(new)])
    await world.run_for(1)
    world.updater.desire([world.beside(new, "shadow", traffic_bp=1)])
    world.fleet.offline = False
    await world.run_for(300)
    assert world.history("r1")[-1] == "beside"
    assert world.served() == old.sha256


# --- the ways out -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """``say``: what the fleet says then, by name; ``load``: what the load beside does."""

    name: str
    mode: str
    ends: str
    say: str = ""
    load: str = ""
    trial: str = ""
    remembered: bool = True


ENDS = [
    End("shadow withdrawn", "shadow", "cancelled:fleet_rollback", "rollback"),
    End("arm withdrawn", "ab", "reverted:fleet_rollback", "rollback"),
    End("standby withdrawn", "blue-green", "cancelled:fleet_rollback", "rollback"),
    End("shadow not wanted any more", "shadow", "cancelled:no_directive", "nothing", remembered=False),
    End("arm not wanted any more", "ab", "reverted:no_directive", "nothing", remembered=False),
    End("halted", "shadow", "cancelled:halted", "halt", remembered=False),
    End("refused by what the fleet says now", "shadow", "cancelled:agent_version", "refuse", remembered=False),
    End("superseded", "ab", "reverted:superseded", "other", remembered=False),
    End("bad trial", "shadow", "refused:trial_golden_failed", trial="bad"),
    End("cannot be loaded", "shadow", "refused:load_failed", load="bundle"),
    End("takes the server down while it is loaded", "shadow", "refused:server_crashed", load="crash"),
    End("arm takes the server down while it is loaded", "ab", "reverted:server_crashed", load="crash"),
    End("the server says no", "shadow", "refused:beside_failed", load="device"),
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=[end.name for end in ENDS])
async def test_how_it_ends(world, bundle_of, end):
    old, new, third = bundle_of("0"), world.fleet.add(bundle_of("1")), bundle_of("2")
    await world.installed(old)
    errors = {"bundle": BundleError("bad"), "device": DeviceError("no"), "crash": "crash"}
    if end.load:
        world.server.load_errors[new.sha256] = [errors[end.load]]
    if end.trial:
        world.trial.results[new.sha256] = [TrialResult(False, "trial_golden_failed", "case c")]
    world.updater.desire([world.beside(new, end.mode, traffic_bp=100)])
    await world.run_for(50)
    wishes = {
        "rollback": [world.revert(new)],
        "nothing": [],
        "halt": [world.say(Verb.NONE, Reason.HALTED, new)],
        "refuse": [world.say(Verb.REFUSE, Reason.AGENT_VERSION, new)],
        "other": [world.install(world.fleet.add(third), "r2")],
    }
    if end.say:
        assert world.history("r1") == CAME_IN
        world.updater.desire(wishes[end.say])
        await world.run_for(2)
    assert (
        end.ends in world.history("r1")[-2:]
    )  # after a refusal by the directive comes that it is refused
    assert world.events[-1].reason or end.say == "other"
    assert world.server.shared == {}
    assert new.sha256 not in world.server.loaded
    assert bool(world.journal.content.refusals) is end.remembered
    await world.run_for(200)
    assert world.served() == (third if end.say == "other" else old).sha256
    assert new.sha256 not in world.slots.sealed
    assert not world.updater.deployments()


async def test_it_is_not_brought_again_by_the_same_rollout_but_by_another(world, held):
    _, new = held
    await world.crashed(new)
    assert world.history("r1")[-1] == "refused:server_crashed"
    await world.run_for(5000)
    assert world.history("r1").count("fetch") == 1
    world.updater.desire([world.beside(new, "shadow", "r2")])
    await world.run_for(50)
    assert world.history("r2") == CAME_IN


async def test_it_is_tried_again_as_often_as_the_directive_says_after_pauses(world, bundle_of):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.server.load_errors[new.sha256] = [BundleError("bad")] * 9
    wish = world.beside(new, "shadow", retries=2)
    tries = []
    for minute in range(120):
        world.updater.desire([wish])
        await world.run_for(60)
        if (count := world.history("r1").count("fetch")) > len(tries):
            assert count == len(tries) + 1
            tries.append(minute)
    assert len(tries) == 3
    assert [b - a for a, b in itertools.pairwise(tries)] == [15, 30]
    assert world.journal.content.refusals[-1].count == 3


# --- the server dies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suspects", "ends"),
    [
        ("shadow", ("new",), "refused:server_crashed"),
        ("ab", ("new",), "reverted:server_crashed"),
        ("shadow", ("old", "new"), "refused:server_crashed"),
        ("ab", (), "reverted:server_crashed"),  # nobody knows: the newcomer goes
        ("blue-green", (), "beside"),  # it answers nothing and copies nothing
        ("shadow", ("old",), "beside"),
        ("ab", ("other",), "beside"),
    ],
)
async def test_a_dead_server_counts_against_the_newcomer_when_it_ran(
    world, bundle_of, mode, suspects, ends
):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.updater.desire([world.beside(new, mode, traffic_bp=100)])
    await world.run_for(20)
    bundles = {"old": old, "new": new, "other": bundle_of("9", model="n")}
    await world.crashed(*(bundles[name] for name in suspects), seconds=60)
    assert world.served() == old.sha256
    assert world.history("r1")[-1] == ends
    stays = ends == "beside"
    assert ("m" in world.server.shared) is stays
    assert world.server.loads.count(new.sha256) == 1 + stays


async def test_it_waits_for_a_server_that_is_away(world, held):
    _, new = held
    world.server.crash(back=False, suspects=("x" * 64,))
    world.updater.server_changed(world.server.state)
    await world.run_for(100)
    assert world.history("r1") == CAME_IN
    world.server.come_back()
    world.updater.server_changed(world.server.state)
    await world.run_for(1)
    assert world.server.shared["m"].manifest_sha256 == new.sha256
    assert world.history("r1") == CAME_IN


async def test_an_active_bundle_that_crashes_goes_all_the_same(world, bundle_of):
    older, old, new = bundle_of("0"), bundle_of("1"), world.fleet.add(bundle_of("2"))
    await world.installed(older, "r1")
    await world.installed(old, "r2")
    world.updater.desire([world.beside(new, "shadow", "r3")])
    await world.run_for(20)
    for _ in range(2):
        await world.crashed(old)
    assert world.served() == older.sha256
    assert world.history("r3")[len(CAME_IN)] == "cancelled:active_crashes"
    await world.run_for(100)
    assert world.history("r3")[-1] == "beside"


async def test_an_active_slot_that_rots_goes_all_the_same(world, bundle_of):
    older, old, new = bundle_of("0"), bundle_of("1"), world.fleet.add(bundle_of("2"))
    await world.installed(older, "r1")
    await world.installed(old, "r2")
    world.updater.desire([world.beside(new, "shadow", "r3")])
    await world.run_for(20)
    world.slots.damaged.add(old.sha256)
    await world.crashed(bundle_of("9", model="n"), seconds=200)
    assert world.served() == older.sha256
    assert "cancelled:slot_damaged" in world.history("r3")


# --- how it does ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "counts", "ends"),
    [
        ("arm", {"requests": 100, "failures": 50}, "reverted:arm_error_rate"),
        ("arm", {"requests": 100, "over_objective": 80}, "reverted:arm_latency"),
        ("arm", {"requests": 100, "non_finite": 60}, "reverted:arm_non_finite"),
        ("arm", {"requests": 9, "failures": 9}, "beside"),
        ("arm", {"requests": 1000, "failures": 10}, "beside"),
        ("", {"requests": 100, "failures": 50}, "beside"),  # of another role, so not its own
    ],
)
async def test_an_arm_is_held_to_its_objectives(world, bundle_of, role, counts, ends):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.updater.desire([world.beside(new, "ab", traffic_bp=5000)])
    await world.run_for(20)
    world.window(new, role=role, **counts)
    await world.run_for(20)
    assert world.history("r1")[-1] == ends
    assert world.served() == old.sha256


async def test_a_shadow_is_judged_by_the_fleet_alone(world, held):
    _, new = held
    world.window(new, role="shadow", requests=100, failures=100)
    await world.run_for(20)
    assert world.history("r1") == CAME_IN


async def test_what_an_arm_did_does_not_count_in_its_probation(world, bundle_of):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.updater.desire([world.beside(new, "ab", traffic_bp=5000)])
    await world.run_for(20)
    world.updater.desire([world.install(new, mode="ab")])
    await world.run_for(1)
    world.window(new, role="arm", requests=100, failures=100)
    await world.run_for(100)
    assert world.history("r1")[-1] == "committed"


async def test_it_goes_when_it_takes_more_memory_than_there_may_be(world, held):
    _, new = held
    world.updater.memory_exceeded(Breach(Budget.MEMORY, world.clock.t + 1, "300 MiB of 200"))
    await world.run_for(1)
    assert world.history("r1")[-1] == "refused:beside_memory"
    assert new.sha256 not in world.server.loaded


async def test_memory_short_beside_is_refused_and_costs_nothing(new_world, bundle_of):
    world = new_world(memory=Memory())
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.memory.available = 100 << 20
    world.memory.sizes = {old.sha256: 90 << 20, new.sha256: 90 << 20}
    for mode, wish in (
        ("shadow", world.beside(new, "shadow", "r1")),
        ("blue-green", world.install(new, "r2", mode="blue-green")),
    ):
        world.updater.desire([wish])
        await world.run_for(100)
        assert world.history(wish.directive.id)[-1] == "refused:memory_short", mode
        assert world.served() == old.sha256
        assert world.server.held == []
    world.updater.desire([world.install(new, "r3")])
    await world.run_for(100)
    assert world.history("r3")[-1] == "committed"  # a canary may make room
    await world.off()


class Memory:
    """What a device with little memory says of itself."""

    available: int | None = 1 << 40

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def available_bytes(self) -> int | None:
        return self.available

    def model_bytes(self, manifest_sha256: str) -> int | None:
        return self.sizes.get(manifest_sha256)

    def keep_swap(self, manifest_sha256: str, plan) -> None:
        pass


# --- restarts ---------------------------------------------------------------------------------------


async def test_after_a_restart_what_answers_comes_first_and_then_what_is_beside(world, held):
    old, new = held
    await world.off()
    world.updater.stopped()
    world.boot()
    await world.updater.resume()
    assert world.served() == old.sha256
    assert new.sha256 not in world.server.loaded
    await world.run_for(1)  # without having heard the fleet
    assert world.server.shared == {"m": Sharing(new.sha256, "shadow", 500, "", "r1")}
    assert world.record().deployment.boots == 0


@pytest.mark.parametrize(
    ("between_s", "ends"), [(1.0, "refused:beside_restarts"), (700.0, "beside")]
)
async def test_restarts_in_a_row_are_counted_and_later_forgotten(world, held, between_s, ends):
    _, new = held
    for _ in range(2):
        await world.off()
        world.boot()
        world.updater.desire([world.beside(new, "shadow", traffic_bp=500)])
        await world.run_for(between_s)
    assert world.history("r1")[-1] == ends
    assert ("m" in world.server.shared) is (ends == "beside")


# --- open hours -------------------------------------------------------------------------------------


async def test_the_trial_and_the_swap_wait_for_the_open_hours(world, bundle_of):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    world.fleet.offline = True
    world.updater.desire([world.install(new)])
    await world.run_for(1)
    closed = replace(world.install(new), reason=Reason.CLOSED)
    world.updater.desire([closed])
    world.fleet.offline = False
    await world.run_for(3000)
    assert world.history("r1")[-1] == "try"
    assert new.sha256 not in world.trial.runs
    await world.off()
    world.boot()
    await world.run_for(100)  # nobody has said yet that it is open
    assert new.sha256 not in world.trial.runs
    world.updater.desire([world.install(new)])
    await world.run_for(100)
    assert world.history("r1")[-1] == "committed"


async def test_nothing_is_begun_and_nothing_taken_while_it_is_closed(world, held):
    old, new = held
    world.updater.desire([replace(world.install(new), reason=Reason.CLOSED)])
    await world.run_for(100)
    assert world.updater.deployments()[0].phase is Phase.BESIDE
    assert world.served() == old.sha256
    world.updater.desire([replace(world.install(new, "r2"), reason=Reason.CLOSED)])
    await world.run_for(100)
    assert world.history("r2") == []
    assert world.updater.deployments()[0].phase is Phase.BESIDE


async def test_a_trial_that_ends_after_hours_is_run_again_when_they_open(world, bundle_of):
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    closing = replace(world.install(new), reason=Reason.CLOSED)

    class Slow:
        def __init__(self) -> None:
            self.runs: list[str] = []

        async def run(self, slot_path, manifest):
            self.runs.append(slot_path)
            world.updater.desire([closing])
            await world.clock.sleep(5)
            return TrialResult(True)

    slow = Slow()
    world.updater._steps._ports = replace(world.updater._steps._ports, trial=slow)
    world.trial.runs.append(new.sha256)  # for the server's own check
    world.updater.desire([world.install(new)])
    await world.run_for(60)
    assert world.history("r1")[-1] == "try"
    assert len(slow.runs) == 1
    closing = world.install(new)
    world.updater.desire([closing])
    await world.run_for(100)
    assert len(slow.runs) == 2
    assert world.history("r1")[-1] == "committed"


async def test_limits_of_restarts_are_those_of_the_configuration(new_world, bundle_of):
    world = new_world(limits=UpdateLimits(max_boots=3))
    old, new = bundle_of("0"), world.fleet.add(bundle_of("1"))
    await world.installed(old)
    for _ in range(4):
        world.updater.desire([world.beside(new, "ab", traffic_bp=1)])
        await world.run_for(20)
        assert world.history("r1")[-1] == "beside"
        await world.off()
        world.boot()
    await world.run_for(1)
    assert world.history("r1")[-1] == "reverted:beside_restarts"
    await world.off()
