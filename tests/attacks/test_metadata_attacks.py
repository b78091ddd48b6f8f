"""Attacks on signed metadata, one test a row of the TUF and Uptane lists: each is refused under its own name.

The attacker owns broker, storage and network. Where a test needs a stolen key, its name says which.
"""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile, Targets

from agent.trust import Directive, Reason, TrustState, Verb, decide
from agent.trust.decision import DeviceFacts
from agent.trust.errors import (
    ExpiredError,
    LengthOrHashError,
    MalformedError,
    MissingMetadataError,
    OversizeError,
    PackMalformedError,
    PackTooLargeError,
    RefusedMetadataError,
    RollbackError,
    SignatureError,
    TimeFloorError,
)
from agent.trust.limits import TrustLimits
from agent.trust.pack import encode_pack, open_pack
from agent.trust.reading import directives, read_directives, releases
from agent.trust.refresh import TrustRefresher
from tests.support.signed_fleet import DAY_S, OfferedFiles, Reader, SignedFleet, directive_for

FACTS = DeviceFacts("cam-1", "cam", "x86_64")
LIMITS = TrustLimits()


def refused(
    device: Reader, source: OfferedFiles, pack: bytes | None, now_s: float
) -> RefusedMetadataError:
    """Refresh, expect a refusal, and check that nothing can be acted on but what could before."""
    before = device.state
    with pytest.raises(RefusedMetadataError) as caught:
        device.refresh(source, pack, now_s)
    assert device.state is before
    progress = caught.value.progress
    if progress is not None:
        assert directives(progress) == directives(before)
        assert releases(progress) == releases(before)
        assert progress.floor_s >= before.floor_s
    return caught.value


def held(fleet: SignedFleet) -> dict[str, bytes]:
    return open_pack(fleet.repository.pack(), LIMITS)


def name_of(files: dict[str, bytes], role: str) -> str:
    return next(name for name in files if name.removesuffix(".json").rpartition(".")[2] == role)


# --- replay and rollback --------------------------------------------------------------------------


def test_replay_of_an_older_pack(fleet: SignedFleet, device: Reader) -> None:
    bundle = fleet.publish()
    old = fleet.direct(directive_for(bundle))
    new = fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), new, fleet.now_s)
    error = refused(device, fleet.offered(), old, fleet.now_s)
    assert type(error) is RollbackError
    assert directives(device.state)[0].halt


def test_replay_after_a_refresh_that_failed_half_way(fleet: SignedFleet, device: Reader) -> None:
    """Withholding the release role must not make the device forget the newer timestamp."""
    bundle = fleet.publish()
    old = fleet.direct(directive_for(bundle))
    device.refresh(fleet.offered(), old, fleet.now_s)
    fleet.publish(version="2")
    new = fleet.direct(directive_for(bundle, halt=True))
    error = refused(device, fleet.offered(release=None), new, fleet.now_s)
    assert type(error) is MissingMetadataError
    assert error.progress is not None
    device.state = error.progress
    assert type(refused(device, fleet.offered(), old, fleet.now_s)) is RollbackError
    device.refresh(fleet.offered(), new, fleet.now_s)
    assert directives(device.state)[0].halt


def test_rollback_of_the_directives_with_the_timestamp_and_snapshot_keys(
    fleet: SignedFleet, device: Reader
) -> None:
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    old = fleet.read("2.rollout.json")
    fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), None, fleet.now_s)
    pack = fleet.pack_that_names_rollout(old)
    assert type(refused(device, fleet.offered(), pack, fleet.now_s)) is RollbackError


def test_root_that_its_predecessor_did_not_sign(fleet: SignedFleet, device: Reader) -> None:
    device.refresh(fleet.offered(), None, fleet.now_s)
    fleet.rotate_root(new_root_key=True, sign_old=False)
    assert type(refused(device, fleet.offered(), None, fleet.now_s)) is SignatureError


