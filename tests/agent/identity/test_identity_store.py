"""Keys and certificates on the disk: whole after a power cut before or after any write."""

import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from agent.adapters.identity_disk import IdentityDisk
from agent.errors import DeviceError
from agent.identity.certificate import new_key, parse_key, public_der, request
from agent.identity.errors import EnrolmentRefusedError, IdentityDamagedError
from agent.identity.store import IdentityStore
from agent.state_dir import IdentityPaths
from fleet.registry.authority import Authority, certificate_pem, make_authority
from fleet.registry.device_ca import issue_to_device, requested_key
from protos.identity import DeviceName

NAME = DeviceName("lab", "camera", "cam-1")
WEEK_S = 7 * 86400.0


class PowerCut(BaseException):
    """The power is gone: nothing catches it."""


class FailingDisk(IdentityDisk):
    """The real disk, which loses its power at the change with this number: before it, or right after it."""

    __slots__ = ("_at", "_before", "changes")

    def __init__(self, at: int, before: bool) -> None:
        self._at, self._before, self.changes = at, before, 0

    def make_folder(self, path: Path) -> Path:
        return self._change(lambda: IdentityDisk.make_folder(self, path))

    def write(self, path: Path, content: bytes) -> None:
        self._change(lambda: IdentityDisk.write(self, path, content))

    def rename(self, source: Path, target: Path) -> None:
        self._change(lambda: IdentityDisk.rename(self, source, target))

    def remove(self, path: Path) -> None:
        self._change(lambda: IdentityDisk.remove(self, path))

    def _change(self, change: Callable[[], object]) -> Any:
        self.changes += 1
        if self.changes == self._at and self._before:
            raise PowerCut
        done = change()
        if self.changes == self._at:
            raise PowerCut
        return done


class Fleet:
    """Signs whatever is asked for; ``signed`` holds the keys, in order."""

    def __init__(self) -> None:
        self.authority: Authority = make_authority("lab device CA", time.time(), WEEK_S * 100)
        self.signed: list[bytes] = []

    def sign(self, csr: bytes, name: DeviceName = NAME) -> bytes:
        key = requested_key(csr)
        self.signed.append(key.der)
        made = issue_to_device(self.authority, name, key, time.time(), WEEK_S)
        return certificate_pem(made) + self.authority.pem


def store_at(folder: Path, disk: IdentityDisk | None = None) -> IdentityStore:
    return IdentityStore(IdentityPaths(folder), disk or IdentityDisk())


def enrol_once(store: IdentityStore, fleet: Fleet) -> None:
    """Every change of an enrolment, in its order."""
    store.keep_server(fleet.authority.pem, "fleet:8475")
    store.open_identity()
    store.identity_key()
    store.install(fleet.sign(request(store.next_key(), "cam-1")), "cam-1", "camera")


def renew_once(store: IdentityStore, fleet: Fleet) -> None:
    store.open_identity()
    store.install(fleet.sign(request(store.next_key(), "cam-1")), "cam-1", "camera")


def cuts(work: Callable[[IdentityStore, Fleet], None], folder: Path) -> list[tuple[int, bool]]:
    """Every place at which the power may go during ``work`` over a copy of ``folder``."""
    counting = FailingDisk(0, before=False)
    copy = folder.with_name(folder.name + "-count")
    if folder.exists():
        shutil.copytree(folder, copy)
    work(store_at(copy, counting), Fleet())
    return [(at, before) for at in range(1, counting.changes + 1) for before in (True, False)]


def test_enrolment_goes_on_from_a_power_cut_at_any_change(tmp_path: Path) -> None:
    places = cuts(enrol_once, tmp_path / "none")
    assert (
        len(places) >= 2 * 7
    )  # folder, CA, where, identity key, next key, certificate, two renames
    for at, before in places:
        folder, fleet = tmp_path / f"{at}-{before}", Fleet()
        with pytest.raises(PowerCut):
            enrol_once(store_at(folder, FailingDisk(at, before)), fleet)
        enrol_once(store_at(folder), fleet)
        found = store_at(folder).open_identity()
        assert found is not None
        assert found.certificate.key_der == fleet.signed[-1]
        assert public_der(parse_key(found.key_pem)) == found.certificate.key_der
        left = {path.name for path in folder.iterdir()}
        assert not left & {"next.key.pem", "next.pem"}, (at, before)


