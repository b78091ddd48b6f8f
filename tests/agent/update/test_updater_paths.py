"""One device: every way a deployment can go. A row says what breaks, and what must be seen."""

from dataclasses import dataclass, replace

import pytest

from agent.bundle import Objectives
from agent.delivery import DiskFullError, FetchLimits
from agent.errors import BundleError, DeviceError, TrustError
from agent.ports import TrialResult
from agent.trust import Reason, Verb
from agent.update import JournalError, UpdateLimits

PATH = ["fetch", "verify", "try", "swap", "probation"]
DONE = [*PATH, "commit", "committed"]


async def test_a_bundle_goes_all_the_way(world, bundle_of):
    bundle = world.fleet.add(bundle_of("1"))
    world.updater.desire([world.install(bundle)])
    await world.run_for(30)
    assert world.served() == bundle.sha256
    assert world.history() == PATH
    assert [it.on_probation for it in world.updater.served()] == [True]
    await world.run_for(60)
    assert world.history() == DONE
    assert world.record().slots.active.version == "1"
    assert world.events[1].bytes_fetched == sum(len(p) for p in bundle.pieces.values())
    assert world.events[3].measures["load_ms"] == 3.0
    assert {event.rollout_id for event in world.events} == {"r1"}
    assert len({event.deployment_id for event in world.events}) == 1


async def test_the_same_wish_again_changes_nothing(world, bundle_of):
    bundle = bundle_of("1")
    await world.installed(bundle, "r1")
    seen = list(world.events)
    world.updater.desire([world.install(bundle, "r1")])
    await world.run_for(1000)
    assert world.events == seen


async def test_the_second_bundle_replaces_the_first_which_stays_on_disk(world, bundle_of):
    one, two, three = (bundle_of(v) for v in "123")
    await world.installed(one, "r1")
    await world.installed(two, "r2")
    assert world.server.loaded == {two.sha256}
    assert set(world.slots.sealed) == {one.sha256, two.sha256}
    await world.installed(three, "r3")
    assert set(world.slots.sealed) == {two.sha256, three.sha256}
    assert set(world.pieces.whole) == {*two.pieces, *three.pieces}


async def test_requests_are_answered_by_the_old_bundle_until_the_swap(world, bundle_of):
    one, two = bundle_of("1"), bundle_of("2")
    await world.installed(one)
    world.fleet.offline = True
    world.updater.desire([world.install(two)])
    await world.run_for(100)
    assert world.served() == one.sha256


# --- what breaks before the swap ------------------------------------------------------------------


@dataclass
class Row:
    name: str
    breaks: callable
    ends: list[str]
    remembered: bool = True


def _trial(*results):
    def breaks(world, bundle):
        world.trial.results[bundle.sha256] = list(results)

    return breaks


def _disk_is_full(world, bundle):
    world.free = 10


def _stage(error):
    def breaks(world, bundle):
        world.slots.stage_error = error

    return breaks


def _manifest(**changes):
    def breaks(world, bundle):
        world.fleet.bundles[bundle.sha256] = replace(bundle, **changes)

    return breaks


def _corrupt(times):
    def breaks(world, bundle):
        world.fleet.corrupt[next(iter(bundle.pieces))] = times

    return breaks


def _untrusted(world, bundle):
    def refuse(path, sha256):
        raise TrustError("not signed")

    world.fleet.get_target = refuse


BEFORE_SWAP = [
    Row("trial says no", _trial(TrialResult(False, "trial_golden_failed", "case c")),
        ["fetch", "verify", "try", "refused:trial_golden_failed"]),
    Row("trial raises", _trial(BundleError("broken")),
        ["fetch", "verify", "try", "refused:trial_failed"]),
    Row("trial cannot start twice", _trial(DeviceError("fork"), DeviceError("fork")),
        ["fetch", "verify", "try", "try", "refused:trial_unavailable"]),
    Row("trial cannot start once", _trial(DeviceError("fork")),
        ["fetch", "verify", "try", "try", "swap", "probation", "commit", "committed"], False),
    Row("disk full before the fetch", _disk_is_full, ["fetch", "refused:disk_full"]),
    Row("disk full while staging", _stage(DiskFullError("slot", 1, 0)),
        ["fetch", "verify", "refused:disk_full"]),
    Row("disk fails once while staging", _stage(DeviceError("EIO")),
        ["fetch", "verify", "verify", "try", "swap", "probation", "commit", "committed"], False),
    Row("manifest contradicts itself", _stage(BundleError("file digest")),
        ["fetch", "verify", "refused:verify_failed"]),
    Row("manifest is another one", _manifest(raw=b"{}"), ["fetch", "refused:manifest_refused"]),
    Row("metadata is not trusted", _untrusted, ["fetch", "refused:manifest_untrusted"]),
    Row("a piece arrives damaged twice", _corrupt(2), DONE, False),
    Row("a piece arrives damaged always", _corrupt(99), ["fetch", "refused:fetch_damaged"]),
]  # fmt: skip


