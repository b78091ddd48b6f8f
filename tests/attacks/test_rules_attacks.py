"""Attacks on the device's own rules: emergencies, going back, stale metadata, and its durable trust store.

Each is refused by its name, and the device goes on with what it had.
"""

import shutil
from pathlib import Path

import pytest

from agent.adapters.trust_store import SqliteTrustStore
from agent.trust import (
    CurrentModel,
    Decision,
    DeviceFacts,
    Reason,
    TrustState,
    Verb,
    World,
    decide_in,
)
from agent.trust.errors import (
    ExpiredError,
    MissingMetadataError,
    RefusedMetadataError,
    RollbackError,
    SignatureError,
    TimeFloorError,
)
from agent.trust.reading import directives, emergencies, releases
from agent.trust.refresh import TrustRefresher
from agent.trust_view import read_view
from fleet.repository.emergency import EmergencyChange, next_emergency
from tests.support.emergency_fleet import EmergencyFleet
from tests.support.signed_fleet import DAY_S, START_S, Reader, SignedFleet, directive_for

FACTS = DeviceFacts("cam-1", "cam", "x86_64")
FIRST_YEARS_S = 1_000_000.0


@pytest.fixture
def fleet(tmp_path: Path) -> EmergencyFleet:
    return EmergencyFleet(tmp_path / "fleet")


def decided(state: TrustState, now_s: float, have: CurrentModel | None = None) -> Decision:
    """What a device that stands at ``have`` does about the one model there is."""
    view = read_view(state)
    world = World(
        view.releases,
        FACTS,
        state.floors_for("cam"),
        state.trusted_now_s(now_s),
        view.emergency,
        view.expires_s,
    )
    (decision,) = decide_in(world, view.directives, {"m": have} if have else {})
    return decision


def reason_of(decision: Decision) -> tuple[Verb, Reason]:
    return decision.verb, decision.reason


# --- emergencies ----------------------------------------------------------------------------------


def test_blocked_bundle_directed_with_all_online_keys(
    fleet: EmergencyFleet, device: Reader
) -> None:
    bad = fleet.publish()
    fleet.direct(directive_for(bad))
    fleet.emergency(EmergencyChange(block={bad.sha256: "leaks what it sees"}))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    decision = decided(device.state, fleet.now_s)
    assert reason_of(decision) == (Verb.REFUSE, Reason.BLOCKED)
    assert "leaks what it sees" in decision.text


def test_blocked_bundle_that_is_active_is_left(fleet: EmergencyFleet, device: Reader) -> None:
    good, bad = fleet.publish(version="1"), fleet.publish(version="2")
    fleet.direct(directive_for(bad))
    fleet.emergency(EmergencyChange(block={bad.sha256: "leaks"}))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    have = CurrentModel("m", bad.sha256, good.sha256)
    decision = decided(device.state, fleet.now_s, have)
    assert reason_of(decision) == (Verb.REVERT, Reason.BLOCKED)
    assert decision.leaves == bad.sha256
    alone = decided(device.state, fleet.now_s, CurrentModel("m", bad.sha256))
    assert reason_of(alone) == (Verb.KEEP, Reason.BLOCKED)
    assert "no other bundle to go to" in alone.text


def test_block_waited_out_until_the_emergency_role_expires(
    fleet: EmergencyFleet, device: Reader
) -> None:
    """Nobody re-signs the role for months: directives go on, what is blocked stays blocked."""
    bad = fleet.publish()
    fleet.direct(directive_for(bad))
    fleet.emergency(EmergencyChange(block={bad.sha256: "leaks"}, lift=[bad.sha256]))
    fleet.now_s += 31 * DAY_S
    fleet.repository.resign_if_due(fleet.now_s)
    fleet.repository.resign_if_due(fleet.now_s)
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    found = emergencies(device.state)
    assert bad.sha256 in found.blocked
    assert not found.lifts(bad.sha256, fleet.now_s)
    assert reason_of(decided(device.state, fleet.now_s)) == (Verb.REFUSE, Reason.BLOCKED)