def test_root_offered_again_under_the_next_number(fleet: SignedFleet, device: Reader) -> None:
    assert type(refused(device, fleet.offered(root=fleet.root), None, fleet.now_s)) is RollbackError


# --- freeze and time ------------------------------------------------------------------------------


def test_freeze(fleet: SignedFleet, device: Reader) -> None:
    pack = fleet.direct(directive_for(fleet.publish()))
    device.refresh(fleet.offered(), pack, fleet.now_s)
    error = refused(device, fleet.offered(), pack, fleet.now_s + 2 * DAY_S)
    assert type(error) is ExpiredError
    assert "timestamp.json is expired" in str(error)


@pytest.mark.parametrize(("role", "days"), [("snapshot", 8), ("rollout", 8)])
def test_freeze_of_one_role_with_the_timestamp_key(
    fleet: SignedFleet, device: Reader, role: str, days: int
) -> None:
    fleet.direct(directive_for(fleet.publish()))
    pack = fleet.pack_with_fresh_timestamp(fleet.now_s + days * DAY_S)
    error = refused(device, fleet.offered(), pack, fleet.now_s + days * DAY_S)
    assert type(error) is ExpiredError


@pytest.mark.parametrize(("role", "days"), [("release", 181), ("targets", 366), ("root", 401)])
def test_offline_roles_expire(fleet: SignedFleet, device: Reader, role: str, days: int) -> None:
    later_s = fleet.now_s + days * DAY_S
    fleet.repository.resign_if_due(later_s)
    assert type(refused(device, fleet.offered(), None, later_s)) is ExpiredError


def test_clock_set_back(fleet: SignedFleet, device: Reader) -> None:
    """What has expired stays expired, on a device whose clock an attacker moves."""
    old = fleet.direct(directive_for(fleet.publish()))
    fleet.now_s += 30 * DAY_S
    fleet.repository.resign_if_due(fleet.now_s)
    device.refresh(fleet.offered(), None, fleet.now_s)
    forgetful = Reader(fleet.root, TrustState(floor_s=device.state.floor_s))
    error = refused(forgetful, fleet.offered(), old, fleet.now_s - 30 * DAY_S)
    assert type(error) is TimeFloorError
    assert "set the clock" in str(error)


def test_floor_pushed_ahead_with_the_timestamp_key_alone(
    fleet: SignedFleet, device: Reader
) -> None:
    """A timestamp that claims to be later than what it leads to lives does not move the floor."""
    far_s = fleet.now_s + 300 * DAY_S
    pack = fleet.pack_with_fresh_timestamp(far_s)
    device.refresh(fleet.offered(), pack, fleet.now_s)
    assert device.state.floor_s == 0.0


def test_floor_pushed_ahead_with_all_online_keys(fleet: SignedFleet, device: Reader) -> None:
    """It can be pushed, as far as the offline roles live; new timestamp keys in a new root heal it."""
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    far_s = fleet.now_s + 100 * DAY_S
    device.refresh(
        fleet.offered(),
        fleet.forged_pack(signed_at_s=far_s, expires_s=far_s + 10 * DAY_S),
        fleet.now_s,
    )
    assert device.state.floor_s == far_s

    healthy = fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), healthy, fleet.now_s)
    assert not directives(device.state)[0].halt  # the forged timestamp has the same version

    fleet.rotate_root("timestamp", "snapshot")
    fleet.now_s += 60
    fleet.resign_everything()
    device.refresh(fleet.offered(), fleet.repository.pack(), fleet.now_s)
    assert device.state.floor_s == fleet.now_s
    assert directives(device.state)[0].halt


# --- tampering ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "rollout"])
def test_altered_file_in_the_pack(fleet: SignedFleet, device: Reader, role: str) -> None:
    fleet.direct(directive_for(fleet.publish()))
    files = held(fleet)
    name = name_of(files, role)
    files[name] = (
        files[name].replace(b'"version":', b'"version": ', 1).replace(b'"sig":"', b'"sig":"0', 1)
    )
    error = refused(device, fleet.offered(), encode_pack(files), fleet.now_s)
    assert type(error) in {SignatureError, LengthOrHashError, MalformedError, OversizeError}