@pytest.mark.parametrize("row", BEFORE_SWAP, ids=lambda row: row.name)
@pytest.mark.parametrize("before", [True, False], ids=["serving", "empty"])
async def test_what_breaks_before_the_swap_never_touches_what_serves(world, bundle_of, row, before):
    old, bundle = bundle_of("0"), bundle_of("1")
    if before:
        await world.installed(old)
    world.fleet.add(bundle)
    row.breaks(world, bundle)
    world.updater.desire([world.install(bundle)])
    await world.run_for(600)
    assert world.history("r1") == row.ends
    refused = not row.ends[-1].startswith("committed")
    if refused:
        assert world.served() == (old.sha256 if before else None)
        assert set(world.slots.sealed) == ({old.sha256} if before else set())
        assert set(world.pieces.whole) | set(world.pieces.parts) == (
            set(old.pieces) if before else set()
        )
        assert world.events[-1].reason
    kept = [(r.rollout_id, r.manifest_sha256) for r in world.journal.content.refusals]
    assert kept == ([("r1", bundle.sha256)] if row.remembered else [])


async def test_a_refused_bundle_is_not_taken_again_from_the_rollout_but_from_another(
    world, bundle_of
):
    bundle = world.fleet.add(bundle_of("1"))
    world.trial.results[bundle.sha256] = [TrialResult(False, "trial_memory", "too much")]
    for _ in range(3):
        world.updater.desire([world.install(bundle, "r1")])
        await world.run_for(300)
    assert len(world.trial.runs) == 1
    assert set(world.updater.current()["m"].refused) == {("r1", bundle.sha256)}
    world.updater.desire([world.install(bundle, "r2")])
    await world.run_for(300)
    assert world.history("r2") == DONE


async def test_a_device_without_network_waits_and_says_so_once(world, bundle_of):
    bundle = world.fleet.add(bundle_of("1"))
    world.fleet.offline = True
    world.updater.desire([world.install(bundle)])
    await world.run_for(3 * 86400)
    assert world.history() == ["fetch", "fetch"]
    assert world.events[-1].reason_code == "fetch_waiting"
    world.fleet.offline = False
    await world.run_for(1000)
    assert world.history()[-1] == "committed"


async def test_the_network_may_fail_until_the_deadline(new_world, bundle_of):
    world = new_world(limits=UpdateLimits(fetch_deadline_s=3600.0))
    world.fleet.offline = True
    world.updater.desire([world.install(bundle_of("1"))])
    await world.run_for(6000)
    await world.off()
    assert world.history() == ["fetch", "fetch", "refused:fetch_deadline"]


async def test_a_broken_stream_goes_on_at_the_byte_where_it_broke(world, bundle_of):
    bundle = world.fleet.add(bundle_of("1"))
    world.fleet.break_after = [1, 4, 7]
    world.updater.desire([world.install(bundle)])
    await world.run_for(300)
    assert world.history() == DONE
    assert world.fleet.sent == sum(len(p) for p in bundle.pieces.values())


async def test_pieces_that_rot_on_the_disk_are_fetched_again(world, bundle_of):
    bundle = world.fleet.add(bundle_of("1"))
    rotten = next(iter(bundle.pieces))
    world.pieces.whole[rotten] = b"rot"
    world.updater.desire([world.install(bundle)])
    await world.run_for(300)
    assert world.history() == ["fetch", "verify", *DONE]
    assert world.events[2].reason_code == "piece_damaged"


# --- the fleet changes its mind -------------------------------------------------------------------


def _halt(world, bundle):
    return [world.say(Verb.NONE, Reason.HALTED, bundle)]


def _gone(world, bundle):
    return []


def _rollback(world, bundle):
    return [world.revert(bundle)]