def test_block_list_withheld_by_the_server(fleet: EmergencyFleet, device: Reader) -> None:
    bad = fleet.publish()
    fleet.direct(directive_for(bad))
    before = device.state
    pack, source = fleet.whole(emergency=None)
    with pytest.raises(MissingMetadataError):
        device.refresh(source, pack, fleet.now_s)
    assert device.state is before


def test_older_block_list_with_the_snapshot_and_timestamp_keys(
    fleet: EmergencyFleet, device: Reader
) -> None:
    bad = fleet.publish()
    fleet.direct(directive_for(bad))
    old_role, old_raw = fleet.role, fleet.raw_emergency
    fleet.emergency(EmergencyChange(block={bad.sha256: "leaks"}))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    fleet.role, fleet.raw_emergency = old_role, old_raw
    pack, source = fleet.whole()
    with pytest.raises(RollbackError):
        device.refresh(source, pack, fleet.now_s)
    assert bad.sha256 in emergencies(device.state).blocked


def test_emergency_signed_with_the_rollout_key(fleet: EmergencyFleet, device: Reader) -> None:
    bundle = fleet.publish(limits=((0, 0),))
    fleet.direct(directive_for(bundle))
    fleet.emergency(EmergencyChange(lift=[bundle.sha256]), key=fleet.key("rollout"))
    pack, source = fleet.whole()
    with pytest.raises(SignatureError):
        device.refresh(source, pack, fleet.now_s)


def test_limits_are_lifted_by_the_emergency_role_alone(
    fleet: EmergencyFleet, device: Reader
) -> None:
    bundle = fleet.publish(limits=((0, 0), (30 * 86_400, 10_000)))
    fleet.direct(directive_for(bundle))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    assert reason_of(decided(device.state, fleet.now_s)) == (Verb.NONE, Reason.SPEED_LIMIT)
    fleet.emergency(EmergencyChange(lift=[bundle.sha256]))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    assert reason_of(decided(device.state, fleet.now_s)) == (Verb.INSTALL, Reason.IN_COHORT)


def test_emergency_entry_in_the_rollout_role(tmp_path: Path) -> None:
    """Its path is the emergency role's alone: the online key says nothing there."""
    fleet = SignedFleet(tmp_path / "fleet")
    device = Reader(fleet.root)
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    change = EmergencyChange(block={bundle.sha256: "mine"})
    target = next(iter(next_emergency(None, change, fleet.now_s).targets.values()))
    pack = fleet.forged_pack(change=lambda role: role.targets.update({target.path: target}))
    device.refresh(fleet.offered(), pack, fleet.now_s)
    found = emergencies(device.state)
    assert (dict(found.blocked), found.lifted) == ({}, frozenset())
    assert reason_of(decided(device.state, fleet.now_s)) == (Verb.INSTALL, Reason.IN_COHORT)


# --- going back and staleness ---------------------------------------------------------------------


def test_older_release_directed_with_all_online_keys(fleet: EmergencyFleet, device: Reader) -> None:
    """Above the floor, so that the floor does not catch it: an older release needs a rollback, or to be meant."""
    old, new = fleet.publish(version="1"), fleet.publish(version="2")
    fleet.direct(directive_for(old, number=2))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    have = CurrentModel("m", new.sha256, old.sha256)
    decision = decided(device.state, fleet.now_s, have)
    assert reason_of(decision) == (Verb.REFUSE, Reason.OLDER_RELEASE)
    assert "older than release 2" in decision.text


def test_freeze_between_the_pack_and_the_install(fleet: EmergencyFleet, device: Reader) -> None:
    """The pack was fresh when it came; by the time the install would begin it is not."""
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    late_s = fleet.now_s + 2 * DAY_S
    assert reason_of(decided(device.state, late_s)) == (Verb.NONE, Reason.STALE_METADATA)
    pending = CurrentModel("m", pending_sha256=bundle.sha256, pending_rollout_id="r1")
    going = decided(device.state, late_s, pending)
    assert reason_of(going) == (Verb.INSTALL, Reason.STALE_METADATA)
    assert going.holds


# --- the trust store ------------------------------------------------------------------------------