@pytest.mark.parametrize("role", ["targets", "release"])
def test_altered_file_from_the_server(fleet: SignedFleet, device: Reader, role: str) -> None:
    fleet.publish()
    raw = fleet.repository.metadata("2.release.json" if role == "release" else "1.targets.json")
    assert raw is not None
    altered = raw.replace(b'"sig":"', b'"sig":"0', 1)[: len(raw)]
    source = fleet.offered(**{role: altered})
    assert type(refused(device, source, None, fleet.now_s)) is LengthOrHashError


def test_directive_changed_in_flight(fleet: SignedFleet, device: Reader) -> None:
    fleet.direct(directive_for(fleet.publish(), percent_bp=100))
    files = held(fleet)
    name = name_of(files, "rollout")
    files[name] = files[name].replace(b'"percent_bp":100,', b'"percent_bp":999,')
    error = refused(device, fleet.offered(), encode_pack(files), fleet.now_s)
    assert type(error) is LengthOrHashError


def test_every_byte_of_the_pack_is_covered(fleet: SignedFleet, device: Reader) -> None:
    """Whatever byte is flipped: refused, or the same directives."""
    pack = fleet.direct(directive_for(fleet.publish()))
    honest = TrustRefresher(fleet.root).refresh(TrustState(), fleet.offered(), pack, fleet.now_s)
    plain = gzip.decompress(pack)
    for place in range(0, len(plain), 3):
        altered = bytearray(plain)
        altered[place] ^= 0x01
        try:
            state = device.refresh(
                fleet.offered(), gzip.compress(bytes(altered), mtime=0), fleet.now_s
            )
        except RefusedMetadataError:
            continue
        assert directives(state) == directives(honest)
        device.state = TrustState()


# --- mix and match --------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["snapshot", "rollout"])
def test_mix_and_match(fleet: SignedFleet, device: Reader, role: str) -> None:
    """Files that were all signed, but not together."""
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle, percent_bp=10_000))
    earlier = held(fleet)
    fleet.direct(directive_for(bundle, percent_bp=1_000))
    mixed = held(fleet)
    mixed[name_of(mixed, role)] = earlier[name_of(earlier, role)]
    error = refused(device, fleet.offered(), encode_pack(mixed), fleet.now_s)
    assert type(error) in {LengthOrHashError, OversizeError}


def test_release_of_another_generation(fleet: SignedFleet, device: Reader) -> None:
    fleet.publish()
    old = fleet.repository.metadata("2.release.json")
    fleet.publish(version="2")
    error = refused(device, fleet.offered(release=old), None, fleet.now_s)
    assert type(error) is LengthOrHashError


def test_another_fleets_pack(fleet: SignedFleet, device: Reader, tmp_path: Path) -> None:
    other = SignedFleet(tmp_path / "other")
    pack = other.direct(directive_for(other.publish()))
    assert type(refused(device, other.offered(), pack, fleet.now_s)) is SignatureError


# --- endless data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "release", "rollout"])
def test_endless_data(fleet: SignedFleet, device: Reader, role: str) -> None:
    source = fleet.offered(**{role: b"{" * (LIMITS.targets_bytes + 1)})
    error = refused(device, source, None, fleet.now_s)
    assert type(error) is OversizeError
    assert str(LIMITS.targets_bytes + 1) in str(error)


def test_pack_larger_than_allowed(fleet: SignedFleet, device: Reader) -> None:
    error = refused(device, fleet.offered(), bytes(LIMITS.pack_bytes + 1), fleet.now_s)
    assert type(error) is PackTooLargeError


