"""The repository: what is signed when, what is refused, and that a crash leaves nothing half said."""

import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.metadata import Timestamp

import fleet.repository.repository as repository_module
from agent.bundle import ManifestError
from agent.trust.errors import MalformedError
from agent.trust.limits import TrustLimits
from agent.trust.pack import open_pack
from agent.trust.reading import directives
from agent.trust.refresh import SIGNED_AT_FIELD
from fleet.errors import ConfigError, ConflictError, RefusedError, ServerError
from fleet.repository import (
    ReleaseEntry,
    Repository,
    init_repository,
    key_path,
    renew_release,
    sign_release,
)
from fleet.repository.files import write_durable
from tests.support.signed_fleet import DAY_S, Reader, SignedFleet, directive_for, raw_manifest

HOUR_S = 3_600.0


def timestamp_of(fleet: SignedFleet) -> Timestamp:
    signed = fleet.read("timestamp.json").signed
    assert isinstance(signed, Timestamp)
    return signed


# --- making one -----------------------------------------------------------------------------------


def test_a_new_repository(tmp_path: Path) -> None:
    root = init_repository(tmp_path / "f", fleet_name="lab", now_s=0)
    names = {path.name for path in (tmp_path / "f/repository/metadata").iterdir()}
    assert names == {
        "1.root.json", "1.targets.json", "1.release.json", "1.emergency.json", "1.rollout.json", "1.snapshot.json",
        "timestamp.json",
    }  # fmt: skip
    assert Repository(tmp_path / "f").metadata("1.root.json") == root
    keys = list((tmp_path / "f/keys").iterdir())
    assert len(keys) == 7
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE((tmp_path / "f/keys").stat().st_mode) == 0o700


def test_nothing_that_exists_is_overwritten(fleet: SignedFleet) -> None:
    with pytest.raises(ConflictError, match="holds a repository already"):
        init_repository(fleet.home, fleet_name="lab", now_s=0)
    shutil.rmtree(fleet.home / "repository")
    with pytest.raises(ConflictError, match=r"root\.pem exists already"):
        init_repository(fleet.home, fleet_name="lab", now_s=0)


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one with `fleet init`"):
        Repository(tmp_path)


@pytest.mark.parametrize(
    ("role", "days"),
    [
        ("root", 400),
        ("targets", 365),
        ("release", 180),
        ("emergency", 30),
        ("rollout", 7),
        ("snapshot", 7),
    ],
)
def test_validity(fleet: SignedFleet, role: str, days: int) -> None:
    expires = fleet.read(f"1.{role}.json").signed.expires
    assert expires.timestamp() == fleet.now_s + days * DAY_S


# --- directives -----------------------------------------------------------------------------------


def test_the_same_directives_are_signed_once(fleet: SignedFleet) -> None:
    bundle = fleet.publish()
    one, two = directive_for(bundle), directive_for(bundle, number=2)
    assert fleet.repository.set_directives([one, two], fleet.now_s)
    version, pack = fleet.repository.version, fleet.repository.pack()
    assert not fleet.repository.set_directives([two, one], fleet.now_s + 1)
    assert not Repository(fleet.home).set_directives([one, two], fleet.now_s + 1)
    assert (fleet.repository.version, fleet.repository.pack()) == (version, pack)
    assert fleet.repository.directives() == (two, one)
    assert fleet.repository.set_directives([], fleet.now_s)
    assert fleet.repository.directives() == ()


def test_a_halt_reaches_devices_fast(fleet: SignedFleet) -> None:
    """Two hours while a rollout is under way, a day otherwise."""
    bundle = fleet.publish()
    canary = directive_for(bundle, percent_bp=100)

    def left_s() -> float:
        return timestamp_of(fleet).expires.timestamp() - fleet.now_s

    assert left_s() == DAY_S
    fleet.direct(canary)
    assert left_s() == 2 * HOUR_S
    fleet.direct(replace(canary, halt=True))
    assert left_s() == DAY_S
    fleet.direct(replace(canary, percent_bp=10_000))
    assert left_s() == DAY_S
    fleet.direct(replace(canary, kind="rollback", percent_bp=0))
    assert left_s() == DAY_S


def test_the_timestamp_says_when_it_was_signed(fleet: SignedFleet) -> None:
    fleet.now_s += 12.7
    fleet.publish()
    assert timestamp_of(fleet).unrecognized_fields[SIGNED_AT_FIELD] == int(fleet.now_s)