def stored(fleet: EmergencyFleet, path: Path) -> tuple[bytes, bytes]:
    """A device that has seen an old pack and a new one; returns both."""
    bundle = fleet.publish(min_release=1)
    old = fleet.direct(directive_for(bundle))
    store = SqliteTrustStore(path)
    refresher = TrustRefresher(fleet.root)
    store.save(refresher.refresh(store.load(), fleet.offered(), old, fleet.now_s))
    store.close()  # so that all of it is in the one file
    shutil.copy(path, path.with_name("copy.db"))
    fleet.now_s += DAY_S / 4
    new = fleet.direct(directive_for(bundle, halt=True))
    store.save(refresher.refresh(store.load(), fleet.offered(), new, fleet.now_s))
    store.close()
    return old, new


def test_old_pack_replayed_to_a_restarted_device(fleet: EmergencyFleet, tmp_path: Path) -> None:
    path = tmp_path / "trust.db"
    old, _ = stored(fleet, path)
    state = SqliteTrustStore(path).load()
    with pytest.raises(RollbackError):
        TrustRefresher(fleet.root).refresh(state, fleet.offered(), old, fleet.now_s)
    assert directives(state)[0].halt


@pytest.mark.parametrize("how", ["emptied", "gone", "cut in half", "overwritten", "older copy"])
def test_trust_store_cut_short_or_put_back(how: str, fleet: EmergencyFleet, tmp_path: Path) -> None:
    path = tmp_path / "trust.db"
    stored(fleet, path)
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "older copy":
        path.write_bytes((tmp_path / "copy.db").read_bytes())
    else:
        damaged = {
            "emptied": b"",
            "cut in half": raw[: len(raw) // 2],
            "overwritten": raw[:100] + b"\xff" * (len(raw) - 100),
        }
        path.write_bytes(damaged[how])
    state = SqliteTrustStore(path).load()
    assert "trust store" in state.damage
    assert state.floor_s == fleet.now_s
    assert state.floors_for("cam") == {"m": 1}


def test_clock_set_back_behind_the_agents_own_age(fleet: EmergencyFleet) -> None:
    """A device that has seen nothing yet knows at least when its agent was built."""
    fleet.direct(directive_for(fleet.publish()))
    refresher = TrustRefresher(fleet.root, known_past=lambda: START_S + 400 * DAY_S)
    with pytest.raises(TimeFloorError):
        refresher.refresh(TrustState(), fleet.offered(), fleet.repository.pack(), FIRST_YEARS_S)


def test_floor_of_known_time_survives_a_rotation_of_the_timestamp_key(
    fleet: EmergencyFleet,
) -> None:
    known_s = START_S - 5.0
    refresher = TrustRefresher(fleet.root, known_past=lambda: known_s)
    fleet.direct(directive_for(fleet.publish()))
    far_s = fleet.now_s + 100 * DAY_S
    forged = fleet.forged_pack(signed_at_s=far_s, expires_s=far_s + 10 * DAY_S)
    state = refresher.refresh(TrustState(), fleet.offered(), forged, fleet.now_s)
    assert state.floor_s == far_s
    fleet.rotate_root("timestamp", "snapshot")
    fleet.resign_everything()
    state = refresher.refresh(state, fleet.offered(), fleet.repository.pack(), 0.0)
    assert state.floor_s == fleet.now_s


def test_refusals_name_the_attack() -> None:
    """Each class of refusal has a code of its own, for reports and logs."""

    def codes(kind: type[RefusedMetadataError]) -> list[str]:
        return [kind.code, *(code for sub in kind.__subclasses__() for code in codes(sub))]

    found = codes(RefusedMetadataError)
    assert len(found) == len(set(found))
    assert ExpiredError.code in found


def test_blocked_release_is_still_listed(fleet: EmergencyFleet, device: Reader) -> None:
    """A block withdraws nothing from the release role: what it forbids can be told."""
    bad = fleet.publish()
    fleet.emergency(EmergencyChange(block={bad.sha256: "leaks"}))
    pack, source = fleet.whole()
    device.refresh(source, pack, fleet.now_s)
    assert releases(device.state) == {bad.path: bad}