@pytest.mark.parametrize(
    ("says", "code"),
    [(_halt, "halted"), (_gone, "no_directive"), (_rollback, "fleet_rollback")],
    ids=["halt", "gone", "rollback"],
)
async def test_before_the_swap_the_deployment_is_cancelled(world, bundle_of, says, code):
    bundle = world.fleet.add(bundle_of("1"))
    world.fleet.offline = True
    world.updater.desire([world.install(bundle)])
    await world.run_for(30)
    world.updater.desire(says(world, bundle))
    await world.run_for(30)
    assert world.history()[-1] == f"cancelled:{code}"
    assert not world.updater.deployments()
    assert not world.journal.content.refusals


@pytest.mark.parametrize("says", [_halt, _gone], ids=["halt", "gone"])
async def test_after_the_swap_only_a_rollback_ends_probation(world, bundle_of, says):
    bundle = world.fleet.add(bundle_of("1"))
    world.updater.desire([world.install(bundle)])
    await world.run_for(30)
    world.updater.desire(says(world, bundle))
    await world.run_for(60)
    assert world.history() == DONE


async def test_a_newer_rollout_takes_over_before_the_swap(world, bundle_of):
    one, two = world.fleet.add(bundle_of("1")), world.fleet.add(bundle_of("2"))
    world.fleet.break_after = [3, 0, 0, 0, 0]
    world.updater.desire([world.install(one, "r1")])
    await world.run_for(1)
    world.updater.desire([world.install(two, "r2")])
    await world.run_for(600)
    assert world.history("r1") == ["fetch", "cancelled:superseded"]
    assert world.history("r2") == DONE


async def test_a_newer_rollout_waits_for_the_end_of_probation(world, bundle_of):
    one, two = world.fleet.add(bundle_of("1")), world.fleet.add(bundle_of("2"))
    world.updater.desire([world.install(one, "r1")])
    await world.run_for(10)
    world.updater.desire([world.install(two, "r2")])
    await world.run_for(600)
    assert world.history("r1") == DONE
    assert world.history("r2") == DONE


async def test_a_rollout_of_what_is_active_is_committed_at_once(world, bundle_of):
    bundle = bundle_of("1")
    await world.installed(bundle, "r1")
    world.updater.desire([world.say(Verb.KEEP, Reason.ALREADY_ACTIVE, bundle, "r2")])
    await world.run_for(10)
    assert world.history("r2") == ["committed:already_active"]
    assert world.updater.served()[0].rollout_id == "r2"


async def test_a_directive_that_cannot_be_obeyed_is_reported_once(world, bundle_of):
    bundle = bundle_of("1")
    for _ in range(3):
        world.updater.desire([world.say(Verb.REFUSE, Reason.BOTH_DISAGREE, bundle)])
        await world.run_for(10)
    assert world.history() == ["refused:both_disagree"]
    world.fleet.add(bundle)
    world.updater.desire([world.install(bundle)])  # the release arrived after the directive
    await world.run_for(100)
    assert world.history()[-1] == "committed"


# --- probation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({"requests": 50, "failures": 10}, "probation_error_rate"),
        ({"requests": 50, "over_objective": 40}, "probation_latency"),
        ({"requests": 50, "output_violations": 20}, "probation_output_violations"),
        ({"requests": 50, "non_finite": 20}, "probation_non_finite"),
    ],
)
async def test_a_bundle_that_breaks_its_objectives_is_reverted_at_once(
    world, bundle_of, counts, code
):
    old, bad = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(bad)
    world.updater.desire([world.install(bad)])
    await world.run_for(5)
    world.window(old, requests=10, failures=10)  # the old bundle's failures are not the new one's
    await world.run_for(1)
    assert world.served() == bad.sha256
    world.window(bad, **counts)
    await world.run_for(1)
    assert world.served() == old.sha256
    assert world.history("r1") == [*PATH, "revert", f"reverted:{code}"]
    assert world.server.loaded == {old.sha256}
    await world.run_for(1000)
    assert world.history("r1")[-1] == f"reverted:{code}"


async def test_a_first_bundle_that_fails_leaves_nothing_serving(world, bundle_of):
    bad = world.fleet.add(bundle_of("1"))
    world.updater.desire([world.install(bad)])
    await world.run_for(5)
    world.window(bad, requests=20, failures=20)
    await world.run_for(5)
    assert world.served() is None
    assert world.history()[-1] == "reverted:probation_error_rate"
    assert not world.slots.sealed