def test_two_directives_with_one_id(fleet: SignedFleet) -> None:
    one = directive_for(fleet.publish())
    with pytest.raises(RefusedError, match="two directives have the id r1"):
        fleet.repository.set_directives([one, replace(one, number=2)], fleet.now_s)


def test_a_directive_that_devices_would_not_understand(fleet: SignedFleet) -> None:
    one = directive_for(fleet.publish())
    with pytest.raises(MalformedError, match="percent_bp"):
        fleet.repository.set_directives([replace(one, percent_bp=10_001)], fleet.now_s)


def test_more_directives_than_fit(fleet: SignedFleet) -> None:
    one = directive_for(fleet.publish())
    many = [replace(one, id=f"r{number}", number=number) for number in range(1, 1_500)]
    version = fleet.repository.version
    with pytest.raises(RefusedError, match="devices read; end or promote some rollouts first"):
        fleet.repository.set_directives(many, fleet.now_s)
    assert fleet.repository.version == version
    assert Repository(fleet.home).version == version


# --- publishing -----------------------------------------------------------------------------------


def test_release_numbers_count_up_for_each_class_and_model(fleet: SignedFleet) -> None:
    numbers = [
        fleet.publish(version="1").release,
        fleet.publish(version="2").release,
        fleet.publish("other", "1").release,
        fleet.publish(version="1", device_class="line").release,
        fleet.publish(version="3").release,
    ]
    assert numbers == [1, 2, 1, 1, 3]


def test_an_entry_from_a_manifest(fleet: SignedFleet) -> None:
    from agent.bundle import parse_manifest

    entry = ReleaseEntry.of(parse_manifest(raw_manifest("m", "1")), min_release=1, limits=((0, 1),))
    assert entry == ReleaseEntry(
        model="m", version="1", device_class="cam", min_release=1, limits=((0, 1),)
    )


def sign(fleet: SignedFleet, version: str = "1", **changes: object) -> bytes:
    current, _ = fleet.repository.release_metadata()
    entry = ReleaseEntry(model="m", version=version, device_class="cam", **changes)  # type: ignore[arg-type]
    return sign_release(
        current, key_path(fleet.home, "release"), entry, raw_manifest("m", version), fleet.now_s
    )


def test_publishing_again_changes_nothing(fleet: SignedFleet) -> None:
    signed = sign(fleet)
    assert fleet.repository.publish(signed, fleet.now_s) == 2
    version = fleet.repository.version
    assert fleet.repository.publish(signed, fleet.now_s) == 2
    assert fleet.repository.version == version


def test_signing_a_published_bundle_again_renews_the_role(fleet: SignedFleet) -> None:
    bundle = fleet.publish()
    fleet.now_s += DAY_S
    assert fleet.publish() == bundle
    assert fleet.read("3.release.json").signed.expires.timestamp() == fleet.now_s + 180 * DAY_S
    current, _ = fleet.repository.release_metadata()
    renewed = renew_release(current, key_path(fleet.home, "release"), fleet.now_s)
    assert fleet.repository.publish(renewed, fleet.now_s) == 4


def test_a_version_is_signed_once(fleet: SignedFleet) -> None:
    fleet.publish()
    with pytest.raises(
        ConflictError, match="bundles/cam/m-1 is published already with another content"
    ):
        fleet.publish(note="changed")


def test_somebody_else_published(fleet: SignedFleet) -> None:
    mine = sign(fleet, "1")
    fleet.publish(version="2")
    with pytest.raises(ConflictError, match="publish again"):
        fleet.repository.publish(mine, fleet.now_s)


def test_entry_and_manifest_of_different_bundles(fleet: SignedFleet) -> None:
    current, _ = fleet.repository.release_metadata()
    entry = ReleaseEntry(model="m", version="1", device_class="cam")
    key = key_path(fleet.home, "release")
    with pytest.raises(RefusedError, match="describes bundles/cam/m-2, not bundles/cam/m-1"):
        sign_release(current, key, entry, raw_manifest("m", "2"), 0)
    with pytest.raises(ManifestError):
        sign_release(current, key, entry, b"{}", 0)
    with pytest.raises(RefusedError, match="cannot be read"):
        sign_release(b"{}", key, entry, raw_manifest("m", "1"), 0)
    with pytest.raises(RefusedError, match="not a plain targets role"):
        sign_release(fleet.root, key, entry, raw_manifest("m", "1"), 0)


def test_a_floor_nobody_can_reach(fleet: SignedFleet) -> None:
    with pytest.raises(RefusedError, match="no device could install it"):
        sign(fleet, min_release=2)


