"""One refresh: what it takes from where, what comes out, and that nothing signed can crash it."""

import datetime
import errno
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.exceptions import ExpiredMetadataError
from tuf.api.metadata import Targets
from tuf.ngclient import Updater, UpdaterConfig

from agent.errors import DeviceError, LinkError
from agent.trust import TrustState
from agent.trust.errors import ExpiredError, MalformedError, RefusedMetadataError, TimeFloorError
from agent.trust.reading import directives, fleet_name, read_directives, read_releases, releases
from agent.trust.refresh import TrustRefresher
from tests.support.signed_fleet import (
    DAY_S,
    OfferedFiles,
    Reader,
    SignedFleet,
    directive_for,
)


def test_first_refresh_over_the_network(fleet: SignedFleet, device: Reader) -> None:
    bundle = fleet.publish(hardware=("x86_64",), limits=((0, 100), (3_600, 10_000)), agent=">=0.1")
    fleet.direct(directive_for(bundle, percent_bp=250, selector=(("site", "north"),)))
    state = device.refresh(fleet.offered(), None, fleet.now_s)
    assert releases(state) == {bundle.path: bundle}
    assert directives(state) == fleet.repository.directives()
    assert directives(state)[0].percent_bp == 250
    assert state.floor_s == fleet.now_s
    assert fleet_name(fleet.root) == "lab"


def test_a_pack_asks_the_server_for_what_people_sign_only(
    fleet: SignedFleet, device: Reader
) -> None:
    pack = fleet.direct(directive_for(fleet.publish()))
    source = fleet.offered()
    device.refresh(source, pack, fleet.now_s)
    assert source.asked == ["1.targets.json", "2.release.json", "1.emergency.json"]
    again = fleet.offered()
    device.refresh(again, pack, fleet.now_s)
    assert again.asked == []


def test_the_next_stage_asks_for_nothing(fleet: SignedFleet, device: Reader) -> None:
    bundle = fleet.publish()
    device.refresh(
        fleet.offered(), fleet.direct(directive_for(bundle, percent_bp=100)), fleet.now_s
    )
    source = fleet.offered()
    device.refresh(source, fleet.direct(directive_for(bundle, percent_bp=1_000)), fleet.now_s)
    assert source.asked == []
    assert directives(device.state)[0].percent_bp == 1_000


def test_same_input_same_output(fleet: SignedFleet) -> None:
    pack = fleet.direct(directive_for(fleet.publish()))
    refresher = TrustRefresher(fleet.root)
    first = refresher.refresh(TrustState(), fleet.offered(), pack, fleet.now_s)
    assert refresher.refresh(TrustState(), fleet.offered(), pack, fleet.now_s) == first
    assert refresher.refresh(first, fleet.offered(), pack, fleet.now_s) == first


def test_the_input_is_not_changed(fleet: SignedFleet) -> None:
    pack = fleet.direct(directive_for(fleet.publish(min_release=1)))
    before = TrustState({}, 1.0, {})
    TrustRefresher(fleet.root).refresh(before, fleet.offered(), pack, fleet.now_s)
    assert before == TrustState({}, 1.0, {})


def test_an_unreachable_server_is_a_link_error(fleet: SignedFleet, device: Reader) -> None:
    class Dead(OfferedFiles):
        def get_metadata(self, name: str) -> bytes | None:
            raise LinkError(f"no route while asking for {name}")

    with pytest.raises(LinkError, match=r"2\.root\.json"):
        device.refresh(Dead(fleet.repository, {}), None, fleet.now_s)


def test_root_that_is_none(fleet: SignedFleet) -> None:
    with pytest.raises(MalformedError):
        TrustRefresher(b"{}").refresh(TrustState(), fleet.offered(), None, fleet.now_s)


def test_state_that_was_damaged_is_fetched_again(fleet: SignedFleet, device: Reader) -> None:
    fleet.direct(directive_for(fleet.publish()))
    whole = device.refresh(fleet.offered(), None, fleet.now_s)
    device.state = TrustState(dict.fromkeys(whole.files, b"{"), whole.floor_s)
    assert device.refresh(fleet.offered(), None, fleet.now_s).files == whole.files


def test_a_device_that_was_given_to_another_fleet(
    fleet: SignedFleet, device: Reader, tmp_path: Path
) -> None:
    """Roots of the old chain neither count nor stay."""
    fleet.rotate_root("timestamp")
    fleet.direct(directive_for(fleet.publish()))
    device.refresh(fleet.offered(), None, fleet.now_s)
    other = SignedFleet(tmp_path / "other")
    device.root = other.root
    state = device.refresh(other.offered(), None, other.now_s)
    assert directives(state) == ()
    assert "2.root.json" not in state.files


