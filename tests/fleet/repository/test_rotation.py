"""New keys for a role: what is signed, what is refused, and that a crash leaves old keys or new ones, never none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

import fleet.repository.change_keys as change_keys_module
import fleet.repository.repository as repository_module
from agent.trust.reading import directives
from fleet.errors import ConfigError, ConflictError, NotFoundError, RefusedError, RequestError
from fleet.repository import Repository, key_path
from fleet.repository.change_keys import KeyWish, change_key, named_keys
from fleet.repository.files import write_durable
from fleet.repository.keyring import next_path, put_in_place, store_key
from fleet.repository.proposal import propose, sign_proposal
from fleet.repository.roles import to_bytes
from fleet.repository.rotation import (
    KeyChange,
    lacks_of_root,
    next_root,
    next_targets,
    retired_keys,
)
from tests.support.signed_fleet import DAY_S, Reader, SignedFleet, directive_for

ROLES = ("root", "targets", "release", "emergency", "rollout", "snapshot", "timestamp")


def rotate(fleet: SignedFleet, role: str, **wish: str) -> str:
    """Change a key; the id of the new one."""
    return change_key(fleet.home, fleet.repository, KeyWish(role=role, **wish), fleet.now_s).added


def fresh(count: int = 1) -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


# --- the next root and the next targets -----------------------------------------------------------


def test_the_next_root_differs_in_keys_number_and_expiry(fleet: SignedFleet) -> None:
    root = fleet.repository.generation.root
    (key,) = fresh()
    old = root.roles["timestamp"].keyids[0]
    change = KeyChange(role="timestamp", add=(key.public_key,), revoke=frozenset({old}))
    later_s = fleet.now_s + 9 * DAY_S
    following = next_root(root, [change], later_s)
    assert following.signatures == {}
    assert following.signed.version == root.version + 1
    assert following.signed.expires.timestamp() == later_s + 400 * DAY_S
    assert following.signed.roles["timestamp"].keyids == [key.public_key.keyid]
    assert old not in following.signed.keys
    assert root.roles["timestamp"].keyids == [old]  # the present one is as it was
    same = following.signed.to_dict() | {
        name: root.to_dict()[name] for name in ("version", "expires", "keys", "roles")
    }
    assert same == root.to_dict()


def test_a_renewed_root_has_the_same_keys(fleet: SignedFleet) -> None:
    root = fleet.repository.generation.root
    following = next_root(root, [], fleet.now_s).signed
    assert (following.keys, following.roles) == (root.keys, root.roles)


def test_who_has_to_sign_the_next_root(fleet: SignedFleet) -> None:
    root = fleet.repository.generation.root
    (key,) = fresh()
    old = fleet.key("root")
    change = KeyChange(role="root", add=(key.public_key,), revoke=frozenset({old.public_key.keyid}))
    following = next_root(root, [change], fleet.now_s)
    assert [lack.signed_for for lack in lacks_of_root(root, following)] == [
        "the present root",
        "the next root",
    ]
    following.sign(key, append=True)
    (lack,) = lacks_of_root(root, following)
    assert (lack.missing, lack.key_ids) == (1, (old.public_key.keyid,))
    assert old.public_key.keyid[:12] in str(lack)
    following.sign(old, append=True)
    assert lacks_of_root(root, following) == ()


@pytest.mark.parametrize("change", [next_root, next_targets])
def test_a_role_that_is_not_there(fleet: SignedFleet, change: Callable[..., object]) -> None:
    generation = fleet.repository.generation
    current = generation.root if change is next_root else generation.targets("targets")
    with pytest.raises(NotFoundError, match="nobody"):
        change(current, [KeyChange(role="nobody")], fleet.now_s)


def test_a_key_that_is_not_there(fleet: SignedFleet) -> None:
    change = KeyChange(role="snapshot", revoke=frozenset({"e" * 64}))
    with pytest.raises(NotFoundError, match="snapshot has no key eeeeeeeeeeee; it has "):
        next_root(fleet.repository.generation.root, [change], fleet.now_s)


def test_fewer_keys_than_signatures(fleet: SignedFleet) -> None:
    root = fleet.repository.generation.root
    change = KeyChange(role="snapshot", revoke=frozenset(root.roles["snapshot"].keyids))
    with pytest.raises(RefusedError, match="needs 1 signatures and would have 0 keys"):
        next_root(root, [change], fleet.now_s)


@pytest.mark.parametrize("of", ["root", "timestamp"])
def test_one_key_for_two_roles(fleet: SignedFleet, of: str) -> None:
    change = KeyChange(role="snapshot", add=(fleet.key(of).public_key,))
    with pytest.raises(RefusedError, match="every role has keys of its own"):
        next_root(fleet.repository.generation.root, [change], fleet.now_s)


def test_a_key_that_was_taken_away_is_not_taken_again(fleet: SignedFleet, tmp_path: Path) -> None:
    old = fleet.key("timestamp")
    rotate(fleet, "timestamp")
    roots = [file.metadata.signed for file in fleet.repository.generation.roots]
    assert retired_keys(roots) == {old.public_key.keyid}
    path = tmp_path / "again.pem"
    path.write_bytes(old.private_bytes)
    with pytest.raises(RefusedError, match="taken away by an earlier root"):
        rotate(fleet, "timestamp", new_key=str(path))


# --- changing a key in a folder -------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_every_role_gets_a_new_key(fleet: SignedFleet, role: str) -> None:
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    old = fleet.key(role).public_key.keyid
    new = rotate(fleet, role)
    assert fleet.key(role).public_key.keyid == new
    assert not next_path(key_path(fleet.home, role)).exists()
    assert old not in named_keys(fleet.repository.generation)
    for repository in (fleet.repository, Repository(fleet.home)):
        assert repository.set_directives([directive_for(bundle, halt=True)], fleet.now_s)
        assert repository.set_directives([directive_for(bundle)], fleet.now_s)
        fleet.reopen()
    fleet.publish(version="2")
    Reader(fleet.root).refresh(fleet.offered(), fleet.repository.pack(), fleet.now_s)


def test_every_root_stays_where_devices_find_it(fleet: SignedFleet) -> None:
    for _ in range(3):
        rotate(fleet, "root")
    assert fleet.repository.metadata("1.root.json") == fleet.root
    assert [fleet.read(f"{version}.root.json").signed.version for version in (1, 2, 3, 4)] == [
        1,
        2,
        3,
        4,
    ]


def test_keys_that_have_to_sign_and_are_not_here(fleet: SignedFleet, tmp_path: Path) -> None:
    away = tmp_path / "stick" / "root.pem"
    away.parent.mkdir()
    key_path(fleet.home, "root").rename(away)
    version = fleet.repository.version
    asked = change_key(fleet.home, fleet.repository, KeyWish(role="timestamp"), fleet.now_s)
    assert asked.request is not None
    assert asked.request.role == "root"
    assert asked.key_file == next_path(key_path(fleet.home, "timestamp"))
    assert fleet.repository.version == version
    wish = KeyWish(role="timestamp", keys=(str(away),))
    done = change_key(fleet.home, fleet.repository, wish, fleet.now_s)
    assert (done.added, done.request) == (asked.added, None)
    assert fleet.repository.generation.root.version == 2


def test_the_new_key_of_an_offline_holder(fleet: SignedFleet, tmp_path: Path) -> None:
    """Only its public half is here; the holder signs the role, and what is unsigned until then is not taken."""
    fleet.publish()
    holder = fresh()[0]
    old = fleet.key("release").public_key.keyid
    change = KeyChange(role="release", add=(holder.public_key,), revoke=frozenset({old}))
    proposal = propose(fleet.repository.generation, change, fleet.now_s)
    assert set(proposal.metadata) == {"targets", "release"}
    sign_proposal(proposal, [fleet.key("targets")])
    assert [lack.role for lack in proposal.lacks] == ["release"]
    with pytest.raises(RefusedError, match="release: 1 signature more"):
        fleet.repository.adopt(proposal.files(), fleet.now_s)
    with pytest.raises(RefusedError, match="release: 1 signature more"):
        fleet.repository.adopt({"targets": proposal.files()["targets"]}, fleet.now_s)
    sign_proposal(proposal, [holder])
    assert proposal.lacks == ()
    assert fleet.repository.adopt(proposal.files(), fleet.now_s)
    assert not fleet.repository.adopt(proposal.files(), fleet.now_s)
    Reader(fleet.root).refresh(fleet.offered(), None, fleet.now_s)


def test_which_of_several_keys(fleet: SignedFleet) -> None:
    other = fresh()[0]
    generation = fleet.repository.generation
    first = generation.root.roles["targets"].keyids[0]
    root = next_root(
        generation.root, [KeyChange(role="targets", add=(other.public_key,))], fleet.now_s
    )
    root.sign(fleet.key("root"))
    fleet.repository.adopt({"root": to_bytes(root)}, fleet.now_s)
    with pytest.raises(RequestError, match=r"targets has 2 keys .*say with --revoke"):
        rotate(fleet, "targets")
    with pytest.raises(NotFoundError, match="no key that begin"):
        rotate(fleet, "targets", revoke="x")
    rotate(fleet, "targets", revoke=other.public_key.keyid[:10])
    keyids = fleet.repository.generation.root.roles["targets"].keyids
    assert first in keyids
    assert len(keyids) == 2
    assert other.public_key.keyid not in keyids
    assert list((fleet.home / "keys" / "offline").glob("targets-for-*.pem"))


def test_unknown_role(fleet: SignedFleet) -> None:
    with pytest.raises(
        NotFoundError, match="there is no role nobody; there are emergency, release, "
    ):
        rotate(fleet, "nobody")


# --- what is handed in ----------------------------------------------------------------------------


def signed_root(fleet: SignedFleet, change: Callable[[Metadata], None]) -> bytes:  # type: ignore[type-arg]
    root = next_root(fleet.repository.generation.root, [], fleet.now_s)
    change(root)
    root.sign(fleet.key("root"))
    return to_bytes(root)


def other_fleet(root: Metadata) -> None:  # type: ignore[type-arg]
    root.signed.unrecognized_fields["x-muster-fleet"] = "other"


def expired(root: Metadata) -> None:  # type: ignore[type-arg]
    root.signed.expires = root.signed.expires.replace(year=2000)


def ahead(root: Metadata) -> None:  # type: ignore[type-arg]
    root.signed.version += 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (other_fleet, RefusedError, "names another fleet"),
        (expired, RefusedError, "the root metadata has expired"),
        (ahead, ConflictError, "version 3; the next is 2"),
    ],
)
def test_a_root_that_is_not_taken(
    fleet: SignedFleet,
    change: Callable[[Metadata], None],  # type: ignore[type-arg]
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        fleet.repository.adopt({"root": signed_root(fleet, change)}, fleet.now_s)
    assert fleet.repository.generation.root.version == 1


@pytest.mark.parametrize("role", ["root", "targets", "release"])
@pytest.mark.parametrize("content", [b"", b"{}", b"{" * 600_000], ids=["empty", "none", "huge"])
def test_files_that_are_none(fleet: SignedFleet, role: str, content: bytes) -> None:
    with pytest.raises(RefusedError, match=f"the {role} metadata "):
        fleet.repository.adopt({role: content}, fleet.now_s)


def test_a_file_of_another_role(fleet: SignedFleet) -> None:
    timestamp = fleet.repository.metadata("timestamp.json") or b""
    for role in ("root", "targets"):
        with pytest.raises(RefusedError, match="that is timestamp metadata"):
            fleet.repository.adopt({role: timestamp}, fleet.now_s)


def test_targets_that_forget_a_role(fleet: SignedFleet) -> None:
    targets = next_targets(fleet.repository.generation.targets("targets"), [], fleet.now_s)
    del targets.signed.delegations.roles["rollout"]  # type: ignore[union-attr]
    targets.sign(fleet.key("targets"))
    with pytest.raises(RefusedError, match="no longer speaks of rollout"):
        fleet.repository.adopt({"targets": to_bytes(targets)}, fleet.now_s)


def test_new_keys_of_the_server_that_are_not_here(fleet: SignedFleet) -> None:
    """The root is fine, and taking it over would leave a server that cannot sign: refused."""
    old = fleet.key("snapshot").public_key.keyid
    change = KeyChange(role="snapshot", add=(fresh()[0].public_key,), revoke=frozenset({old}))
    root = next_root(fleet.repository.generation.root, [change], fleet.now_s)
    root.sign(fleet.key("root"))
    with pytest.raises(ConfigError, match="is not the snapshot key of this fleet"):
        fleet.repository.adopt({"root": to_bytes(root)}, fleet.now_s)
    fleet.direct(directive_for(fleet.publish()))  # goes on as before
    assert fleet.repository.metadata("2.root.json") is None


# --- crashes --------------------------------------------------------------------------------------


class PowerCutError(Exception):
    """The machine stops."""


@pytest.mark.parametrize("files_written", range(7))
@pytest.mark.parametrize("role", ROLES)
def test_a_crash_while_keys_change(
    fleet: SignedFleet, monkeypatch: pytest.MonkeyPatch, role: str, files_written: int
) -> None:
    """Whatever was written: opened again it is one fleet that devices follow, and the change can be made again."""
    bundle = fleet.publish()
    fleet.direct(directive_for(bundle))
    device = Reader(fleet.root)
    device.refresh(fleet.offered(), None, fleet.now_s)
    left = files_written

    def write(path: Path, content: bytes, mode: int = 0o644) -> None:
        nonlocal left
        if left == 0:
            raise PowerCutError
        left -= 1
        write_durable(path, content, mode)

    before = fleet.key(role).public_key.keyid
    with monkeypatch.context() as patched:
        patched.setattr(repository_module, "write_durable", write)
        try:
            rotate(fleet, role)
        except PowerCutError:
            assert before in named_keys(fleet.repository.generation)
    fleet.reopen()
    device.refresh(fleet.offered(), fleet.repository.pack(), fleet.now_s)
    fleet.direct(directive_for(bundle, halt=True))
    device.refresh(fleet.offered(), None, fleet.now_s)
    assert directives(device.state)[0].halt
    rotate(fleet, role)
    assert before not in named_keys(fleet.repository.generation)
    fleet.direct(directive_for(bundle))
    device.refresh(fleet.offered(), fleet.repository.pack(), fleet.now_s)
    assert not directives(device.state)[0].halt
    assert not list((fleet.home / "repository" / "metadata").glob("timestamp.of*"))


@pytest.mark.parametrize("role", ROLES)
def test_a_crash_before_the_new_key_has_its_place(
    fleet: SignedFleet, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """The metadata names the new key and its file is still called the next one: it is found."""
    bundle = fleet.publish()
    calls = 0

    def cut(home: Path, named: frozenset[str]) -> list[Path]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise PowerCutError
        return put_in_place(home, named)

    with monkeypatch.context() as patched:
        patched.setattr(change_keys_module, "put_in_place", cut)
        with pytest.raises(PowerCutError):
            rotate(fleet, role)
    place = key_path(fleet.home, role)
    assert next_path(place).exists()
    fleet.reopen()
    fleet.direct(directive_for(bundle))
    first = fleet.key(role).public_key.keyid
    rotate(fleet, role)
    assert not next_path(place).exists()
    assert fleet.key(role).public_key.keyid != first
    fleet.direct(directive_for(bundle, halt=True))
    Reader(fleet.root).refresh(fleet.offered(), None, fleet.now_s)


def test_a_key_made_before_a_crash_is_used_by_the_next_attempt(fleet: SignedFleet) -> None:
    made = fresh()[0]
    store_key(next_path(key_path(fleet.home, "timestamp")), made)
    assert rotate(fleet, "timestamp") == made.public_key.keyid