def test_gzip_bomb(fleet: SignedFleet, device: Reader) -> None:
    bomb = gzip.compress(bytes(40 * 1024 * 1024), mtime=0)
    assert len(bomb) < LIMITS.pack_bytes
    assert type(refused(device, fleet.offered(), bomb, fleet.now_s)) is PackTooLargeError


def test_more_files_than_allowed(fleet: SignedFleet, device: Reader) -> None:
    pack = encode_pack({f"{number}.root.json": b"" for number in range(1, LIMITS.pack_files + 2)})
    assert type(refused(device, fleet.offered(), pack, fleet.now_s)) is PackTooLargeError


def test_root_chain_without_end(fleet: SignedFleet) -> None:
    """At most so many rotations in one refresh; the rest is left for the next."""
    for _ in range(4):
        fleet.rotate_root()
    refresher = TrustRefresher(fleet.root, replace(LIMITS, root_rotations=2))
    source = fleet.offered()
    state = refresher.refresh(TrustState(), source, None, fleet.now_s)
    assert {name for name in state.files if "root" in name} == {f"{n}.root.json" for n in (1, 2, 3)}
    assert "4.root.json" not in source.asked


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not gzip",
        gzip.compress(b"\xff\xff", mtime=0),
        gzip.compress(b"", mtime=0)[:-4],
        gzip.compress(b"", mtime=0) + b"tail",
        gzip.compress(b"", mtime=0) + gzip.compress(b"", mtime=0),
        encode_pack({"../../etc/passwd": b""}),
        encode_pack({"/timestamp.json": b""}),
        encode_pack({".json": b""}),
    ],
)
def test_pack_that_is_none(fleet: SignedFleet, device: Reader, payload: bytes) -> None:
    assert type(refused(device, fleet.offered(), payload, fleet.now_s)) is PackMalformedError


def test_pack_with_a_name_twice(fleet: SignedFleet, device: Reader) -> None:
    twice = gzip.decompress(encode_pack({"timestamp.json": b"1"})) * 2
    assert (
        type(refused(device, fleet.offered(), gzip.compress(twice, mtime=0), fleet.now_s))
        is PackMalformedError
    )


# --- withholding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "rollout"])
def test_file_left_out_of_the_pack(fleet: SignedFleet, device: Reader, role: str) -> None:
    """A pack must bring what changes: the server is not asked in its place."""
    fleet.direct(directive_for(fleet.publish()))
    files = held(fleet)
    del files[name_of(files, role)]
    source = fleet.offered()
    error = refused(device, source, encode_pack(files), fleet.now_s)
    assert type(error) is MissingMetadataError
    assert not [name for name in source.asked if role in name]


def test_new_root_withheld_by_the_broker_is_found_at_the_server(
    fleet: SignedFleet, device: Reader
) -> None:
    fleet.direct(directive_for(fleet.publish()))
    device.refresh(fleet.offered(), None, fleet.now_s)
    fleet.rotate_root("timestamp")
    fleet.resign_everything()
    files = held(fleet)
    del files["2.root.json"]
    assert type(refused(device, fleet.offered(), encode_pack(files), fleet.now_s)) is SignatureError
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert "2.root.json" in device.state.files


# --- stolen keys ----------------------------------------------------------------------------------


def decision_of(device: Reader, now_s: float) -> tuple[Verb, Reason]:
    (decision,) = decide(
        directives(device.state),
        releases(device.state),
        FACTS,
        {},
        device.state.floors_for("cam"),
        now_s,
    )
    return decision.verb, decision.reason


def test_arbitrary_bundle_with_all_online_keys(fleet: SignedFleet, device: Reader) -> None:
    evil = Directive(
        id="r1",
        number=1,
        model="m",
        bundle="bundles/cam/m-1",
        sha256="e" * 64,
        length=9,
        percent_bp=10_000,
    )
    device.refresh(fleet.offered(), fleet.direct(evil), fleet.now_s)
    assert decision_of(device, fleet.now_s) == (Verb.REFUSE, Reason.NOT_RELEASED)