def test_no_room_for_the_scratch_folder(
    fleet: SignedFleet, device: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("agent.trust.refresh.fill", full)
    with pytest.raises(DeviceError, match=r"no room .*No space left"):
        device.refresh(fleet.offered(), None, fleet.now_s)


def test_floor_of_a_model_never_falls(fleet: SignedFleet, device: Reader) -> None:
    fleet.publish(version="1")
    raised = fleet.publish(version="2", min_release=2)
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert device.state.floors_for("cam") == {"m": 2}
    assert device.state.floors_for("line") == {}

    current, _ = fleet.repository.release_metadata()
    role = fleet.read("3.release.json").signed
    del role.targets[raised.path]
    role.version += 1
    fleet.repository.publish(
        fleet.signed_by("release", role), fleet.now_s, frozenset({raised.path})
    )
    assert current != fleet.repository.release_metadata()[0]
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert list(releases(device.state)) == ["bundles/cam/m-1"]
    assert device.state.floors_for("cam") == {"m": 2}


def test_key_rotation_is_followed(fleet: SignedFleet, device: Reader) -> None:
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    device.refresh(fleet.offered(), None, fleet.now_s)
    fleet.rotate_root("timestamp", "snapshot", new_root_key=True)
    fleet.resign_everything()
    device.refresh(fleet.offered(), fleet.repository.pack(), fleet.now_s)
    assert {"1.root.json", "2.root.json"} <= set(device.state.files)
    device.refresh(fleet.offered(), None, fleet.now_s)


def test_a_role_that_lost_its_delegation_says_nothing(fleet: SignedFleet, device: Reader) -> None:
    """Its file is still on the device; nobody vouches for it any more."""
    fleet.direct(directive_for(fleet.publish()))
    device.refresh(fleet.offered(), None, fleet.now_s)
    top = fleet.read("1.targets.json").signed
    del top.delegations.roles["release"]
    top.version += 1
    pack = fleet.pack_with_role("targets", fleet.signed_by("targets", top), top.version)
    source = fleet.offered(targets=fleet.signed_by("targets", top))
    state = device.refresh(source, pack, fleet.now_s)
    assert releases(state) == {}
    assert "release.json" not in state.files


def test_unreadable_entries_are_named_and_the_rest_holds(
    fleet: SignedFleet, device: Reader
) -> None:
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle), directive_for(bundle, number=2))

    def newer_agent(role: Targets) -> None:
        role.targets["rollouts/r2"].custom["mode"] = "mirror"

    state = device.refresh(fleet.offered(), fleet.forged_pack(change=newer_agent), fleet.now_s)
    reading = read_directives(state)
    assert list(reading.entries) == ["rollouts/r1"]
    assert "mode = 'mirror'" in reading.unreadable["rollouts/r2"]
    assert read_releases(state).unreadable == {}


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(custom=nonsense, path=st.text(max_size=20))
def test_nonsense_signed_with_the_online_keys_never_crashes(
    fleet: SignedFleet, custom: Any, path: str
) -> None:
    bundle = directive_for(fleet.repository.releases().get("bundles/cam/m-1") or fleet.publish())
    fleet.repository.set_directives([bundle], fleet.now_s)

    def scribble(role: Targets) -> None:
        role.targets["rollouts/r1"].unrecognized_fields["custom"] = custom
        role.unrecognized_fields["x"] = custom
        role.targets[f"rollouts/{path}"] = role.targets["rollouts/r1"]

    try:
        state = Reader(fleet.root).refresh(
            fleet.offered(), fleet.forged_pack(change=scribble), fleet.now_s
        )
    except RefusedMetadataError:
        return
    assert directives(state) == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(payload=st.binary(max_size=400))
def test_any_bytes_as_metadata_never_crash(fleet: SignedFleet, payload: bytes) -> None:
    for role in ("root", "timestamp", "snapshot", "targets"):
        with pytest.raises(RefusedMetadataError):
            Reader(fleet.root).refresh(fleet.offered(**{role: payload}), None, fleet.now_s)


# --- time -----------------------------------------------------------------------------------------


def test_the_client_judges_by_the_time_it_is_told(fleet: SignedFleet, tmp_path: Path) -> None:
    """Guards the private attribute that refresh sets: the client must keep reading its time there."""
    updater = Updater(str(tmp_path), "x://", config=UpdaterConfig(), bootstrap=fleet.root)
    assert abs(updater._trusted_set.reference_time.timestamp() - time.time()) < 60
    signed = fleet.read("timestamp.json")
    raw = fleet.repository.metadata("timestamp.json")
    assert raw is not None
    expires_s = signed.signed.expires.timestamp()

    def told(at_s: float) -> Updater:
        again = Updater(str(tmp_path / str(at_s)), "x://", bootstrap=fleet.root)
        again._trusted_set.reference_time = datetime.datetime.fromtimestamp(at_s, tz=datetime.UTC)
        return again

    told(expires_s - 1)._trusted_set.update_timestamp(raw)
    with pytest.raises(ExpiredMetadataError):
        told(expires_s)._trusted_set.update_timestamp(raw)


def test_the_floor_counts_when_the_clock_is_behind(fleet: SignedFleet, device: Reader) -> None:
    device.refresh(fleet.offered(), None, fleet.now_s)
    device.refresh(fleet.offered(), None, 0.0)
    device.state = TrustState(device.state.files, fleet.now_s + 2 * DAY_S)
    with pytest.raises(TimeFloorError, match="behind the newest signed time"):
        device.refresh(fleet.offered(), None, 0.0)


def test_clocks_beyond_reason(fleet: SignedFleet, device: Reader) -> None:
    device.refresh(fleet.offered(), None, fleet.now_s)
    device.refresh(fleet.offered(), None, -1.0)
    with pytest.raises(ExpiredError):
        device.refresh(fleet.offered(), None, 1e18)


def test_it_is_cheap(fleet: SignedFleet, device: Reader) -> None:
    """A thousand simulated devices depend on it; the limit is ten times what it takes."""
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle, percent_bp=1)), fleet.now_s)
    pack = fleet.direct(directive_for(bundle, percent_bp=2))
    source = fleet.offered()
    refresher = TrustRefresher(fleet.root)
    fastest_s = 1.0
    for _ in range(5):
        begin = time.process_time()
        refresher.refresh(device.state, source, pack, fleet.now_s)
        fastest_s = min(fastest_s, time.process_time() - begin)
    assert fastest_s < 0.03