def test_what_devices_would_not_understand_is_not_signed(fleet: SignedFleet) -> None:
    with pytest.raises(RefusedError, match="devices would not understand"):
        sign(fleet, limits=((0, 10_001),))


def test_release_signed_with_another_key(fleet: SignedFleet) -> None:
    role = fleet.read("1.release.json").signed
    role.version = 2
    forged = fleet.signed_by("release", role, key=fleet.key("rollout"))
    with pytest.raises(RefusedError, match="not signed by this fleet's release key"):
        fleet.repository.publish(forged, fleet.now_s)
    assert fleet.repository.version == 1


def test_release_that_loses_or_changes_a_bundle(fleet: SignedFleet) -> None:
    bundle = fleet.publish()
    role = fleet.read("2.release.json").signed
    role.version += 1
    role.targets[bundle.path].unrecognized_fields["custom"]["min_release"] = 1
    with pytest.raises(RefusedError, match="a published bundle does not change"):
        fleet.repository.publish(fleet.signed_by("release", role), fleet.now_s)
    del role.targets[bundle.path]
    lost = fleet.signed_by("release", role)
    with pytest.raises(RefusedError, match="missing from the new release metadata"):
        fleet.repository.publish(lost, fleet.now_s)
    assert fleet.repository.publish(lost, fleet.now_s, frozenset({bundle.path})) == 3
    assert fleet.repository.releases() == {}


def test_expired_release(fleet: SignedFleet) -> None:
    signed = sign(fleet)
    with pytest.raises(RefusedError, match="expired already"):
        fleet.repository.publish(signed, fleet.now_s + 180 * DAY_S)


def test_release_larger_than_devices_read(fleet: SignedFleet) -> None:
    role = fleet.read("1.release.json").signed
    role.version += 1
    role.unrecognized_fields["x"] = "x" * TrustLimits().targets_bytes
    with pytest.raises(RefusedError, match="devices read; remove bundles"):
        fleet.repository.publish(fleet.signed_by("release", role), fleet.now_s)


# --- serving --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "../keys/root.pem", "keys", "9.root.json", "/etc/passwd", "timestamp.json\0"]
)
def test_names_that_are_none(fleet: SignedFleet, name: str) -> None:
    assert fleet.repository.metadata(name) is None


def test_targets_only_as_released(fleet: SignedFleet) -> None:
    bundle = fleet.publish()
    assert fleet.repository.target(bundle.path, bundle.sha256) == raw_manifest("m", "1")
    assert fleet.repository.target(bundle.path, "e" * 64) is None
    assert fleet.repository.target("bundles/cam/m-2", bundle.sha256) is None


def test_the_pack_stays_small_and_brings_new_roots(fleet: SignedFleet) -> None:
    pack = fleet.direct(directive_for(fleet.publish(), percent_bp=100))
    assert len(pack) < 1_200
    assert set(open_pack(pack, TrustLimits())) == {
        "2.rollout.json",
        "3.snapshot.json",
        "timestamp.json",
    }
    fleet.rotate_root("snapshot")
    assert "2.root.json" in open_pack(fleet.repository.pack(), TrustLimits())


def test_roots_that_do_not_fit_are_left_out_oldest_first(fleet: SignedFleet) -> None:
    for _ in range(3):
        fleet.rotate_root()
    limits = TrustLimits(pack_files=4)
    names = set(open_pack(repository_module.pack_of(fleet.repository._generation, limits), limits))
    assert {name for name in names if "root" in name} == {"4.root.json"}


# --- renewing -------------------------------------------------------------------------------------


def test_renewal_in_time(fleet: SignedFleet) -> None:
    """Half of each validity; an idle fleet manager keeps its devices able to refresh for weeks."""
    fleet.direct(directive_for(fleet.publish()))
    device = Reader(fleet.root)
    signings = 0
    for hour in range(24 * 30):
        now_s = fleet.now_s + hour * HOUR_S
        signings += fleet.repository.resign_if_due(now_s)
        if hour % 11 == 0:
            device.refresh(fleet.offered(), fleet.repository.pack(), now_s)
    assert len(directives(device.state)) == 1
    assert 50 <= signings <= 70
    assert not fleet.repository.resign_if_due(fleet.now_s + 24 * 30 * HOUR_S - HOUR_S)