async def test_a_bundle_that_wants_requests_waits_for_them(world, bundle_of):
    wanted = Objectives(probation_s=60.0, probation_min_requests=100)
    bundle = world.fleet.add(bundle_of("1", objectives=wanted))
    world.updater.desire([world.install(bundle)])
    await world.run_for(300)
    assert world.history() == PATH
    world.window(bundle, requests=100)
    await world.run_for(1)
    assert world.history() == DONE


async def test_a_server_crash_in_probation_reverts(world, bundle_of):
    old, bad = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(bad)
    world.updater.desire([world.install(bad)])
    await world.run_for(5)
    world.server.crash(back=False)
    world.updater.server_changed(world.server.state)
    await world.run_for(30)
    assert world.history("r1") == [*PATH, "revert"]
    world.server.come_back()
    world.updater.server_changed(world.server.state)
    await world.run_for(1)
    assert world.served() == old.sha256
    assert world.history("r1") == [*PATH, "revert", "reverted:server_crashed"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(BundleError("cannot load"), "load_failed"), ("crash", "server_crashed"),
     (DeviceError("timed out"), "swap_failed")],
    ids=["refused", "crash", "timeout"],
)  # fmt: skip
async def test_a_bundle_that_cannot_be_loaded_never_served_and_is_refused(
    world, bundle_of, error, code
):
    old, bad = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(bad)
    world.server.load_errors[bad.sha256] = [error]
    world.updater.desire([world.install(bad)])
    await world.run_for(60)
    assert world.served() == old.sha256
    assert world.history("r1") == [*PATH[:-1], "revert", f"refused:{code}"]


async def test_a_swap_waits_for_a_server_that_is_away(world, bundle_of):
    bundle = world.fleet.add(bundle_of("1"))
    world.server.crash(back=False)
    world.updater.desire([world.install(bundle)])
    await world.run_for(100)
    assert world.history() == PATH[:-1]
    world.server.come_back()
    world.updater.server_changed(world.server.state)
    await world.run_for(100)
    assert world.history() == DONE


# --- the fleet's rollback -------------------------------------------------------------------------


async def test_a_rollback_in_probation_goes_back_at_once(world, bundle_of):
    old, bad = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(bad)
    world.updater.desire([world.install(bad)])
    await world.run_for(5)
    world.updater.desire([world.revert(bad)])
    await world.run_for(1)
    assert world.served() == old.sha256
    assert world.history("r1") == [*PATH, "revert", "reverted:fleet_rollback"]


@pytest.mark.parametrize("names_it", [True, False])
async def test_a_rollback_of_the_active_bundle_needs_no_download(world, bundle_of, names_it):
    old, bad = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    await world.installed(bad, "r1")
    world.fleet.offline = True
    world.updater.desire([world.revert(bad, "r1", to=old if names_it else None)])
    await world.run_for(1)
    assert world.served() == old.sha256
    assert world.history("r1")[-2:] == ["revert", "reverted:fleet_rollback"]
    slots = world.record().slots
    assert (slots.active.manifest_sha256, slots.previous) == (old.sha256, None)
    assert slots.active.rollout_id == "r0"
    await world.run_for(100)
    assert world.history("r1")[-1] == "reverted:fleet_rollback"


async def test_a_rollback_to_a_bundle_that_is_not_here_serves_on_until_it_is(world, bundle_of):
    bad, good = bundle_of("1"), bundle_of("2")
    await world.installed(bad, "r1")
    world.fleet.add(good)
    world.fleet.offline = True
    world.updater.desire([world.revert(bad, "r1", to=good)])
    await world.run_for(100)
    assert world.served() == bad.sha256
    world.fleet.offline = False
    await world.run_for(1200)
    assert world.served() == good.sha256
    assert world.history("r1")[-3:] == ["probation", "commit", "reverted:fleet_rollback"]
    assert world.record().slots.previous is None


async def test_a_rollback_whose_replacement_fails_here_keeps_serving(world, bundle_of):
    bad, good = bundle_of("1"), world.fleet.add(bundle_of("2"))
    await world.installed(bad, "r1")
    world.trial.results[good.sha256] = [TrialResult(False, "trial_memory", "too much")]
    world.updater.desire([world.revert(bad, "r1", to=good)])
    await world.run_for(1000)
    assert world.served() == bad.sha256
    assert world.history("r1")[-1] == "refused:trial_memory"


