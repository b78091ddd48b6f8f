"""Attacks with keys that were stolen and replaced, and devices that follow every change of keys.

Each key is changed the way `fleet key rotate` does it; the device is a real reader with its own state.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from agent.trust import TrustState
from agent.trust.errors import (
    ExpiredError,
    RefusedMetadataError,
    RollbackError,
    SignatureError,
)
from agent.trust.limits import TrustLimits
from agent.trust.pack import encode_pack, open_pack
from agent.trust.reading import directives, releases
from fleet.repository import key_path
from fleet.repository.change_keys import KeyWish, change_key
from fleet.repository.roles import to_bytes
from fleet.repository.rotation import KeyChange, next_root
from tests.support.signed_fleet import DAY_S, OfferedFiles, Reader, SignedFleet, directive_for

ROLES = ("root", "targets", "release", "rollout", "snapshot", "timestamp")


def rotate(fleet: SignedFleet, *roles: str) -> None:
    for role in roles:
        change_key(fleet.home, fleet.repository, KeyWish(role=role), fleet.now_s)


def refused(
    device: Reader, source: OfferedFiles, pack: bytes | None, now_s: float
) -> RefusedMetadataError:
    """Refresh, expect a refusal, keep its progress as the agent does, and check that nothing that counts changed."""
    before = device.state
    with pytest.raises(RefusedMetadataError) as caught:
        device.refresh(source, pack, now_s)
    if caught.value.progress is not None:
        device.state = caught.value.progress
    assert directives(device.state) == directives(before)
    assert releases(device.state) == releases(before)
    return caught.value


@contextmanager
def in_the_hands_of(fleet: SignedFleet, role: str, key: CryptoSigner) -> Iterator[None]:
    """What is forged meanwhile is signed with this key for the role."""
    path = key_path(fleet.home, role)
    held = path.read_bytes()
    path.write_bytes(key.private_bytes)
    yield
    path.write_bytes(held)


def newest_root(fleet: SignedFleet) -> Metadata[Root]:
    return Metadata.from_bytes(fleet.repository.generation.roots[-1].content)


def forged(fleet: SignedFleet, role: str) -> tuple[OfferedFiles, bytes | None]:
    """A newer file of a role, and whatever is needed to lead a device to it."""
    if role == "root":
        root = newest_root(fleet).signed
        root.version += 1
        return fleet.offered(root=fleet.signed_by("root", root)), None
    if role == "timestamp":
        return fleet.offered(), fleet.pack_with_fresh_timestamp(fleet.now_s)
    if role in {"snapshot", "rollout"}:
        return fleet.offered(), fleet.forged_pack()
    signed = fleet.repository.generation.targets(role)
    signed.version += 1
    raw = fleet.signed_by(role, signed)
    return fleet.offered(**{role: raw}), fleet.pack_with_role(role, raw, signed.version)


# --- every key changes, and devices follow --------------------------------------------------------


@pytest.mark.parametrize("with_pack", [True, False], ids=["pack", "server"])
@pytest.mark.parametrize("role", ROLES)
def test_a_device_follows_a_new_key_of_every_role(
    fleet: SignedFleet, device: Reader, role: str, with_pack: bool
) -> None:
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    rotate(fleet, role)
    pack = fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), pack if with_pack else None, fleet.now_s)
    assert directives(device.state)[0].halt
    fleet.publish(version="2")
    device.refresh(fleet.offered(), fleet.repository.pack() if with_pack else None, fleet.now_s)
    assert len(releases(device.state)) == 2


@pytest.mark.parametrize("role", ROLES)
def test_signature_of_a_key_that_was_replaced(
    fleet: SignedFleet, device: Reader, role: str
) -> None:
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    stolen = fleet.key(role)
    rotate(fleet, role)
    device.refresh(fleet.offered(), None, fleet.now_s)
    believing = Reader(device.root, device.state)
    with in_the_hands_of(fleet, role, stolen):
        source, pack = forged(fleet, role)
    assert type(refused(device, source, pack, fleet.now_s)) is SignatureError
    if role != "root":  # the same, signed with the new key
        believing.refresh(*forged(fleet, role), fleet.now_s)


@pytest.mark.parametrize("with_pack", [True, False], ids=["pack", "server"])
def test_a_device_that_slept_through_three_roots(
    fleet: SignedFleet, device: Reader, with_pack: bool
) -> None:
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    for _ in range(3):
        fleet.now_s += 100 * DAY_S
        fleet.repository.resign_if_due(fleet.now_s)
        rotate(fleet, "root", "timestamp", "snapshot")
    rotate(fleet, "targets", "release", "rollout")
    pack = fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), pack if with_pack else None, fleet.now_s)
    assert directives(device.state)[0].halt
    assert f"{newest_root(fleet).signed.version}.root.json" in device.state.files


def test_a_device_from_the_first_day_walks_the_whole_chain(fleet: SignedFleet) -> None:
    """Given the first root alone, years later."""
    bundle = fleet.publish()
    rotate(fleet, *ROLES, *ROLES)
    device = Reader(fleet.root)
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    assert [directive.id for directive in directives(device.state)] == ["r1"]


def test_more_roots_than_are_followed_at_once(fleet: SignedFleet, device: Reader) -> None:
    """64 in one refresh; they stay, and the next refresh follows the rest."""
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    folder = fleet.home / "repository" / "metadata"
    root, key = newest_root(fleet), fleet.key("root")
    for _ in range(70):
        root = next_root(root.signed, [], fleet.now_s)
        root.sign(key)
        (folder / f"{root.signed.version}.root.json").write_bytes(to_bytes(root))
    fleet.reopen()
    rotate(fleet, "timestamp")
    fleet.direct(directive_for(bundle, halt=True))
    error = refused(device, fleet.offered(), None, fleet.now_s)
    assert type(error) is SignatureError
    assert "65.root.json" in device.state.files
    assert "66.root.json" not in device.state.files
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert directives(device.state)[0].halt


# --- roots that do not count ----------------------------------------------------------------------


def two_of_three(fleet: SignedFleet) -> list[CryptoSigner]:
    """Bring the root to two signatures of three keys; the keys."""
    keys = [fleet.key("root"), CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()]
    added = tuple(key.public_key for key in keys[1:])
    root = next_root(
        fleet.repository.generation.root, [KeyChange(role="root", add=added)], fleet.now_s
    )
    root.signed.roles["root"].threshold = 2
    for key in keys:
        root.sign(key, append=True)
    fleet.repository.adopt({"root": to_bytes(root)}, fleet.now_s)
    return keys


def new_root(fleet: SignedFleet, signers: list[CryptoSigner], keys: list[CryptoSigner]) -> bytes:
    """The next root, of other keys, signed by whoever is given."""
    base = fleet.repository.generation.root
    change = KeyChange(
        role="root",
        add=tuple(key.public_key for key in keys),
        revoke=frozenset(base.roles["root"].keyids),
    )
    root = next_root(base, [change], fleet.now_s)
    for key in signers:
        root.sign(key, append=True)
    return to_bytes(root)


def test_root_signed_by_the_new_threshold_alone(fleet: SignedFleet, device: Reader) -> None:
    two_of_three(fleet)
    device.refresh(fleet.offered(), None, fleet.now_s)
    own = [CryptoSigner.generate_ed25519() for _ in range(2)]
    source = fleet.offered(root=new_root(fleet, own, own))
    assert type(refused(device, source, None, fleet.now_s)) is SignatureError


def test_root_signed_by_the_new_threshold_and_one_old_key_of_two(
    fleet: SignedFleet, device: Reader
) -> None:
    old = two_of_three(fleet)
    device.refresh(fleet.offered(), None, fleet.now_s)
    own = [CryptoSigner.generate_ed25519() for _ in range(2)]
    source = fleet.offered(root=new_root(fleet, [*own, old[0]], own))
    assert type(refused(device, source, None, fleet.now_s)) is SignatureError
    fleet.repository.adopt({"root": new_root(fleet, [*own, old[0], old[2]], own)}, fleet.now_s)
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert "3.root.json" in device.state.files


def test_root_signed_by_the_old_threshold_alone(fleet: SignedFleet, device: Reader) -> None:
    """Its own keys have to prove that they are there, or the fleet would be locked out."""
    old = two_of_three(fleet)
    device.refresh(fleet.offered(), None, fleet.now_s)
    own = [CryptoSigner.generate_ed25519() for _ in range(2)]
    source = fleet.offered(root=new_root(fleet, old, own))
    assert type(refused(device, source, None, fleet.now_s)) is SignatureError


# --- fast-forward ---------------------------------------------------------------------------------


def fast_forwarded(fleet: SignedFleet, versions: int = 2**31) -> bytes:
    """A pack by whoever has the keys of snapshot and timestamp: versions that the fleet will never reach."""
    generation = fleet.repository.generation
    snapshot = Metadata.from_bytes(generation.snapshot.content).signed
    timestamp = Metadata.from_bytes(generation.timestamp.content).signed
    files = open_pack(fleet.repository.pack(), TrustLimits())
    snapshot.version = timestamp.version = versions
    snapshot.meta["rollout.json"].version = versions
    raw = fleet.signed_by("snapshot", snapshot)
    timestamp.snapshot_meta.version = versions
    timestamp.snapshot_meta.length = len(raw)
    timestamp.snapshot_meta.hashes = None
    files[f"{versions}.snapshot.json"] = raw
    files["timestamp.json"] = fleet.signed_by("timestamp", timestamp)
    return encode_pack(files)


def test_fast_forward_with_the_snapshot_and_timestamp_keys(
    fleet: SignedFleet, device: Reader
) -> None:
    """It stops the device from hearing the fleet; new keys for both let it hear again."""
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    refused(device, fleet.offered(), fast_forwarded(fleet), fleet.now_s)
    fleet.direct(directive_for(bundle, halt=True))
    assert type(refused(device, fleet.offered(), None, fleet.now_s)) is RollbackError

    rotate(fleet, "timestamp")
    error = refused(device, fleet.offered(), None, fleet.now_s)
    assert type(error) is RollbackError  # the snapshot was pushed too, and its key is the old one

    rotate(fleet, "snapshot")
    device.refresh(fleet.offered(), fleet.repository.pack(), fleet.now_s)
    assert directives(device.state)[0].halt
    assert fleet.repository.version < 100


def test_fast_forward_with_the_timestamp_key_alone(fleet: SignedFleet, device: Reader) -> None:
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    files = open_pack(fleet.repository.pack(), TrustLimits())
    timestamp = Metadata.from_bytes(files["timestamp.json"]).signed
    timestamp.version = 2**31
    pack = encode_pack({**files, "timestamp.json": fleet.signed_by("timestamp", timestamp)})
    device.refresh(fleet.offered(), pack, fleet.now_s)
    fleet.direct(directive_for(bundle, halt=True))
    assert type(refused(device, fleet.offered(), None, fleet.now_s)) is RollbackError
    rotate(fleet, "timestamp")
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert directives(device.state)[0].halt


def test_fast_forward_pack_again_after_the_keys_were_replaced(
    fleet: SignedFleet, device: Reader
) -> None:
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    pack = fast_forwarded(fleet)
    refused(device, fleet.offered(), pack, fleet.now_s)
    rotate(fleet, "timestamp", "snapshot")
    device.refresh(fleet.offered(), None, fleet.now_s)
    replayed = encode_pack(
        open_pack(fleet.repository.pack(), TrustLimits()) | open_pack(pack, TrustLimits())
    )
    assert type(refused(device, fleet.offered(), replayed, fleet.now_s)) is SignatureError


def test_floor_pushed_ahead_and_the_new_root_came_before_its_timestamp(
    fleet: SignedFleet, device: Reader
) -> None:
    """A refresh that gets no further than the root must not make the forged time stay for ever."""
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    far_s = fleet.now_s + 100 * DAY_S
    forged_pack = fleet.forged_pack(signed_at_s=far_s, expires_s=far_s + 10 * DAY_S)
    device.refresh(fleet.offered(), forged_pack, fleet.now_s)
    assert device.state.floor_s == far_s

    old_timestamp = fleet.repository.metadata("timestamp.json")
    rotate(fleet, "timestamp", "snapshot")
    source = fleet.offered(timestamp=old_timestamp)
    assert type(refused(device, source, None, fleet.now_s)) in {SignatureError, ExpiredError}
    assert "2.root.json" in device.state.files

    fleet.now_s += 60
    fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert device.state.floor_s == fleet.now_s
    assert directives(device.state)[0].halt


def test_clock_set_back_after_a_change_of_keys(fleet: SignedFleet, device: Reader) -> None:
    """New keys elsewhere, or for the root itself, do not let the time fall."""
    bundle = fleet.publish()
    device.refresh(fleet.offered(), fleet.direct(directive_for(bundle)), fleet.now_s)
    old = fleet.repository.pack()
    fleet.now_s += 30 * DAY_S
    fleet.repository.resign_if_due(fleet.now_s)
    rotate(fleet, "root", "snapshot", "targets", "release", "rollout")
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert device.state.floor_s == fleet.now_s
    forgetful = Reader(fleet.root, TrustState(floor_s=device.state.floor_s))
    assert isinstance(
        refused(forgetful, fleet.offered(), old, fleet.now_s - 30 * DAY_S), ExpiredError
    )
    assert forgetful.state.floor_s == fleet.now_s