def test_old_versions_are_removed_in_time(fleet: SignedFleet) -> None:
    bundle = fleet.publish()
    for stage in range(60):
        fleet.direct(directive_for(bundle, stage=stage))
    names = {path.name for path in (fleet.home / "repository/metadata").iterdir()}
    assert len(names) < 120
    assert "1.root.json" in names
    assert "1.targets.json" in names
    Reader(fleet.root).refresh(fleet.offered(), None, fleet.now_s)


def test_what_expires_and_needs_people(fleet: SignedFleet) -> None:
    month_s = 30 * DAY_S
    assert fleet.repository.expiring(fleet.now_s, month_s) == {}
    assert fleet.repository.expiring(fleet.now_s + 160 * DAY_S, month_s) == {"release": 20 * DAY_S}


# --- keys -----------------------------------------------------------------------------------------


def test_the_server_works_without_the_offline_keys(fleet: SignedFleet) -> None:
    signed = sign(fleet)
    for role in ("root", "targets", "release"):
        key_path(fleet.home, role).unlink()
    server = Repository(fleet.home)
    server.publish(signed, fleet.now_s)
    assert server.set_directives([directive_for(server.releases()["bundles/cam/m-1"])], fleet.now_s)
    with pytest.raises(ConfigError, match=r"cannot read the signing key .*release\.pem"):
        sign(fleet, "2")


def test_a_wrong_key_signs_nothing(fleet: SignedFleet) -> None:
    bundle = fleet.publish()
    shutil.copy(key_path(fleet.home, "root"), key_path(fleet.home, "rollout"))
    server = Repository(fleet.home)
    with pytest.raises(ConfigError, match="is not the rollout key of this fleet"):
        server.set_directives([directive_for(bundle)], fleet.now_s)
    assert Repository(fleet.home).directives() == ()


def test_a_key_that_is_none(fleet: SignedFleet) -> None:
    key_path(fleet.home, "timestamp").write_text("hello")
    with pytest.raises(ConfigError, match="Restore the key from its backup"):
        Repository(fleet.home).set_directives([directive_for(fleet.publish())], fleet.now_s)


# --- crashes and damage ---------------------------------------------------------------------------


class PowerCutError(Exception):
    """The machine stops."""


@pytest.mark.parametrize("files_written", [0, 1, 2])
@pytest.mark.parametrize("change", ["direct", "publish"])
def test_a_crash_between_two_files(
    fleet: SignedFleet, monkeypatch: pytest.MonkeyPatch, files_written: int, change: str
) -> None:
    """Before the timestamp is written nothing has happened; afterwards the change goes through as if new."""
    bundle = fleet.publish()
    signed = sign(fleet, "2")
    left = files_written

    def write(path: Path, content: bytes, mode: int = 0o644) -> None:
        nonlocal left
        if left == 0:
            raise PowerCutError
        left -= 1
        write_durable(path, content, mode)

    def attempt(repository: Repository) -> None:
        if change == "direct":
            repository.set_directives([directive_for(bundle)], fleet.now_s)
        else:
            repository.publish(signed, fleet.now_s)

    before = fleet.repository.version
    with monkeypatch.context() as patched:
        patched.setattr(repository_module, "write_durable", write)
        with pytest.raises(PowerCutError):
            attempt(fleet.repository)
    for survivor in (fleet.repository, Repository(fleet.home)):
        assert survivor.version == before
        assert survivor.directives() == ()
        assert list(survivor.releases()) == ["bundles/cam/m-1"]
    fleet.reopen()
    Reader(fleet.root).refresh(fleet.offered(), fleet.repository.pack(), fleet.now_s)
    attempt(fleet.repository)
    assert fleet.repository.version == before + 1
    Reader(fleet.root).refresh(fleet.offered(), None, fleet.now_s)


@pytest.mark.parametrize(
    "name", ["2.snapshot.json", "2.release.json", "1.rollout.json", "1.targets.json"]
)
def test_damage_is_named(fleet: SignedFleet, name: str) -> None:
    fleet.publish()
    path = fleet.home / "repository/metadata" / name
    path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    with pytest.raises(ServerError, match=name.replace(".", r"\.")):
        Repository(fleet.home)
    path.unlink()
    with pytest.raises(ServerError, match=name.replace(".", r"\.")):
        Repository(fleet.home)


def test_a_full_disk_is_the_servers_fault(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="Check the disk"):
        write_durable(tmp_path / "missing" / "x", b"")
    write_durable(tmp_path / "x", b"1")
    write_durable(tmp_path / "x", b"2", mode=0o600)
    assert (tmp_path / "x").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