def test_renewal_leaves_the_old_pair_or_the_new_one_at_any_power_cut(tmp_path: Path) -> None:
    fleet, begun = Fleet(), tmp_path / "begun"
    enrol_once(store_at(begun), fleet)
    old = fleet.signed[-1]
    outcomes = set()
    for at, before in cuts(renew_once, begun):
        folder = tmp_path / f"{at}-{before}"
        shutil.copytree(begun, folder)
        with pytest.raises(PowerCut):
            renew_once(store_at(folder, FailingDisk(at, before)), fleet)
        after_cut = store_at(folder).open_identity()
        assert after_cut is not None
        outcomes.add("old" if after_cut.certificate.key_der == old else "new")
        asked = fleet.signed[-1]
        if after_cut.certificate.key_der == old and (folder / "next.key.pem").exists():
            renew_once(store_at(folder), fleet)
            if at > 2:
                assert fleet.signed[-1] == asked  # the same key again
        found = store_at(folder).open_identity()
        assert found is not None
        assert public_der(parse_key(found.key_pem)) == found.certificate.key_der
    assert outcomes == {"old", "new"}


def test_without_the_repair_a_cut_between_the_two_renames_is_seen(tmp_path: Path) -> None:
    """The check above can fail: read without putting right what the cut left."""
    fleet, folder = Fleet(), tmp_path / "device"
    enrol_once(store_at(folder), fleet)
    with pytest.raises(PowerCut):
        renew_once(store_at(folder, FailingDisk(4, before=False)), fleet)
    with pytest.raises(IdentityDamagedError, match=r"device\.pem is not for the key in device"):
        store_at(folder).read()


def test_what_is_kept_is_private_and_remembers_where_it_enrolled(tmp_path: Path) -> None:
    fleet, folder = Fleet(), tmp_path / "device"
    store = store_at(folder)
    assert (store.open_identity(), store.enrolled_at()) == (None, "")
    enrol_once(store, fleet)
    assert store.enrolled_at() == "fleet:8475"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    found = store.read()
    assert found is not None
    assert found.certificate.name == NAME
    assert abs(found.certificate.not_after_s - time.time() - WEEK_S) < 600
    assert load_der_public_key(public_der(store.identity_key())) is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            DeviceName("lab", "camera", "cam-2"),
            "is for spiffe://lab/class/camera/device/cam-2, this is cam-1",
        ),
        (DeviceName("lab", "door", "cam-1"), "this is cam-1 of class camera"),
    ],
)
def test_a_certificate_of_another_device_is_not_kept(
    tmp_path: Path, name: DeviceName, message: str
) -> None:
    store, fleet = store_at(tmp_path / "device"), Fleet()
    chain = fleet.sign(request(store.next_key(), "cam-1"), name)
    with pytest.raises(EnrolmentRefusedError, match=message):
        store.install(chain, "cam-1", "camera")
    assert store.open_identity() is None


def test_a_certificate_for_another_key_is_not_kept(tmp_path: Path) -> None:
    store, fleet = store_at(tmp_path / "device"), Fleet()
    store.next_key()
    chain = fleet.sign(request(parse_key(new_key()), "cam-1"))
    with pytest.raises(EnrolmentRefusedError, match="is not for the key asked for"):
        store.install(chain, "cam-1", "camera")
    with pytest.raises(EnrolmentRefusedError, match="is no certificate of a device"):
        store.install(b"nonsense", "cam-1", "camera")
    assert store.open_identity() is None


@pytest.mark.parametrize("name", ["device.pem", "device.key.pem"])
def test_what_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "device"
    enrol_once(store_at(folder), Fleet())
    (folder / name).write_bytes(b"x")
    with pytest.raises(IdentityDamagedError, match=name.replace(".", r"\.")):
        store_at(folder).open_identity()


def test_a_folder_that_cannot_be_read_is_the_devices_fault(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    (folder / "device.pem").mkdir(parents=True)
    with pytest.raises(DeviceError, match="cannot read"):
        store_at(folder).open_identity()