# --- what is active -------------------------------------------------------------------------------


async def test_after_a_crash_the_active_bundle_is_served_again(world, bundle_of):
    bundle = bundle_of("1")
    await world.installed(bundle)
    seen = len(world.events)
    world.server.crash()
    assert world.served() is None
    world.updater.server_changed(world.server.state)
    await world.run_for(0.1)
    assert world.served() == bundle.sha256
    assert len(world.events) == seen


async def test_an_active_bundle_that_cannot_be_loaded_is_left_for_the_previous(world, bundle_of):
    one, two = bundle_of("1"), bundle_of("2")
    await world.installed(one, "r1")
    await world.installed(two, "r2")
    world.server.load_errors[two.sha256] = [BundleError("no")] * 9
    world.server.crash()
    world.updater.server_changed(world.server.state)
    await world.run_for(600)
    assert world.served() == one.sha256
    assert world.history("r2")[-2:] == ["revert", "reverted:active_unloadable"]
    assert len(world.server.load_errors[two.sha256]) == 9 - world.limits.max_load_failures


async def test_a_slot_that_rots_is_installed_again_even_by_the_same_rollout(world, bundle_of):
    bundle = bundle_of("1")
    await world.installed(bundle, "r1")
    world.slots.damaged.add(bundle.sha256)
    world.server.crash()
    world.updater.server_changed(world.server.state)
    await world.run_for(600)
    assert "reverted:slot_damaged" in world.history("r1")
    assert world.history("r1")[-len(DONE) :] == DONE
    assert world.served() == bundle.sha256


async def test_an_only_bundle_that_cannot_be_loaded_is_tried_for_ever(world, bundle_of):
    bundle = bundle_of("1")
    await world.installed(bundle)
    world.server.load_errors[bundle.sha256] = [DeviceError("timed out")] * 7
    world.server.crash()
    world.updater.server_changed(world.server.state)
    await world.run_for(3600)
    assert world.served() == bundle.sha256


# --- several models, and the journal --------------------------------------------------------------


async def test_models_are_on_probation_side_by_side(world, bundle_of):
    bundles = [world.fleet.add(bundle_of("1", model=name)) for name in ("a", "b", "c")]
    world.updater.desire([world.install(bundle) for bundle in bundles])
    await world.run_for(5)
    assert {d.phase.value for d in world.updater.deployments()} == {"probation"}
    await world.run_for(60)
    assert {name: world.served(name) for name in "abc"} == {
        b.manifest.model: b.sha256 for b in bundles
    }


async def test_a_rollback_does_not_wait_for_another_models_download(world, bundle_of):
    old, bad = bundle_of("0", model="a"), bundle_of("1", model="a")
    await world.installed(old)
    await world.installed(bad, "r1")
    slow = world.fleet.add(bundle_of("1", model="b"))
    world.fleet.offline = True
    world.updater.desire([world.install(slow, "r2"), world.revert(bad, "r1")])
    await world.run_for(0.1)
    assert world.served("a") == old.sha256


async def test_a_journal_that_cannot_be_written_stops_nothing_but_progress(world, bundle_of):
    old, new = bundle_of("0"), bundle_of("1")
    await world.installed(old)
    world.fleet.add(new)
    world.journal.error = JournalError("journal.db", "no room", "free some")
    world.updater.desire([world.install(new)])
    await world.run_for(100)
    assert world.served() == old.sha256
    assert world.history("r1") == []
    world.journal.error = None
    await world.run_for(1200)
    assert world.history("r1")[-1] == "committed"


async def test_a_stream_that_hangs_is_given_up_and_asked_again(new_world, bundle_of):
    world = new_world(limits=UpdateLimits(fetch=FetchLimits(stall_s=10.0)))
    bundle = world.fleet.add(bundle_of("1"))
    real, hung = world.fleet.fetch, []

    async def fetch(ranges):
        if not hung:
            hung.append(True)
            await world.clock.sleep(10**9)
        async for chunk in real(ranges):
            yield chunk

    world.fleet.fetch = fetch
    world.updater.desire([world.install(bundle)])
    await world.run_for(200)
    await world.off()
    assert world.history() == DONE