def test_both_must_agree_with_all_online_keys(fleet: SignedFleet, device: Reader) -> None:
    bundle = fleet.publish()
    pack = fleet.direct(replace(directive_for(bundle), sha256="e" * 64))
    device.refresh(fleet.offered(), pack, fleet.now_s)
    assert decision_of(device, fleet.now_s) == (Verb.REFUSE, Reason.BOTH_DISAGREE)


def test_whole_fleet_at_once_with_all_online_keys(fleet: SignedFleet, device: Reader) -> None:
    bundle = fleet.publish(limits=((0, 0), (3_600, 10_000)))
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    assert decision_of(device, fleet.now_s) == (Verb.NONE, Reason.SPEED_LIMIT)
    assert decision_of(device, fleet.now_s + 3_600) == (Verb.INSTALL, Reason.IN_COHORT)


def test_withdrawn_bundle_again_with_all_online_keys(fleet: SignedFleet, device: Reader) -> None:
    weak = fleet.publish(version="1")
    fleet.publish(version="2", min_release=2)
    device.refresh(fleet.offered(), fleet.direct(directive_for(weak)), fleet.now_s)
    assert decision_of(device, fleet.now_s) == (Verb.REFUSE, Reason.BELOW_FLOOR)


def test_release_in_the_rollout_role(fleet: SignedFleet, device: Reader) -> None:
    """The online role cannot approve: a bundle under its own signature is not there."""
    bundle = fleet.publish()
    evil = replace(bundle, path="bundles/cam/m-2", version="2", sha256="e" * 64, release=2)
    hashes = {"sha256": evil.sha256}
    target = TargetFile(evil.length, hashes, evil.path, {"custom": evil.to_json()})
    fleet.direct(replace(directive_for(evil), id="r2"))
    pack = fleet.forged_pack(change=lambda role: role.targets.update({evil.path: target}))
    device.refresh(fleet.offered(), pack, fleet.now_s)
    assert releases(device.state) == {bundle.path: bundle}
    assert decision_of(device, fleet.now_s) == (Verb.REFUSE, Reason.NOT_RELEASED)


def test_directive_in_the_release_role(fleet: SignedFleet, device: Reader) -> None:
    """Neither can the offline role direct: each speaks for its own paths."""
    bundle = fleet.publish()
    directive = directive_for(bundle)
    hashes = {"sha256": directive.sha256}
    role = fleet.read("2.release.json").signed
    role.version += 1
    role.targets[directive.target_path] = TargetFile(
        directive.length, hashes, directive.target_path, {"custom": directive.to_json()}
    )
    raw = fleet.signed_by("release", role)
    pack = fleet.pack_with_role("release", raw, role.version)
    device.refresh(fleet.offered(release=raw), pack, fleet.now_s)
    assert directives(device.state) == ()
    assert releases(device.state) == {bundle.path: bundle}


def test_release_signed_with_the_rollout_key(fleet: SignedFleet, device: Reader) -> None:
    fleet.publish()
    release = fleet.read("2.release.json").signed
    forged = fleet.signed_by("release", release, key=fleet.key("rollout"))
    error = refused(device, fleet.offered(release=forged), None, fleet.now_s)
    assert type(error) in {LengthOrHashError, SignatureError}


def test_directive_that_contradicts_itself_with_the_rollout_key(
    fleet: SignedFleet, device: Reader
) -> None:
    """Signed for one digest in the target and another in the body: left out, the others hold."""
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle), directive_for(bundle, number=2))

    def contradict(role: Targets) -> None:
        role.targets["rollouts/r2"].hashes["sha256"] = "e" * 64

    state = device.refresh(fleet.offered(), fleet.forged_pack(change=contradict), fleet.now_s)
    assert [directive.id for directive in directives(state)] == ["r1"]
    assert "one thing in its target" in read_directives(state).unreadable["rollouts/r2"]
